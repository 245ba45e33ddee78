"""Bad input is refused by an error that names the argument: one table a room."""

import importlib
import inspect
from pathlib import Path

import pytest
from helpers import unchecked

ROOMS = sorted(file.stem for file in Path(__file__).parent.glob("bad_input_*.py"))
CASES = [
    pytest.param(*case[1:], id=case[0])
    for room in ROOMS
    for case in importlib.import_module(room).CASES
]


@pytest.mark.parametrize(("call", "error", "word"), CASES)
def test_bad_input_is_refused_and_named(call, error, word, tmp_path):
    parameters = inspect.signature(call).parameters.values()
    takes_folder = any(p.default is p.empty for p in parameters)
    with unchecked(), pytest.raises(error, match=word):  # our own errors, not the annotations'
        call(tmp_path) if takes_folder else call()
