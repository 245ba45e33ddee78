"""The training loop: prepare, step, log, validate, save, resume.

`fit` trains a `DualEncoder` with `CIBRLoss` in an output folder (`cibr.train.run_folder`);
`Training` is the loop itself. Everything random (order, captions, dropout, noise) is a function of
the seed, the step, the process and the division into micro-batches, so a run that resumes from a
checkpoint equals one that was never stopped, bit for bit on a CPU.

A step has the loss and the gradients of its whole batch, however it is divided: `GradCache` gathers
the features of all micro-batches and processes and sums the gradients. So the model needs no
wrapper such as DDP, and `accelerate` only finds the device and the processes and forwards the log.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
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
from cibr.models import DualEncoder, SummedHead
from cibr.models.cca import RIDGES, choose_ridges, with_cca, without_cca
from cibr.models.dual_encoder import image_key
from cibr.models.inputs import Batch, Inputs, embed_pairs, prepare
from cibr.train.config import RunConfig
from cibr.train.grad_cache import GradCache
from cibr.train.run_folder import RunFolder, identity_of

_EXTRACTION_LIMIT = timedelta(hours=3)  # the other processes wait while one extracts features
_MAX_GRADIENT_NORM = 1.0
_WARM_UP = 0.15  # share of the steps in which the learning rate rises to its peak
_WARM_UP_FROM_SCRATCH = 0.45
_MIN_STEPS_BETWEEN_CHECKPOINTS = 200  # by default
_MAX_STEPS_BETWEEN_CHECKPOINTS = 500
# Primes keep the random streams of steps, processes and epochs apart.
_STEP_PRIME = 1_000_003
_PROCESS_PRIME = 7_919
_EPOCH_PRIME = 15_485_863
Rows = tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]


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
        ValueError: the output folder is in use, or contains another run, other people's files or
            links; a batch that the processes cannot share equally; fewer than ten images to choose
            CCA's ridges from.
        FloatingPointError: features, a loss or a gradient that are not finite.
        SystemExit: with code 143 after SIGTERM; the run is saved and resumes when started again.
    """
    accelerator = start_accelerator(config)
    model.to(accelerator.device)
    identity = identity_of(config, train, validation)
    folder = RunFolder(Path(config.output_dir), identity, accelerator.is_main_process)
    with folder.locked():
        folder.check_owner()
        if folder.is_finished():
            folder.remove_leftover()
            _load_finished(model, folder.path)
            return folder.history()

        has_cca = config.cca and model.towers.is_frozen
        if has_cca:
            model.head = without_cca(model.head)  # which is trained alone; CCA joins it in the end
        with accelerator.main_process_first():  # which extracts features that the others read
            inputs = prepare(model, train)
            held_out = None if validation is None else prepare(model, validation)
        ridges = _cca_ridges(config, inputs) if has_cca else None  # before training: may be refused
        training = Training(model, config, inputs, held_out, accelerator)
        state = folder.load_checkpoint()
        if state is not None:
            training.load_state_dict(state)
        accelerator.wait_for_everyone()  # before the main process writes over what others read
        folder.write_record(asdict(config), is_finished=False)

        accelerator.init_trackers("cibr")
        history = training.run(save=folder.save_checkpoint)
        # Not `end_training`: it ends the process group, and a script may call `fit` again.
        for tracker in accelerator.trackers:
            tracker.finish()

        if has_cca:
            model.head = _with_cca(model, config, inputs, ridges).to(accelerator.device)
            broadcast(model.state_dict())  # processes may round differently
        model.trained_on |= set(map(image_key, train.image_digests()))
        model.is_pretrained = True
        model.eval()
        _save_finished(model, history, folder, config)
        accelerator.wait_for_everyone()
    return history


def _save_finished(
    model: DualEncoder, history: pd.DataFrame, folder: RunFolder, config: RunConfig
) -> None:
    if folder.is_main:
        model.save_pretrained(folder.path)
    folder.write_history(history)
    folder.write_record(asdict(config), is_finished=True)
    folder.remove_checkpoint()


