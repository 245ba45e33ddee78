"""`fit`: trains a `DualEncoder` on image-text pairs and leaves a model folder, a history and the configuration.

Everything random is keyed by the seed and the step: order, captions, dropout and noise. So a run
that was killed goes on from its newest checkpoint as if nothing had happened.
"""

import json
import math
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor
from tqdm import tqdm

from cibr.data import Pairs
from cibr.inputs import Batch, Inputs, prepare
from cibr.losses import beta_at
from cibr.models import DualEncoder
from cibr.train.checkpoint import newest_checkpoint, remove_checkpoints, write_checkpoint
from cibr.train.config import RunConfig
from cibr.train.embed import recalls
from cibr.train.guards import StopRequest, Terminated, own_errors, say_once
from cibr.train.optimise import (
    build_loss,
    build_optimizer,
    check_pairs,
    check_siblings,
    precision,
    rows_a_process,
)
from cibr.train.order import epoch_rows
from cibr.train.output import provenance, writable, write_text
from cibr.train.state import check_agreement, identity, pack, share_weights, unpack
from cibr.train.step import contrastive_backward

LARGEST_GRADIENT_NORM = 1.0
LONGEST_WAIT = timedelta(hours=3)  # for the process that extracts a frozen tower's features


def fit(
    model: DualEncoder,
    train: Pairs,
    validation: Pairs | None,
    config: RunConfig,
    accelerator: Accelerator | None = None,
) -> pd.DataFrame:
    """Trains a model in place.

    `config.output_dir` then holds the model's folder (see `DualEncoder.save_pretrained`), `history.csv` and
    `run.json`. While it trains, checkpoints lie there too; an unfinished run of the same configuration resumes.

    Args:
        model: as `build_model` makes it.
        train: the pairs to train on.
        validation: pairs whose recall is measured after each epoch, or None.
        config: as `configure` makes it.
        accelerator: devices and processes; by default what `accelerate launch` set up, or one process.

    Returns:
        The history, a row an epoch: `epoch, step, loss, clip_loss, penalty_loss`, the other terms of the loss in
        nats, the columns of `embedding_health`, `beta`, `temperature`, `seconds` of training, `skipped_steps` if
        steps may be skipped, and validation recalls in [0, 1].

    Raises:
        ValueError: fewer than two pairs or captions, an output folder that cannot be written or that holds an
            unfinished run of another configuration, an unusable sample.
        FloatingPointError: a loss or gradient that is not finite; the last good checkpoint is named.
        Terminated: SIGTERM; the run was saved and goes on when it is started again.
    """
    check_pairs(train)
    writable(Path(config.output_dir))
    accelerator = accelerator or _processes()
    with own_errors(accelerator.process_index, accelerator.num_processes):
        return _fit(model, train, validation, config, accelerator)


def _fit(model, train, validation, config, accelerator) -> pd.DataFrame:
    # Features of frozen towers are extracted by one process and read by the others.
    with accelerator.main_process_first() if model.kind == "frozen" else nullcontext():
        sets = [
            None if pairs is None else prepare(model, pairs, config.truncate_texts, accelerator.device)
            for pairs in (train, validation)
        ]
    labels = sets[0].labels
    known = train.labels is not None or train.groups is not None
    if not known and (config.group_size > 1 or config.estimator == "prototype"):
        labels = train.text_to_image()  # captions of one picture are what its rows share
    sets[0] = replace(sets[0], labels=torch.unique(labels, return_inverse=True)[1])  # numbered from 0
    check_siblings(config, sets[0])
    run = _Run(model, config, accelerator, sets[0])
    run.resume()
    quiet = {} if accelerator.is_main_process else {"disable": True}  # otherwise TQDM_DISABLE decides
    pause = 0.5 if sys.stderr.isatty() else 10  # seconds; a notebook or a log keeps every line
    bar = tqdm(total=run.n_steps, initial=run.at.step, desc="training", unit="step", mininterval=pause, **quiet)
    with bar, StopRequest() as stop:
        for _ in range(len(run.at.history), config.epochs):
            run.train_epoch(bar, stop)
            run.end_epoch(sets[1])
    run.finish()
    return pd.DataFrame(run.at.history)


