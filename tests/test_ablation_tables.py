"""book/ablation_tables.py writes the chapter's tables from the runs' folders."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
from fake_ablation import add_run, settings_of

SCRIPT = Path(__file__).resolve().parents[1] / "book" / "ablation_tables.py"
SUITE = "from fake_ablation import TASKS; from cibr.evaluate import SUITES; SUITES['small'] = TASKS"


def call(*arguments):
    code = f"import runpy; {SUITE}; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)


def test_the_script_writes_both_tables_and_says_what_is_left_out(tmp_path):
    table, runs = tmp_path / "ablation.csv", tmp_path / "runs"
    for arm in ("CLIP", "CIBR"):
        for seed in (0, 1):
            add_run(table, runs, settings_of(arm, seed))
    add_run(table, runs, settings_of("CIBR", 2))
    done = call("--table", table, "--runs", runs, "--output", tmp_path / "made")
    assert done.returncode == 0, done.stderr
    assert "left out: flickr8k, CIBR, 0.0,  against CLIP: seeds 2" in done.stdout
    differences = pd.read_csv(tmp_path / "made" / "ablation_differences.csv")
    assert len(differences) == 9 and set(differences["n_seeds"]) == {2}
    assert len(pd.read_csv(tmp_path / "made" / "ablation_training.csv")) == 8
    before = (tmp_path / "made" / "ablation_differences.csv").read_bytes()
    call("--table", table, "--runs", runs, "--output", tmp_path / "made")
    assert (tmp_path / "made" / "ablation_differences.csv").read_bytes() == before


def test_what_tables_said_about_runs_whose_folders_are_gone_stays(tmp_path):
    table, runs = tmp_path / "ablation.csv", tmp_path / "runs"
    for arm in ("CLIP", "CIBR", "noise only"):
        for seed in (0, 1):
            add_run(table, runs, settings_of(arm, seed))
    call("--table", table, "--runs", runs)
    before = {name: pd.read_csv(tmp_path / f"ablation_{name}.csv") for name in ("differences", "training")}
    for folder in runs.iterdir():
        shutil.rmtree(folder)
    add_run(table, runs, settings_of("CLIP", 2))
    add_run(table, runs, settings_of("CIBR", 2))
    rows = pd.read_csv(table)
    rows[rows["arm"] != "noise only"].to_csv(table, index=False)
    call("--table", table, "--runs", runs)
    after = {name: pd.read_csv(tmp_path / f"ablation_{name}.csv") for name in ("differences", "training")}
    assert set(before["differences"]["arm"]) == {"CIBR", "noise only"}
    assert set(after["differences"]["arm"]) == {"CIBR"} and set(after["differences"]["n_seeds"]) == {1}
    shutil.rmtree(runs)
    call("--table", table, "--runs", runs)
    for name, rows in after.items():
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / f"ablation_{name}.csv"), rows)


def test_without_rows_it_says_what_makes_them(tmp_path):
    done = call("--table", tmp_path / "ablation.csv")
    assert done.returncode == 2 and "python -m cibr.sweep makes it" in done.stderr
