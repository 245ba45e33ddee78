"""What CIBR is compared with: alignment and uniformity, CyCLIP's consistency, soft targets, SigLIP's loss."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from cibr.losses.clip import Features, Labels, Number, Scalar

NEWTON_STEPS = 20
TEACHER_TEMPERATURE = 0.1


def alignment_uniformity(image_features: Features, text_features: Features) -> Scalar:
    """Mean squared distance of the pairs, plus the log mean Gaussian potential within each modality.

    Source: Wang & Isola (2020, arXiv 2005.10242), alpha = 2 and t = 2, the uniformity of both sides averaged.

    Args:
        image_features: unit vectors, [n, d].
        text_features: unit vectors, [n, d].

    Returns:
        A scalar, lower for pairs that are close and modalities that are spread.
    """
    n = len(image_features)
    alignment = (image_features - text_features).square().sum(1).mean()
    uniformity = 0.0
    for features in (image_features, text_features):
        potential = (4 * features @ features.T - 4).exp()  # exp(-2 * squared distance)
        uniformity = uniformity + ((potential.sum() - potential.diagonal().sum()) / (n * (n - 1))).log() / 2
    return alignment + uniformity


def cyclip(image_features: Features, text_features: Features) -> Scalar:
    """Cross-modal plus in-modal cyclic consistency, summed over one index and averaged over the other.

    Source: Goel et al. (2022, arXiv 2205.14459), eqs. 2 and 3, on cosines; both carry the weight 0.25 there.

    Args:
        image_features: unit vectors, [n, d].
        text_features: unit vectors, [n, d].

    Returns:
        A scalar, 0 where <v_j, t_k> = <v_k, t_j> and <v_j, v_k> = <t_j, t_k>.
    """
    cross = image_features @ text_features.T
    within = image_features @ image_features.T - text_features @ text_features.T
    return ((cross - cross.T).square().sum() + within.square().sum()) / len(image_features)


def soft_targets(
    image_features: Features,
    text_features: Features,
    logit_scale: Scalar | Number,
    image_pooled: Float[Tensor, "n p"],
    text_pooled: Float[Tensor, "n q"],
) -> Scalar:
    """Cross-entropy of both directions to targets that the features of frozen towers give to other pairs.

    The target of a row is a softmax over the other pairs of the batch, at temperature 0.1, of the mean of both
    sides' cosines of centred features. The pair itself is left out: it would take nearly the whole target, and
    `clip_loss`, beside which this stands, has it.

    Source: soft alignment as in PyramidCLIP and SoftCLIP (Gao et al. 2023, arXiv 2303.17561), with towers as
    teachers and without their own terms.

    Args:
        image_features: unit vectors, [n, d].
        text_features: unit vectors, [n, d].
        logit_scale: multiplier of the cosines.
        image_pooled: features of the frozen image tower, [n, p].
        text_pooled: features of the frozen text tower, [n, q].

    Returns:
        Nats a row, a scalar.
    """
    pooled = image_pooled.detach(), text_pooled.detach()
    image, text = (F.normalize(side - side.mean(0), dim=1) for side in pooled)
    similarity = (image @ image.T + text @ text.T) / (2 * TEACHER_TEMPERATURE)
    logits = logit_scale * image_features @ text_features.T
    target = similarity.fill_diagonal_(-torch.inf).softmax(1).to(logits)
    return -(target * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum(1).mean() / 2


def siglip_loss(
    image_features: Features, text_features: Features, logit_scale: Scalar | Number, labels: Labels | None = None
) -> Scalar:
    """Sigmoid loss of every pair of the batch, at the bias that makes it least.

    Source: Zhai et al. (2023, arXiv 2303.15343), algorithm 1. Their bias is a trained parameter; here it is solved
    for in each batch, by Newton's method in float64, which gives the same gradient at its optimum and needs no
    learning rate of its own.

    Args:
        image_features: unit vectors, [n, d].
        text_features: unit vectors, [n, d].
        logit_scale: multiplier of the cosines.
        labels: pairs with equal labels are positives of each other, [n].

    Returns:
        Nats a row, a scalar.
    """
    n = len(image_features)
    logits = logit_scale * image_features @ text_features.T
    labels = torch.arange(n, device=logits.device) if labels is None else labels
    positive = labels[:, None] == labels
    bias = _sigmoid_bias(logits.detach().double(), positive).to(logits)
    signs = torch.where(positive, 1.0, -1.0).to(logits)
    return F.softplus(-signs * (logits + bias)).sum() / n


def _sigmoid_bias(logits: Float[Tensor, "n n"], positive: Bool[Tensor, "n n"]) -> Scalar:
    """The bias at which the mean probability equals the fraction of positives; the loss is convex in it."""
    low, high = -logits.max() - 50, -logits.min() + 50
    target, bias = positive.double().mean(), (low + high) / 2
    for _ in range(NEWTON_STEPS):
        probability = torch.sigmoid(logits + bias)
        error = probability.mean() - target
        low, high = torch.where(error < 0, bias, low), torch.where(error > 0, bias, high)
        step = bias - error / (probability * (1 - probability)).mean().clamp(min=1e-300)
        bias = torch.where((step > low) & (step < high), step, (low + high) / 2)
    return bias
