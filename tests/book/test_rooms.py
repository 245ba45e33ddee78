"""The rooms of the study: which of its modules may import which."""

import ast
from pathlib import Path

import pytest

STUDY = Path(__file__).resolve().parents[2] / "book" / "cibr_book"

# What each room may import of the others; all may use the modules beside the rooms.
MAY_IMPORT = {
    "worlds": set(),
    "embeddings": set(),
    "experiments": {"worlds", "embeddings"},
    "pages": {"worlds", "embeddings", "experiments"},
}
FILES = sorted(path for room in MAY_IMPORT for path in (STUDY / room).glob("*.py"))
BESIDE = {path.stem for path in STUDY.glob("*.py")} - {"__init__"}


def imported_rooms(path):
    """`from cibr_book.worlds import exact` -> worlds."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("cibr_book.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_room_imports_only_what_it_may(path):
    room = path.parent.name
    assert imported_rooms(path) <= MAY_IMPORT[room] | BESIDE | {room}


def test_every_folder_of_the_study_is_a_room():
    folders = {path.parent.name for path in STUDY.glob("*/*.py")}
    assert folders == set(MAY_IMPORT)
