"""Utilities: the project's folders, files that are whole or absent, and provenance."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cibr import utils
from cibr.utils import cache_folder, project_root, provenance, write_atomically


def test_folders_are_those_of_the_checkout_or_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "_PACKAGE", tmp_path / "site" / "cibr")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "cibr"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert (project_root(), cache_folder()) == (Path.cwd(), Path.home() / ".cache" / "cibr")
    site = tmp_path / "site"
    site.mkdir()
    (site / "pyproject.toml").touch()
    assert (project_root(), cache_folder()) == (site, site / "data" / "cache")


def test_a_write_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path, monkeypatch):
    file = tmp_path / "file.txt"
    write_atomically(file, lambda part: part.write_text("one"))

    def fail(path: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, fail)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(file, lambda part: part.write_text("two"))
    assert file.read_text() == "one" and list(tmp_path.iterdir()) == [file]


def test_the_content_is_on_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    link, seen = tmp_path / "link.txt", []
    link.symlink_to(tmp_path / "file.txt")
    monkeypatch.setattr(os, "fsync", lambda _: seen.append((tmp_path / "file.txt").exists()))
    write_atomically(link, lambda part: part.write_text("one"))
    assert seen == [False, True], "the file is synced, then named, then its folder is synced"
    assert link.is_symlink() and (tmp_path / "file.txt").read_text() == "one"


def test_provenance_marks_changed_code_but_neither_changed_results_nor_new_files(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(utils, "project_root", lambda: tmp_path)
    monkeypatch.setattr(utils, "_in_checkout", lambda: True)
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
