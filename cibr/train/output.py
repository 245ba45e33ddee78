"""What a run leaves in its folder beside model and checkpoints: its history and where it came from."""

import subprocess
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cibr.paths import in_checkout, project_root
from cibr.train.config import RunConfig

VERSIONS_OF = ("cibr", "torch", "transformers", "accelerate", "numpy")


def writable(folder: Path) -> Path:
    """The output folder, made and tried now rather than after an hour of training.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"output_dir {str(folder)!r} cannot be written: {error}; choose another") from error
    return folder


def write_text(file: Path, text: str) -> None:
    """Written beside and moved into place.

    Raises:
        ValueError: it cannot be written; what was there before stays.
    """
    part = file.with_name(file.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ValueError(f"cannot write {str(file)!r}: {error}; make room or choose another output_dir") from error


def provenance(config: RunConfig) -> dict[str, Any]:
    """The configuration with the versions and the commit that ran it."""
    versions = {name: _version(name) for name in VERSIONS_OF}
    return {"configuration": config.to_dict(), "versions": versions, "commit": _commit()}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # a checkout that runs without being installed
        return None


def _commit() -> str | None:
    """The checkout's commit, with `+` when files differ from it; None outside a checkout."""
    if not in_checkout():
        return None
    try:
        call = ["git", "-C", str(project_root()), "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
