"""Shared helpers: checks of names and numbers, the project's folders, atomic writes."""

import difflib
import hashlib
import math
import numbers
import os
from collections.abc import Callable, Collection, Iterable
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
        what = f"a {'whole ' if whole else ''}number from {low:g}"
        upper = f" to {high:g}" if high < math.inf else ""
        raise ValueError(f"{name} is {value!r}: give {what}{upper}")
    return float(value)


def check_tensors(**values: Any) -> None:
    """Raises ValueError unless all values are tensors."""
    from torch import Tensor

    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name} is of type {type(value).__name__}: "
                "pass a torch.Tensor, such as torch.as_tensor(array)"
            )


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