class _Run:
    """The state of a run: model, optimiser, schedule, position and history."""

    def __init__(self, model: DualEncoder, config: RunConfig, accelerator: Accelerator, inputs: Inputs):
        self.model, self.config, self.accelerator, self.inputs = model, config, accelerator, inputs
        self.folder, self.checkpoints = Path(config.output_dir), Path(config.output_dir) / "checkpoints"
        self.rows_here = rows_a_process(config.batch_size, len(inputs.pairs), accelerator)
        self.batch_size = self.rows_here * accelerator.num_processes
        self.steps_per_epoch = len(inputs.pairs) // self.batch_size
        self.n_steps = config.epochs * self.steps_per_epoch
        self.precision = precision(config, accelerator)
        model.to(accelerator.device)
        self.loss_fn, self.critics = build_loss(model, config, int(inputs.labels.max()) + 1)
        self.optimizer, self.schedule = build_optimizer(model, config, self.n_steps)
        self.identity = identity(config, inputs.pairs, self.batch_size)
        self.parts = {"model": model, "optimizer": self.optimizer, "schedule": self.schedule}
        if self.loss_fn.state_dict():
            self.parts["loss"] = self.loss_fn
        if self.critics:
            self.parts["critic_optimizer"] = self.critics.optimizer
        self.said: set[str] = set()

    def resume(self) -> None:
        """Takes up the newest readable checkpoint, if there is one; the processes start from equal weights."""
        share_weights(self.model, self.accelerator)
        self.at = unpack(self.checkpoints, self.parts, self.identity)
        check_agreement(self.at.step, self.checkpoints, self.accelerator)

    def train_epoch(self, bar: tqdm, stop: StopRequest) -> None:
        """What is left of a pass over the images, each with one of its texts."""
        self.model.train()
        epoch, every = len(self.at.history), self.config.checkpoint_every
        started = time.perf_counter()
        for batch in self.inputs.loader(self._rows(epoch)[self.at.step - epoch * self.steps_per_epoch :]):
            self._train_step(batch)
            self.at.seconds += time.perf_counter() - started
            if self._everywhere(stop):
                self._leave()
            if every and self.at.step % every == 0 and self.at.step % self.steps_per_epoch:
                self.save()
            bar.update()
            if self.at.n_summed:
                bar.set_postfix(
                    refresh=False, epoch=epoch + 1, clip_loss=f"{self.at.sums['clip_loss'] / self.at.n_summed:.3f}"
                )
            started = time.perf_counter()

    def _train_step(self, batch: Batch) -> None:
        generator = torch.Generator().manual_seed(self.config.seed + 1_000_003 * (self.at.step + 1))
        rank, config = self.accelerator.process_index, self.config
        torch.manual_seed(config.seed + 1_000_003 * (self.at.step + 1) + 7_919 * rank)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            terms = contrastive_backward(
                self.model,
                self.loss_fn,
                _to_device(batch, self.accelerator.device),
                self.accelerator,
                beta=self._beta(),
                generator=generator,
                micro_batch_size=config.micro_batch_size,
                mixed_precision=self.precision,
                critics=self.critics,
            )
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT_NORM).item()
            values = dict(zip(terms, torch.stack([*terms.values()]).tolist(), strict=True))
            if not math.isfinite(values["loss"]) or not math.isfinite(norm):
                named = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
                raise FloatingPointError(f"{named}, gradient norm {norm:.6g}")
            self.at.add(values)
        except FloatingPointError as error:
            self._pass_over(error)
        self.optimizer.step()
        self.model.limit_logit_scale()
        self.schedule.step()
        self.at.step += 1

    def _pass_over(self, error: FloatingPointError) -> None:
        """Ends the run before the step is taken, or leaves a step without gradients, which moves nothing."""
        if self.config.on_non_finite == "stop":
            newest = newest_checkpoint(self.checkpoints)
            last = f"the last good checkpoint is {str(newest[0])!r}" if newest else "there is no checkpoint yet"
            raise FloatingPointError(
                f"step {self.at.step + 1} is not finite ({error}) and was not taken; {last}. "
                "Lower learning_rate or raise temperature, or skip such steps: on_non_finite='skip'"
            ) from error
        self.optimizer.zero_grad(set_to_none=True)
        self.at.n_skipped += 1

    def _beta(self) -> float:
        return beta_at(self.at.step / self.n_steps, self.config.beta)

    def _rows(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        """This process's image and text rows of every batch of an epoch; the same order for any split."""
        config = self.config
        images, texts = epoch_rows(self.inputs.pairs, config.group_size, config.group_share, config.seed, epoch)
        first = self.accelerator.process_index * self.rows_here
        starts = (i * self.batch_size + first for i in range(self.steps_per_epoch))
        rows = [slice(start, start + self.rows_here) for start in starts]
        return [(images[r], texts[r]) for r in rows]

    def _everywhere(self, stop: StopRequest) -> bool:
        """Whether any process was told to stop; the same answer on all of them."""
        if self.accelerator.num_processes == 1:
            return stop.noted
        noted = torch.tensor([float(stop.noted)], device=self.accelerator.device)
        return self.accelerator.reduce(noted, reduction="sum").item() > 0

    def _leave(self) -> None:
        self.save()
        message = f"SIGTERM: the run is saved at step {self.at.step} of {self.n_steps} in {str(self.folder)!r}"
        if self.accelerator.is_main_process:
            print(f"{message}; start it again to go on", file=sys.stderr, flush=True)
        self.accelerator.wait_for_everyone()
        raise Terminated(message)

    def end_epoch(self, held_out: Inputs | None) -> None:
        """Appends a row to the history and saves.

        Raises:
            FloatingPointError: not one step of the epoch was finite.
        """
        epoch = len(self.at.history) + 1
        if not self.at.n_summed:
            raise FloatingPointError(f"epoch {epoch} has no finite step: lower learning_rate or raise temperature")
        row = {"epoch": epoch, "step": self.at.step} | self.at.means() | {"beta": self._beta()}
        row |= {"temperature": 1 / self.model.logit_scale.item(), "seconds": self.at.seconds}
        if self.config.on_non_finite == "skip":
            row["skipped_steps"] = self.at.n_skipped
        if held_out is not None:
            row |= recalls(self.model, held_out)
        self.at.end_epoch(row)
        if self.accelerator.is_main_process:
            say_once(row, self.said)
        self.save()

    def save(self) -> None:
        """Writes a checkpoint and the history."""
        if self.accelerator.is_main_process:
            write_checkpoint(self.checkpoints, self.at.step, pack(self.parts, self.at, self.identity))
            self._write_history()

    def _write_history(self) -> None:
        if self.at.history:
            write_text(self.folder / "history.csv", pd.DataFrame(self.at.history).to_csv(index=False))

    def finish(self) -> None:
        """Writes the model's folder and the configuration; the checkpoints are then no longer needed."""
        self.model.eval()
        if self.accelerator.is_main_process:
            self._write_history()  # a run may have been killed between its last checkpoint and this file
            self.model.save_pretrained(self.folder)
            write_text(self.folder / "run.json", json.dumps(provenance(self.config), indent=2) + "\n")
            remove_checkpoints(self.checkpoints)
        self.accelerator.wait_for_everyone()


def _processes() -> Accelerator:
    """What a launcher set up, or one process; launched processes without a device of their own share the CPU."""
    options = [InitProcessGroupKwargs(timeout=LONGEST_WAIT)]
    return Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=options)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.images.to(device), tuple(t.to(device) for t in batch.texts), batch.labels.to(device))
