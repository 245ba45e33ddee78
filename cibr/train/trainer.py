"""`CIBRTrainer`: a `transformers.Trainer` for `DualEncoder` and `CIBRLoss`.

It overrides how Trainer draws batches, takes a step, evaluates and saves; the loop, optimiser,
clipping, logs and callbacks are Trainer's. Everything random (order,
captions, dropout, noise) is keyed by the seed and the step, so a run resumed from its newest whole
checkpoint has the result of an uninterrupted one.

A step is exact for any division of its batch: `GradCache` gathers features of all parts and
processes and reduces gradients, so the model needs no DDP, and works with neither FSDP nor
DeepSpeed, which gather a model's parts in its `forward`.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.utils import broadcast, broadcast_object_list, send_to_device
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from cibr.data import Pairs
from cibr.losses import CIBRLoss, RegularisedCCA, beta_at
from cibr.losses.clip import Scalar
from cibr.metrics import retrieval_recalls
from cibr.models import DualEncoder
from cibr.models.dual_encoder import image_key
from cibr.models.features import Batch, Inputs, embed_pairs, prepare
from cibr.train.config import RunConfig, training_arguments
from cibr.train.grad_cache import GradCache
from cibr.train.run_folder import RunFolder
from cibr.utils import digest

CHECKPOINT = "cibr.pt"  # what a checkpoint has of ours
# Share of the steps in which the learning rate rises to its peak; towers from scratch need longer.
_WARM_UP = {"tiny": 0.45, "frozen": 0.15, "hub": 0.15}
Rows = tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]


class CIBRTrainer(Trainer):
    """Trains a `DualEncoder` on image-text pairs with `CIBRLoss`.

    `train` resumes an unfinished run of the same configuration and pairs, or loads weights and
    history of a finished one. The output folder then contains the model (see
    `DualEncoder.save_pretrained`), `history.csv` and `run.json`, and during training checkpoints.

    To vary a run, override `set_up`, `prepare_pairs` or `encode_batch`.

    Args:
        model: from `build_model`; it is trained in place.
        config: from `configure`.
        train: the training pairs.
        validation: the pairs for validation recall, or None.

    Attributes:
        history: that `train` returned.

    Raises:
        ValueError: a batch that the processes cannot share equally, or an output folder that
            contains other files.
    """

    model: DualEncoder
    history: pd.DataFrame | None = None
    is_stopped = False  # by SIGTERM

    def __init__(
        self, model: DualEncoder, config: RunConfig, train: Pairs, validation: Pairs | None = None
    ):
        args = training_arguments(config, len(train), validation is not None)
        self.config = config
        self.run_folder = RunFolder(Path(args.output_dir), args.should_save)
        self.adds_cca = config.cca and config.model == model.kind == "frozen"
        self.batch_size = args.per_device_train_batch_size * args.world_size
        self.sums: dict[str, float] = {}  # of the terms since the last log, and of "steps"
        data = dict(train_dataset=train, eval_dataset=validation)
        bars = [] if os.environ.get("TQDM_DISABLE") else [_Bar()]  # tqdm's notebook bar ignores it
        super().__init__(model, args, **data, callbacks=[_RunCallback(self), *bars])
        self.remove_callback(PrinterCallback)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("FSDP and DeepSpeed split a model, which `GradCache` needs whole")
        # Accelerate would wrap the model in DDP; `GradCache` has reduced the gradients already.
        self.accelerator.prepare_model = lambda model, **_: model

    # A run

    def train(self) -> pd.DataFrame:
        """Trains, or resumes from the newest whole checkpoint, and saves the model.

        Returns:
            The history, one row per epoch, see `fit`.

        Raises:
            ValueError: the folder is in use or contains another run.
            FloatingPointError: features, a loss or a gradient that are not finite.
            SystemExit: with code 143 after SIGTERM; the run is saved and resumes when started
                again.
        """
        folder, identity = self.run_folder, self.identity()
        record = {"configuration": asdict(self.config), "run": identity}
        with folder.locked():
            self.history = folder.finished_history(identity)
            if self.history is not None:
                folder.remove_checkpoints()  # that a kill left
                self._load_finished()
                return self.history
            self.set_up()
            [newest] = broadcast_object_list([folder.newest_checkpoint()])
            folder.write_record(record | {"finished": False})
            self._train_from(newest)
            if self.adds_cca:
                ridges = self.config.cca_ridges
                add_cca(self.model, fit_cca(self.inputs, self.model.dim, ridges))
                broadcast(self.model.own_weights())
            self.model.trained_on |= set(map(image_key, self.train_dataset.image_digests()))
            self.model.eval()
            self.save_model()
            self.history = self._history()
            folder.write("history.csv", self.history.to_csv(index=False))
            folder.write_record(record | {"finished": True})
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
        broadcast(self.model.own_weights())  # in place: all start from the first one's weights
        torch.manual_seed(self.config.seed)  # of what the penalty trains
        config = self.config
        loss_fn = CIBRLoss.for_model(self.model, config.beta, config.penalty, **config.loss_options)
        self.loss_fn = loss_fn.to(self.args.device)

    def prepare_pairs(self, pairs: Pairs) -> Inputs:
        """The inputs of the training or the validation pairs."""
        return prepare(self.model, pairs)

    def identity(self) -> dict[str, Any]:
        """What decides the result of a run: configuration and pairs."""
        run = asdict(self.config)
        for name in ("output_dir", "micro_batch_size"):  # do not affect it
            del run[name]
        for name, pairs in (("training", self.train_dataset), ("validation", self.eval_dataset)):
            if pairs is not None:
                about = pairs.keys, pairs.captions, pairs.match_labels().tolist()
                content = digest(repr((about, pairs.image_digests())))
                run[f"{name} pairs"] = f"{len(pairs)} with digest {content[:16]}"
        return json.loads(json.dumps(run))  # with lists for tuples, as stored

    def _train_from(self, checkpoint: str | None) -> None:
        """Trains, and at SIGTERM, such as SLURM's before its time limit, saves and ends."""
        self.sigterms: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, _: self.sigterms.append(number))
        try:
            super().train(checkpoint)
        finally:
            signal.signal(signal.SIGTERM, before)
        if self.is_stopped:
            at = f"step {self.state.global_step} of {self.state.max_steps}"
            print(f"SIGTERM: the run is saved at {at}; start it again to go on", file=sys.stderr)
            raise SystemExit(128 + signal.SIGTERM)

    def _load_finished(self) -> None:
        folder = self.run_folder.path
        saved = DualEncoder.from_pretrained(folder)
        if self.adds_cca:
            self.model.add_linear_heads()
        self.model.load_own_weights(saved.own_weights(), folder)
        self.model.trained_on = saved.trained_on
        self.model.eval()
        print(f"{folder} holds this run, finished: its model is loaded", file=sys.stderr)

    # A step

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
        try:
            terms = self._backward(self.encode_batch(model, inputs), generator)
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            # One wait for the device, not one a term.
            *values, norm = torch.stack([*terms.values(), norm]).tolist()
            values = dict(zip(terms, values, strict=True))
            if not math.isfinite(values["loss"] + norm):
                what = f"the loss is {values['loss']:.6g}, its gradient's norm {norm:.6g}"
                raise FloatingPointError(what)
        except FloatingPointError as error:  # also of features
            advice = "lower learning_rate or raise temperature, in another output_dir"
            raise FloatingPointError(f"step {step} was not taken: {error}: {advice}") from error
        for name, value in (values | {"beta": self.loss_fn.beta, "steps": 1}).items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return terms["loss"].detach()

    def encode_batch(self, model: DualEncoder, batch: Batch) -> GradCache:
        """Features of the whole batch, of which `batch` has this process's rows."""
        batch = send_to_device(batch, self.args.device, non_blocking=True)
        size = self.config.micro_batch_size
        return GradCache(model, batch, self.accelerator, size, self.loss_fn.needs)

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
        return {"loss": loss} | terms | loss_fn.reports()

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices: weight decay leaves out gains, biases and the temperature."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]

    def create_scheduler(self, num_training_steps: int, *_: Any) -> OneCycleLR:
        """A one-cycle schedule of the learning rate."""
        steps, warm_up = max(2, num_training_steps), _WARM_UP[self.model.kind]
        options = dict(pct_start=warm_up, cycle_momentum=False)
        self.lr_scheduler = OneCycleLR(self.optimizer, self.args.learning_rate, steps, **options)
        return self.lr_scheduler

    # Logs and validation

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Logs and returns the recalls of the validation pairs in [0, 1], by names such as
        `eval_text_to_image_recall@10`.
        """
        targets = self.held_out.pairs.retrieval_targets()
        recalls = retrieval_recalls(*embed_pairs(self.model, self.held_out), *targets)
        recalls = {f"eval_{name}": value for name, value in recalls.items()}
        self.log(dict(recalls))
        self.control.should_evaluate = False  # until the end of the next epoch
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

    def _get_output_dir(self, trial: Any = None) -> str:
        """Private, as no argument moves the checkpoints alone."""
        return str(self.run_folder.checkpoints)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the model to a folder, by default the output folder."""
        if not _internal_call:
            if self.args.should_save:
                self.model.save_pretrained(output_dir or self.args.output_dir)
            return
        if self.args.should_save:  # of a checkpoint: the first file of it
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            state = {"weights": self.model.own_weights(), "loss": self.loss_fn.state_dict()}
            torch.save(state | {"sums": self.sums}, Path(output_dir, CHECKPOINT))
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Private, as no public method sees that a disk is full."""
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError) as error:  # torch.save raises the latter
            raise OSError(
                f"cannot write a checkpoint to {str(self.run_folder.path)!r}: {error}; make room "
                "or choose another output_dir"
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Private, as no public method loads what `save_model` wrote."""
        folder = Path(resume_from_checkpoint)
        state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
        self.model.load_own_weights(state["weights"], folder)
        self.loss_fn.load_state_dict(state["loss"])
        self.sums = state["sums"]


