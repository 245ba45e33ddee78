"""The output folder of a run: which run owns it, its lock, its checkpoint and the finished run.

A run owns a folder once its `run.json` is there, which is written before the first step, and only
into a folder without other people's files. A run never writes through a link, and removes nothing
but its own checkpoint.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout

import cibr
from cibr.data import Pairs
from cibr.train.config import RunConfig
from cibr.utils import digest

_LOCK = ".cibr.lock"
# What may lie in the folder of a new run: its notebook, its log, hidden files, and the run without
# the held-out photos that `cibr train` makes first.
_ALLOWED = ("*.ipynb", "*.log", ".*", "held_out")
_WITHOUT_EFFECT = ("output_dir", "save_steps", "log_with")  # settings that no weight depends on


class RunFolder:
    """The output folder of a run.

    Every process of a run has such an object. All of them read the folder, but only the main one
    locks, writes and removes files: elsewhere, the methods that do so do nothing. `fit` calls them
    in this order:

    - `locked`, for all that follows, and `check_owner`;
    - of a finished run (`is_finished`), only `remove_leftover` and `history`;
    - of any other run `load_checkpoint` and `write_record`, then `save_checkpoint` from time to
      time, and in the end `write_history`, `write_record` and `remove_checkpoint`.

    Args:
        path: of the folder, which is created.
        identity: of the run, from `identity_of`.
        is_main: whether this process writes to it.

    Attributes:
        checkpoint: the file of its checkpoint.

    Raises:
        ValueError: as `create_folder`.
    """

    def __init__(self, path: Path, identity: dict[str, Any], is_main: bool = True):
        self.path = path
        self.identity = identity
        self.is_main = is_main
        self.checkpoint = path / "checkpoint.pt"
        create_folder(path, is_main)

    def locked(self) -> AbstractContextManager:
        """A context that keeps other runs out of the folder.

        Raises:
            ValueError: another run is writing to it.
        """
        if not self.is_main:
            return nullcontext()
        try:
            return FileLock(self.path / _LOCK, timeout=1).acquire()
        except Timeout:
            raise ValueError(
                f"another run is writing to output_dir {str(self.path)!r}: wait for its end, or "
                "choose another"
            ) from None

    def check_owner(self) -> None:
        """Refuses the folder if it has the model or the checkpoint of another run.

        Raises:
            ValueError: it has; the message names the settings that differ.
        """
        record = _record(self.path)
        is_worth_keeping = self.is_finished() or self.checkpoint.exists()
        if not record or not is_worth_keeping:
            return
        stored = record["run"]
        names = list(stored | self.identity)
        different = [name for name in names if stored.get(name) != self.identity.get(name)]
        if different:
            raise ValueError(
                f"{str(self.path)!r} holds a run with another {', '.join(different)}: choose "
                "another output_dir, or remove this one"
            )

    def is_finished(self) -> bool:
        """Whether the folder has a finished run."""
        return _record(self.path).get("finished", False)

    def history(self) -> pd.DataFrame:
        """The history of the finished run."""
        # Numbers that are read as text keep their last digit; empty cells become NaN.
        history = pd.read_csv(self.path / "history.csv", dtype=str).astype(float)
        return history.astype({"epoch": int, "step": int})

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Writes the state of the run; after a kill the old or the new one is there, whole.

        Raises:
            OSError: it cannot be written.
        """
        try:
            self._write(self.checkpoint.name, partial(torch.save, state | {"run": self.identity}))
        except (OSError, RuntimeError) as error:  # torch.save raises the latter on a full disk
            raise OSError(
                f"cannot write a checkpoint to {str(self.path)!r}: {error}; make room or choose "
                "another output_dir"
            ) from error

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state of this run in its checkpoint, None without one; code in the file is not run.

        Raises:
            ValueError: the file is damaged, or not of this run.
        """
        if not self.checkpoint.exists():
            return None
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # loaders of damaged files raise nearly anything
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(
                f"{str(self.checkpoint)!r} is damaged ({reason}): remove it to begin again"
            ) from error
        if not isinstance(state, dict) or state.get("run") != self.identity:
            raise ValueError(f"{str(self.checkpoint)!r} is not of this run: remove it, or move it")
        return state

    def remove_checkpoint(self) -> None:
        """Removes the checkpoint, which only an unfinished run needs."""
        if self.is_main:
            self.checkpoint.unlink(missing_ok=True)
            self._part_of(self.checkpoint.name).unlink(missing_ok=True)

    def remove_leftover(self) -> None:
        """Removes the checkpoint that a kill left in this run's finished folder."""
        try:
            state = self.load_checkpoint()
        except ValueError:  # a file of someone else
            return
        if state is not None:
            self.remove_checkpoint()

    def write_record(self, configuration: dict[str, Any], *, is_finished: bool) -> None:
        """Writes `run.json`, which makes the folder this run's.

        Args:
            configuration: all settings, also those that the identity leaves out.
            is_finished: whether the model and the history are written.
        """
        record = {
            "configuration": configuration,
            "run": self.identity,
            "finished": is_finished,
            "versions": {"cibr": cibr.__version__, "torch": torch.__version__},
        }
        text = json.dumps(record, indent=2) + "\n"
        self._write("run.json", partial(Path.write_text, data=text, encoding="utf-8"))

    def write_history(self, history: pd.DataFrame) -> None:
        """Writes `history.csv`."""
        self._write("history.csv", partial(history.to_csv, index=False))

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        """Writes a file, which after a kill is whole, or as it was.

        Unlike `cibr.utils.write_atomically` it follows no link, and what a kill has left is written
        over by the next attempt.
        """
        if self.is_main:
            part = self._part_of(name)
            write(part)
            part.replace(self.path / name)

    def _part_of(self, name: str) -> Path:
        return self.path / f".{name}.part"


def create_folder(path: Path, is_main: bool = True) -> None:
    """Creates the output folder of a run; the main process checks what lies in it already.

    Raises:
        ValueError: it has files that no run made, or links.
    """
    path.mkdir(parents=True, exist_ok=True)
    if not is_main:
        return
    has_record = bool(_record(path))
    for file in sorted(path.iterdir()):
        is_allowed = any(map(file.match, _ALLOWED))
        if not is_allowed and not has_record:
            raise ValueError(
                f"output_dir {str(path)!r} already has files that no run made, such as "
                f"{file.name!r}: choose another"
            )
        if file.is_symlink() and file.suffix not in (".ipynb", ".log"):
            raise ValueError(
                f"output_dir {str(path)!r} has a link, {file.name!r}, and a run writes "
                "through none: choose another folder, or remove the link"
            )


def _record(path: Path) -> dict[str, Any]:
    """The record of a folder's run, or an empty one if it is no run's."""
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_record = isinstance(record, dict) and {"run", "finished"} <= record.keys()
    return record if is_record else {}


def identity_of(config: RunConfig, train: Pairs, validation: Pairs | None) -> dict[str, Any]:
    """What decides the result of a run: its configuration and its pairs, as JSON stores them."""
    identity = {
        name: value for name, value in asdict(config).items() if name not in _WITHOUT_EFFECT
    }
    for name, pairs in (("training pairs", train), ("validation pairs", validation)):
        if pairs is not None:
            described = pairs.keys, pairs.captions, pairs.match_labels().tolist()
            content = digest(repr((described, pairs.image_digests())))
            identity[name] = f"{len(pairs)} with digest {content[:16]}"
    return json.loads(json.dumps(identity))
