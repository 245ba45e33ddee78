"""The output folder of a run: whose it is, its lock, its checkpoints and the finished run.

A folder belongs to a run once it has that run's `run.json`, which is written before the first step
into a folder without other files. Checkpoints are in a folder of their own, which is removed in the
end; nothing else is removed or written over. A checkpoint counts once its last file, Trainer's
state, is whole.
"""

import json
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout

import cibr

# What may lie in the folder of a new run: its notebook, its log, and `cibr train`'s own runs.
_ALLOWED = ("*.ipynb", "*.log", ".*", "held_out")


class RunFolder:
    """The output folder of a run.

    Args:
        path: of the folder, which is created.
        writes: whether this process writes to it.

    Attributes:
        checkpoints: the folder of its checkpoints, `checkpoint-STEP`.

    Raises:
        ValueError: the folder has files that no run made.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes
        self.checkpoints = path / ".checkpoints"
        path.mkdir(parents=True, exist_ok=True)
        foreign = [file for file in path.iterdir() if not any(map(file.match, _ALLOWED))]
        if foreign and writes and not self._record():
            what = f"output_dir {str(path)!r} already has files that no run made, such as"
            raise ValueError(f"{what} {min(foreign).name!r}: choose another")

    def locked(self) -> AbstractContextManager:
        """A context that keeps other runs out of the folder.

        Raises:
            ValueError: another run is writing to it.
        """
        if not self.writes:
            return nullcontext()
        try:
            return FileLock(self.path / ".cibr.lock", timeout=1).acquire()
        except Timeout:
            what = f"another run is writing to output_dir {str(self.path)!r}"
            raise ValueError(f"{what}: wait for its end, or choose another") from None

    def finished_history(self, identity: dict[str, Any]) -> pd.DataFrame | None:
        """The history of a finished run, or None.

        Raises:
            ValueError: the folder has a run of another configuration or other pairs.
        """
        record = self._record()
        if not record or not (record["finished"] or self.newest_checkpoint()):
            return None
        stored = record["run"]
        names = {**stored, **identity}
        different = [name for name in names if stored.get(name) != identity.get(name)]
        if different:
            what = f"{str(self.path)!r} holds a run with another {', '.join(different)}"
            raise ValueError(f"{what}: choose another output_dir, or remove this one")
        if record["finished"]:
            # Numbers that are read as text keep their last digit; empty cells are NaN.
            history = pd.read_csv(self.path / "history.csv", dtype=str)
            return history.astype(float).astype({"epoch": int, "step": int})
        return None

    def newest_checkpoint(self) -> str | None:
        """The newest whole checkpoint."""
        states = self.checkpoints.glob("checkpoint-*/trainer_state.json")
        whole = [state.parent for state in states if state.read_text().endswith("\n}\n")]
        newest = max(whole, key=lambda folder: int(folder.name.split("-")[1]), default=None)
        return newest and str(newest)

    def remove_checkpoints(self) -> None:
        """Removes what only an unfinished run needs."""
        if self.writes:
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def write_record(self, record: dict[str, Any]) -> None:
        """Writes `run.json`, which makes the folder this run's, with `configuration`, what decides
        its result, `run`, and whether it is `finished`.
        """
        versions = {"cibr": cibr.__version__, "torch": torch.__version__}
        self.write("run.json", json.dumps(record | {"versions": versions}, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """Writes a file that a kill leaves as it was before or as it is afterwards."""
        if self.writes:
            part = self.path / f".{name}.part"
            part.write_text(text, encoding="utf-8")
            part.replace(self.path / name)

    def _record(self) -> dict[str, Any]:
        """The record of the folder's run, or an empty one if it is no run's."""
        try:
            record = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
            return record if "run" in record and "finished" in record else {}
        except (OSError, ValueError):
            return {}
