"""Penalties of `CIBRLoss`: one function each, from `PenaltyInputs` to `Penalty`, by name in
`PENALTIES`.

The first three are von Mises-Fisher bounds on modality-specific information: for every backward
encoder b, E[log e(z|x_v) - log b(z|x_t)] >= I(Z_v;X_v|X_t), here with e = vMF(mu_v, kappa_e) and b
= vMF(centre, kappa_b). They differ in the centre of b, and so in their exposure to memorisation:
where every text is unique it identifies its image, and the bound can fall to its floor by
memorising the pairs.

To add a penalty, write such a function and list it in `PENALTIES`.

Source: the bounds of Fischer (2020, arXiv 2002.05379); Ji et al. (2025, arXiv 2503.24182) for MINE.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F

from cibr.losses import baselines
from cibr.losses.clip import Features, Labels
from cibr.losses.critics import frozen_critics
from cibr.losses.vmf import (
    fitted_log_likelihood,
    vmf_floor_nats,
    vmf_log_normalizer,
    vmf_mean_cosine,
)

RIDGE = 1.0  # times the mean eigenvalue of the unit vectors' second moment, 1 / d


class PenaltyInputs(NamedTuple):
    """Inputs of a penalty: unit vectors [n, d], pooled features [n, p], labels [n], the settings of
    the loss.
    """

    image: Tensor  # mean directions mu_v
    text: Tensor  # mean directions mu_t
    z_image: Tensor  # embeddings in the contrastive loss: samples with `sample`, else the mean directions
    z_text: Tensor
    image_pooled: Tensor | None
    text_pooled: Tensor | None
    labels: Tensor | None
    logit_scale: Tensor  # 1 / temperature
    settings: nn.Module  # the `CIBRLoss` itself: kappa_e, kappa_b, text_weight, critics, statistic
    image_projected: Tensor | None = None  # unnormalised embeddings, [n, d]
    text_projected: Tensor | None = None
    generator: torch.Generator | None = None  # of the noise


class Penalty(NamedTuple):
    """Output of a penalty: the scalar that beta weights, and three scalars to report."""

    value: Tensor  # minimised
    excess: Tensor  # the value minus its floor: not information, but comparable over training
    residual_image_nats: Tensor  # estimates of, or bounds on, I(Z_v;X_v|X_t) and I(Z_t;X_t|X_v)
    residual_text_nats: Tensor


def _constants(kappa_e: float, kappa_b: float, dim: int) -> tuple[float, float, float]:
    return _cached_constants(kappa_e, kappa_b, dim)  # torch.compile traces through an lru_cache


# What torch.compiler.assume_constant_result does, without importing torch's compiler, which takes
# 1.5 s.
_constants._dynamo_marked_constant = True


@lru_cache(maxsize=64)
def _cached_constants(kappa_e: float, kappa_b: float, dim: int) -> tuple[float, float, float]:
    """Constants of training: the encoder's mean cosine and negative entropy, and the floor of the
    bound.
    """
    mean_cosine = vmf_mean_cosine(kappa_e, dim).item()
    negative_entropy = vmf_log_normalizer(kappa_e, dim).item() + kappa_e * mean_cosine
    return mean_cosine, negative_entropy, vmf_floor_nats(kappa_e, kappa_b, dim).item()


def weighted_mean(image: Tensor, text: Tensor, text_weight: float) -> Tensor:
    """The weighted mean of both modalities, with `text_weight` for the text."""
    return (1 - text_weight) * image + text_weight * text


def _vmf_bound(inputs: PenaltyInputs, image_cosine: Tensor, text_cosine: Tensor) -> Penalty:
    """The vMF bound, from the mean cosines of the embeddings with the centres of their backward
    encoders.

    It is kappa_b A_d(kappa_e) (1 - mean cosine) above its floor; residuals are reported at the
    fitted kappa_b.
    """
    settings, dim = inputs.settings, inputs.image.shape[1]
    spread, negative_entropy, floor = _constants(settings.kappa_e, settings.kappa_b, dim)
    mean = weighted_mean(image_cosine, text_cosine, settings.text_weight)
    excess = settings.kappa_b * spread * (1 - mean)
    agreement = torch.stack([image_cosine, text_cosine]).detach()
    agreement = (
        agreement.cpu() if agreement.device.type == "mps" else agreement
    )  # MPS has no float64
    agreement = spread * agreement.double().clamp(max=1.0)
    residuals = negative_entropy - fitted_log_likelihood(agreement, dim)
    return Penalty(floor + excess, excess, *residuals.to(mean))


def _mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1).mean()


def vmf(inputs: PenaltyInputs) -> Penalty:
    """Backward encoders centred at the paired embedding of the other modality."""
    cosine = _mean_cosine(inputs.image, inputs.text)
    return _vmf_bound(inputs, cosine, cosine)


def crossfit(inputs: PenaltyInputs) -> Penalty:
    """Backward encoders centred at cross-fitted ridge predictions from the other modality's
    embeddings.
    """
    image, text = inputs.image, inputs.text
    image_cosine = _mean_cosine(image, crossfitted_means(text, image, inputs.labels))
    text_cosine = _mean_cosine(text, crossfitted_means(image, text, inputs.labels))
    return _vmf_bound(inputs, image_cosine, text_cosine)


def anchor(inputs: PenaltyInputs) -> Penalty:
    """Backward encoders centred at a fixed statistic of the modality's own features, see
    `cibr.losses.cca`.

    With a statistic U_v that is sufficient for X_t it bounds I(Z_v;X_v|U_v), one term of
    I(Z_v;X_v|X_t) = I(Z_v;U_v|X_t) + I(Z_v;X_v|U_v). In effect it shrinks the encoders, as
    functions, towards the closed form.
    """
    centres = inputs.settings.statistic(inputs.image_pooled, inputs.text_pooled)
    pairs = zip((inputs.image, inputs.text), centres, strict=True)
    return _vmf_bound(
        inputs, *(_mean_cosine(features, centre.to(features)) for features, centre in pairs)
    )


def consistency(inputs: PenaltyInputs) -> Penalty:
    """Same-item consistency: backward encoders centred at the mean embedding of the other rows of a
    label.

    It is not the CIBR objective: for another rendering X_v' of the same item it bounds
    I(Z_v;X_v|X_v'), not
    I(Z_v;X_v|X_t). A counterfactual-invariance penalty related to CoRe (Heinze-Deml and
    Meinshausen, arXiv 1710.11469), which does not penalise what all renderings share. Rows with a
    unique label are excluded.
    """
    if inputs.labels is None:
        raise ValueError(
            "the penalty 'consistency' compares rows of equal labels: pass labels, one for each item"
        )
    cosines = []
    for features in (inputs.image, inputs.text):
        means, counted = other_means(features, inputs.labels)
        distances = (1 - (features * means).sum(1)) * counted
        cosines.append(1 - distances.sum() / counted.sum().clamp(min=1))
    return _vmf_bound(inputs, *cosines)


def mine(inputs: PenaltyInputs) -> Penalty:
    """The paper's estimator: a difference of two Donsker-Varadhan estimates with trained critics,
    not a bound.
    """
    z = {"image": inputs.z_image, "text": inputs.z_text}
    pooled = {"image": inputs.image_pooled, "text": inputs.text_pooled}
    nats = frozen_critics(inputs.settings.critics, z, pooled)
    value = weighted_mean(nats["image"], nats["text"], inputs.settings.text_weight)
    return Penalty(value, value, nats["image"], nats["text"])


def _control(inputs: PenaltyInputs, value: Tensor) -> Penalty:
    return vmf(inputs)._replace(
        value=value, excess=value
    )  # residuals are reported as those of `vmf`


def cosine(inputs: PenaltyInputs) -> Penalty:
    """A control: 1 - mean cosine of the pairs."""
    return _control(inputs, 1 - _mean_cosine(inputs.image, inputs.text))


def alignment_uniformity(inputs: PenaltyInputs) -> Penalty:
    """A control: alignment plus uniformity, see `cibr.losses.baselines`."""
    return _control(inputs, baselines.alignment_uniformity(inputs.image, inputs.text))


def cyclip(inputs: PenaltyInputs) -> Penalty:
    """A control: cyclic consistency, see `cibr.losses.baselines`."""
    return _control(inputs, baselines.cyclip(inputs.image, inputs.text))


def soft_targets(inputs: PenaltyInputs) -> Penalty:
    """A control: cross-entropy to soft targets from the pooled features, see
    `cibr.losses.baselines`.
    """
    pooled = inputs.image_pooled, inputs.text_pooled
    return _control(
        inputs, baselines.soft_targets(inputs.z_image, inputs.z_text, inputs.logit_scale, *pooled)
    )


def rafa(inputs: PenaltyInputs) -> Penalty:
    """A control: random feature alignment, see `cibr.losses.baselines`."""
    projected = inputs.image_projected, inputs.text_projected
    return _control(inputs, baselines.random_feature_alignment(*projected, inputs.generator))


_CONTROLS = (cosine, alignment_uniformity, cyclip, soft_targets, rafa)
PENALTIES: dict[str, Callable[[PenaltyInputs], Penalty]] = {
    penalty.__name__: penalty for penalty in (vmf, crossfit, anchor, consistency, mine, *_CONTROLS)
}
NEEDS_POOLED = ("anchor", "mine", "soft_targets")
NEEDS_PROJECTED = ("rafa",)


def label_index(labels: Labels) -> Labels:
    """Each row's index into the sorted distinct labels, [n]: the inverse of torch.unique, with
    static shapes.
    """
    ordered, order = labels.sort()
    place = F.pad(ordered[1:] != ordered[:-1], (1, 0)).cumsum(0)
    return torch.empty_like(place).scatter(0, order, place)


def other_means(features: Features, labels: Labels) -> tuple[Features, Bool[Tensor, " n"]]:
    """Leave-one-out mean direction of the other rows with each row's label.

    Source: for x_v' drawn beside x_v, b(z) = E vMF(z; mu(x_v'), kappa_b) is a backward encoder, and
    by Jensen -log b is at most the mean of the others' own terms; the leave-one-out mean estimates
    the centre.

    Args:
        features: unit vectors, [n, d].
        labels: equal for renderings of one item, [n].

    Returns:
        Unit vectors [n, d], and a mask [n] of the rows whose label is shared; the rest keep their
        own vector.
    """
    index = label_index(labels)
    counts = torch.zeros_like(index).index_add(0, index, torch.ones_like(index))
    sums = torch.zeros_like(features).index_add(0, index, features)
    counted = counts[index] > 1
    others = torch.where(counted[:, None], sums[index] - features, features)
    return F.normalize(others, dim=1), counted


@torch.no_grad()
def crossfitted_means(source: Features, target: Features, labels: Labels | None) -> Features:
    """Direction predicted for each row's target by ridge regression on the other half of the batch.

    Rows with equal labels are in the same half, so no row is predicted from its own label. There is
    no gradient.

    Args:
        source: unit vectors of the other modality, [n, d].
        target: unit vectors to be predicted, [n, d].
        labels: as in `clip_loss`, [n]; None when all differ.

    Returns:
        Unit vectors, [n, d].
    """
    n, dim = source.shape
    first = (
        torch.arange(n, device=source.device) if labels is None else label_index(labels)
    ) % 2 == 0
    fitted_on = torch.stack([~first, first]).to(source)  # [half that is predicted, n]
    x = fitted_on[..., None] * source
    ridge = RIDGE * fitted_on.sum(1).clamp(min=1) / dim
    moment = x.mT @ x + ridge[:, None, None] * torch.eye(dim, dtype=x.dtype, device=x.device)
    of_first, of_second = source @ torch.linalg.solve(moment, x.mT @ target)
    return F.normalize(torch.where(first[:, None], of_first, of_second), dim=1)
