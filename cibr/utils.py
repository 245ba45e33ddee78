"""Shared helpers: checks of names and numbers, the project's folders, atomic writes."""

import difflib
import hashlib
import itertools
import math
import numbers
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ", did you mean 'x'?" with the closest known name, or "" if none is close, whatever
    their case.

    Examples:
        >>> nearest("FLICKR-8K", ["flickr8k", "glyphs"])
        ", did you mean 'flickr8k'?"
        >>> nearest("photos", ["flickr8k", "glyphs"])
        ''
    """
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1)
    return f", did you mean {by_lower_case[found[0]]!r}?" if found else ""


def check_known(what: str, value: str, known: Collection[str]) -> None:
    """Raises ValueError for a value that is not among the known ones, with the nearest of them."""
    if value not in known:
        raise ValueError(
            f"unknown {what} {value!r}{nearest(value, known) or '.'} Known: {', '.join(known)}"
        )


def check_number(
    name: str, value: Any, low: float | int, high: float | int = math.inf, *, whole: bool = False
) -> float:
    """The value as a float, or ValueError unless it is a number, or a whole one, in [low, high]."""
    is_number = isinstance(value, numbers.Integral if whole else numbers.Real)
    if not is_number or isinstance(value, bool) or not low <= value <= high:
        what = "whole number" if whole else "number"
        raise ValueError(f"{name} is {value!r}: give a {what} from {low:g} to {high:g}")
    return float(value)


class NotFiniteError(ValueError, FloatingPointError):
    """Features that are not finite: a bad input or, in training, a run that has diverged."""


def check_unit_vectors(tolerance: float = 0.01, **embeddings: Any) -> None:
    """Raises ValueError unless all rows are finite and of unit length.

    Args:
        tolerance: lengths may differ from 1 by so much; bfloat16 has three digits.
        embeddings: tensors [n, d] of one row or more, by the names that errors have.
    """
    for name, rows in embeddings.items():
        if not len(rows):
            raise ValueError(f"{name} are empty: give one row or more")
        error = (rows.detach().float().norm(dim=1) - 1).abs().amax().item()
        if not math.isfinite(error):
            raise NotFiniteError(f"{name} are not finite: look for NaN in weights and inputs")
        if error > tolerance:
            what = f"{name} must be unit vectors, but a length is off by {error:.3g}"
            raise ValueError(f"{what}: normalise them with torch.nn.functional.normalize(x, dim=1)")


def batched(items: Iterable, batch_size: int) -> Iterator[list]:
    """Yields lists of items, of which the last may be shorter, as `itertools.batched` does from
    Python 3.12 on.

    Raises:
        ValueError: batch_size < 1.
    """
    check_number("batch_size", batch_size, 1, whole=True)
    items = iter(items)
    while batch := list(itertools.islice(items, batch_size)):
        yield batch


def digest(content: str | bytes) -> str:
    """Returns the SHA-256 hash of a text in UTF-8 or of bytes, in 64 hexadecimal digits."""
    if isinstance(content, str):  # names of files need not be valid text
        content = content.encode(errors="backslashreplace")
    return hashlib.sha256(content).hexdigest()


def project_root() -> Path:
    """Returns the checkout's folder, or the current one when the package is installed."""
    # Only the parent folder counts: a virtual environment may be inside another project.
    in_checkout = (_PACKAGE.parent / "pyproject.toml").is_file()
    return _PACKAGE.parent if in_checkout else Path.cwd()


def cache_folder() -> Path:
    """Returns the folder for data that can be recomputed or fetched again; it may not exist yet.

    Returns:
        ``data/cache`` of the checkout, which git ignores; when installed ``cibr`` in
        ``$XDG_CACHE_HOME``, by default ``~/.cache``.
    """
    if project_root() == _PACKAGE.parent:
        return project_root() / "data" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cibr"


def shipped(relative: str) -> Path:
    """Returns the path of a data file or folder that is shipped with the package.

    Args:
        relative: its path within ``data/``, such as ``checkpoints/clip-tiny``.

    Returns:
        ``cibr/_shipped/<relative>`` where a wheel installed it, else ``data/<relative>`` of the
        checkout.
    """
    installed = _PACKAGE / "_shipped" / relative
    return installed if installed.exists() else _PACKAGE.parent / "data" / relative


def write_atomically(file: Path, write: Callable[[Path], None]) -> None:
    """Writes a file atomically: at any moment it is complete or absent.

    Args:
        file: the file to write, in an existing folder. A link to a file stays a link.
        write: takes a path, ``<file>.<process>.part`` beside the file, and writes the content to
            it.

    Raises:
        OSError: if it cannot be written; the file is then unchanged.
    """
    file = Path(file).resolve()
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
