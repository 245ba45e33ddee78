"""Bad input is refused in words that name the thing, the rule and the fix: one table, a module of
cases a room.
"""

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


@pytest.mark.parametrize(("call", "error", "message"), CASES)
def test_bad_input_is_refused_in_words(call, error, message, tmp_path):
    arguments = [tmp_path] if inspect.signature(call).parameters else []
    with (
        unchecked(),
        pytest.raises(error, match=message) as caught,
    ):  # our own errors, not those of annotations
        call(*arguments)
    assert len(str(caught.value)) > 20, "an error says what to do"