class _Bar(ProgressCallback):
    """The progress bar of transformers, without a line for every entry of the log."""

    def on_log(self, args, state, control, **_):
        """Nothing: the entries are in the history."""


class _RunCallback(TrainerCallback):
    """Clamps the temperature after each step, and saves and ends the run at SIGTERM."""

    def __init__(self, trainer: CIBRTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, model, **_):
        model.limit_logit_scale()
        sigterms = torch.tensor([len(self.trainer.sigterms)], device=args.device)
        if self.trainer.accelerator.gather(sigterms).any():
            self.trainer.is_stopped = control.should_save = control.should_training_stop = True


class _Steps:
    """Rows of this process for the steps of the current epoch: images and texts.

    They are functions of seed, epoch and row, so they are the same for any number of processes and
    after a resume.
    """

    def __init__(self, trainer: CIBRTrainer):
        self.trainer = trainer

    def __len__(self) -> int:
        return len(self.trainer.train_dataset) // self.trainer.batch_size

    def __iter__(self) -> Iterator[Rows]:
        args = self.trainer.args
        epoch = self.trainer.state.global_step // len(self)
        images, texts = epoch_rows(self.trainer.train_dataset, args.seed, epoch)
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
    model: DualEncoder, train: Pairs, validation: Pairs | None, config: RunConfig
) -> pd.DataFrame:
    """Trains a model in place with `CIBRTrainer`, whose arguments it takes.

    Returns:
        The history, one row per `epoch` and its last `step`: `loss, clip_loss, penalty_loss, beta`
        and the reports of the loss, averaged over the epoch's steps; `grad_norm`, before clipping,
        and `learning_rate` of its last step; `temperature`; `seconds` since this call began to
        train; and validation recalls in [0, 1].
    """
    return CIBRTrainer(model, config, train, validation).train()
