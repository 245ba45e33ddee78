"""What the study adds to `cibr.CIBRTrainer`: given features, batches with groups of rows, noise on
features, other losses, fewer validations and averaged weights.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProgressCallback, TrainerCallback

from cibr.data import Pairs
from cibr.losses import RegularisedCCA
from cibr.models import DualEncoder
from cibr.models.features import Batch, Inputs
from cibr.train import configure
from cibr.train.grad_cache import GradCache
from cibr.train.trainer import CIBRTrainer, Rows, fit_cca
from cibr_book.experiments.controls import LOSSES


class FeatureTrainer(CIBRTrainer):
    """A trainer on given features; it shows and saves nothing.

    Args:
        given: `Inputs` of training and, to validate, of validation.
        of_trainer: of `CIBRTrainer`.
    """

    def __init__(self, *of_trainer: Any, given: Sequence[Inputs], **named):
        self.given = given
        super().__init__(*of_trainer, *(part.pairs for part in given), **named)
        self.remove_callback(ProgressCallback)

    def prepare_pairs(self, pairs: Pairs) -> Inputs:
        """The given features."""
        return self.given[pairs is not self.train_dataset]

    def save_model(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    _save_checkpoint = save_model


def trained_heads(
    base: DualEncoder, train: Inputs, settings: dict[str, Any], seed: int
) -> DualEncoder:
    """Heads over frozen towers, trained on given features.

    Args:
        base: a model with the towers, which the heads share.
        train: features of the training pairs.
        settings: of `cibr.configure`; with `cca_ridges` training starts at CCA.
        seed: of the initial weights, the order and dropout.
    """
    with TemporaryDirectory() as scratch:
        run = {"model": "frozen", "seed": seed, "beta": 0.0, "cca": False} | settings
        config = configure(**run, output_dir=scratch)
        torch.manual_seed(seed)
        model = base.over(base.towers, base.settings | {"dropout": config.dropout})
        model.set_temperature(config.temperature, config.learn_temperature)
        if "cca_ridges" in settings:
            start_at_cca(model, fit_cca(train, model.dim, config.cca_ridges))
        config = replace(config, batch_size=min(config.batch_size, len(train.pairs)))
        FeatureTrainer(model, config, given=[train]).train()
    return model.eval()


@torch.no_grad()
def start_at_cca(model: DualEncoder, cca: RegularisedCCA) -> None:
    """Sets heads over frozen towers to the maps of a CCA, with a zero residual layer."""
    for head, mean, linear_map in (
        (model.image_head, cca.image_mean, cca.image_map),
        (model.text_head, cca.text_mean, cca.text_map),
    ):
        head.linear.weight.copy_(linear_map)
        head.linear.bias.copy_(-linear_map @ mean)
        for parameter in head.residual[-1].parameters():
            parameter.zero_()


def grouped_rows(pairs: Pairs, group_size: int, seed: int, epoch: int) -> Rows:
    """Image and text of every row of an epoch, at most as many rows as there are images.

    Rows come in runs of `group_size`, with different captions of one image. An epoch then visits a
    part of the images, so its cost does not change.

    Args:
        pairs: the training pairs.
        group_size: rows per group, 2 or more.
        seed: of the run.
        epoch: counted from 0.

    Returns:
        Indices of images, and of texts in `pairs.texts()`, [rows] each.

    Raises:
        ValueError: no image has two captions.
    """
    n = len(pairs)
    if n == len(pairs.texts()):
        missing = "no images of several captions"
        raise ValueError(f"{pairs.name} has {missing}, so no groups: leave group_size at 1")
    generator = torch.Generator().manual_seed(seed + 15_485_863 * (epoch + 1))
    n_texts = torch.bincount(pairs.text_to_image(), minlength=n)
    order = torch.randperm(n, generator=generator)
    start = torch.rand(n, generator=generator)
    images = order[: max(1, n // group_size)].repeat_interleave(group_size)
    nth_text = torch.arange(len(images)) % group_size
    offsets = (start[images] * n_texts[images]).long() + nth_text
    first = n_texts.cumsum(0) - n_texts
    return images, first[images] + offsets % n_texts[images]


class WeightAverage(TrainerCallback):
    """Exponential moving average of the weights after each step, which is validated and kept.

    It is bias-corrected as in Adam, so it does not contain the initial weights. With
    `interpolation`, the initial weights are then mixed in.

    Source: WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903), whose alpha is 1 - interpolation.

    Args:
        decay: decay of the average per step, in [0, 1); 0 for the weights after the last step.
        interpolation: share of the initial weights in the result, in [0, 1).

    Raises:
        ValueError: a number outside its range.
    """

    def __init__(self, decay: float, interpolation: float = 0.0):
        if not (0 <= decay < 1 and 0 <= interpolation < 1):
            raise ValueError(
                f"decay is {decay!r} and interpolation {interpolation!r}: give numbers from 0 to "
                "less than 1"
            )
        self.decay, self.interpolation = decay, interpolation
        self.start: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}
        self.own: dict[str, Tensor] = {}

    def on_train_begin(self, args, state, control, model, **_):
        """Takes the initial weights, unless a checkpoint was loaded."""
        if state.global_step == 0:
            self.start = _copied(model)
            self.average = _copied(model)
        for kept in (self.start, self.average):  # those of a checkpoint are on the CPU
            kept |= {
                name: kept[name].to(weights.device) for name, weights in _numbers(model).items()
            }

    @torch.no_grad()
    def on_step_end(self, args, state, control, model, **_):
        """Adds the weights after a step."""
        weight = (1 - self.decay) / (1 - self.decay**state.global_step)
        for name, weights in _numbers(model).items():
            self.average[name].lerp_(weights, weight)

    def on_log(self, args, state, control, model, **_):
        """Puts the average into the model before a validation."""
        if control.should_evaluate and not self.own:
            self.own = _copied(model)
            self._copy_to(model)

    def on_evaluate(self, args, state, control, model, **_):
        """Puts the model's own weights back."""
        model.load_state_dict(self.own, strict=False)
        self.own = {}

    def on_train_end(self, args, state, control, model, **_):
        """Replaces the model's weights by the averaged ones."""
        self._copy_to(model)

    @torch.no_grad()
    def _copy_to(self, model: DualEncoder) -> None:
        for name, weights in _numbers(model).items():
            average = self.average[name]
            if self.interpolation:
                average = average.lerp(self.start[name], self.interpolation)
            weights.copy_(average)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The averages and the initial weights, which a checkpoint keeps."""
        return {"average": self.average, "start": self.start}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continues from what `state_dict` returned."""
        self.average, self.start = state["average"], state["start"]


