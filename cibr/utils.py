"""What every room needs: near names for error messages, the project's folders, atomic writes and provenance."""

import difflib
import os
import platform
import subprocess
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
VERSIONS_OF = ("cibr", "torch", "transformers", "accelerate", "numpy")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ", did you mean 'x'?" with the known name that is nearest, or "" if none is near.

    Examples:
        >>> nearest("flickr8", ["flickr8k", "glyphs"])
        ", did you mean 'flickr8k'?"
        >>> nearest("photos", ["flickr8k", "glyphs"])
        ''
    """
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1)
    return f", did you mean {by_lower_case[found[0]]!r}?" if found else ""


def in_checkout() -> bool:
    """Returns whether the package lies in its own checkout, beside ``pyproject.toml``."""
    # Only the folder just above counts: a virtual environment may lie inside another project.
    return (PACKAGE.parent / "pyproject.toml").is_file()


def project_root() -> Path:
    """Returns the checkout's folder, or the current one when the package is installed."""
    return PACKAGE.parent if in_checkout() else Path.cwd()


def cache_folder() -> Path:
    """Returns the folder for data that can be made or fetched again; it need not exist yet.

    Returns:
        ``data/cache`` of the checkout, which git ignores, or ``~/.cache/cibr`` when installed.
    """
    return PACKAGE.parent / "data" / "cache" if in_checkout() else Path.home() / ".cache" / "cibr"


def runs_folder() -> Path:
    """Returns the folder that runs without an output folder of their own go to: ``$CIBR_RUNS``, or ``runs``."""
    return Path(os.environ.get("CIBR_RUNS") or project_root() / "runs").expanduser()


def shipped(relative: str) -> Path:
    """Returns the path of a data file or folder that comes with the package.

    Args:
        relative: its path within ``data/``: ``datasets.yaml``, ``checkpoints/clip-tiny``, ...

    Returns:
        ``cibr/_shipped/<relative>`` where a wheel installed it, else ``data/<relative>`` of the checkout.

    Raises:
        FileNotFoundError: if it is in neither place.
    """
    candidates = PACKAGE / "_shipped" / relative, PACKAGE.parent / "data" / relative
    for path in candidates:
        if path.exists():
            return path
    raise FileNotFoundError(
        f"{relative} of the package is missing: neither {candidates[0]} (as installed) nor {candidates[1]} "
        "(as in the repository) is there; install the package again"
    )


def write_atomically(file: Path, write: Callable[[Path], None]) -> None:
    """Writes a file so that it is whole or absent at any moment, also after a crash or a power cut.

    Args:
        file: the file to write; its folder exists. A link to a file stays a link.
        write: writes the content to the path that it is given, ``<file>.<process>.part`` beside the file.

    Raises:
        OSError: if it cannot be written; the file is then as it was.
    """
    file = Path(file).resolve()
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        write(part)
        _sync(part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    _sync(file.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def provenance() -> dict[str, Any]:
    """Commit of the checkout and package versions that a run's numbers depend on.

    Returns:
        `commit`: 12 digits, with `+` when files other than tables of results differ from it, None outside a
        checkout; `versions`: by package, with `python`.
    """
    versions = {"python": platform.python_version()} | {name: _version(name) for name in VERSIONS_OF}
    return {"commit": _commit(), "versions": versions}


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
