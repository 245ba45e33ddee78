"""The training loop: prepare, step, log, validate, save, resume.

`fit` trains a `DualEncoder` with `CIBRLoss` in an output folder (`cibr.train.run_folder`);
`Training` is the loop itself. Everything random (order, captions, dropout, noise) is a function of
the seed and the step, so a run that resumes from a checkpoint equals one that was never stopped,
bit for bit.

A step is exact for any division of its batch: `GradCache` gathers the features of all parts and
processes and sums the gradients. So the model needs no wrapper such as DDP, and `accelerate` only
finds the device and the processes and forwards the log.
"""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import (
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast,
    send_to_device,
)
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from cibr.data import Pairs
from cibr.losses import CIBRLoss, beta_at
from cibr.metrics import retrieval_recalls
from cibr.models import DualEncoder
from cibr.models.cca import add_cca, remove_cca
from cibr.models.dual_encoder import image_key
from cibr.models.features import Batch, Inputs, embed_pairs, prepare
from cibr.train.config import RunConfig
from cibr.train.grad_cache import GradCache
from cibr.train.run_folder import RunFolder, identity_of

_EXTRACTION_LIMIT = timedelta(hours=3)  # the other processes wait while one extracts features
Rows = tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]


class Training:
    """A run in memory: model, loss, optimiser and schedule, and the steps that have been taken.

    Args:
        model: the encoders, which are trained in place.
        config: from `cibr.train.configure`.
        inputs: the training pairs, from `cibr.models.features.prepare`.
        held_out: the validation pairs, or None.
        accelerator: from `start_accelerator`.

    Attributes:
        step: the number of steps taken.
        history: a row for each epoch that has ended, see `fit`.

    Raises:
        ValueError: a batch that the processes cannot share equally.
    """

    def __init__(
        self,
        model: DualEncoder,
        config: RunConfig,
        inputs: Inputs,
        held_out: Inputs | None = None,
        accelerator: Accelerator | None = None,
    ):
        self.model = model
        self.config = config
        self.inputs = inputs
        self.held_out = held_out
        self.accelerator = accelerator or start_accelerator()

        self.rows_per_process = self._rows_per_process()
        self.batch_size = self.rows_per_process * self.accelerator.num_processes
        self.steps_per_epoch = len(inputs.pairs) // self.batch_size
        self.n_steps = self.steps_per_epoch * config.epochs

        model.to(self.accelerator.device)
        broadcast(model.state_dict())  # in place: all processes start from those of the first
        self.loss_fn = build_loss(config, model)
        self.optimizer = build_optimizer(config, model)
        self.schedule = OneCycleLR(
            self.optimizer,
            config.learning_rate,
            max(2, self.n_steps),
            pct_start=0.15 if model.towers.is_pretrained else 0.45,  # from scratch it rises longer
            cycle_momentum=False,
        )
        self.step = 0
        self.sums: dict[str, float] = {}  # of the loss and its terms, over the steps of the epoch
        self.history: list[dict[str, float]] = []

    def run(self, save: Callable[[dict[str, Any]], None] | None = None) -> pd.DataFrame:
        """Takes the steps that are left.

        Args:
            save: takes the state of the run, for a checkpoint: every `save_steps` steps and, with
                code 143, when SIGTERM tells a process to stop. None: nothing is saved, and SIGTERM
                ends the process as usual.

        Returns:
            The history, one row per epoch, see `fit`.

        Raises:
            FloatingPointError: features, a loss or a gradient that are not finite.
            SystemExit: after SIGTERM, once the state is saved.
        """
        # In processes other than the main one the bar is off; elsewhere TQDM_DISABLE decides.
        hidden = {} if self.accelerator.is_main_process else {"disable": True}
        bar = tqdm(total=self.n_steps, initial=self.step, unit="step", delay=1, **hidden)
        start = time.time()
        with bar, _sigterms(are_caught=save is not None) as sigterms:
            for batch in self.inputs.loader(self._rows()):
                terms, gradient = self.take_step(batch)
                for name, value in terms.items():
                    self.sums[name] = self.sums.get(name, 0.0) + value
                if self.step % self.steps_per_epoch == 0:
                    self._log_epoch(gradient, time.time() - start)
                bar.update()

                is_stopped = self._any_process(len(sigterms) > 0)
                if save is not None and (is_stopped or self._is_checkpoint_due()):
                    save(self.state_dict())
                    self.accelerator.wait_for_everyone()
                if is_stopped:
                    where = f"step {self.step} of {self.n_steps}"
                    message = f"SIGTERM: the run is saved at {where}; start it again to go on"
                    print(message, file=sys.stderr)
                    raise SystemExit(128 + signal.SIGTERM)
        return pd.DataFrame(self.history)

    def take_step(self, batch: Batch) -> tuple[dict[str, float], dict[str, float]]:
        """Takes one step on the whole batch, of which `batch` has this process's rows.

        Returns:
            The `loss`, its terms and `beta`; and `grad_norm`, the gradient's norm before clipping,
            with the `learning_rate`.

        Raises:
            FloatingPointError: features, the loss or its gradient are not finite; no weight has
                changed.
        """
        model, loss_fn = self.model, self.loss_fn
        # Primes keep the random streams of steps, processes and epochs apart.
        seed = self.config.seed + 1_000_003 * (self.step + 1)
        torch.manual_seed(seed + 7_919 * self.accelerator.process_index)  # dropout, of these rows
        noise = torch.Generator().manual_seed(seed)  # of the whole batch
        loss_fn.beta = self.config.beta
        if loss_fn.penalty.ramps:
            loss_fn.beta = beta_at(self.step / self.n_steps, self.config.beta)

        model.train()
        batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
        try:
            cache = GradCache(
                model,
                batch,
                self.accelerator,
                micro_batch_size=self.config.micro_batch_size,
                needs=loss_fn.needs,
                bf16=self.config.bf16,
            )
            inputs = cache.features | {"labels": cache.labels, "generator": noise}
            loss_fn.update(**inputs)
            terms = loss_fn(**inputs, logit_scale=model.logit_scale)
            loss = sum(terms.values())
            loss.backward()
            cache.backward()
            norm = clip_grad_norm_(model.parameters(), max_norm=1.0).item()
            values = {name: x.item() for name, x in {"loss": loss, **terms}.items()}
            if not math.isfinite(values["loss"] + norm):
                described = f"the loss is {values['loss']:.6g}, its gradient's norm {norm:.6g}"
                raise FloatingPointError(described)
        except FloatingPointError as error:  # also of features
            raise FloatingPointError(
                f"step {self.step + 1} was not taken: {error}: lower learning_rate or raise "
                "temperature, in another output_dir"
            ) from error

        learning_rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        model.limit_logit_scale()
        self.step += 1
        terms = values | {"beta": loss_fn.beta}
        return terms, {"grad_norm": norm, "learning_rate": learning_rate}

    def validate(self) -> dict[str, float]:
        """The recalls of the validation pairs in [0, 1], such as `text_to_image_recall@10`."""
        images, texts = embed_pairs(self.model, self.held_out)
        return retrieval_recalls(images, texts, *self.held_out.pairs.retrieval_targets())

    def state_dict(self) -> dict[str, Any]:
        """All that the remaining steps depend on."""
        return {
            "weights": self.model.state_dict(),
            "loss": self.loss_fn.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "sums": self.sums,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state that `state_dict` returned."""
        self.model.load_weights(state["weights"], self.config.output_dir)
        self.loss_fn.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step = state["step"]
        self.sums = state["sums"]
        self.history = state["history"]

    def _rows(self) -> Iterator[Rows]:
        """This process's images and texts of the steps that are left."""
        first_step = self.step
        for step in range(first_step, self.n_steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if batch == 0 or step == first_step:
                images, texts = epoch_rows(self.inputs.pairs, self.config.seed, epoch)
            start = batch * self.batch_size
            start += self.accelerator.process_index * self.rows_per_process
            rows = slice(start, start + self.rows_per_process)
            yield images[rows], texts[rows]

    def _log_epoch(self, gradient: dict[str, float], seconds: float) -> None:
        """Adds the row of the epoch that has ended to the history, and sends it to the tracker."""
        means = {name: total / self.steps_per_epoch for name, total in self.sums.items()}
        reports = {name: value.item() for name, value in self.loss_fn.reports().items()}
        self.sums = {}
        row = {
            "epoch": self.step // self.steps_per_epoch,
            "step": self.step,
            **means,
            **reports,
            **gradient,
            "temperature": 1 / self.model.logit_scale.item(),
            "seconds": seconds,
        }
        if self.held_out is not None:
            row |= self.validate()
        self.history.append(row)
        self.accelerator.log(row, step=self.step)

    def _is_checkpoint_due(self) -> bool:
        """By default at the end of an epoch, 200 steps or more after the last one, or after 500
        steps; and always after the last step.
        """
        save_steps = self.config.save_steps
        if save_steps is None:
            n_epochs = math.ceil(200 / self.steps_per_epoch)
            save_steps = min(500, n_epochs * self.steps_per_epoch)
        return self.step % save_steps == 0 or self.step == self.n_steps

    def _rows_per_process(self) -> int:
        n_pairs = len(self.inputs.pairs)
        n_processes = self.accelerator.num_processes
        batch_size = min(self.config.batch_size, n_pairs)
        is_uneven = batch_size == self.config.batch_size and batch_size % n_processes > 0
        if batch_size < n_processes or is_uneven:
            raise ValueError(
                f"{n_processes} processes cannot share {batch_size} pairs: change batch_size"
            )
        return batch_size // n_processes

    def _any_process(self, value: bool) -> bool:
        """Whether a value is true in any process."""
        if self.accelerator.num_processes == 1:
            return value
        mine = torch.tensor([value], device=self.accelerator.device)
        return bool(self.accelerator.gather(mine).any())


def fit(
    model: DualEncoder, train: Pairs, validation: Pairs | None, config: RunConfig
) -> pd.DataFrame:
    """Trains a model in place, or resumes its run, or loads it if the run is finished.

    The output folder then contains the model (see `DualEncoder.save_pretrained`), `history.csv` and
    `run.json`; during training also a checkpoint.

    Args:
        model: from `build_model`.
        train: the training pairs.
        validation: the pairs for validation recall, or None.
        config: from `configure`.

    Returns:
        The history, one row per `epoch` and its last `step`: `loss, clip_loss, penalty_loss, beta`,
        averaged over the epoch's steps; the reports of the loss on the last batch (see
        `CIBRLoss.reports`), `grad_norm`, before clipping, and `learning_rate` of the last step;
        `temperature`; `seconds` since this call began to train; and validation recalls in [0, 1].

    Raises:
        ValueError: the output folder is in use, or contains another run or files of others; a batch
            that the processes cannot share equally.
        FloatingPointError: features, a loss or a gradient that are not finite.
        SystemExit: with code 143 after SIGTERM; the run is saved and resumes when started again.
    """
    accelerator = start_accelerator(config)
    identity = identity_of(config, train, validation)
    folder = RunFolder(Path(config.output_dir), accelerator.is_main_process)
    has_cca = config.cca and config.model == "frozen" and model.towers.is_frozen
    with folder.locked():
        finished = folder.finished_history(identity)
        if finished is not None:
            folder.remove_leftover(identity)
            _load_finished(model, folder.path)
            return finished
        # The first process extracts the features of frozen towers, the others read them.
        model.to(accelerator.device)
        if has_cca:
            remove_cca(model)  # of an earlier run: it is fitted again in the end
        with accelerator.main_process_first():
            inputs = prepare(model, train)
            held_out = None if validation is None else prepare(model, validation)
        training = Training(model, config, inputs, held_out, accelerator)
        state = folder.load_checkpoint(identity)
        if state is not None:
            training.load_state_dict(state)
        accelerator.wait_for_everyone()
        record = {"configuration": asdict(config), "run": identity}
        folder.write_record(record | {"finished": False})
        accelerator.init_trackers("cibr")
        history = training.run(save=partial(folder.save_checkpoint, identity=identity))
        for tracker in accelerator.trackers:
            tracker.finish()
        if has_cca:
            add_cca(model, inputs, config.cca_ridge_image, config.cca_ridge_text)
            broadcast(model.state_dict())
        model.trained_on |= set(map(image_key, train.image_digests()))
        model.eval()
        if accelerator.is_main_process:
            model.save_pretrained(folder.path)
        folder.write("history.csv", history.to_csv(index=False))
        folder.write_record(record | {"finished": True})
        folder.remove_checkpoint()
        accelerator.wait_for_everyone()
    return history


def start_accelerator(config: RunConfig | None = None) -> Accelerator:
    """The device and the processes of a run, and what its log is sent to.

    Raises:
        ValueError: `log_with` names a tracker that is unknown or not installed.
    """
    log_with = config.log_with if config else None
    folder = config.output_dir if config else None
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        log_with=log_with,
        project_config=ProjectConfiguration(project_dir=folder, logging_dir=folder),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_EXTRACTION_LIMIT)],
    )
    if log_with and not accelerator.log_with:
        raise ValueError(f"log_with is {log_with!r}, which is not installed: pip install it")
    if accelerator.mixed_precision != "no":  # which holds for a process, not for a run
        raise ValueError(
            f"accelerate has mixed_precision {accelerator.mixed_precision}: leave it out, and give "
            "the setting bf16"
        )
    return accelerator


