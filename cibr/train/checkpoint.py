"""The output folder of a run: its lock, checkpoints that survive a kill, and the finished run.

A checkpoint is one file, `checkpoints/step-000000123.pt`, written atomically; older ones are
removed only afterwards, so a kill at any moment or a full disk leaves a readable one. Order,
captions, dropout and noise are keyed by the seed and the step, so the step fixes both the position
in the data and the random state.
"""

import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout

from cibr.data import Pairs
from cibr.models import DualEncoder
from cibr.train.config import NOT_THE_RUN, RunConfig
from cibr.utils import provenance, write_atomically

KEEP = 2  # checkpoints: the newest and the one before it
PATIENCE = 5  # s, as worker processes of a killed run may hold the lock a little longer
HISTORY, RECORD, MODEL = "history.csv", "run.json", "cibr.json"
OF_A_RUN = (
    HISTORY,
    RECORD,
    "checkpoints",
    "*.ipynb",
    "*.log",
    "*.part",
    ".*",
)  # may exist before a run


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
        """Adds the terms of a step."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in terms.items()}
        self.n_summed += 1

    def means(self) -> dict[str, float]:
        """The terms of the current epoch, averaged over its steps so far."""
        return {name: value / self.n_summed for name, value in self.sums.items()}

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Appends a row to the history and starts the next epoch."""
        self.history.append(row)
        self.sums, self.n_summed = {}, 0


def run_identity(
    model: DualEncoder, train: Pairs, validation: Pairs | None, config: RunConfig, batch_size: int
) -> dict[str, Any]:
    """Everything that must be equal for a run to resume another's checkpoint, as JSON-compatible
    values.
    """
    run = {name: value for name, value in config.to_dict().items() if name not in NOT_THE_RUN}
    run |= {"architecture": f"{model.kind} {model.backbone.settings}", "pairs a step": batch_size}
    for name, pairs in (("training pairs", train), ("validation pairs", validation)):
        if pairs is not None:
            digest = hashlib.sha256(repr((pairs.keys, pairs.captions)).encode()).hexdigest()
            run[name] = f"{len(pairs):,} with digest {digest[:12]}"
    return json.loads(json.dumps(run))


