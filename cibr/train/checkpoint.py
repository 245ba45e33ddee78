"""The output folder of a run: its lock, checkpoints that survive a kill, and the finished run.

A checkpoint is one file, `checkpoints/step-000000123.pt`, written atomically; older ones are
removed only afterwards, so a kill at any moment or a full disk leaves a readable one. Order,
captions, dropout and noise are keyed by the seed and the step, so the step fixes both the position
in the data and the random state. SIGTERM and Ctrl-C are noted, to save before a run ends.
"""

import json
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout

from cibr.models import DualEncoder
from cibr.train.config import RunConfig
from cibr.utils import provenance, write_atomically

_KEPT = 2  # checkpoints: the newest and the one before it
_PATIENCE = 5  # s, as worker processes of a killed run may hold the lock a little longer
_HISTORY, _RECORD, _MODEL = "history.csv", "run.json", "cibr.json"
_OF_A_RUN = (_HISTORY, _RECORD, "checkpoints", "*.ipynb", "*.log", "*.part", ".*")


@dataclass
class Progress:
    """Progress of a run: steps, finished epochs, and the sums of the current epoch."""

    n_steps: int
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    n_summed: int = 0

    def add(self, terms: dict[str, float]) -> None:
        """Counts a step and adds its terms."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in terms.items()}
        self.n_summed += 1
        self.step += 1

    def means(self) -> dict[str, float]:
        """The terms of the current epoch, averaged over its steps so far."""
        return {name: value / self.n_summed for name, value in self.sums.items()}

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Appends a row to the history and starts the next epoch."""
        self.history.append(row)
        self.sums, self.n_summed = {}, 0


