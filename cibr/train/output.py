"""What a run leaves in its folder beside model and checkpoints: its history and where it came from."""

import tempfile
from pathlib import Path
from typing import Any

from cibr import results
from cibr.train.config import RunConfig


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
    return {"configuration": config.to_dict(), **results.provenance()}
