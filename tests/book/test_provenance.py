"""Provenance of results: the commit, with a mark if code has changed, and the versions."""

import subprocess

import numpy as np

from cibr_book import provenance as module
from cibr_book.provenance import provenance


def test_provenance_marks_changed_code_but_neither_changed_results_nor_new_files(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    assert provenance()["commit"] is None  # no repository
    code, table = tmp_path / "code.py", tmp_path / "data" / "results" / "rows.csv"
    table.parent.mkdir(parents=True)
    for file in (code, table):
        file.write_text("1\n")
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init"], ["add", "."], [*who, "commit", "-m", "Start"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True, capture_output=True)
    of_commit = provenance()["commit"]
    table.write_text("2\n")
    (tmp_path / "new.py").touch()
    assert len(of_commit) == 12 and provenance()["commit"] == of_commit
    code.write_text("2\n")
    assert provenance()["commit"] == of_commit + "+"
    versions = provenance()["versions"]
    assert versions["numpy"] == np.__version__ and versions["python"].startswith("3.")