def _cca_ridges(config: RunConfig, inputs: Inputs) -> tuple[float, float]:
    """CCA's ridges for images and for texts: those of the configuration, or else chosen.

    Raises:
        ValueError: fewer than ten images, from which no ridges can be chosen.
    """
    ridge_image, ridge_text = config.cca_ridge_image, config.cca_ridge_text
    if ridge_image is not None and ridge_text is not None:
        return ridge_image, ridge_text
    image_of_pair = inputs.pairs.text_to_image()
    return choose_ridges(
        inputs.images[image_of_pair],
        *inputs.texts,
        image_of_pair,
        ridges_image=[ridge_image] if ridge_image else RIDGES,
        ridges_text=[ridge_text] if ridge_text else RIDGES,
    )


def _with_cca(
    model: DualEncoder, config: RunConfig, inputs: Inputs, ridges: tuple[float, float]
) -> SummedHead:
    """The head of a model, summed with the CCA of its training pairs."""
    ridge_image, ridge_text = ridges
    return with_cca(
        model.head,
        inputs.images[inputs.pairs.text_to_image()],
        *inputs.texts,
        ridge_image=ridge_image,
        ridge_text=ridge_text,
        cosine_weight=config.cca_weight,
    )


def _load_finished(model: DualEncoder, folder: Path) -> None:
    saved = DualEncoder.from_pretrained(folder).to(model.device, model.dtype)
    model.head = saved.head  # which may have been summed with CCA
    model.load_weights(saved.state_dict(), folder)
    model.trained_on = saved.trained_on
    model.is_pretrained = True
    model.eval()
    print(f"{folder} holds this run, finished: its model is loaded", file=sys.stderr)


