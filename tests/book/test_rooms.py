"""The rooms of the study: which of its modules may import which."""

import re
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
BESIDE = {path.stem for path in STUDY.glob("*.py")} - {"__init__"}
IMPORT = re.compile(r"^\s*(?:from|import) (\.|cibr_book)\.?(?: import )?(\w*)", re.MULTILINE)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room):
    for path in (STUDY / room).glob("*.py"):
        imported = {name for _, name in IMPORT.findall(path.read_text("utf-8"))}
        assert imported <= MAY_IMPORT[room] | BESIDE | {room}, path.name


def test_every_folder_of_the_study_is_a_room():
    assert {path.parent.name for path in STUDY.glob("*/*.py")} == set(MAY_IMPORT)
