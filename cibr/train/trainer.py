"""`CIBRTrainer`: a `transformers.Trainer` for `DualEncoder` and `CIBRLoss`.

It overrides how Trainer draws batches, takes a step, evaluates and saves; logging, callbacks, best
model and early stopping are Trainer's. Everything random (order, captions, dropout, noise) is keyed
by the seed and the step, so a run resumes from its newest whole checkpoint with the same result as
without the interruption.

A step is exact for any division of its batch: features of all parts and processes are gathered, and
gradients reduced, by `GradCache`, so the model is not wrapped in DDP. FSDP and DeepSpeed are
switched on by `accelerate launch --config_file FILE`; they are untested here.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import DistributedType
from accelerate.utils import broadcast, send_to_device
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer
from transformers.trainer_utils import TrainOutput

from cibr.data import Pairs
from cibr.losses import PENALTIES, CIBRLoss, RegularisedCCA, beta_at
from cibr.losses.cibr import arguments_of
from cibr.metrics import retrieval_recalls
from cibr.models import DualEncoder
from cibr.models.dual_encoder import Encoded
from cibr.models.features import Batch, embed_pairs, prepare
from cibr.train.callbacks import RunCallback, noted_signals
from cibr.train.config import NOT_THE_RUN, RunConfig, training_arguments
from cibr.train.grad_cache import GradCache, reduce_gradient
from cibr.train.run_folder import RunFolder
from cibr.utils import digest

# Share of the steps in which the learning rate rises to its peak; towers from scratch need longer.
_WARM_UP = {"tiny": 0.45, "frozen": 0.15, "hub": 0.15}
_ENCODERS, _PARTS = "encoders.safetensors", "parts.pt"  # of a checkpoint
_WHOLE_MODEL = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
_DEGENERATE = {  # values above which a run has collapsed, and the remedy
    "image_mean_cosine": (0.99, "image embeddings are nearly one point; lower learning_rate"),
    "text_mean_cosine": (0.99, "text embeddings are nearly one point; lower learning_rate"),
    "repeated_captions": (0.9, "repeats are no negatives; lower batch_size or vary the captions"),
}

Rows = tuple[Int[Tensor, " rows"], ...]


@dataclass
class Progress:
    """Sums of the terms since the last log, and seconds of training; a checkpoint has them."""

    sums: dict[str, float] = field(default_factory=dict)
    n_summed: int = 0
    seconds: float = 0.0

    def add(self, terms: dict[str, float]) -> None:
        """Adds the terms of a step."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in terms.items()}
        self.n_summed += 1

    def means(self) -> dict[str, float]:
        """The terms, averaged over the steps since the last log."""
        return {name: value / self.n_summed for name, value in self.sums.items()}


