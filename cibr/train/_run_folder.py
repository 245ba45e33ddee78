"""The output folder of a run: its lock, checkpoints that count only when whole, the finished run.

A folder belongs to a run if it has that run's `run.json`, which is written before the first step
into a folder without other files. Only what runs made is removed or written over.

Trainer would resume from the newest checkpoint, whole or not. Here each has a `whole.json`: it is
written first, as the mark that a run made the folder, and again at the end, with digests of the
other files; then the checkpoint counts. Order, captions, dropout and noise are keyed by the seed
and the step, so a checkpoint needs no random state.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

import cibr
from cibr.utils import sync, write_atomically

_PATIENCE = 5  # s, as worker processes of a killed run may hold the lock a little longer
_HISTORY = "history.csv"
_RECORD = "run.json"
_MARK = "whole.json"
_LOCK = ".cibr.lock"
_PART = re.compile(rf"({re.escape(_HISTORY)}|{re.escape(_RECORD)})\.\d+\.part")
# What else may lie there: a run's notebook, its log, and what `cibr train` did before it.
_BESIDE = ("*.ipynb", "*.log", ".*", "held_out", "trials")


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
        self.identity: dict[str, Any] = {}  # must match to resume another's checkpoint
        self._name = f"output_dir {str(path)!r}"
        try:
            path.mkdir(parents=True, exist_ok=True)
            names = sorted(file.name for file in path.iterdir())
        except OSError as error:
            raise ValueError(f"{self._name} cannot be written: {error}; choose another") from error
        if self._record():
            others = [f.name for f in self._checkpoints() if not _is_ours(f)]
        else:
            others = [n for n in names if not _PART.fullmatch(n)]
            others = [n for n in others if not any(map(Path(n).match, _BESIDE))]
        if others and writes:
            what = f"already has files that no run made, such as {others[0]!r}"
            raise ValueError(f"{self._name} {what}: choose another")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """A context that locks the folder against other runs.

        Raises:
            ValueError: another run is writing to it.
            OSError: it cannot be written.
        """
        if not self.writes:
            yield
            return
        lock = FileLock(self.path / _LOCK, timeout=_PATIENCE)
        try:
            lock.acquire()
        except Timeout as error:
            fix = "wait for its end, or choose another"
            raise ValueError(f"another run is writing to {self._name}: {fix}") from error
        try:
            yield
        finally:
            (self.path / _LOCK).unlink(missing_ok=True)
            lock.release()

    def finished(self) -> pd.DataFrame | None:
        """The history of a finished run of this identity, or None.

        Raises:
            ValueError: the run has another configuration or other pairs; the message lists the
                differences.
        """
        record = self._record()
        if not record or not record.get("finished", True):
            return None
        fix = f"or remove {str(self.path)!r}"
        try:
            # Empty cells are epochs without validation.
            history = pd.read_csv(self.path / _HISTORY, dtype=str)
            if history.empty:
                raise ValueError(f"{_HISTORY} has no epoch")
        except (OSError, ValueError) as error:
            what = f"a finished run that is damaged ({error})"
            raise ValueError(f"{self._name} has {what}: choose another, {fix}") from error
        self._refuse_another(record["run"], "a finished run", fix)
        self._remove_checkpoints()
        return history.astype(float).astype({"epoch": int, "step": int})  # to the last digit

    def newest_checkpoint(self) -> str | None:
        """The newest whole checkpoint; newer ones are removed, with a warning.

        Raises:
            ValueError: the checkpoint has another configuration or other pairs; the message lists
                the differences.
        """
        for folder in reversed(self._checkpoints()):
            if mark := _mark_of_whole(folder):
                fix = f"finish that run, or remove {str(self.path)!r}"
                self._refuse_another(mark["run"], "an unfinished run", fix)
                return str(folder)
            message = f"checkpoint {str(folder)!r} is incomplete or damaged: it is passed over"
            warnings.warn(message, stacklevel=3)
            self._remove(folder)
        return None

    def last_good(self) -> str:
        """The newest whole checkpoint, as a clause for messages."""
        whole = [folder for folder in self._checkpoints() if _mark_of_whole(folder)]
        if not whole:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {str(whole[-1])!r}"

    def begin(self, configuration: dict[str, Any]) -> None:
        """Writes the record that makes the folder this run's."""
        with self.writing(self.path / _RECORD):
            self._write_record(configuration, finished=False)

    def begin_checkpoint(self, folder: Path) -> None:
        """Makes the folder of a checkpoint, with the mark that it is a run's."""
        folder.mkdir()
        _write(folder / _MARK, json.dumps({"run": self.identity}))

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """A context that writes a file or a checkpoint; what is left of a failed one is removed.

        Raises:
            ValueError: it cannot be written; the message names the last good checkpoint.
        """
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if path.is_dir():
                self._remove(path)
            fix = f"{self.last_good()}. Make room or choose another output_dir"
            raise ValueError(f"cannot write {str(path)!r}: {error}; {fix}") from error

    def seal(self, folder: Path, history: pd.DataFrame, best: str | None) -> None:
        """Marks a checkpoint as whole, writes the history and removes old checkpoints.

        Keeps the newest two, as one may be damaged, and the `best`.
        """
        digests = {}
        for file in folder.iterdir():
            if file.name != _MARK:
                sync(file)  # durable before the mark
                digests[file.name] = _digest(file)
        _write(folder / _MARK, json.dumps({"run": self.identity, "digests": digests}))
        sync(self.path)
        self._write_history(history)
        for old in self._checkpoints()[:-2]:
            if str(old) != best:
                self._remove(old)

    def finish(self, configuration: dict[str, Any], history: pd.DataFrame) -> None:
        """Writes the record of a run whose model is saved, then removes the checkpoints."""
        with self.writing(self.path / _RECORD):
            self._write_history(history)
            self._write_record(configuration, finished=True)
        self._remove_checkpoints()

    def _record(self) -> dict[str, Any]:
        """The record of the folder's run, or an empty one if it is no run's."""
        try:
            record = json.loads((self.path / _RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        parts = (
            [record.get(n) for n in ("configuration", "run")] if isinstance(record, dict) else []
        )
        return record if parts and all(isinstance(part, dict) for part in parts) else {}

    def _write_record(self, configuration: dict[str, Any], finished: bool) -> None:
        if self.writes:
            about = {"configuration": configuration, "run": self.identity, "finished": finished}
            about["versions"] = {"cibr": cibr.__version__, "torch": torch.__version__}
            _write(self.path / _RECORD, json.dumps(about, indent=2) + "\n")

    def _write_history(self, history: pd.DataFrame) -> None:
        if len(history):
            _write(self.path / _HISTORY, history.to_csv(index=False))

    def _checkpoints(self) -> list[Path]:
        """Folders of checkpoints, whole or not, oldest first."""
        named = [re.fullmatch(r"checkpoint-(\d+)", f.name) for f in self.path.glob("checkpoint-*")]
        found = {int(name[1]): self.path / name[0] for name in named if name}
        return [found[step] for step in sorted(found)]

    def _remove_checkpoints(self) -> None:
        parts = [file for file in self.path.glob("*.part") if _PART.fullmatch(file.name)]
        for path in (*self._checkpoints(), *parts):
            self._remove(path)

    def _remove(self, path: Path) -> None:
        """Removes a file, or a checkpoint that a run made."""
        if not self.writes:
            return
        if not path.is_dir():
            path.unlink(missing_ok=True)
        elif _is_ours(path):
            with suppress(OSError):  # the mark last: what a kill leaves is known as ours
                for file in sorted(path.iterdir(), key=lambda file: file.name == _MARK):
                    file.unlink()
                path.rmdir()

    def _refuse_another(self, stored: dict[str, Any], what: str, fix: str) -> None:
        differences = [
            f"{name} ({stored.get(name)!r} there, {self.identity.get(name)!r} here)"
            for name in {**self.identity, **stored}
            if stored.get(name) != self.identity.get(name)
        ]
        if differences:
            held = f"{str(self.path)!r} holds {what} of another configuration"
            raise ValueError(f"{held}: {', '.join(differences)}. Choose another output_dir, {fix}")


def _is_ours(checkpoint: Path) -> bool:
    """Whether a run made this folder: it has a mark, or no more than a part of one."""
    if not checkpoint.is_dir():
        return False
    names = [file.name for file in checkpoint.iterdir()]
    return _MARK in names or all(name.startswith(_MARK) for name in names)


def _mark_of_whole(folder: Path) -> dict[str, Any] | None:
    """The mark of a checkpoint whose files are as they were written, or None."""
    try:
        mark = json.loads((folder / _MARK).read_text(encoding="utf-8"))
        found = {name: _digest(folder / name) for name in mark["digests"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return mark if found == mark["digests"] else None


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _write(file: Path, text: str) -> None:
    write_atomically(file, lambda part: part.write_text(text, encoding="utf-8"))
