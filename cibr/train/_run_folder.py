"""The output folder of a run: its lock, checkpoints that count only when whole, the finished run.

Trainer would resume from the newest folder, whole or not. Here a checkpoint counts once its last
file, `whole.json` with digests of the others, is written; one that is not whole is skipped. Order,
captions, dropout and noise are keyed by the seed and the step, so a checkpoint needs no random
state.
"""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from cibr.utils import provenance, sync, write_atomically

_PATIENCE = 5  # s, as worker processes of a killed run may hold the lock a little longer
_HISTORY = "history.csv"
_RECORD = "run.json"
_MARK = "whole.json"
_OF_A_RUN = (_HISTORY, _RECORD, "checkpoint-*", "runs", "README.md")
_OF_A_RUN += ("*.ipynb", "*.log", "*.part", ".*")


class RunFolder:
    """The output folder of a run.

    Args:
        path: of the folder, which is created.
        writes: whether this process writes to it.

    Raises:
        ValueError: the folder cannot be written, or contains other files.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path = path
        self.writes = writes
        self.identity: dict[str, Any] = {}  # must match to resume another's checkpoint
        self._name = f"output_dir {str(path)!r}"
        try:
            path.mkdir(parents=True, exist_ok=True)
            names = [f.name for f in path.iterdir() if not any(map(f.match, _OF_A_RUN))]
        except OSError as error:
            raise ValueError(f"{self._name} cannot be written: {error}; choose another") from error
        if names and not self._checkpoints() and not (path / _RECORD).exists():
            what = f"already has files that are no run's, such as {min(names)!r}"
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
        lock = FileLock(self.path / ".lock", timeout=_PATIENCE)
        try:
            lock.acquire()
        except Timeout as error:
            fix = "wait for its end, or choose another"
            raise ValueError(f"another run is writing to {self._name}: {fix}") from error
        try:
            yield
        finally:
            (self.path / ".lock").unlink(missing_ok=True)
            lock.release()

    def finished(self) -> pd.DataFrame | None:
        """The history of a finished run of this identity, or None.

        Raises:
            ValueError: the run has another configuration or other pairs; the message lists the
                differences.
        """
        record, table = self.path / _RECORD, self.path / _HISTORY
        if not (record.exists() and table.exists()):
            return None
        fix = f"or remove {str(self.path)!r}"
        try:
            stored = dict(json.loads(record.read_text(encoding="utf-8"))).get("run", {})
            # Empty cells are epochs without validation.
            history = pd.read_csv(table, dtype=str)
            if history.empty:
                raise ValueError(f"{_HISTORY} has no epoch")
        except (ValueError, TypeError, RecursionError) as error:
            what = f"a finished run that is damaged ({error})"
            raise ValueError(f"{self._name} has {what}: choose another, {fix}") from error
        self._refuse_another(stored, "a finished run", fix)
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

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """A context that writes a file or folder anew; what is left of a failure is removed.

        Raises:
            ValueError: it cannot be written; the message names the last good checkpoint.
        """
        self._remove(path)
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            self._remove(path)
            fix = f"{self.last_good()}. Make room or choose another output_dir"
            raise ValueError(f"cannot write {str(path)!r}: {error}; {fix}") from error

    def seal(self, folder: Path, history: pd.DataFrame, best: str | None) -> None:
        """Marks a checkpoint as whole, writes the history and removes old checkpoints.

        Keeps the newest two, as one may be damaged, and the `best`.
        """
        digests = {}
        for file in folder.iterdir():
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
            about = {"configuration": configuration, "run": self.identity} | provenance()
            _write(self.path / _RECORD, json.dumps(about, indent=2) + "\n")
        self._remove_checkpoints()

    def _write_history(self, history: pd.DataFrame) -> None:
        if len(history):
            _write(self.path / _HISTORY, history.to_csv(index=False))

    def _checkpoints(self) -> list[Path]:
        """Folders of checkpoints, whole or not, oldest first."""
        named = [re.fullmatch(r"checkpoint-(\d+)", f.name) for f in self.path.glob("checkpoint-*")]
        found = {int(name[1]): self.path / name[0] for name in named if name}
        return [found[step] for step in sorted(found)]

    def _remove_checkpoints(self) -> None:
        parts = [f for f in self.path.glob("*.part") if re.search(r"\.\d+\.part$", f.name)]
        for path in (*self._checkpoints(), *parts):
            self._remove(path)

    def _remove(self, path: Path) -> None:
        if self.writes:
            path.unlink(missing_ok=True) if path.is_file() else shutil.rmtree(path, True)

    def _refuse_another(self, stored: dict[str, Any], what: str, fix: str) -> None:
        differences = [
            f"{name} ({stored.get(name)!r} there, {self.identity.get(name)!r} here)"
            for name in {**self.identity, **stored}
            if stored.get(name) != self.identity.get(name)
        ]
        if differences:
            held = f"{str(self.path)!r} holds {what} of another configuration"
            raise ValueError(f"{held}: {', '.join(differences)}. Choose another output_dir, {fix}")


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
