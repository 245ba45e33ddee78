"""The output folder of a run: whose it is, its lock, its checkpoints and the finished run.

A folder belongs to a run once it has that run's `run.json`, which is written before the first step
into a folder without other files. Only what runs made is removed or written over. A checkpoint is a
run's if it has the file `CHECKPOINT`, which is written first, and counts if it has Trainer's state,
which is written last.
"""

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from filelock import FileLock, Timeout

import cibr

CHECKPOINT = "cibr.pt"
_PATIENCE = 5  # s, as worker processes of a killed run may hold the lock a little longer
# What may lie in the folder of a new run: its notebook, its log, and `cibr train`'s own runs.
_ALLOWED = ("*.ipynb", "*.log", ".*", "held_out", "trials")


class RunFolder:
    """The output folder of a run.

    Args:
        path: of the folder, which is created.
        writes: whether this process writes to it.

    Raises:
        ValueError: the folder cannot be written, or contains files that no run made.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path = path
        self.writes = writes
        try:
            path.mkdir(parents=True, exist_ok=True)
            files = sorted(path.iterdir())
        except OSError as error:
            raise ValueError(
                f"output_dir {str(path)!r} cannot be written: {error}; choose another"
            ) from error
        if self._record():
            foreign = [folder for folder in self._checkpoints() if not _is_of_a_run(folder)]
        else:
            foreign = [file for file in files if not any(map(file.match, _ALLOWED))]
        if foreign and writes:
            raise ValueError(
                f"output_dir {str(path)!r} already has files that no run made, such as "
                f"{foreign[0].name!r}: choose another"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A context that keeps other runs out of the folder.

        Raises:
            ValueError: another run is writing to it.
        """
        lock = FileLock(self.path / ".cibr.lock", timeout=_PATIENCE)
        try:
            if self.writes:
                lock.acquire()
        except Timeout as error:
            raise ValueError(
                f"another run is writing to output_dir {str(self.path)!r}: wait for its end, or "
                "choose another"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def finished_history(self, identity: dict[str, Any]) -> pd.DataFrame | None:
        """The history of a finished run, or None.

        Raises:
            ValueError: the folder has a finished run, or one with a checkpoint, of another
                configuration or other pairs; the message has the differences.
        """
        record = self._record()
        if not record or not (record["finished"] or self.checkpoints()):
            return None
        stored = record["run"]
        differences = [
            f"{name} ({stored.get(name)!r} there, {identity.get(name)!r} here)"
            for name in {**identity, **stored}
            if stored.get(name) != identity.get(name)
        ]
        if differences:
            kind = "a finished run" if record["finished"] else "an unfinished run"
            raise ValueError(
                f"{str(self.path)!r} holds {kind} of another configuration: "
                f"{', '.join(differences)}. Choose another output_dir, or remove this one"
            )
        if not record["finished"]:
            return None
        # Numbers that are read as text keep their last digit; empty cells are NaN.
        history = pd.read_csv(self.path / "history.csv", dtype=str)
        return history.astype(float).astype({"epoch": int, "step": int})

    def checkpoints(self) -> list[str]:
        """The whole checkpoints, oldest first."""
        return [str(folder) for folder in self._checkpoints() if _is_whole(folder)]

    def last_good(self) -> str:
        """The newest whole checkpoint, as a clause for messages."""
        if whole := self.checkpoints():
            return f"the last good checkpoint is {whole[-1]!r}"
        return "there is no checkpoint yet"

    def write_record(
        self, configuration: dict[str, Any], identity: dict[str, Any], finished: bool = False
    ) -> None:
        """Writes `run.json`, which makes the folder this run's."""
        versions = {
            package.__name__: package.__version__ for package in (cibr, torch, transformers)
        }
        record = {"configuration": configuration, "run": identity, "finished": finished}
        self.write("run.json", json.dumps(record | {"versions": versions}, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """Writes a file that a kill leaves as it was before or as it is afterwards."""
        if self.writes:
            part = self.path / f".{name}.part"
            with self.writing(self.path / name):
                part.write_text(text, encoding="utf-8")
                part.replace(self.path / name)

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """A context that writes a file or a checkpoint; what is left of a checkpoint is removed.

        Raises:
            ValueError: the disk is full or refuses; the message names the last good checkpoint.
        """
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch.save raises the latter
            if path.is_dir():
                _remove(path)
            raise ValueError(
                f"cannot write {str(path)!r}: {error}; {self.last_good()}. Make room or choose "
                "another output_dir"
            ) from error

    def remove_checkpoints(self, but: Collection[str | None] = ()) -> None:
        """Removes the checkpoints that runs made, but for some."""
        for folder in self._checkpoints():
            if self.writes and _is_of_a_run(folder) and str(folder) not in but:
                _remove(folder)

    def _record(self) -> dict[str, Any]:
        """The record of the folder's run, or an empty one if it is no run's."""
        try:
            record = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
            is_of_a_run = all(isinstance(record[name], dict) for name in ("configuration", "run"))
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return {}
        return {"finished": True} | record if is_of_a_run else {}

    def _checkpoints(self) -> list[Path]:
        """Folders of checkpoints, whole or not, oldest first."""
        named = [re.fullmatch(r"checkpoint-(\d+)", file.name) for file in self.path.iterdir()]
        steps = {int(name[1]): self.path / name[0] for name in named if name}
        return [steps[step] for step in sorted(steps)]


def _is_of_a_run(folder: Path) -> bool:
    """Whether a run made this folder of a checkpoint, or had begun to."""
    return folder.is_dir() and ((folder / CHECKPOINT).exists() or not any(folder.iterdir()))


def _is_whole(folder: Path) -> bool:
    """Whether a checkpoint of a run has all its files."""
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return _is_of_a_run(folder)


def _remove(folder: Path) -> None:
    """Removes a checkpoint, its mark last: what a kill leaves is known as a run's."""
    with suppress(OSError):
        for file in sorted(folder.iterdir(), key=lambda file: file.name == CHECKPOINT):
            file.unlink()
        folder.rmdir()
