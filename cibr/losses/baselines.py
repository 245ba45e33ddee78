"""Baselines for CIBR: alignment and uniformity, CyCLIP, soft targets, CLIP-Refine and the SigLIP
loss.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from cibr.losses.clip import Features, Labels, Number, Scalar, check_shapes

NEWTON_STEPS = 20
TEACHER_TEMPERATURE = 0.1
HYCD_ALPHA = 0.5  # as in CLIP-Refine


def alignment_uniformity(image_features: Features, text_features: Features) -> Scalar:
    """Mean squared distance between pairs, plus the log mean Gaussian potential within each
    modality.

    Source: Wang & Isola (2020, arXiv 2005.10242), alpha = 2 and t = 2, the uniformity of both sides
    averaged.

    Args:
        image_features: unit vectors, [n, d].
        text_features: unit vectors, [n, d].

    Returns:
        A scalar, lower for closer pairs and more uniform modalities.

    Raises:
        ValueError: fewer than two pairs, or shapes that differ.
    """
    check_shapes(image_features, text_features)
    n = len(image_features)
    alignment = (image_features - text_features).square().sum(1).mean()
    uniformity = 0.0
    for features in (image_features, text_features):
        potential = (4 * features @ features.T - 4).exp()  # exp(-2 * squared distance)
        uniformity = (
            uniformity + ((potential.sum() - potential.diagonal().sum()) / (n * (n - 1))).log() / 2
        )
    return alignment + uniformity


def cyclip(image_features: Features, text_features: Features) -> Scalar:
    """Cross-modal plus in-modal cyclic consistency, summed over one index and averaged over the
    other.

    Source: Goel et al. (2022, arXiv 2205.14459), eqs. 2 and 3, on cosines; both have weight 0.25
    there.

    Args:
        image_features: unit vectors, [n, d].
        text_features: unit vectors, [n, d].

    Returns:
        A scalar, 0 where <v_j, t_k> = <v_k, t_j> and <v_j, v_k> = <t_j, t_k>.

    Raises:
        ValueError: fewer than two pairs, or shapes that differ.
    """
    check_shapes(image_features, text_features)
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
    """Symmetric cross-entropy to soft targets from the similarities of frozen-tower features.

    The target of a row is a softmax, at temperature 0.1, over the other pairs of the batch; its
    logits are the mean of the image and the text cosines of centred features. The pair itself is
    excluded: it would take nearly all of the target mass, and `clip_loss`, to which this is added,
    covers it.

    Source: soft alignment as in PyramidCLIP and SoftCLIP (Gao et al. 2023, arXiv 2303.17561), with
    the towers as teachers and without the other terms of those losses.

    Args:
        image_features: unit vectors, [n, d].
        text_features: unit vectors, [n, d].
        logit_scale: multiplier of the cosines.
        image_pooled: features of the frozen image tower, [n, p].
        text_pooled: features of the frozen text tower, [n, q].

    Returns:
        Nats per row, a scalar.

    Raises:
        ValueError: fewer than two pairs, or shapes that differ.
    """
    check_shapes(image_features, text_features)
    pooled = image_pooled.detach(), text_pooled.detach()
    image, text = (F.normalize(side - side.mean(0), dim=1) for side in pooled)
    similarity = (image @ image.T + text @ text.T) / (2 * TEACHER_TEMPERATURE)
    logits = logit_scale * image_features @ text_features.T
    target = similarity.fill_diagonal_(-torch.inf).softmax(1).to(logits)
    return -(target * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum(1).mean() / 2


def random_feature_alignment(
    image_projected: Features, text_projected: Features, generator: torch.Generator | None = None
) -> Scalar:
    """RaFA: squared distance of both embeddings of a pair to a random vector drawn for that pair.

    The vectors are drawn from the standard normal prior. Between unit vectors the distance would
    have no gradient in expectation, so it is taken before normalisation.

    Source: Yamaguchi et al. (2025, arXiv 2504.12717), scaled as in their code, by 2 / d times the
    equation of the paper; its weight there is 1. The draw does not depend on the dtype and device
    of the features.

    Args:
        image_projected: unnormalised image embeddings, [n, d].
        text_projected: unnormalised text embeddings, [n, d].
        generator: source of the random vectors, on any device; torch's global one if None.

    Returns:
        The mean squared difference per entry, summed over both modalities, a scalar.
    """
    device = image_projected.device if generator is None else generator.device
    reference = torch.randn(image_projected.shape, generator=generator, device=device).to(
        image_projected
    )
    return F.mse_loss(image_projected, reference) + F.mse_loss(text_projected, reference)


def hycd_loss(
    image_features: Features,
    text_features: Features,
    logit_scale: Scalar | Number,
    labels: Labels | None,
    teacher_logits: Float[Tensor, "n n"],
) -> Scalar:
    """Hybrid contrastive distillation: cross-entropy to alpha * matches + (1 - alpha) * teacher
    softmax.

    Source: Yamaguchi et al. (2025, arXiv 2504.12717), alpha = 0.5. Their KL divergence is this
    minus the entropy of the targets, which has no gradient. Their code compares unnormalised
    embeddings at temperature 1; here the logits are cosines times `logit_scale`, and matches by
    label share the target mass as in `clip_loss`.

    Args:
        image_features: unit vectors, [n, d].
        text_features: unit vectors, [n, d].
        logit_scale: multiplier of the cosines.
        labels: pairs with equal labels match, [n]; None when all differ.
        teacher_logits: the teacher's cosines of images (rows) with texts, times its own
            `logit_scale`, [n, n].

    Returns:
        Nats per row, the mean of both directions, a scalar.

    Raises:
        ValueError: fewer than two pairs, or features or labels whose shapes do not fit.
    """
    check_shapes(image_features, text_features, labels)
    n = len(image_features)
    labels = torch.arange(n, device=image_features.device) if labels is None else labels
    matches = (labels[:, None] == labels).to(image_features)
    matches = matches / matches.sum(1)  # symmetric: matching rows have equally many matches
    logits = logit_scale * image_features @ text_features.T
    total = 0.0
    for student, teacher in ((logits, teacher_logits), (logits.T, teacher_logits.T)):
        target = torch.lerp(teacher.softmax(1).to(matches), matches, HYCD_ALPHA)
        total = total - (target * student.log_softmax(1)).sum(1).mean() / 2
    return total


def siglip_loss(
    image_features: Features,
    text_features: Features,
    logit_scale: Scalar | Number,
    labels: Labels | None = None,
) -> Scalar:
    """Sigmoid loss over all image-text pairs of the batch, at the bias that minimises it.

    Source: Zhai et al. (2023, arXiv 2303.15343), algorithm 1. Their bias is a trained parameter;
    here it is solved for in each batch, by Newton's method in float64, which has the same gradient
    at the optimum and needs no learning rate.

    Args:
        image_features: unit vectors, [n, d].
        text_features: unit vectors, [n, d].
        logit_scale: multiplier of the cosines.
        labels: pairs with equal labels are positives of each other, [n]; None when all differ.

    Returns:
        Nats per row, a scalar.

    Raises:
        ValueError: fewer than two pairs, or features or labels whose shapes do not fit.
    """
    check_shapes(image_features, text_features, labels)
    n = len(image_features)
    logits = logit_scale * image_features @ text_features.T
    labels = torch.arange(n, device=logits.device) if labels is None else labels
    positive = labels[:, None] == labels
    bias = _sigmoid_bias(logits.detach().double(), positive).to(logits)
    signs = torch.where(positive, 1.0, -1.0).to(logits)
    return F.softplus(-signs * (logits + bias)).sum() / n


def _sigmoid_bias(logits: Float[Tensor, "n n"], positive: Bool[Tensor, "n n"]) -> Scalar:
    """The bias at which the mean probability equals the fraction of positives; the loss is convex
    in it.
    """
    low, high = -logits.max() - 50, -logits.min() + 50
    target, bias = positive.double().mean(), (low + high) / 2
    for _ in range(NEWTON_STEPS):
        probability = torch.sigmoid(logits + bias)
        error = probability.mean() - target
        low, high = torch.where(error < 0, bias, low), torch.where(error > 0, bias, high)
        step = bias - error / (probability * (1 - probability)).mean().clamp(min=1e-300)
        bias = torch.where((step > low) & (step < high), step, (low + high) / 2)
    return bias
