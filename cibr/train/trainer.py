"""`CIBRTrainer`: a `transformers.Trainer` for `DualEncoder` and `CIBRLoss`.

It overrides how Trainer draws batches, takes a step, evaluates and saves; the loop, optimiser,
clipping, logs, callbacks, best model and early stopping are Trainer's. Everything random (order,
captions, dropout, noise) is keyed by the seed and the step, so a run resumed from its newest whole
checkpoint has the result of an uninterrupted one.

A step is exact for any division of its batch: `GradCache` gathers features of all parts and
processes and reduces gradients, so the model needs no DDP. FSDP and DeepSpeed, which gather a
model's parts in its `forward`, are refused.
"""

import json
import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.utils import broadcast, broadcast_object_list, send_to_device
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from cibr.data import Pairs
from cibr.losses import PENALTIES, CIBRLoss, RegularisedCCA, beta_at
from cibr.losses._checks import FeaturesError
from cibr.losses.cibr import arguments_of
from cibr.losses.clip import Scalar
from cibr.metrics import retrieval_recalls
from cibr.models import DualEncoder
from cibr.models.dual_encoder import Encoded, image_key
from cibr.models.features import Batch, Inputs, embed_pairs, prepare
from cibr.train.config import DEFAULTS, RunConfig, training_arguments
from cibr.train.grad_cache import GradCache, reduce_gradient, unit_vectors
from cibr.train.run_folder import CHECKPOINT, RunFolder
from cibr.utils import digest

# Share of the steps in which the learning rate rises to its peak; towers from scratch need longer.
_WARM_UP = {"tiny": 0.45, "frozen": 0.15, "hub": 0.15}
Rows = tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]


