"""Checkpoints that survive: written beside and moved into place, read as weights only, the newest good one found.

A checkpoint is one file, `checkpoints/step-000000123.pt`. It is complete before it has its name, and the one
before it is removed only then, so a kill at any moment or a full disk leaves a readable one.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import torch

KEEP = 2  # the newest and the one before it


def write_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes the state of a run; older checkpoints than the last two are removed afterwards.

    Raises:
        ValueError: the folder cannot be written; the last good checkpoint is named and untouched.
    """
    file = folder / f"step-{step:09d}.pt"
    part = file.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        good = checkpoints(folder)
        last = f"the last good checkpoint is {str(good[-1])!r}" if good else "there is no earlier checkpoint"
        raise ValueError(
            f"cannot write {str(file)!r}: {error}; {last}. Make room or choose another output_dir"
        ) from error
    for old in checkpoints(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return file


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be read, with its state; damaged ones are passed over with a warning."""
    for file in reversed(checkpoints(folder)):
        try:
            return file, torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises nearly anything on a damaged file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"checkpoint {str(file)!r} cannot be read and is passed over: {reason}", stacklevel=2)
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a run that has finished."""
    for file in [*checkpoints(folder), *folder.glob("step-*.part")]:
        file.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _sync_folder(folder: Path) -> None:
    """Makes the new name itself durable, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
