"""`CIBRTrainer`: a `transformers.Trainer` for `DualEncoder` and `CIBRLoss`.

It overrides how Trainer draws batches, takes a step, evaluates and saves; logging, callbacks, best
model and early stopping are Trainer's. Everything random (order, captions, dropout, noise) is keyed
by the seed and the step, so a run resumed from its newest whole checkpoint has the result of an
uninterrupted one.

A step is exact for any division of its batch: `GradCache` gathers features of all parts and
processes and reduces gradients, so the model needs no DDP. FSDP and DeepSpeed, which gather a
model's parts in its `forward`, are refused.
"""

import json
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.utils import broadcast, broadcast_object_list, send_to_device
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback

from cibr.data import Pairs
from cibr.losses import PENALTIES, CIBRLoss, RegularisedCCA, beta_at
from cibr.losses._checks import FeaturesError
from cibr.losses.cibr import arguments_of
from cibr.losses.clip import Scalar
from cibr.metrics import retrieval_recalls
from cibr.models import DualEncoder
from cibr.models.dual_encoder import Encoded, image_key, save_weights
from cibr.models.features import Batch, Inputs, embed_pairs, prepare
from cibr.train._callbacks import Bar, RunCallback, noted_signals
from cibr.train._grad_cache import GradCache, reduce_gradient, unit_vectors
from cibr.train._run_folder import RunFolder
from cibr.train.config import DEFAULTS, NOT_THE_RUN, RunConfig, training_arguments
from cibr.utils import digest

# Share of the steps in which the learning rate rises to its peak; towers from scratch need longer.
_WARM_UP = {"tiny": 0.45, "frozen": 0.15, "hub": 0.15}
_ENCODERS, _PARTS = "encoders.safetensors", "parts.pt"  # of a checkpoint
Rows = tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]


