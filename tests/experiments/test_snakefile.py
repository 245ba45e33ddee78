"""The Snakefile, run for real on toy runs: what is missing is done once, what fails is reported."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cibr_book.experiments.plan import committed, read_plan

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("snakemake")
pytestmark = pytest.mark.slow  # each run has a kernel of its own


def write_sweep(folder: Path, at_once: int = 1, **axes):
    """Writes a sweep whose runs note their number in a log and square it; returns its plan."""
    method = {"method": "toy", "beta": 0, "seed": 0, "log": str(folder / "it's a log"), "i": 2}
    methods = [method | {"hang": False} | axes, method | {"method": "other", "hang": False, "i": 4}]
    sweep = {"results": "rows.csv", "work": "toy_run.square", "at_once": at_once}
    file = folder / "toy.yaml"
    file.write_text(yaml.safe_dump(sweep | {"conditions": {"toys": {"methods": methods}}}))
    return read_plan(file)


def start(folder, *config, profile="local", options="--cores 2"):
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'book'}:{ROOT / 'tests' / 'experiments'}",
    }
    call = [sys.executable, "-m", "snakemake", "-s", ROOT / "experiments" / "Snakefile"]
    call += ["--profile", ROOT / "experiments" / "profiles" / profile, *options.split()]
    call += ["--config", "sweep=toy.yaml", *config]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(call, cwd=folder, env=environment, start_new_session=True, **pipes)


def finish(*arguments, **options):
    """The exit code and the output of a sweep."""
    sweep = start(*arguments, **options)
    output, _ = sweep.communicate(timeout=120)
    return sweep.returncode, output


def begun(folder: Path) -> list[int]:
    log = folder / "it's a log"
    return sorted(map(int, log.read_text().split())) if log.exists() else []


def test_a_failed_run_is_reported_and_stops_no_other_and_committed_rows_are_not_run(tmp_path):
    two, _, three, four = write_sweep(tmp_path, i=[2, -1, 3]).runs
    text = f"run,method,note\n{two},toy,1.50\n012345678901,elsewhere,00\n"
    (tmp_path / "rows.csv").write_text(text)
    code, output = finish(tmp_path, "gpus=4 7")
    assert code == 1 and "ArithmeticError: -1 is negative" in output
    assert begun(tmp_path) == [-1, 3, 4]
    rows = committed(tmp_path / "rows.csv").set_index("run")
    assert set(rows.index) == {two, "012345678901", three, four}
    assert rows.loc[[two, "012345678901"], "note"].tolist() == ["1.50", "00"]  # text as it was
    assert rows.loc[three, ["method", "condition", "square", "note"]].tolist() == [
        *("toy", "toys", "9.0", ""),
    ]
    assert set(rows.loc[[three, four], "gpu"]) <= {"4.0", "7.0"}  # that no other run has


def test_a_killed_sweep_into_another_table_goes_on_with_what_is_missing(tmp_path):
    done, hung, _ = write_sweep(tmp_path, at_once=2, hang=[False, True]).runs
    written = f"run,method\n{done},toy\n{hung},toy\n"
    (tmp_path / "rows.csv").write_text(written)
    how = "only=toy", "results=again.csv"
    sweep = start(tmp_path, *how)
    deadline = time.monotonic() + 300
    finished = tmp_path / "runs" / "again" / f"{done}.json"
    while not (finished.exists() and len(begun(tmp_path)) == 2):
        assert time.monotonic() < deadline and sweep.poll() is None
        time.sleep(0.1)
    os.killpg(sweep.pid, signal.SIGKILL)
    sweep.communicate()
    assert not (tmp_path / "again.csv").exists()
    code, output = finish(tmp_path, *how)
    assert code == 0, output
    assert begun(tmp_path) == [2, 2, 2]  # the finished run was not done again
    assert committed(tmp_path / "again.csv")["run"].tolist() == [done, hung]
    assert (tmp_path / "rows.csv").read_text() == written


def test_a_cluster_is_given_a_job_for_each_run_and_for_the_table(tmp_path):
    write_sweep(tmp_path)
    options = "--set-resources run:gres=gpu:1 --dry-run"
    code, output = finish(tmp_path, profile="slurm", options=options)
    assert code == 0, output
    jobs = [line.split() for line in output.splitlines()]
    assert ["run", "2"] in jobs and ["table", "1"] in jobs and "gres=gpu:1" in output
    code, output = finish(tmp_path, "only=othr", options="--dry-run")
    assert code and "no condition, method or run 'othr'" in output


def test_a_sweep_with_all_its_rows_runs_nothing_and_says_so(tmp_path):
    runs = write_sweep(tmp_path).runs
    (tmp_path / "rows.csv").write_text("\n".join(["run", *runs]) + "\n")
    code, output = finish(tmp_path)
    assert code == 0, output
    assert f"rows.csv: 0 new rows; 0 of the {len(runs)} runs have none" in output
    assert not begun(tmp_path)