class RunFolder:
    """The output folder of a run.

    Args:
        folder: its path.
        identity: everything that must be equal for a run to resume another's checkpoint, as JSON
            has it (no tuples).
        writes: whether this process writes to it.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], writes: bool = True):
        self.folder = folder
        self.identity = identity
        self.writes = writes

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """A context that creates the folder if necessary and locks it against other runs.

        Raises:
            ValueError: the folder cannot be written, is locked by another run, or contains other
                files.
        """
        if not self.writes:
            yield
            return
        name = f"output_dir {str(self.folder)!r}"
        lock = FileLock(self.folder / ".lock", timeout=_PATIENCE)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            fix = "wait for its end, or choose another"
            raise ValueError(f"another run is writing to {name}: {fix}") from error
        except OSError as error:
            raise ValueError(f"{name} cannot be written: {error}; choose another") from error
        try:
            if not _checkpoints(self.folder) and not (self.folder / _RECORD).exists():
                names = [f.name for f in self.folder.iterdir() if not any(map(f.match, _OF_A_RUN))]
                if names:
                    what = f"{name} already has files that are no run's, such as {min(names)!r}"
                    raise ValueError(f"{what}: choose another")
            yield
        finally:
            (self.folder / ".lock").unlink(missing_ok=True)
            lock.release()

    def finished(self, model: DualEncoder) -> pd.DataFrame | None:
        """The history of a finished run in this folder, or None; the model takes its weights.

        Raises:
            ValueError: the run has another configuration or other pairs; the message lists the
                differences.
        """
        files = [self.folder / name for name in (_RECORD, _MODEL, _HISTORY)]
        if _checkpoints(self.folder) or not all(file.exists() for file in files):
            return None
        record = json.loads(files[0].read_text(encoding="utf-8"))
        fix = f"or remove {str(self.folder)!r}"
        self._refuse_another(record.get("run", {}), "a finished run", fix)
        model.load_state_dict(DualEncoder.from_pretrained(self.folder).own_state(), strict=False)
        model.eval()
        if self.writes:
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)  # emptied, then killed
            message = "holds this run, finished: its model and history are loaded"
            print(f"{str(self.folder)!r} {message}", file=sys.stderr)
        return pd.read_csv(self.folder / _HISTORY)  # empty cells are epochs without validation

    def resume(self, parts: dict[str, Any], progress: Progress) -> Progress:
        """Loads the newest readable checkpoint, if any, into the parts.

        Args:
            parts: model, optimiser and everything else with a `state_dict`, by name.
            progress: of a new run, returned if there is no checkpoint.

        Raises:
            ValueError: the checkpoint has another configuration or other pairs; the message lists
                the differences.
        """
        newest = _newest_checkpoint(self.folder)
        if newest is None:
            return progress
        file, state = newest
        fix = f"finish that run, or delete {str(file.parent)!r}"
        self._refuse_another(state["run"], "an unfinished run", fix)
        for name, part in parts.items():
            # A model's state leaves out frozen towers, which have their own files.
            options = {"strict": False} if isinstance(part, DualEncoder) else {}
            part.load_state_dict(state[name], **options)
        return Progress(**state["progress"])

    def save(self, parts: dict[str, Any], progress: Progress) -> Path:
        """Writes a checkpoint and the history, then removes all but the last two checkpoints.

        Raises:
            ValueError: the folder cannot be written; the message names the last good checkpoint,
                which is kept.
        """
        file = self.folder / "checkpoints" / f"step-{progress.step:09d}.pt"
        if self.writes:
            state = {"run": self.identity, "progress": vars(progress)}
            for name, part in parts.items():
                is_model = isinstance(part, DualEncoder)
                state[name] = part.own_state() if is_model else part.state_dict()
            self._write(file, lambda path: torch.save(state, path))
            for old in _checkpoints(self.folder)[:-_KEPT]:
                old.unlink(missing_ok=True)
            self._write_history(progress)
        return file

    def finish(self, model: DualEncoder, config: RunConfig, progress: Progress) -> None:
        """Writes the model and its provenance, then removes the checkpoints."""
        if not self.writes:
            return
        self._write_history(progress)  # a run may have been killed before it wrote this file
        model.save_pretrained(self.folder)
        about = {"configuration": config.model_dump(), "run": self.identity} | provenance()
        text = json.dumps(about, indent=2) + "\n"
        self._write(self.folder / _RECORD, lambda path: path.write_text(text, encoding="utf-8"))
        for part in self.folder.glob("*.part"):  # left by a killed save
            part.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "checkpoints")

    def last_good(self) -> str:
        """The newest readable checkpoint, as a clause for messages."""
        newest = _newest_checkpoint(self.folder)
        if newest is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {str(newest[0])!r}"

    def _write_history(self, progress: Progress) -> None:
        if progress.history:
            table = pd.DataFrame(progress.history)
            self._write(self.folder / _HISTORY, lambda path: table.to_csv(path, index=False))

    def _write(self, file: Path, write: Callable[[Path], Any]) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, write)
        except (OSError, RuntimeError) as error:
            fix = f"{self.last_good()}. Make room or choose another output_dir"
            raise ValueError(f"cannot write {str(file)!r}: {error}; {fix}") from error

    def _refuse_another(self, stored: dict[str, Any], what: str, fix: str) -> None:
        differences = [
            f"{name} ({stored.get(name)!r} there, {self.identity.get(name)!r} here)"
            for name in {**self.identity, **stored}
            if stored.get(name) != self.identity.get(name)
        ]
        if differences:
            held = f"{str(self.folder)!r} holds {what} of another configuration"
            raise ValueError(f"{held}: {', '.join(differences)}. Choose another output_dir, {fix}")


def _checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a run's folder, oldest first."""
    return sorted(folder.glob("checkpoints/step-*.pt"))


def _newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint with its state, loaded as weights only; damaged ones are
    skipped.
    """
    for file in reversed(_checkpoints(folder)):
        try:
            return file, torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises nearly anything on a damaged file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            message = f"checkpoint {str(file)!r} cannot be read and is passed over: {reason}"
            warnings.warn(message, stacklevel=2)
    return None


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """A context that records SIGTERM (from SLURM before its time limit) and Ctrl-C.

    A run stops after its current step. A second Ctrl-C interrupts at once. Outside the main thread,
    signals are not handled.
    """
    numbers: list[int] = []

    def note(number, frame):
        if number == signal.SIGINT and numbers:
            raise KeyboardInterrupt
        numbers.append(number)

    is_main = threading.current_thread() is threading.main_thread()
    handled = (signal.SIGTERM, signal.SIGINT) if is_main else ()
    before = {number: signal.signal(number, note) for number in handled}
    try:
        yield numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
