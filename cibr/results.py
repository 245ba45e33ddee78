"""Rows of results in a CSV file: where they came from, appended safely from many processes, read again exactly.

The file is always whole. A row is added under a lock by writing the table anew beside it and moving it into
place, so columns may grow, and a writer that is killed leaves what was there before. Numbers are written in full
and read back to the same bits; dictionaries and lists are stored as JSON.
"""

import csv
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from cibr.paths import in_checkout, project_root

VERSIONS_OF = ("cibr", "torch", "transformers", "accelerate", "numpy")
TEXT_COLUMNS = ("run", "commit")  # hexadecimal: without this, 12e456789012 is read as an infinite number
# Since pandas 3.1 numbers are read to the last bit without being asked, and asking is deprecated.
EXACT = {"float_precision": "round_trip"} if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1) else {}


def provenance() -> dict[str, Any]:
    """What ran: the commit of the checkout and the versions that its numbers depend on.

    Returns:
        `commit`: 12 digits, with `+` when files other than tables of results differ from it, None outside a
        checkout; `versions`: by package, with `python`.
    """
    versions = {"python": platform.python_version()} | {name: _version(name) for name in VERSIONS_OF}
    return {"commit": _commit(), "versions": versions}


def append_row(file: str | Path, row: Mapping[str, Any]) -> None:
    """Adds a row to a CSV file, which is made when it is missing; any number of processes may do so at once.

    Args:
        file: the CSV file; `<file>.lock` beside it stays, empty.
        row: cells by column; columns that the file lacks are added at its end and left empty in earlier rows.

    Raises:
        ValueError: the row is empty, or the file is no table or cannot be written.
    """
    if not row:
        raise ValueError(f"a row for {str(file)!r} needs a cell; got none")
    cells = {name: _cell(value) for name, value in row.items()}
    with _rewriting(file) as (columns, rows):
        columns += [name for name in cells if name not in columns]
        rows.append(cells)


def drop_rows(file: str | Path, unwanted: Callable[[dict[str, str]], bool]) -> None:
    """Removes the rows, given as text by column, that are unwanted; a file that is missing stays so.

    Raises:
        ValueError: the file is no table or cannot be written.
    """
    if Path(file).exists():
        with _rewriting(file) as (_, rows):
            rows[:] = [row for row in rows if not unwanted(row)]


def read_rows(file: str | Path) -> pd.DataFrame:
    """The rows of a CSV file, numbers to the last bit; an empty table when there is no file.

    Raises:
        ValueError: the file is no table.
    """
    file = Path(file)
    if not file.exists() or file.stat().st_size == 0:
        return pd.DataFrame()
    try:
        return pd.read_csv(file, dtype=dict.fromkeys(TEXT_COLUMNS, "str"), **EXACT)
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} is no CSV table: {error}; mend it or move it away") from error


def _cell(value: Any) -> str:
    """A value as text that is read back as the same value."""
    if value is None:
        return ""
    if isinstance(value, dict | list | tuple):
        return json.dumps(value)
    if hasattr(value, "item"):  # a number of NumPy or torch
        value = value.item()
    return repr(value) if isinstance(value, float) else str(value)


@contextmanager
def _rewriting(file: str | Path) -> Iterator[tuple[list[str], list[dict[str, str]]]]:
    """Columns and rows to be changed, alone; they are written when the body has ended without an error."""
    file = Path(file).resolve()  # a link stays a link
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            columns, rows = _read_cells(file)
            yield columns, rows
            _write_cells(file, columns, rows)
    except OSError as error:
        raise ValueError(f"cannot write {str(file)!r}: {error}; make room or choose another file") from error


def _read_cells(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows as text, so that nothing is reformatted when the table is written again."""
    if not file.exists() or file.stat().st_size == 0:
        return [], []
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        rows = []
        try:
            columns = list(reader.fieldnames or [])
            for row in reader:
                if None in row or None in row.values():
                    raise csv.Error(f"it has not the {len(columns)} cells of the header")
                rows.append(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{str(file)!r}, line {reader.line_num}: {error}; mend it or move it away") from error
    return columns, rows


def _write_cells(file: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    part = Path(f"{file}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # a checkout that runs without being installed
        return None


def _commit() -> str | None:
    if not in_checkout():
        return None
    try:
        # Tables of results change while they are made, and decide no number.
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)data/results")
        return _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    call = ["git", "-C", str(project_root()), *arguments]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()