class CIBRTrainer(Trainer):
    """Trains a `DualEncoder` on image-text pairs with `CIBRLoss`.

    `train` resumes an unfinished run of the same configuration and pairs; of a finished one the
    weights and the history are loaded. The output folder then contains the model (see
    `DualEncoder.save_pretrained`), `history.csv` and `run.json`, and during training checkpoints.

    Callbacks with a `state_dict` are saved and restored with the checkpoints.

    Args:
        model: from `build_model`; it is trained in place.
        config: from `configure`.
        train: the training pairs.
        validation: the pairs for validation recall, or None.
        callbacks: of transformers, such as `EarlyStoppingCallback`.

    Attributes:
        history: one row per epoch, see `fit`.

    Raises:
        ValueError: fewer than two pairs or captions, a penalty on pooled features with a model that
            has none (SigLIP), a batch that the processes cannot share equally, or an output folder
            that cannot be written or contains other files.
    """

    model: DualEncoder

    def __init__(
        self,
        model: DualEncoder,
        config: RunConfig,
        train: Pairs,
        validation: Pairs | None = None,
        callbacks=(),
    ):
        _check(model, train, config)
        arguments = training_arguments(config, len(train), validation is not None)
        self.config = config
        self.train_dataset = train
        self.run_folder = RunFolder(Path(arguments.output_dir), arguments.should_save)
        self.progress = Progress()
        self.history = pd.DataFrame()
        self.batch_size = arguments.per_device_train_batch_size * arguments.world_size
        self.steps_per_epoch = len(self.epoch_rows(0)[0]) // self.batch_size
        self._largest_norm = arguments.max_grad_norm
        arguments.max_grad_norm = 0.0  # `training_step` clips, with the loss's own parameters
        callbacks = [RunCallback(self), *callbacks]
        data = dict(train_dataset=train, eval_dataset=validation)
        super().__init__(model, arguments, callbacks=callbacks, **data)
        self.remove_callback(PrinterCallback)
        if self.accelerator.distributed_type in _WHOLE_MODEL:
            # `GradCache` reduces the gradients itself, exactly: no DDP.
            self.accelerator.prepare_model = lambda model, **options: model

    # A run

    def train(self, resume_from_checkpoint: str | None = None, **options: Any) -> TrainOutput:
        """Trains, or resumes from the newest whole checkpoint, and saves the model.

        Args:
            resume_from_checkpoint: another checkpoint.
            options: of `transformers.Trainer.train`.

        Raises:
            ValueError: the folder is in use, contains another run or cannot be written; processes
                that find different checkpoints; a GPU that is out of memory, with the
                micro_batch_size to try.
            FloatingPointError: a loss or gradient that is not finite; the message names the last
                good checkpoint.
            SystemExit: with code 143 after SIGTERM; the run is saved and resumes when started
                again.
            KeyboardInterrupt: the same after Ctrl-C.
        """
        self.run_folder.identity = self._identity()
        with self.run_folder.claimed(), noted_signals() as self.signals:
            if (history := self.run_folder.finished()) is not None:
                return self._load_finished(history)
            self.set_up()
            newest = self.run_folder.newest_checkpoint()
            checkpoint = resume_from_checkpoint or (newest and str(newest[0]))
            self._check_equal(checkpoint)
            if newest is not None:
                self.progress = Progress(**newest[1])
            try:
                output = super().train(checkpoint, **options)
            except FloatingPointError as error:
                message = self._advice(error)
                self.run_folder.note_divergence(message)
                raise FloatingPointError(message) from error
            except torch.OutOfMemoryError as error:
                raise ValueError(self._out_of_memory()) from error
            self._finish()
        return output

    def set_up(self) -> None:
        """Prepares inputs, the initial weights and the loss; all are functions of the seed."""
        config, model, device = self.config, self.model, self.args.device
        # The first process extracts the features of frozen towers, the others read them.
        is_frozen = model.kind == "frozen"
        with self.accelerator.main_process_first() if is_frozen else nullcontext():
            pairs, held_out = self.train_dataset, self.eval_dataset
            self.inputs = prepare(model, pairs, True, device, crop_scale=config.crop_scale)
            self.held_out = held_out and prepare(model, held_out, True, device)
        self.statistic = None
        if config.cca_start or "statistic" in arguments_of(config.penalty):
            self.statistic = self.fit_statistic()
        if config.cca_start:
            heads = model.backbone
            heads.image_head.start_at(self.statistic.image_mean, self.statistic.image_map)
            heads.text_head.start_at(self.statistic.text_mean, self.statistic.text_map)
        broadcast(model.state_dict())  # in place: all processes start from the first one's weights
        torch.manual_seed(config.seed)  # of what the penalty trains
        self.loss_fn = self.build_loss().to(device)

    def fit_statistic(self) -> RegularisedCCA:
        """The CCA of the training pairs, for `cca_start` and the penalty `anchor`."""
        return fit_cca(self.inputs, self.model.dim, self.config.cca_ridges)

    def build_loss(self) -> CIBRLoss:
        """The loss of the run."""
        config, backbone = self.config, self.model.backbone
        dims = self.model.dim, backbone.dim_image_pooled, backbone.dim_text_pooled
        provided = {"dims": dims, "statistic": self.statistic}
        known = arguments_of(config.penalty)
        options = {name: value for name, value in provided.items() if name in known}
        options |= config.penalty_options
        options |= dict(kappa_e=config.kappa_e, sample=config.sample)
        return CIBRLoss(config.beta, config.penalty, contrastive=config.contrastive, **options)

    def _load_finished(self, history: pd.DataFrame) -> TrainOutput:
        stored = DualEncoder.from_pretrained(str(self.run_folder.path))
        self.model.load_state_dict(stored.own_state(), strict=False)
        self.model.eval()
        if self.args.should_save:
            print(f"{str(self.run_folder.path)!r} holds this run, finished: its model is loaded")
        self.history = history
        return TrainOutput(int(history["step"].iloc[-1]), history["loss"].iloc[-1], {})

    def _finish(self) -> None:
        self.model.eval()
        self.history = self._history()
        if self.args.should_save:
            self.save_model()
            self.run_folder.finish(self.config.model_dump(), self.history)
        self.accelerator.wait_for_everyone()

    def _identity(self) -> dict[str, Any]:
        """What decides the result of a run: configuration, architecture, pairs and their order."""
        run = self.config.model_dump(mode="json", exclude=NOT_THE_RUN)
        for name in ("dataset", "model"):
            folder = Path(run[name]).expanduser()
            run[name] = str(folder.resolve()) if folder.is_dir() else run[name]
        run["architecture"] = f"{self.model.kind} {self.model.backbone.settings}"
        for name, pairs in (("training", self.train_dataset), ("validation", self.eval_dataset)):
            if pairs is not None:
                of_pairs = digest(repr((pairs.keys, pairs.captions)))[:12]
                run[f"{name} pairs"] = f"{len(pairs):,} with digest {of_pairs}"
        rows = torch.cat([part.long() for part in self.epoch_rows(0)[:2]])
        run["order"] = digest(rows.numpy().tobytes())[:12]
        run["pairs a step"] = self.batch_size
        run["callbacks"] = [type(callback).__name__ for callback in self._stateful()]
        run["precision"] = self.accelerator.mixed_precision
        return run

    # Batches

    def epoch_rows(self, epoch: int) -> Rows:
        """Image and text of every row of an epoch, counted from 0, see `epoch_rows`."""
        return epoch_rows(self.train_dataset, self.config.seed, epoch)

    def get_train_dataloader(self) -> DataLoader:
        """This process's rows of every step."""
        return self.inputs.loader(_Steps(self), persistent=True)

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        return send_to_device(inputs, self.args.device, non_blocking=True)

    # A step

    def training_step(
        self, model: DualEncoder, inputs: Batch, num_items_in_batch: Tensor | int | None = None
    ) -> Float[Tensor, ""]:
        """Gradients of the whole batch, clipped: encode, loss, backward, finite check.

        Args:
            model: the encoders.
            inputs: this process's rows.
            num_items_in_batch: unused.

        Returns:
            The loss.

        Raises:
            FloatingPointError: features, a loss or a gradient that are not finite.
        """
        number = self.state.global_step + 1
        seed = self.config.seed + 1_000_003 * number
        torch.manual_seed(seed + 7_919 * self.args.process_index)  # dropout, of these rows
        generator = torch.Generator().manual_seed(seed)  # noise, of the whole batch
        model.train()
        self.optimizer.zero_grad(set_to_none=True)
        try:
            cache = self.encode_batch(model, self._prepare_inputs(inputs))
            terms = self._backward(model, cache, generator)
            own = self.loss_fn.trained_parameters()
            for parameter in own:
                reduce_gradient(parameter, self.accelerator)
            parameters = [*model.parameters(), *own]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self._largest_norm)
            reports = terms | self.loss_fn.reports() | _batch_health(cache)
            stacked = torch.stack([*reports.values(), norm])
            *values, self._norm = stacked.tolist()  # the only wait for the device in a step
            values = dict(zip(reports, values, strict=True))
            if not math.isfinite(values["loss"]) or not math.isfinite(self._norm):
                named = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
                raise FloatingPointError(
                    f"it is not finite ({named}, gradient norm {self._norm:.6g})"
                )
        except (FloatingPointError, ValueError) as error:  # the loss refuses what is not finite
            raise FloatingPointError(f"step {number} was not taken: {error}") from error
        self.progress.add(values | {"beta": self.loss_fn.beta})
        return terms["loss"].detach()

    def encode_batch(self, model: DualEncoder, batch: Batch) -> GradCache:
        """Features of the whole batch."""
        size = self.config.micro_batch_size
        return GradCache(model, batch, self.accelerator, size, self.loss_fn.needs, self.loss_inputs)

    def loss_inputs(self, image: Encoded, text: Encoded) -> dict[str, Tensor]:
        """The inputs of the loss by name, from the encoded rows of a part of a batch."""
        named = {"image_features": image.features, "text_features": text.features}
        if "image_pooled" in self.loss_fn.needs:
            named["image_pooled"] = image.pooled.detach()
            named["text_pooled"] = text.pooled.detach()
        return named

    def _backward(
        self, model: DualEncoder, cache: GradCache, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """The loss and its terms; their gradients are added to the parameters."""
        loss_fn, inputs = self.loss_fn, cache.features | {"generator": generator}
        loss_fn.beta = self.config.beta
        if loss_fn.penalty.ramps:
            loss_fn.beta = beta_at(self.state.global_step / self.state.max_steps, self.config.beta)
        loss_fn.update(**inputs, synchronise=lambda p: reduce_gradient(p, self.accelerator))
        terms = loss_fn(**inputs, logit_scale=model.logit_scale, labels=cache.labels)
        loss = sum(terms.values())
        loss.backward()
        cache.backward()
        return {"loss": loss} | terms

    def _get_grad_norm(self, model: DualEncoder, grad_norm: Any = None) -> float:
        return self._norm  # before clipping

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, without weight decay for gains, biases and the temperature."""
        parameters = [*self.model.parameters(), *self.loss_fn.trained_parameters()]
        parameters = [p for p in parameters if p.requires_grad]
        matrices = {"params": [p for p in parameters if p.ndim > 1]}
        others = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
        options = dict(lr=self.args.learning_rate, weight_decay=self.args.weight_decay)
        betas = self.args.adam_beta1, self.args.adam_beta2
        self.optimizer = torch.optim.AdamW([matrices, others], betas=betas, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> OneCycleLR:
        """A one-cycle schedule of the learning rate."""
        cycle = dict(pct_start=_WARM_UP[self.model.kind], cycle_momentum=False)
        n_steps = max(2, num_training_steps)
        optimizer = optimizer or self.optimizer
        self.lr_scheduler = OneCycleLR(optimizer, self.args.learning_rate, n_steps, **cycle)
        return self.lr_scheduler

    # Logs and validation

    def evaluate(
        self,
        eval_dataset: Pairs | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Logs and returns retrieval recalls, such as `eval_text_to_image_recall@10`, in [0, 1].

        Args:
            eval_dataset: pairs; by default those for validation.
            ignore_keys: unused.
            metric_key_prefix: of the names.
        """
        if eval_dataset is None:
            inputs = self.held_out
        else:
            inputs = prepare(self.model, eval_dataset, True, self.args.device)
        recalls = retrieval_recalls(
            *embed_pairs(self.model, inputs), *inputs.pairs.retrieval_targets()
        )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in recalls.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of the terms over the steps since the last log."""
        if "loss" in logs:
            logs |= self.progress.means()
            logs |= {"temperature": 1 / self.model.logit_scale.item()}
            logs |= {"seconds": self.progress.seconds}
            self.progress = Progress(seconds=self.progress.seconds)
        super().log(logs, start_time)
        if "loss" in logs:
            self._warn_of_degenerate()

    def _history(self) -> pd.DataFrame:
        """The log as a table with one row per epoch."""
        rows: dict[int, dict[str, Any]] = {}
        for entry in self.state.log_history:
            step = entry["step"]
            if "loss" in entry:
                left_out = ("epoch", "step", "grad_norm", "learning_rate")
                terms = {name: value for name, value in entry.items() if name not in left_out}
                rows[step] = {"epoch": step // self.steps_per_epoch, "step": step} | terms
            elif step in rows:
                recalls = {name for name in entry if name.startswith("eval_")}
                rows[step] |= {n.removeprefix("eval_"): entry[n] for n in entry if n in recalls}
        return pd.DataFrame([*rows.values()])

    def _warn_of_degenerate(self) -> None:
        """Warns of degenerate batches that leave the loss finite, in the first epoch that has them.

        Not in the first third of a run, when embeddings are still close together.
        """
        history = [row for row in self.state.log_history if "loss" in row]
        late = [row for row in history if row["step"] >= self.state.max_steps / 3]
        for name, (limit, advice) in _DEGENERATE.items():
            found = [row for row in late if row[name] > limit]
            if found == history[-1:]:
                epoch, value = found[0]["epoch"], found[0][name]
                warnings.warn(f"epoch {epoch:g}: {name} is {value:.4f}: {advice}", stacklevel=3)

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
        folder = Path(output_dir)  # a checkpoint's
        folder.mkdir()
        own = {name: part.contiguous() for name, part in self.model.own_state().items()}
        save_file(own, folder / _ENCODERS)
        parts = [part.state_dict() for part in (self.loss_fn, *self._stateful())]
        torch.save(parts, folder / _PARTS)

    def _save_checkpoint(self, model: DualEncoder, trial: Any = None) -> None:
        folder = self.run_folder.path / f"checkpoint-{self.state.global_step}"
        with self.run_folder.writing(folder):
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                best = self.state.best_model_checkpoint
                self.run_folder.seal(folder, asdict(self.progress), self._history(), best)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        self.model.load_state_dict(load_file(folder / _ENCODERS), strict=False)  # frozen towers
        parts = torch.load(folder / _PARTS, map_location="cpu", weights_only=True)
        for part, state in zip((self.loss_fn, *self._stateful()), parts, strict=True):
            part.load_state_dict(state)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        """Nothing: the step decides the random numbers."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: the step decides the random numbers."""

    def _check_equal(self, checkpoint: str | None) -> None:
        """Refuses processes that would resume from different steps."""
        step = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
        steps = self.accelerator.gather(torch.tensor([step], device=self.args.device)).tolist()
        if len(set(steps)) > 1:
            folder = str(self.run_folder.path)
            have = f"the processes have checkpoints of different steps in {folder!r}"
            fix = "put output_dir on a file system that all nodes share"
            raise ValueError(f"{have} {tuple(steps)}: {fix}")

    def _advice(self, error: FloatingPointError) -> str:
        fix = "Lower learning_rate or raise temperature"
        again = "a run with other settings may use this folder"
        return f"{error}; {self.run_folder.last_good()}. {fix}, and start again: {again}"

    def _out_of_memory(self) -> str:
        n_at_once = self.config.micro_batch_size or self.args.per_device_train_batch_size
        smaller = f"Set micro_batch_size to {n_at_once // 2}"
        fix = smaller if n_at_once > 1 else "Use a GPU with more memory"
        step = f"step {self.state.global_step + 1} was not taken"
        what = f"{step}: the GPU is out of memory with {n_at_once} rows at once"
        last = self.run_folder.last_good()
        return f"{what}; {last}. {fix} and start again: it resumes, exact but for rounding"


class _Steps:
    """Rows of this process for the steps of the current epoch: images, texts, seeds of crops.

    They are functions of seed, epoch and row, so they are the same for any number of processes and
    after a resume.
    """

    def __init__(self, trainer: CIBRTrainer):
        self.trainer = trainer
        self.n_rows = trainer.args.per_device_train_batch_size

    def __len__(self) -> int:
        return self.trainer.steps_per_epoch

    def __iter__(self) -> Iterator[Rows]:
        trainer = self.trainer
        epoch = trainer.state.global_step // len(self)
        rows: Rows = trainer.epoch_rows(epoch)
        if trainer.config.crop_scale < 1:
            generator = torch.Generator()
            generator.manual_seed(trainer.config.seed + 32_452_843 * (epoch + 1))
            rows += (torch.randint(2**62, rows[0].shape, generator=generator),)
        for step in range(len(self)):
            start = step * trainer.batch_size + trainer.args.process_index * self.n_rows
            yield tuple(part[start : start + self.n_rows] for part in rows)


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


def fit_cca(inputs, dim: int, ridges: tuple[float, float]) -> RegularisedCCA:
    """CCA of the cached features of all pairs, with each image repeated for each of its texts."""
    images = inputs.images[inputs.pairs.text_to_image()]
    return RegularisedCCA.fit(images, inputs.texts[0], dim, *ridges)


def fit(
    model: DualEncoder,
    train: Pairs,
    validation: Pairs | None,
    config: RunConfig,
    callbacks=(),
) -> pd.DataFrame:
    """Trains a model in place with `CIBRTrainer` and returns the history.

    Args:
        model: from `build_model`.
        train: the training pairs.
        validation: the pairs for validation recall, or None.
        config: from `configure`.
        callbacks: of transformers.

    Returns:
        The history, one row per epoch, with `epoch, step, loss, clip_loss, penalty_loss, beta`, the
        reports of the loss, the mean cosine between the embeddings of different images
        (`image_mean_cosine`) and texts (`text_mean_cosine`), near 1 if they have collapsed to a
        point, and the share of `repeated_captions`, all averaged over the epoch's steps;
        `temperature`, `seconds` of training, and validation recalls in [0, 1], NaN in epochs
        without validation.
    """
    trainer = CIBRTrainer(model, config, train, validation, callbacks)
    trainer.train()
    return trainer.history


def _check(model: DualEncoder, train: Pairs, config: RunConfig) -> None:
    """Refuses a run that cannot train, before anything is prepared."""
    where = f"the split {train.split!r} of {train.name!r}"
    n_labels = len(torch.unique(train.match_labels()))
    if n_labels < 2:
        rule = "match by caption, label or group: a contrast needs two that differ"
        raise ValueError(f"all {len(train)} pairs of {where}, {train.texts()[0]!r}, {rule}")
    if config.batch_size > len(train):
        larger = f"batch_size {config.batch_size:,} is larger than the {len(train):,} pairs"
        advice = "so an epoch is one step: lower batch_size or raise epochs"
        warnings.warn(f"{larger} of {where}, {advice}", stacklevel=4)
    if (
        "image_pooled" in PENALTIES[config.penalty].needs
        and model.backbone.dim_image_pooled is None
    ):
        lacks = f"{config.model!r}, a {type(model.backbone.model).__name__}, does not have"
        needs = f"the penalty {config.penalty!r} needs a projection on each side, which {lacks}"
        raise ValueError(f"{needs}: choose another, such as 'vmf', or a model like CLIPModel")


@torch.no_grad()
def _batch_health(cache: GradCache) -> dict[str, Float[Tensor, ""]]:
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