class RunFolder:
    """The output folder of a run.

    Args:
        folder: its path.
        identity: the run's `run_identity`.
        writes: whether this process writes to it.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], writes: bool = True):
        self.folder, self.identity, self.writes = folder, identity, writes

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """A context that creates the folder if necessary and locks it against other runs.

        Raises:
            ValueError: the folder cannot be written, is locked by another run, or contains foreign
                files.
        """
        if not self.writes:
            yield
            return
        name, lock = (
            f"output_dir {str(self.folder)!r}",
            FileLock(self.folder / ".lock", timeout=PATIENCE),
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise ValueError(
                f"another run is writing to {name}: wait for its end, or choose another"
            ) from error
        except OSError as error:
            raise ValueError(f"{name} cannot be written: {error}; choose another") from error
        try:
            if not checkpoints(self.folder) and not (self.folder / RECORD).exists():
                foreign = [f.name for f in self.folder.iterdir() if not any(map(f.match, OF_A_RUN))]
                if foreign:
                    raise ValueError(
                        f"{name} has files of no run, such as {min(foreign)!r}: choose another"
                    )
            yield
        finally:
            (self.folder / ".lock").unlink(missing_ok=True)
            lock.release()

    def finished(self, model: DualEncoder) -> pd.DataFrame | None:
        """The history of a finished run in this folder, or None; its weights are loaded into the
        model.

        Raises:
            ValueError: the run has another configuration or other pairs; the message lists the
                differences.
        """
        if checkpoints(self.folder) or not all(
            (self.folder / f).exists() for f in (RECORD, MODEL, HISTORY)
        ):
            return None
        there = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        self._refuse_another(
            there.get("run", {}), "a finished run", f"or remove {str(self.folder)!r}"
        )
        model.load_state_dict(DualEncoder.from_pretrained(self.folder).own_state(), strict=False)
        model.eval()
        if self.writes:
            words = "holds this run, finished: its model and history are loaded"
            print(f"{str(self.folder)!r} {words}", file=sys.stderr)
        # Exact to the last digit; empty cells are epochs without validation.
        return pd.read_csv(self.folder / HISTORY, dtype=str).fillna("NaN").map(json.loads)

    def resume(self, parts: dict[str, Any], start: Progress) -> Progress:
        """Loads the newest readable checkpoint, if any, into the parts.

        Args:
            parts: model, optimiser and everything else with a `state_dict`, by name.
            start: the progress of a new run, returned without a checkpoint.

        Raises:
            ValueError: the checkpoint has another configuration or other pairs; the message lists
                the differences.
        """
        newest = newest_checkpoint(self.folder)
        if newest is None:
            return start
        file, state = newest
        self._refuse_another(
            state["run"], "an unfinished run", f"finish that run, or delete {str(file.parent)!r}"
        )
        for name, part in parts.items():
            options = (
                {"strict": False} if isinstance(part, DualEncoder) else {}
            )  # frozen towers are not stored
            part.load_state_dict(state[name], **options)
        return Progress(**state["progress"])

    def save(self, parts: dict[str, Any], at: Progress) -> Path:
        """Writes a checkpoint and the history, then removes all but the last two checkpoints.

        Raises:
            ValueError: the folder cannot be written; the message names the last good checkpoint,
                which is kept.
        """
        file = self.folder / "checkpoints" / f"step-{at.step:09d}.pt"
        if self.writes:
            states = {
                n: p.own_state() if isinstance(p, DualEncoder) else p.state_dict()
                for n, p in parts.items()
            }
            state = {"run": self.identity, "progress": vars(at)} | states
            self._write(file, lambda part: torch.save(state, part))
            for old in checkpoints(self.folder)[:-KEEP]:
                old.unlink(missing_ok=True)
            self._write_history(at)
        return file

    def finish(self, model: DualEncoder, config: RunConfig, at: Progress) -> None:
        """Writes the model and its provenance, then removes the checkpoints."""
        if not self.writes:
            return
        self._write_history(
            at
        )  # a run may have been killed between its last checkpoint and this file
        model.save_pretrained(self.folder)
        record = json.dumps(
            {"configuration": config.to_dict(), "run": self.identity} | provenance(), indent=2
        )
        self._write(
            self.folder / RECORD, lambda part: part.write_text(record + "\n", encoding="utf-8")
        )
        for part in self.folder.glob("*.part"):  # left by a killed save
            part.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "checkpoints")

    def last_good(self) -> str:
        """The newest readable checkpoint, as a clause for messages."""
        newest = newest_checkpoint(self.folder)
        return (
            f"the last good checkpoint is {str(newest[0])!r}"
            if newest
            else "there is no checkpoint yet"
        )

    def _write_history(self, at: Progress) -> None:
        if at.history:
            table = pd.DataFrame(at.history)
            self._write(self.folder / HISTORY, lambda part: table.to_csv(part, index=False))

    def _write(self, file: Path, write: Callable[[Path], Any]) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, write)
        except (OSError, RuntimeError) as error:
            fix = f"{self.last_good()}. Make room or choose another output_dir"
            raise ValueError(f"cannot write {str(file)!r}: {error}; {fix}") from error

    def _refuse_another(self, there: dict[str, Any], what: str, fix: str) -> None:
        here = self.identity
        names = [name for name in {**here, **there} if there.get(name) != here.get(name)]
        if names:
            differing = ", ".join(
                f"{n} ({there.get(n)!r} there, {here.get(n)!r} here)" for n in names
            )
            held = f"{str(self.folder)!r} holds {what} of another configuration: {differing}"
            raise ValueError(f"{held}. Choose another output_dir, {fix}")


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a run's folder, oldest first."""
    return sorted(folder.glob("checkpoints/step-*.pt"))


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint with its state, loaded as weights only; damaged ones are
    skipped.
    """
    for file in reversed(checkpoints(folder)):
        try:
            return file, torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises nearly anything on a damaged file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(
                f"checkpoint {str(file)!r} cannot be read and is passed over: {reason}",
                stacklevel=2,
            )
    return None
