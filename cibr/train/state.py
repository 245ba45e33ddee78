"""What a run is in the middle of: all that a checkpoint holds, and whether a checkpoint is this run's.

Order, captions, dropout and noise are keyed by the seed and the step, so that the step is the position in the
data and the random state at once.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from cibr.data import Pairs
from cibr.models import DualEncoder
from cibr.train.checkpoint import newest_checkpoint
from cibr.train.config import RunConfig

NOT_THE_RUN = ("output_dir", "checkpoint_every")  # settings that change no weight


@dataclass
class Progress:
    """Where a run stands: finished epochs, steps, and the sums of the epoch under way."""

    history: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    n_summed: int = 0
    n_skipped: int = 0

    def add(self, terms: dict[str, float]) -> None:
        """Takes in the terms of a step."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.n_summed += 1

    def means(self) -> dict[str, float]:
        """The terms of the epoch so far, mean over its steps."""
        return {name: value / self.n_summed for name, value in self.sums.items()}

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Appends a row to the history and begins another epoch."""
        self.history.append(row)
        self.sums, self.n_summed, self.n_skipped = {}, 0, 0


def identity(config: RunConfig, pairs: Pairs, batch_size: int) -> dict[str, Any]:
    """What two runs must share for one to go on where the other stopped."""
    digest = hashlib.sha256(repr((pairs.keys, pairs.captions)).encode()).hexdigest()
    settings = {name: value for name, value in config.to_dict().items() if name not in NOT_THE_RUN}
    return settings | {"pairs": f"{len(pairs):,} with digest {digest[:12]}", "pairs a step": batch_size}


def pack(parts: dict[str, Any], progress: Progress, run: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint: states of the parts, progress, and the run's identity.

    Args:
        parts: model, optimiser and all that has a `state_dict`, by name; None is left out.
        progress: where the run stands.
        run: its `identity`.
    """
    states = {name: _state(part) for name, part in parts.items() if part is not None}
    return {"run": run, "progress": vars(progress), **states}


def unpack(folder: Path, parts: dict[str, Any], run: dict[str, Any]) -> Progress:
    """Loads the newest readable checkpoint of a folder, if there is one, into the parts.

    Raises:
        ValueError: it belongs to another configuration or other pairs.
    """
    newest = newest_checkpoint(folder)
    if newest is None:
        return Progress()
    file, state = newest
    there = state.get("run", {})
    differing = [f"{k} ({there.get(k)!r} there, {v!r} here)" for k, v in run.items() if there.get(k) != v]
    if differing:
        raise ValueError(
            f"{str(folder.parent)!r} holds an unfinished run of another configuration: {', '.join(differing)}. "
            f"Choose another output_dir, finish that run, or delete {str(file.parent)!r}"
        )
    for name, part in parts.items():
        if isinstance(part, DualEncoder):
            part.load_state_dict(state[name], strict=False)
        elif part is not None:
            part.load_state_dict(state[name])
    return Progress(**state["progress"])


def _state(part: Any) -> dict[str, Any]:
    return part.own_state() if isinstance(part, DualEncoder) else part.state_dict()


def share_weights(module: torch.nn.Module, accelerator: Accelerator) -> None:
    """Gives every process the first one's weights."""
    if accelerator.num_processes > 1:
        for tensor in module.state_dict().values():
            torch.distributed.broadcast(tensor, 0)


def check_agreement(step: int, folder: Path, accelerator: Accelerator) -> None:
    """Refuses processes that would go on from different steps.

    Raises:
        ValueError: they found different checkpoints.
    """
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes found checkpoints of the steps {', '.join(map(str, steps))} in {str(folder)!r}: "
            "output_dir must be on a file system that all nodes share"
        )