def build_loss(config: RunConfig, model: DualEncoder) -> CIBRLoss:
    """The loss of a configuration; its seed sets the weights of what a penalty trains."""
    torch.manual_seed(config.seed)
    loss_fn = CIBRLoss.for_model(model, config.beta, config.penalty, **config.loss_options)
    return loss_fn.to(model.log_logit_scale)  # its device and type


def build_optimizer(config: RunConfig, model: DualEncoder) -> AdamW:
    """AdamW with weight decay on matrices: gains, biases and the temperature have none."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


def epoch_rows(pairs: Pairs, seed: int, epoch: int) -> Rows:
    """All images in random order, each with one of its texts, for an epoch counted from 0.

    Returns:
        Indices of images, and of texts in `pairs.texts()`, [n] each.
    """
    generator = torch.Generator().manual_seed(seed + 15_485_863 * (epoch + 1))
    n_texts = torch.bincount(pairs.text_to_image(), minlength=len(pairs))
    first_text = n_texts.cumsum(0) - n_texts
    images = torch.randperm(len(pairs), generator=generator)
    uniform = torch.rand(len(pairs), generator=generator)[images]
    drawn = (uniform * n_texts[images]).long()
    drawn = drawn % n_texts[images]  # float32 may round a product up to the number of texts
    return images, first_text[images] + drawn


@contextmanager
def _sigterms(are_caught: bool) -> Iterator[list[int]]:
    """A context that notes each SIGTERM, such as SLURM's before its time limit, in a list."""
    received: list[int] = []
    if not are_caught:
        yield received
        return
    previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)


def _load_finished(model: DualEncoder, folder: Path) -> None:
    saved = DualEncoder.from_pretrained(folder).to(model.log_logit_scale)
    model.head = saved.head  # which may have been summed with CCA
    model.load_weights(saved.state_dict(), folder)
    model.trained_on = saved.trained_on
    model.eval()
    print(f"{folder} holds this run, finished: its model is loaded", file=sys.stderr)
