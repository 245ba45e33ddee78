"""Runs as dictionaries of settings: how a grid makes them, what names one, which of them have no row yet."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cibr.results import read_rows


def grid(**axes: Any) -> list[dict[str, Any]]:
    """Every combination of settings; the last axis changes fastest.

    Args:
        axes: by setting: a list, tuple or range of values, or one value for all runs. A value that is itself a
            list stands in a list.

    Raises:
        ValueError: an axis without a value.

    Examples:
        >>> grid(beta=[0.0, 0.1], seed=range(2), model="tiny")[1]
        {'beta': 0.0, 'seed': 1, 'model': 'tiny'}
    """
    values = {name: axis if isinstance(axis, list | tuple | range) else [axis] for name, axis in axes.items()}
    if empty := [name for name, axis in values.items() if not len(axis)]:
        raise ValueError(f"the axis {empty[0]!r} has no value; give one or leave the axis out")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def run_id(settings: Mapping[str, Any], key: Sequence[str] | None = None) -> str:
    """What names a run in tables, locks and folders.

    Args:
        settings: plain values, lists and dictionaries. Their order does not count, and 1 is 1.0.
        key: the settings that tell runs apart; all of them by default.

    Returns:
        Twelve hexadecimal digits.

    Raises:
        ValueError: a value that JSON cannot hold, or a setting of the key that is not there.

    Examples:
        >>> run_id({"beta": 1, "seed": 0}) == run_id({"seed": 0, "beta": 1.0})
        True
    """
    if absent := [name for name in key or () if name not in settings]:
        raise ValueError(f"the key names {absent[0]!r}, which the run lacks; its settings are {list(settings)}")
    chosen = {name: value for name, value in settings.items() if key is None or name in key}
    return hashlib.sha256(as_json(chosen).encode()).hexdigest()[:12]


def as_json(settings: Mapping[str, Any]) -> str:
    """Settings as JSON that is the same for equal settings.

    Raises:
        ValueError: a value that JSON cannot hold.
    """
    try:
        return json.dumps(_plain(settings), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"settings are finite numbers, texts, booleans, lists and dictionaries ({error}); got {dict(settings)}"
        ) from error


def by_id(runs: Iterable[Mapping[str, Any]], key: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Runs by their names, in order; of equal ones the first stays."""
    found = {}
    for settings in runs:
        found.setdefault(run_id(settings, key), dict(settings))
    return found


def outcomes(file: str | Path) -> dict[str, str]:
    """The status of every run that a file has a row of.

    Raises:
        ValueError: the file is not one that a sweep wrote.
    """
    rows = read_rows(file)
    if len(rows) and not {"run", "status"} <= set(rows):
        raise ValueError(f"{str(file)!r} is no table of a sweep: it has the columns {list(rows)}; choose another")
    return dict(zip(rows["run"], rows["status"], strict=True)) if len(rows) else {}


def missing(
    runs: Iterable[Mapping[str, Any]], file: str | Path, key: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The runs that a file has no row of, in order and without repeats; a failed run has a row.

    Raises:
        ValueError: settings that cannot name a run, or a file that is no table of a sweep.
    """
    done = outcomes(file)
    return [settings for name, settings in by_id(runs, key).items() if name not in done]


def _plain(value: Any) -> Any:
    """The value that stands for all equal ones: whole numbers as int, tuples as lists, no NumPy scalars."""
    if isinstance(value, Mapping):
        if odd := [name for name in value if not isinstance(name, str)]:
            raise TypeError(f"names are texts, not {odd[0]!r}")
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return int(value) if isinstance(value, float) and value.is_integer() else value