class Training:
    """A run in memory: model, loss, optimiser and schedule, and the steps that have been taken.

    Args:
        model: the encoders, which are trained in place.
        config: from `cibr.train.configure`.
        inputs: the training pairs, from `cibr.models.inputs.prepare`.
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
        broadcast(model.state_dict())  # in place: all processes start from the first one's
        self.loss_fn = build_loss(config, model)
        self.optimizer = build_optimizer(config, model)
        self.schedule = OneCycleLR(
            self.optimizer,
            config.learning_rate,
            total_steps=max(2, self.n_steps),  # it divides by zero at one step
            pct_start=_WARM_UP if model.towers.is_pretrained else _WARM_UP_FROM_SCRATCH,
            cycle_momentum=False,
        )
        self.was_pretrained = model.is_pretrained
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
        bar = tqdm(total=self.n_steps, initial=self.step, unit="step", mininterval=1, **hidden)
        start = time.time()
        with bar, _sigterms(are_caught=save is not None) as sigterms:
            for batch in self.inputs.loader(self._rows()):
                averaged, latest = self.take_step(batch)
                for name, value in averaged.items():
                    self.sums[name] = self.sums.get(name, 0.0) + value
                if self.step % self.steps_per_epoch == 0:
                    self._end_epoch(latest, time.time() - start)
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
            What an epoch's row averages, the `loss`, its terms and `beta`; and what it has of the
            last step, `grad_norm`, the gradient's norm before clipping, and `learning_rate`.

        Raises:
            FloatingPointError: features, the loss or its gradient are not finite; no weight of the
                model has changed.
        """
        seed = self.config.seed + _STEP_PRIME * (self.step + 1)
        torch.manual_seed(seed + _PROCESS_PRIME * self.accelerator.process_index)  # dropout
        noise = torch.Generator().manual_seed(seed)  # of the whole batch, the same everywhere
        learning_rate = self.schedule.get_last_lr()[0]
        self.loss_fn.beta = self.config.beta
        if self.loss_fn.penalty.ramps and not self.was_pretrained:
            self.loss_fn.beta = beta_at(self.step / self.n_steps, self.config.beta)

        self.model.train()
        self.optimizer.zero_grad()
        try:
            values, gradient_norm = self._gradients(batch, noise)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"step {self.step + 1} was not taken: {error}: lower learning_rate or raise "
                "temperature, in another output_dir"
            ) from error
        self.optimizer.step()
        self.schedule.step()
        self.model.limit_logit_scale()
        self.step += 1
        averaged = values | {"beta": self.loss_fn.beta}
        latest = {"grad_norm": gradient_norm, "learning_rate": learning_rate}
        return averaged, latest

    def _gradients(self, batch: Batch, noise: torch.Generator) -> tuple[dict[str, float], float]:
        """Sets the clipped gradients of a batch; returns the loss with its terms, and the norm of
        the gradients before they are clipped.
        """
        cache = GradCache(
            self.model,
            send_to_device(batch, self.accelerator.device, non_blocking=True),
            self.accelerator,
            micro_batch_size=self.config.micro_batch_size,
            needs=self.loss_fn.needs,
            bf16=self.config.bf16,
        )
        inputs = cache.features | {"labels": cache.labels, "generator": noise}
        self.loss_fn.update(**inputs)
        terms = self.loss_fn(**inputs, logit_scale=self.model.logit_scale)
        loss = sum(terms.values())
        loss.backward()
        cache.backward()
        norm = clip_grad_norm_(self.model.parameters(), _MAX_GRADIENT_NORM).item()
        values = {name: x.item() for name, x in {"loss": loss, **terms}.items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(norm)):
            described = f"the loss is {values['loss']:.6g}, its gradient's norm {norm:.6g}"
            raise FloatingPointError(described)
        return values, norm

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

    def _end_epoch(self, latest: dict[str, float], seconds: float) -> None:
        """Validates, adds the epoch's row to the history and sends it to the tracker."""
        means = {name: total / self.steps_per_epoch for name, total in self.sums.items()}
        reports = {name: value.item() for name, value in self.loss_fn.reports().items()}
        self.sums = {}
        row = {
            "epoch": self.step // self.steps_per_epoch,
            "step": self.step,
            **means,
            **reports,
            **latest,
            "temperature": 1 / self.model.logit_scale.item(),
            "seconds": seconds,
        }
        if self.held_out is not None:
            row |= self.validate()
        self.history.append(row)
        self.accelerator.log(row, step=self.step)

    def _is_checkpoint_due(self) -> bool:
        """After the last step, and every `save_steps` steps: by default the fewest whole epochs
        with at least 200 steps, but at most 500 steps.
        """
        save_steps = self.config.save_steps
        if save_steps is None:
            n_epochs = math.ceil(_MIN_STEPS_BETWEEN_CHECKPOINTS / self.steps_per_epoch)
            save_steps = min(n_epochs * self.steps_per_epoch, _MAX_STEPS_BETWEEN_CHECKPOINTS)
        return self.step % save_steps == 0 or self.step == self.n_steps

    def _rows_per_process(self) -> int:
        n_pairs = len(self.inputs.pairs)
        n_processes = self.accelerator.num_processes
        # Fewer pairs than a batch are one batch, cut to a multiple of the processes.
        batch_size = min(self.config.batch_size, n_pairs)
        is_uneven = n_pairs >= self.config.batch_size and batch_size % n_processes > 0
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
    # accelerate sets it once per Python process, so two runs in one script could not differ.
    if accelerator.mixed_precision != "no":
        raise ValueError(
            f"accelerate has mixed_precision {accelerator.mixed_precision}: leave it out, and give "
            "the setting bf16"
        )
    return accelerator


def build_loss(config: RunConfig, model: DualEncoder) -> CIBRLoss:
    """The loss of a configuration; its seed sets the weights of what a penalty trains."""
    torch.manual_seed(config.seed)
    loss_fn = CIBRLoss.for_model(model, config.beta, config.penalty, **config.loss_options)
    return loss_fn.to(model.device, model.dtype)


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
    generator = torch.Generator().manual_seed(seed + _EPOCH_PRIME * (epoch + 1))
    n_texts = torch.bincount(pairs.text_to_image(), minlength=len(pairs))
    first_text = n_texts.cumsum(0) - n_texts  # texts lie image by image
    images = torch.randperm(len(pairs), generator=generator)
    uniform = torch.rand(len(pairs), generator=generator)[images]
    drawn = (uniform * n_texts[images]).long()
    drawn = drawn % n_texts[images]  # float32 may round a product up to the number of texts
    return images, first_text[images] + drawn


@contextmanager
def _sigterms(are_caught: bool) -> Iterator[list[int]]:
    """A context that notes each SIGTERM, such as SLURM's before its time limit, in a list.

    Only a main thread can catch signals: elsewhere they end the process as usual.
    """
    received: list[int] = []
    if not are_caught or threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)