class CIBRTrainer(Trainer):
    """Trains a `DualEncoder` on image-text pairs with `CIBRLoss`.

    `train` resumes an unfinished run of the same configuration and pairs, or loads weights and
    history of a finished one. The output folder then contains the model (see
    `DualEncoder.save_pretrained`), `history.csv` and `run.json`, and during training checkpoints.

    To vary a run, override `prepare_pairs`, `epoch_rows`, `fit_statistic`, `build_loss`,
    `loss_inputs`, `encode_batch` or `_prepare_inputs`. Callbacks with a `state_dict` are saved and
    restored with the checkpoints; their `settings`, if any, are part of the run's identity.

    Args:
        model: from `build_model`; it is trained in place.
        config: from `configure`.
        train: the training pairs.
        validation: the pairs for validation recall, or None.
        callbacks: of transformers, such as `EarlyStoppingCallback`.
        statistic: for `cca_start` and the penalty `anchor`, in place of that of `fit_statistic`.

    Attributes:
        history: that `train` returned.

    Raises:
        ValueError: fewer than two pairs or captions, a penalty on pooled features with a model that
            has none (SigLIP), a batch that the processes cannot share equally, FSDP or DeepSpeed,
            or an output folder that cannot be written or contains other files.
    """

    model: DualEncoder
    loss_class: type[CIBRLoss] = CIBRLoss
    sums: dict[str, float]  # of the terms since the last log, and of "steps"
    seconds: float  # of training
    trained: list[nn.Parameter]  # of the model and the loss
    history: pd.DataFrame | None = None

    def __init__(
        self,
        model: DualEncoder,
        config: RunConfig,
        train: Pairs,
        validation: Pairs | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        statistic: nn.Module | None = None,
    ):
        _check(model, train, config)
        if config.dataset == DEFAULTS["dataset"]:  # also where pairs made in Python are given
            config = replace(config, dataset=train.name)
        args = training_arguments(config, len(train), validation is not None)
        self.config = config
        self.given_statistic = statistic
        self.train_dataset = train
        self.run_folder = RunFolder(Path(args.output_dir), args.should_save)
        self.batch_size = args.per_device_train_batch_size * args.world_size
        self.steps_per_epoch = len(self.epoch_rows(0)[0]) // self.batch_size
        self._largest_norm = args.max_grad_norm or math.inf
        args.max_grad_norm = 0.0  # `training_step` clips, with the loss's own parameters
        callbacks = [RunCallback(self), Bar(), *callbacks]
        data = dict(train_dataset=train, eval_dataset=validation)
        super().__init__(model, args, callbacks=callbacks, **data)
        self.remove_callback(PrinterCallback)
        model.config = None  # that of transformers, which its model card looks for
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("every process has the whole model: launch without FSDP or DeepSpeed")
        # `GradCache` reduces the gradients itself, exactly: no DDP.
        self.accelerator.prepare_model = lambda model, **options: model

    # A run

    def train(self) -> pd.DataFrame:
        """Trains, or resumes from the newest whole checkpoint, and saves the model.

        Returns:
            The history, one row per epoch, see `fit`.

        Raises:
            ValueError: the folder is in use, contains another run or cannot be written; a GPU that
                is out of memory, with the micro_batch_size to try.
            FloatingPointError: a loss or gradient that is not finite; the message names the last
                good checkpoint.
            SystemExit: with code 143 after SIGTERM; the run is saved and resumes when started
                again.
            KeyboardInterrupt: the same after Ctrl-C.
        """
        run = self.run_folder
        run.identity = json.loads(json.dumps(self.identity()))  # without tuples
        is_frozen = self.config.model == self.model.kind == "frozen"
        self.adds_cca = is_frozen and self.config.cca and not self.model.settings["with_linear"]
        with run.claimed(), noted_signals() as self.signals:
            self.history = run.finished()
            if self.history is not None:
                self._load_finished()
                return self.history
            self.set_up()
            self.sums = {}
            self.seconds = 0.0
            [checkpoint] = broadcast_object_list([run.newest_checkpoint()])
            run.begin(asdict(self.config))
            try:
                super().train(checkpoint)
            except FloatingPointError as error:
                fix = "Lower learning_rate or raise temperature, in another output_dir"
                raise FloatingPointError(f"{error}; {run.last_good()}. {fix}") from error
            except torch.OutOfMemoryError as error:
                fix = f"Set micro_batch_size to a part of {self.args.per_device_train_batch_size}"
                what = f"the GPU is out of memory ({error}); {run.last_good()}"
                raise ValueError(f"{what}. {fix}, or less than now, and start again") from error
            self.history = self._history()
            if self.adds_cca:
                add_cca(self.model, self.statistic or self.fit_statistic())
                broadcast(self.model.own_weights())
            self.model.trained_on |= set(map(image_key, self.train_dataset.image_digests()))
            self.model.eval()
            self.save_model()
            if self.args.should_save:
                run.finish(asdict(self.config), self.history)
            self.accelerator.wait_for_everyone()
        return self.history

    def set_up(self) -> None:
        """Prepares inputs, the initial weights and the loss; all are functions of the seed."""
        config, model = self.config, self.model
        # The first process extracts the features of frozen towers, the others read them.
        with self.accelerator.main_process_first():
            self.inputs = self.prepare_pairs(self.train_dataset)
            if self.eval_dataset is not None:
                self.held_out = self.prepare_pairs(self.eval_dataset)
        self.statistic = None
        if config.cca_start or "statistic" in arguments_of(config.penalty):
            self.statistic = self.given_statistic or self.fit_statistic()
        if config.cca_start:
            start_heads(model, self.statistic)
        broadcast(model.own_weights())  # in place: all processes start from the first one's weights
        torch.manual_seed(config.seed)  # of what the penalty trains
        self.loss_fn = self.build_loss().to(self.args.device)

    def prepare_pairs(self, pairs: Pairs) -> Inputs:
        """The inputs of the training or the validation pairs."""
        return prepare(self.model, pairs, self.args.device)

    def fit_statistic(self) -> RegularisedCCA:
        """The CCA of the training pairs, for `cca`, `cca_start` and the penalty `anchor`."""
        return fit_cca(self.inputs, self.model.dim, self.config.cca_ridges)

    def build_loss(self) -> CIBRLoss:
        """The loss of the run."""
        config, model = self.config, self.model
        dims = model.dim, model.dim_image_pooled, model.dim_text_pooled
        provided = {"dims": dims, "statistic": self.statistic}
        known = arguments_of(config.penalty)
        options = {name: value for name, value in provided.items() if name in known}
        options |= dict(kappa_e=config.kappa_e, sample=config.sample)
        options |= config.penalty_options
        return self.loss_class(config.beta, config.penalty, **options)

    def identity(self) -> dict[str, Any]:
        """What decides the result of a run: configuration, architecture and pairs."""
        run = {n: v for n, v in asdict(self.config).items() if n not in NOT_THE_RUN}
        for name in ("dataset", "model", "towers"):  # one folder has many spellings
            folder = Path(run[name]).expanduser()
            run[name] = str(folder.resolve()) if run[name] and folder.is_dir() else run[name]
        run["architecture"] = f"{self.model.kind} {self.model.settings}"
        for name, pairs in (("training", self.train_dataset), ("validation", self.eval_dataset)):
            if pairs is not None:
                shown = (pairs.keys, pairs.captions, pairs.match_labels().tolist())
                of_pairs = digest(repr(shown))[:12]
                run[f"{name} pairs"] = f"{len(pairs):,} with digest {of_pairs}"
                run[f"{name} images"] = f"digest {digest(repr(pairs.image_digests()))[:12]}"
        run["callbacks"] = [
            type(callback).__name__ + str(getattr(callback, "settings", ""))
            for callback in self._stateful()
        ]
        run["precision"] = self.accelerator.mixed_precision
        return run

    def _load_finished(self) -> None:
        folder = self.run_folder.path
        saved = DualEncoder.from_pretrained(folder)
        if self.adds_cca:
            self.model.add_linear_heads()
        self.model.load_own_weights(saved.own_weights(), folder)
        self.model.trained_on = saved.trained_on
        self.model.eval()
        if self.args.should_save:
            held = "holds this run, finished: its model and history are loaded"
            print(f"{str(self.run_folder.path)!r} {held}", file=sys.stderr)

    # A step

    def epoch_rows(self, epoch: int) -> Rows:
        """Image and text of every row of an epoch, counted from 0."""
        return epoch_rows(self.train_dataset, self.config.seed, epoch)

    def get_train_dataloader(self) -> DataLoader:
        """This process's rows of every step."""
        return self.inputs.loader(_Steps(self))

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        return send_to_device(inputs, self.args.device, non_blocking=True)

    def training_step(self, model: DualEncoder, inputs: Batch, *_: Any) -> Scalar:
        """Gradients of the whole batch, clipped: encode, loss, backward, finite check.

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
        self.optimizer.zero_grad(set_to_none=True)
        try:
            cache = self.encode_batch(model, self._prepare_inputs(inputs))
            terms = self._backward(model, cache, generator)
            norm = torch.nn.utils.clip_grad_norm_(self.trained, self._largest_norm)
            terms |= self.loss_fn.reports() | _batch_health(cache) | {"grad_norm": norm}
            # One wait for the device, not one a term.
            values = dict(zip(terms, torch.stack([*terms.values()]).tolist(), strict=True))
            if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
                named = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
                raise FloatingPointError(f"it is not finite ({named})")
        except (FloatingPointError, FeaturesError) as error:
            raise FloatingPointError(f"step {step} was not taken: {error}") from error
        values |= {"beta": self.loss_fn.beta, "steps": 1}
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in values.items()}
        return terms["loss"].detach()

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

    def _backward(
        self, model: DualEncoder, cache: GradCache, generator: torch.Generator
    ) -> dict[str, Scalar]:
        """The loss and its terms; their gradients are added to the parameters."""
        loss_fn = self.loss_fn
        inputs = cache.features | {"generator": generator}
        loss_fn.beta = self.config.beta
        if loss_fn.penalty.ramps:
            loss_fn.beta = beta_at(self.state.global_step / self.state.max_steps, self.config.beta)
        loss_fn.update(**inputs, labels=cache.labels)
        terms = loss_fn(**inputs, logit_scale=model.logit_scale, labels=cache.labels)
        loss = sum(terms.values())
        loss.backward()
        cache.backward()
        for parameter in loss_fn.trained_parameters():
            reduce_gradient(parameter, self.accelerator)
        return {"loss": loss} | terms

    def _get_grad_norm(self, *_: Any, **__: Any) -> None:
        """Nothing: `training_step` logs it."""

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        """AdamW, without weight decay for gains, biases and the temperature."""
        parameters = [*self.model.parameters(), *self.loss_fn.trained_parameters()]
        self.trained = [p for p in parameters if p.requires_grad]
        matrices = {"params": [p for p in self.trained if p.ndim > 1]}
        others = {"params": [p for p in self.trained if p.ndim <= 1], "weight_decay": 0.0}
        options = dict(lr=self.args.learning_rate, weight_decay=self.args.weight_decay)
        options |= dict(betas=(self.args.adam_beta1, self.args.adam_beta2))
        options |= dict(eps=self.args.adam_epsilon)
        self.optimizer = torch.optim.AdamW([matrices, others], **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, *_: Any) -> OneCycleLR:
        """A one-cycle schedule of the learning rate."""
        cycle = dict(pct_start=_WARM_UP[self.model.kind], cycle_momentum=False)
        n_steps = max(2, num_training_steps)
        self.lr_scheduler = OneCycleLR(self.optimizer, self.args.learning_rate, n_steps, **cycle)
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

    def log(self, logs: dict[str, float], *start_time: float | None) -> None:
        """Adds the means of the terms over the steps since the last log."""
        if "loss" in logs:
            n_steps = self.sums.pop("steps")
            logs |= {name: value / n_steps for name, value in self.sums.items()}
            logs |= {"temperature": 1 / self.model.logit_scale.item(), "seconds": self.seconds}
            self.sums = {}
        super().log(logs, *start_time)

    def _history(self) -> pd.DataFrame:
        """The log as a table with one row per epoch."""
        rows: dict[int, dict[str, Any]] = {}
        for entry in self.state.log_history:
            terms = dict(entry)
            step = entry["step"]
            for name in ("epoch", "step", "grad_norm", "learning_rate"):
                terms.pop(name, None)
            if "loss" in entry:
                rows[step] = {"epoch": step // self.steps_per_epoch, "step": step} | terms
            elif step in rows and all(name.startswith("eval_") for name in terms):
                rows[step] |= {n.removeprefix("eval_"): value for n, value in terms.items()}
        return pd.DataFrame([*rows.values()])

    # Checkpoints

    def _stateful(self) -> list[Any]:
        return [c for c in self.callback_handler.callbacks if hasattr(c, "state_dict")]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the model to a folder, by default the output folder."""
        if not self.args.should_save:
            return
        if output_dir is None or not _internal_call:
            self.model.save_pretrained(output_dir or self.args.output_dir)
            return
        folder = Path(output_dir)  # of a checkpoint
        self.run_folder.begin_checkpoint(folder)
        save_weights(self.model.own_weights(), folder / _ENCODERS)
        parts = [part.state_dict() for part in (self.loss_fn, *self._stateful())]
        state = {"sums": self.sums, "seconds": self.seconds, "parts": parts}
        torch.save(state, folder / _PARTS)

    def _save_checkpoint(self, model: DualEncoder, trial: Any = None) -> None:
        folder = self.run_folder.path / f"checkpoint-{self.state.global_step}"
        with self.run_folder.writing(folder):
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                best = self.state.best_model_checkpoint
                self.run_folder.seal(folder, self._history(), best)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        self.model.load_own_weights(load_file(folder / _ENCODERS), folder)
        state = torch.load(folder / _PARTS, map_location="cpu", weights_only=True)
        self.sums = state["sums"]
        self.seconds = state["seconds"]
        stateful = self.loss_fn, *self._stateful()
        for part, of_part in zip(stateful, state["parts"], strict=True):
            part.load_state_dict(of_part)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        """Nothing: the step decides the random numbers."""

    _load_rng_state = _save_rng_state


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
        epoch = self.trainer.state.global_step // len(self)
        rows: Rows = self.trainer.epoch_rows(epoch)
        n_rows = args.per_device_train_batch_size
        for step in range(len(self)):
            start = step * self.trainer.batch_size + args.process_index * n_rows
            yield tuple(part[start : start + n_rows] for part in rows)


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
        The history, one row per epoch, with `epoch, step, loss, clip_loss, penalty_loss, beta`, the
        reports of the loss, the mean cosine between the embeddings of different images
        (`image_mean_cosine`) and texts (`text_mean_cosine`), near 1 if they have collapsed to a
        point, and the share of `repeated_captions`, all averaged over the epoch's steps;
        `temperature`, `seconds` of training, and validation recalls in [0, 1], NaN in epochs
        without validation.
    """
    return CIBRTrainer(model, config, train, validation, callbacks).train()


def _check(model: DualEncoder, train: Pairs, config: RunConfig) -> None:
    """Refuses a run that cannot train, before anything is prepared."""
    if not isinstance(model, DualEncoder):
        what = f"the model to train is of type {type(model).__name__}"
        raise ValueError(f"{what}: make one with build_model(config, train)")
    if not isinstance(train, Pairs):
        what = f"the pairs to train on are of type {type(train).__name__}"
        raise ValueError(f"{what}: load some with load_splits(config)")
    if not (isinstance(config, RunConfig) and config.epochs and config.batch_size):
        raise ValueError("the configuration is not filled in: make it with configure(...)")
    where = f"the split {train.split!r} of {train.name!r}"
    if len(torch.unique(train.match_labels())) < 2:
        rule = "share a caption, label or group: add pairs with another, as negatives"
        raise ValueError(f"all {len(train)} pairs of {where}, {train.texts()[0]!r}, {rule}")
    if config.batch_size > len(train) and model.kind != "frozen":
        larger = f"batch_size {config.batch_size:,} is larger than the {len(train):,} pairs"
        advice = "so an epoch is one step: lower batch_size or raise epochs"
        warnings.warn(f"{larger} of {where}, {advice}", stacklevel=4)
    if "image_pooled" in PENALTIES[config.penalty].needs and not model.dim_image_pooled:
        lacks = f"a projection on each side, which {config.model!r} does not have"
        fix = "choose another, such as 'vmf', or a model like CLIPModel"
        raise ValueError(f"the penalty {config.penalty!r} needs {lacks}: {fix}")


@torch.no_grad()
def _batch_health(cache: GradCache) -> dict[str, Scalar]:
    """Diagnostics of collapse in a batch: mean cosines between embeddings, and repeated labels.

    Returns:
        `image_mean_cosine` and `text_mean_cosine` between different rows, near 1 if embeddings have
        collapsed to a point; `repeated_captions`, 1 - number of distinct labels / n.
    """
    health = {}
    n = len(cache.labels)
    for side in ("image", "text"):
        features = cache.features[f"{side}_features"]
        others = features.sum(0).square().sum() - features.square().sum(1).sum()
        health[f"{side}_mean_cosine"] = others / (n * (n - 1))
    repeated = 1 - len(torch.unique(cache.labels)) / n
    return health | {"repeated_captions": torch.tensor(repeated).to(features)}
