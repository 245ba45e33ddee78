"""Utilities: the project's folders, and files that are whole or absent."""

import os
from pathlib import Path

import pytest

from cibr import utils
from cibr.utils import cache_folder, project_root, write_atomically


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