def _numbers(model: DualEncoder) -> dict[str, Tensor]:
    """Its own weights without counts, such as the batches that a batch norm has seen."""
    return {name: part for name, part in model.own_weights().items() if part.is_floating_point()}


def _copied(model: DualEncoder) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in _numbers(model).items()}


class StudyTrainer(CIBRTrainer):
    """A trainer with the study's controls.

    Args:
        given: of `CIBRTrainer`.
        feature_noise: of Gaussian noise on cached features, in units of their deviations.
        group_size: of `grouped_rows`; 1 for rows without groups.
        contrastive: a name of `LOSSES`.
        ramps: whether a penalty's weight may rise from 0.
        statistic: of an `Anchor`; None for the CCA of the training pairs.
        average: of the weights, which is validated and kept.
        validate_every: epochs between validations; the last one is always validated.
        named: of `CIBRTrainer`.
    """

    def __init__(
        self,
        *given,
        feature_noise: float = 0.0,
        group_size: int = 1,
        contrastive: str = "clip",
        ramps: bool = True,
        statistic: nn.Module | None = None,
        average: WeightAverage | None = None,
        validate_every: int = 1,
        **named,
    ):
        self.contrastive = contrastive
        self.loss_class = LOSSES[contrastive]
        self.ramps = ramps
        self.statistic = statistic
        self.average = average
        self.feature_noise = feature_noise
        self.group_size = group_size
        self.teacher: DualEncoder | None = None
        super().__init__(*given, **named)
        self.add_callback(_SparseValidation(validate_every, self.steps_per_epoch))
        if average is not None:
            self.add_callback(average)

    def identity(self) -> dict[str, Any]:
        """Also the study's own settings."""
        names = ("contrastive", "feature_noise", "group_size", "ramps")
        own: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.average is not None:
            own |= {"decay": self.average.decay, "interpolation": self.average.interpolation}
        return super().identity() | own

    def stateful(self) -> dict[str, Any]:
        """Also the averaged weights."""
        return super().stateful() | ({"average": self.average} if self.average else {})

    def set_up(self) -> None:
        """Also the deviations of the features, and the initial model as a teacher."""
        super().set_up()
        self.loss_fn.penalty.ramps &= self.ramps
        if self.feature_noise:
            cached = (self.inputs.images, *self.inputs.texts)
            scales = [self.feature_noise * part.std(0) for part in cached]
            self.noise = [scale.to(self.args.device) for scale in scales]
        if any(name.startswith("teacher_") for name in self.loss_fn.needs):
            self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)

    def loss_options(self) -> dict[str, Any]:
        """Also the statistic of an anchor."""
        options = super().loss_options()
        if self.config.penalty == "anchor":
            options["statistic"] = self.statistic or self.fit_cca()
        return options

    def epoch_rows(self, epoch: int) -> Rows:
        """Rows in groups, if they have a size."""
        if self.group_size == 1:
            return super().epoch_rows(epoch)
        return grouped_rows(self.train_dataset, self.group_size, self.config.seed, epoch)

    def prepare_batch(self, batch: Batch) -> Batch:
        """The batch on the device, with noise on cached features."""
        batch = super().prepare_batch(batch)
        if not self.feature_noise:
            return batch
        images, (texts,) = batch.images, batch.texts
        images = images + self.noise[0] * torch.randn_like(images)
        texts = texts + self.noise[1] * torch.randn_like(texts)
        return Batch(images, (texts,), batch.labels)

    def loss_inputs(self, image, text) -> dict[str, Tensor]:
        """Also the heads' outputs before normalisation, for which they run a second time."""
        named = super().loss_inputs(image, text)
        if "image_projected" in self.loss_fn.needs:
            named["image_projected"] = self.model.image_head(image.pooled)
            named["text_projected"] = self.model.text_head(text.pooled)
        return named

    def encode_batch(self, model, batch):
        """Also the teacher's embeddings of the whole batch, or logits, images in rows."""
        cache = super().encode_batch(model, batch)
        if self.teacher is not None:
            size, inputs = self.config.micro_batch_size, super().loss_inputs
            with torch.no_grad():
                taught = GradCache(
                    self.teacher, batch, self.accelerator, size, loss_inputs=inputs
                ).features
            images, texts = taught["image_features"], taught["text_features"]
            given = {"teacher_image": images, "teacher_text": texts}
            given["teacher_logits"] = self.teacher.logit_scale * images @ texts.T
            needs = self.loss_fn.needs
            cache.features |= {name: part for name, part in given.items() if name in needs}
        return cache


class _SparseValidation(TrainerCallback):
    """Validates after some epochs alone.

    Args:
        every: epochs between validations.
        steps_per_epoch: steps of an epoch.
    """

    def __init__(self, every: int, steps_per_epoch: int):
        self.every = every
        self.steps_per_epoch = steps_per_epoch

    def on_epoch_end(self, args, state, control, **_):
        """Validates every so many epochs, and after the last."""
        is_due = state.global_step // self.steps_per_epoch % self.every == 0
        control.should_evaluate &= is_due or state.global_step >= state.max_steps
