"""The notebook of one run and the workflow over it leave the rows that the command would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import papermill
import pytest
import sweep_work
import yaml
from papermill.exceptions import PapermillExecutionError
from sweep_work import taken

from cibr.results import read_rows
from cibr.sweep import read_plan, run_sweep

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "workflow" / "run.ipynb"

pytestmark = [
    pytest.mark.slow,  # each run has a kernel that imports all of cibr
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the kernel's client
]


@pytest.fixture(autouse=True)
def tests_importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    monkeypatch.setenv("TQDM_DISABLE", "1")


def test_the_notebook_of_a_run_fails_with_the_error_of_the_run(tmp_path):
    settings = {"i": 1, "log": str(tmp_path / "log")}
    parameters = dict(
        configuration=json.dumps(settings),
        results=str(tmp_path / "rows.csv"),
        work="sweep_work.fail_at_odd_until_mended",
    )
    with pytest.raises(PapermillExecutionError, match="ArithmeticError: 1 is odd"):
        papermill.execute_notebook(NOTEBOOK, None, parameters, progress_bar=False)
    assert json.loads(read_rows(tmp_path / "rows.csv")["configuration"][0]) == settings


def test_snakemake_does_the_runs_that_lack_a_row(tmp_path):
    pytest.importorskip("snakemake")
    log, file, results = tmp_path / "it's a log", tmp_path / "tiny.yaml", tmp_path / "rows.csv"
    arms = [{"i": [2, 3], "log": str(log)}]
    file.write_text(yaml.safe_dump({"results": str(results), "work": "sweep_work.square", "arms": arms}))
    before = run_sweep(read_plan(file).runs[:1], results, sweep_work.square)
    workflow = ["-s", ROOT / "workflow" / "Snakefile", "--profile", ROOT / "workflow" / "profiles" / "local"]
    call = [sys.executable, "-m", "snakemake", *workflow, "--config", f"sweep={file}"]
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_rows(results)
    assert rows["square"].tolist() == [4, 9] and taken(log) == [2, 3] and rows["run"][0] == before["run"][0]
    assert [p.stem for p in (tmp_path / "runs" / "tiny").iterdir()] == [rows["run"][1]]
