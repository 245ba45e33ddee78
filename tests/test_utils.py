"""Utilities: the project's folders, and files that are whole or absent."""

from pathlib import Path

import pytest

from cibr import utils
from cibr.utils import cache_folder, project_root, write_atomically


def test_folders_are_those_of_the_checkout_or_of_the_user(tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setattr(utils, "_PACKAGE", site / "cibr")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert (project_root(), cache_folder()) == (Path.cwd(), tmp_path / "xdg" / "cibr")
    (site / "pyproject.toml").touch()
    assert (project_root(), cache_folder()) == (site, site / "data" / "cache")


def test_a_write_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path):
    file = tmp_path / "file.txt"
    write_atomically(file, lambda part: part.write_text("one"))

    def fail(part: Path) -> None:
        part.write_text("tw")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, fail)
    assert file.read_text() == "one" and list(tmp_path.iterdir()) == [file]