class CIBRTrainer(Trainer):
    """Trains a `DualEncoder` on image-text pairs with `CIBRLoss`.

    `train` resumes an unfinished run of the same configuration and pairs, or loads weights and
    history of a finished one. The output folder then contains the model (see
    `DualEncoder.save_pretrained`), `history.csv` and `run.json`, and during training checkpoints.

    To vary a run, override `prepare_pairs`, `epoch_rows`, `prepare_batch`, `loss_options`,
    `loss_inputs`, `encode_batch` or `stateful`.

    Args:
        model: from `build_model`; it is trained in place.
        config: from `configure`.
        train: the training pairs.
        validation: the pairs for validation recall, or None.
        callbacks: of transformers, such as `EarlyStoppingCallback`.

    Attributes:
        history: that `train` returned.

    Raises:
        ValueError: fewer than two pairs or captions, a penalty on pooled features with a model that
            has none (SigLIP), a batch that the processes cannot share equally, FSDP or DeepSpeed,
            or an output folder that cannot be written or contains other files.
    """

    model: DualEncoder
    loss_class: type[CIBRLoss] = CIBRLoss
    history: pd.DataFrame | None = None

    def __init__(
        self,
        model: DualEncoder,
        config: RunConfig,
        train: Pairs,
        validation: Pairs | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        _check(model, train, config)
        if config.dataset == DEFAULTS["dataset"]:  # also where pairs made in Python are given
            config = replace(config, dataset=train.name)
        args = training_arguments(config, len(train), validation is not None)
        self.config = config
        self.train_dataset = train
        self.run_folder = RunFolder(Path(args.output_dir), args.should_save)
        self.batch_size = args.per_device_train_batch_size * args.world_size
        self.steps_per_epoch = len(self.epoch_rows(0)[0]) // self.batch_size
        self.sums: dict[str, float] = {}  # of the terms since the last log, and of "steps"
        callbacks = [_RunCallback(self), _Bar(), *callbacks]
        super().__init__(
            model, args, train_dataset=train, eval_dataset=validation, callbacks=callbacks
        )
        self.remove_callback(PrinterCallback)
        model.config = None  # of transformers: `create_model_card` looks for one
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("every process has the whole model: launch without FSDP or DeepSpeed")
        # Accelerate would wrap the model in DDP; `GradCache` has reduced the gradients already.
        self.accelerator.prepare_model = lambda model, **_: model

    # A run

    def train(self) -> pd.DataFrame:
        """Trains, or resumes from the newest whole checkpoint, and saves the model.

        Returns:
            The history, one row per epoch, see `fit`.

        Raises:
            ValueError: the folder is in use, contains another run or cannot be written.
            FloatingPointError: a loss or gradient that is not finite; the message names the last
                good checkpoint.
            SystemExit: with code 143 after SIGTERM; the run is saved and resumes when started
                again.
        """
        folder, config = self.run_folder, asdict(self.config)
        identity = json.loads(json.dumps(self.identity()))  # with lists for tuples, as stored
        with folder.locked():
            self.history = folder.finished_history(identity)
            if self.history is not None:
                folder.remove_checkpoints()  # that a kill left
                self._load_finished()
                return self.history
            self.set_up()
            [checkpoint] = broadcast_object_list([next(reversed(folder.checkpoints()), None)])
            folder.write_record(config, identity)
            with sigterm_noted() as self.sigterms:
                super().train(checkpoint)
            if self._adds_cca():
                add_cca(self.model, self.fit_cca())
                broadcast(self.model.own_weights())
            self.model.trained_on |= set(map(image_key, self.train_dataset.image_digests()))
            self.model.eval()
            self.save_model()
            self.history = self._history()
            folder.write("history.csv", self.history.to_csv(index=False))
            folder.write_record(config, identity, finished=True)
            folder.remove_checkpoints()
            self.accelerator.wait_for_everyone()
        return self.history

    def set_up(self) -> None:
        """Prepares inputs, the initial weights and the loss; all are functions of the seed."""
        # The first process extracts the features of frozen towers, the others read them.
        with self.accelerator.main_process_first():
            self.inputs = self.prepare_pairs(self.train_dataset)
            if self.eval_dataset is not None:
                self.held_out = self.prepare_pairs(self.eval_dataset)
        if self.config.cca_start:
            start_heads(self.model, self.fit_cca())
        broadcast(self.model.own_weights())  # in place: all start from the first one's weights
        torch.manual_seed(self.config.seed)  # of what the penalty trains
        loss_fn = self.loss_class(self.config.beta, self.config.penalty, **self.loss_options())
        self.loss_fn = loss_fn.to(self.args.device)

    def prepare_pairs(self, pairs: Pairs) -> Inputs:
        """The inputs of the training or the validation pairs."""
        return prepare(self.model, pairs, self.args.device)

    def fit_cca(self) -> RegularisedCCA:
        """The CCA of the training pairs, for `cca` and `cca_start`."""
        return fit_cca(self.inputs, self.model.dim, self.config.cca_ridges)

    def loss_options(self) -> dict[str, Any]:
        """The options of the loss, with widths for a penalty that needs them."""
        model, options = self.model, dict(self.config.loss_options)
        if "dims" in arguments_of(self.config.penalty):
            options.setdefault("dims", (model.dim, model.dim_image_pooled, model.dim_text_pooled))
        return options

    def identity(self) -> dict[str, Any]:
        """What decides the result of a run: configuration, architecture and pairs."""
        run = asdict(self.config)
        for name in ("output_dir", "micro_batch_size"):  # do not affect it
            run.pop(name)
        for name in ("dataset", "model", "towers"):  # one folder has many spellings
            if run[name] and Path(run[name]).expanduser().is_dir():
                run[name] = str(Path(run[name]).expanduser().resolve())
        run["architecture"] = f"{self.model.kind} {self.model.settings}"
        for name, pairs in (("training", self.train_dataset), ("validation", self.eval_dataset)):
            if pairs is not None:
                texts = digest(repr((pairs.keys, pairs.captions, pairs.match_labels().tolist())))
                run[f"{name} pairs"] = f"{len(pairs):,} with digest {texts[:12]}"
                run[f"{name} images"] = f"digest {digest(repr(pairs.image_digests()))[:12]}"
        run["precision"] = self.accelerator.mixed_precision
        return run

    def _adds_cca(self) -> bool:
        """Whether a CCA is put beside the heads over frozen towers in the end."""
        is_frozen = self.config.model == self.model.kind == "frozen"
        return is_frozen and self.config.cca and not self.model.settings["with_linear"]

    def _load_finished(self) -> None:
        folder = self.run_folder.path
        saved = DualEncoder.from_pretrained(folder)
        if self._adds_cca():
            self.model.add_linear_heads()
        self.model.load_own_weights(saved.own_weights(), folder)
        self.model.trained_on = saved.trained_on
        self.model.eval()
        if self.args.should_save:
            print(
                f"{str(folder)!r} holds this run, finished: its model and history are loaded",
                file=sys.stderr,
            )

    # A step

    def epoch_rows(self, epoch: int) -> Rows:
        """Image and text of every row of an epoch, counted from 0."""
        return epoch_rows(self.train_dataset, self.config.seed, epoch)

    def get_train_dataloader(self) -> DataLoader:
        """This process's rows of every step."""
        return self.inputs.loader(_Steps(self))

    def training_step(self, model: DualEncoder, inputs: Batch, *_: Any) -> Scalar:
        """Gradients of the whole batch.

        Args:
            model: the encoders.
            inputs: this process's rows.

        Returns:
            The loss.

        Raises:
            FloatingPointError: features, a loss or a gradient that are not finite.
        """
        step = self.state.global_step + 1
        seed = self.config.seed + 1_000_003 * step
        torch.manual_seed(seed + 7_919 * self.args.process_index)  # dropout, of these rows
        generator = torch.Generator().manual_seed(seed)  # noise, of the whole batch
        model.train()
        self.optimizer.zero_grad()  # Trainer does so for the model, not for what the loss trains
        try:
            cache = self.encode_batch(model, self.prepare_batch(inputs))
            terms = self._backward(cache, generator)
            gradients = [p.grad for p in self._trained_parameters() if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            # One wait for the device, not one a term.
            *values, norm = torch.stack([*terms.values(), norm]).tolist()
            values = dict(zip(terms, values, strict=True))
            if not math.isfinite(values["loss"]) or not math.isfinite(norm):
                named = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
                raise FloatingPointError(f"it is not finite ({named}, grad_norm {norm:.6g})")
        except (FloatingPointError, FeaturesError) as error:
            raise FloatingPointError(
                f"step {step} was not taken: {error}; {self.run_folder.last_good()}. Lower "
                "learning_rate or raise temperature, in another output_dir"
            ) from error
        for name, value in (values | {"beta": self.loss_fn.beta, "steps": 1}).items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return terms["loss"].detach()

    def prepare_batch(self, batch: Batch) -> Batch:
        """This process's rows on its device."""
        return send_to_device(batch, self.args.device, non_blocking=True)

    def encode_batch(self, model: DualEncoder, batch: Batch) -> GradCache:
        """Features of the whole batch."""
        size = self.config.micro_batch_size
        return GradCache(model, batch, self.accelerator, size, self.loss_inputs)

    def loss_inputs(self, image: Encoded, text: Encoded) -> dict[str, Tensor]:
        """The inputs of the loss by name, from the encoded rows of a part of a batch."""
        named = unit_vectors(image, text)
        if "image_pooled" in self.loss_fn.needs:
            named["image_pooled"] = image.pooled.detach()
            named["text_pooled"] = text.pooled.detach()
        return named

    def _backward(self, cache: GradCache, generator: torch.Generator) -> dict[str, Scalar]:
        """The loss, its terms and its reports; gradients are added to the parameters."""
        loss_fn, scale = self.loss_fn, self.model.logit_scale
        inputs = cache.features | {"labels": cache.labels, "generator": generator}
        loss_fn.beta = self.config.beta
        if loss_fn.penalty.ramps:
            loss_fn.beta = beta_at(self.state.global_step / self.state.max_steps, self.config.beta)
        loss_fn.update(**inputs)
        terms = loss_fn(**inputs, logit_scale=scale)
        loss = sum(terms.values())
        loss.backward()
        cache.backward()
        for parameter in loss_fn.trained_parameters():
            reduce_gradient(parameter, self.accelerator)
        return {"loss": loss} | terms | loss_fn.reports()

    def _trained_parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.loss_fn.trained_parameters()]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's AdamW, over the model and what the loss trains."""
        return super().create_optimizer(nn.ModuleList([self.model, self.loss_fn]))

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices: weight decay leaves out gains, biases and the temperature."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]

    def create_scheduler(self, num_training_steps: int, *_: Any) -> OneCycleLR:
        """A one-cycle schedule of the learning rate."""
        self.lr_scheduler = OneCycleLR(
            self.optimizer,
            self.args.learning_rate,
            max(2, num_training_steps),
            pct_start=_WARM_UP[self.model.kind],
            cycle_momentum=False,
        )
        return self.lr_scheduler

    # Logs and validation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None
    ) -> dict[str, float]:
        """Logs and returns the recalls of the validation pairs in [0, 1], by names such as
        `eval_text_to_image_recall@10`; their mean, `eval_mean_recall`, decides on the best model.

        Raises:
            ValueError: other pairs, which `cibr.evaluate` measures.
        """
        if eval_dataset is not None:
            raise ValueError("evaluate measures validation pairs: for others use cibr.evaluate")
        targets = self.held_out.pairs.retrieval_targets()
        recalls = retrieval_recalls(*embed_pairs(self.model, self.held_out), *targets)
        recalls = {f"eval_{name}": value for name, value in recalls.items()}
        self.log(dict(recalls))
        recalls["eval_mean_recall"] = sum(recalls.values()) / len(recalls)
        events = self.callback_handler
        self.control = events.on_evaluate(self.args, self.state, self.control, recalls)
        return recalls

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of the terms over the steps since the last log."""
        if "loss" in logs:
            n_steps = self.sums.pop("steps")
            logs |= {name: value / n_steps for name, value in self.sums.items()}
            logs["temperature"] = 1 / self.model.logit_scale.item()
            logs["seconds"] = time.time() - start_time
            self.sums = {}
        super().log(logs, start_time)

    def _history(self) -> pd.DataFrame:
        """The log as a table with one row per epoch."""
        log = [entry for entry in self.state.log_history if "train_loss" not in entry]
        history = pd.DataFrame(log).groupby("step", as_index=False).first()
        history.insert(0, "epoch", history.pop("epoch").round().astype(int))
        return history.rename(columns=lambda name: name.removeprefix("eval_"))

    # Checkpoints

    def stateful(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights, optimiser and Trainer's state: objects with a
        `state_dict`, by name.
        """
        return {"loss": self.loss_fn}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the model to a folder, by default the output folder."""
        if not _internal_call:
            if self.args.should_save:
                self.model.save_pretrained(output_dir or self.args.output_dir)
            return
        if self.args.should_save:  # of a checkpoint: the first file of it
            Path(output_dir).mkdir(exist_ok=True)
            parts = {name: part.state_dict() for name, part in self.stateful().items()}
            state = {"weights": self.model.own_weights(), "parts": parts, "sums": self.sums}
            torch.save(state, Path(output_dir, CHECKPOINT))
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Private, as no public method sees that a disk is full."""
        folder = self.run_folder.path / f"checkpoint-{self.state.global_step}"
        with self.run_folder.writing(folder):
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Private, as no public method loads what `save_model` wrote."""
        folder = Path(resume_from_checkpoint)
        state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
        self.model.load_own_weights(state["weights"], folder)
        for name, part in self.stateful().items():
            part.load_state_dict(state["parts"][name])
        self.sums = state["sums"]

    def _load_best_model(self) -> None:
        """Private, as `_load_from_checkpoint`."""
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class _Bar(ProgressCallback):
    """The progress bar of transformers, without a line for every entry of the log."""

    def on_log(self, args, state, control, **_):
        """Nothing: the entries are in the history."""


class _RunCallback(TrainerCallback):
    """Clamps the temperature, saves every `save_steps` steps, and saves and ends at SIGTERM."""

    def __init__(self, trainer: CIBRTrainer):
        self.trainer = trainer
        self.is_stopping = False

    def on_step_end(self, args, state, control, model, **_):
        model.limit_logit_scale()
        sigterms = torch.tensor([len(self.trainer.sigterms)], device=args.device)
        self.is_stopping = bool(self.trainer.accelerator.gather(sigterms).any())
        is_due = self.is_stopping or state.global_step % state.save_steps == 0
        # The last step of an epoch is saved once the epoch has its row of the history.
        control.should_save = is_due and state.global_step % self.trainer.steps_per_epoch != 0

    def on_save(self, args, state, control, **_):
        folder = self.trainer.run_folder
        folder.remove_checkpoints(but=[*folder.checkpoints()[-2:], state.best_model_checkpoint])
        self.trainer.accelerator.wait_for_everyone()
        if self.is_stopping:
            if state.is_world_process_zero:
                progress = f"step {state.global_step} of {state.max_steps}"
                message = f"SIGTERM: the run is saved at {progress}; start it again to go on"
                tqdm.write(message, file=sys.stderr)
            raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def sigterm_noted() -> Iterator[list[int]]:
    """A context with a list of the SIGTERMs received, such as SLURM's before its time limit.

    Outside the main thread, signals are not handled.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class _Steps:
    """Rows of this process for the steps of the current epoch: images and texts.

    They are functions of seed, epoch and row, so they are the same for any number of processes and
    after a resume.
    """

    def __init__(self, trainer: CIBRTrainer):
        self.trainer = trainer

    def __len__(self) -> int:
        return self.trainer.steps_per_epoch

    def __iter__(self) -> Iterator[Rows]:
        args = self.trainer.args
        images, texts = self.trainer.epoch_rows(self.trainer.state.global_step // len(self))
        n_rows = args.per_device_train_batch_size
        for step in range(len(self)):
            start = step * self.trainer.batch_size + args.process_index * n_rows
            rows = slice(start, start + n_rows)
            yield images[rows], texts[rows]


def epoch_rows(pairs: Pairs, seed: int, epoch: int) -> Rows:
    """All images in random order, each with one of its texts, for an epoch counted from 0.

    Returns:
        Indices of images, and of texts in `pairs.texts()`, [rows] each.
    """
    generator = torch.Generator().manual_seed(seed + 15_485_863 * (epoch + 1))
    n_texts = torch.bincount(pairs.text_to_image(), minlength=len(pairs))
    images = torch.randperm(len(pairs), generator=generator)
    drawn = (torch.rand(len(pairs), generator=generator)[images] * n_texts[images]).long()
    return images, (n_texts.cumsum(0) - n_texts)[images] + drawn % n_texts[images]


def fit_cca(inputs: Inputs, dim: int, ridges: tuple[float, float]) -> RegularisedCCA:
    """CCA of the cached features of all pairs, with each image repeated for each of its texts."""
    images = inputs.images[inputs.pairs.text_to_image()]
    return RegularisedCCA.fit(images, inputs.texts[0], dim, *ridges)


def start_heads(model: DualEncoder, cca: RegularisedCCA) -> None:
    """Sets the heads over frozen towers to the maps of a CCA."""
    model.image_head.start_at(cca.image_mean, cca.image_map)
    model.text_head.start_at(cca.text_mean, cca.text_map)


@torch.no_grad()
def add_cca(model: DualEncoder, cca: RegularisedCCA) -> None:
    """Puts a CCA beside the heads over frozen towers: their scores are averaged."""
    model.add_linear_heads()
    for (_, linear), mean, linear_map in (
        (model.image_head, cca.image_mean, cca.image_map),
        (model.text_head, cca.text_mean, cca.text_map),
    ):
        linear.weight.copy_(linear_map)
        linear.bias.copy_(-linear_map @ mean)


def fit(
    model: DualEncoder,
    train: Pairs,
    validation: Pairs | None,
    config: RunConfig,
    callbacks: Sequence[TrainerCallback] = (),
) -> pd.DataFrame:
    """Trains a model in place with `CIBRTrainer`, whose arguments it takes.

    Returns:
        The history, one row per `epoch` and its last `step`: `loss, clip_loss, penalty_loss, beta`
        and the reports of the loss, averaged over the epoch's steps; `grad_norm`, before clipping,
        and `learning_rate` of its last step; `temperature`; `seconds` since this call began to
        train; and validation recalls in [0, 1].
    """
    return CIBRTrainer(model, config, train, validation, callbacks).train()


def _check(model: DualEncoder, train: Pairs, config: RunConfig) -> None:
    """Refuses a run that cannot train, before anything is prepared."""
    if not (isinstance(model, DualEncoder) and isinstance(train, Pairs)):
        raise ValueError(
            f"a run trains a DualEncoder on Pairs, not {type(model).__name__} on "
            f"{type(train).__name__}: use build_model(config, train) and load_splits(config)"
        )
    if not (isinstance(config, RunConfig) and config.epochs and config.batch_size):
        raise ValueError("the configuration is not filled in: make it with configure(...)")
    where = f"the {len(train):,} pairs of the split {train.split!r} of {train.name!r}"
    if len(torch.unique(train.match_labels())) < 2:
        raise ValueError(
            f"{where} all have the caption, label or group of {train.texts()[0]!r}: add pairs with "
            "another, as negatives"
        )
    if config.batch_size > len(train) and model.kind != "frozen":
        warnings.warn(
            f"batch_size {config.batch_size:,} is larger than {where}, so an epoch is one step: "
            "lower batch_size or raise epochs",
            stacklevel=4,
        )
    if "image_pooled" in PENALTIES[config.penalty].needs and not model.dim_image_pooled:
        raise ValueError(
            f"the penalty {config.penalty!r} needs a projection on each side, which "
            f"{config.model!r} does not have: choose another, such as 'vmf', or a model like "
            "CLIPModel"
        )
