"""The Snakefile, run for real on toy runs: what is missing is done once, what fails is reported."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cibr_book.plan import committed, read_plan, run_id

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("snakemake")
pytestmark = pytest.mark.slow  # each run has a kernel of its own


def sweep_file(folder: Path, **axes) -> Path:
    file, axes = (
        folder / "toy.yaml",
        {"log": str(folder / "it's a log"), "i": 2, "hang": False} | axes,
    )
    plan = {"results": "rows.csv", "work": "toy_run.square"}
    methods = [{"method": "toy", "beta": 0, "seed": 0} | axes]
    file.write_text(yaml.safe_dump(plan | {"conditions": {"toys": {"methods": methods}}}))
    return file


def start(
    folder: Path, *config: str, profile: str = "local", options: str = "--cores 2"
) -> subprocess.Popen:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    paths = os.pathsep.join([str(ROOT), str(ROOT / "book"), str(ROOT / "tests" / "experiments")])
    snakefile, profile = (
        ROOT / "experiments" / "Snakefile",
        ROOT / "experiments" / "profiles" / profile,
    )
    call = [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        snakefile,
        "--profile",
        profile,
        *options.split(),
    ]
    call += ["--config", "sweep=toy.yaml", *config]
    given = dict(
        cwd=folder, env={**os.environ, "PATH": path, "PYTHONPATH": paths}, start_new_session=True
    )
    return subprocess.Popen(
        call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **given
    )


def ended(*arguments, **options) -> tuple[int, str]:
    """The exit code and the output of a sweep."""
    sweep = start(*arguments, **options)
    output, _ = sweep.communicate(timeout=120)
    return sweep.returncode, output


def begun(folder: Path) -> list[int]:
    log = folder / "it's a log"
    return sorted(map(int, log.read_text().split())) if log.exists() else []


def test_a_failed_run_is_reported_and_stops_no_other_and_committed_rows_are_not_run(tmp_path):
    plan = read_plan(sweep_file(tmp_path, i=[2, -1, 3]))
    two = next(run for run, settings in plan.runs.items() if settings["i"] == 2)
    (tmp_path / "rows.csv").write_text(
        f"run,method,note\n{two},toy,1.50\n012345678901,elsewhere,00\n"
    )
    code, output = ended(tmp_path)
    assert code == 1 and "ArithmeticError: -1 is negative" in output
    assert begun(tmp_path) == [-1, 3]
    rows = committed(tmp_path / "rows.csv").set_index("run")
    assert (
        rows.loc[two, "note"] == "1.50" and rows.loc["012345678901", "note"] == "00"
    )  # text as it was
    (three,) = set(rows.index) - {two, "012345678901"}
    row = rows.loc[three]
    assert [row["method"], row["condition"], row["square"], row["note"]] == [
        "toy",
        "toys",
        "9.0",
        "",
    ]
    assert run_id(json.loads(row["configuration"])) == three and "python" in json.loads(
        row["versions"]
    )
    assert "undefined" not in rows


def test_a_killed_sweep_goes_on_with_what_is_missing(tmp_path):
    plan = read_plan(sweep_file(tmp_path, hang=[False, True]))
    sweep = start(tmp_path)
    deadline = time.monotonic() + 60
    done, hung = plan.runs
    while not (
        (tmp_path / "runs" / "toy" / f"{done}.json").exists() and begun(tmp_path).count(2) == 2
    ):
        assert time.monotonic() < deadline and sweep.poll() is None
        time.sleep(0.1)
    os.killpg(sweep.pid, signal.SIGKILL)
    sweep.communicate()
    assert not (tmp_path / "rows.csv").exists()
    code, output = ended(tmp_path)
    assert code == 0, output
    assert begun(tmp_path) == [2, 2, 2]  # the finished run was not done again
    assert committed(tmp_path / "rows.csv")["run"].tolist() == [done, hung]


def test_a_cluster_is_given_a_job_for_each_run_and_for_the_table(tmp_path):
    sweep_file(tmp_path, i=[2, 3])
    code, output = ended(
        tmp_path, profile="slurm", options="--set-resources run:gres=gpu:1 --dry-run"
    )
    assert code == 0, output
    jobs = [line.split() for line in output.splitlines()]
    assert ["run", "2"] in jobs and ["table", "1"] in jobs and "gres=gpu:1" in output


def test_committed_runs_of_one_method_are_done_again_into_another_table_each_with_its_gpu(tmp_path):
    entries = yaml.safe_load(sweep_file(tmp_path, i=[2, 3]).read_text())
    methods = entries["conditions"]["toys"]["methods"]
    methods.append(methods[0] | {"method": "other", "i": [4, 5]})
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(entries))
    plan = read_plan(tmp_path / "toy.yaml")
    written = "run,method\n" + "".join(f"{run},toy\n" for run in plan.runs)
    (tmp_path / "rows.csv").write_text(written)
    code, output = ended(tmp_path, "results=again.csv", "only=other", "gpus=4 7")
    assert code == 0, output
    rows = committed(tmp_path / "again.csv")
    assert set(rows["method"]) == {"other"} and begun(tmp_path) == [4, 5]
    assert set(rows["gpu"]) == {"4.0", "7.0"}
    assert (tmp_path / "rows.csv").read_text() == written
    code, output = ended(tmp_path, "only=othr")
    assert code and "no condition, method or run 'othr'" in output
