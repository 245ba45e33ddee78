"""What CIBR is compared with, in the form of `CIBRLoss`: a contrastive loss plus beta times a penalty.

noise                  CLIP on samples of vMF(mu, kappa_e), with no penalty
cosine                 CLIP + beta (1 - cosine of the pairs)
alignment_uniformity   CLIP + beta (alignment + mean of both uniformities)
cyclip                 CLIP + beta (cross-modal + in-modal cyclic consistency)
siglip                 SigLIP in CLIP's place, with no penalty
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cibr.information import info_nce_nats, sample_vmf
from cibr.losses.contrastive import Number, check_shapes, clip_loss, full_precision
from cibr.losses.penalties import vmf_penalty
from cibr.names import nearest

BASELINES = ("noise", "cosine", "alignment_uniformity", "cyclip", "siglip")
NEWTON_STEPS = 20


def alignment_uniformity_penalty(
    image_features: Float[Tensor, "n d"], text_features: Float[Tensor, "n d"]
) -> Float[Tensor, ""]:
    """Mean squared distance of the pairs, plus the log mean Gaussian potential within each modality.

    Source: Wang & Isola (2020, arXiv 2005.10242), alpha = 2 and t = 2, the uniformity of both sides averaged.

    Args:
        image_features: unit vectors, [n, d].
        text_features: unit vectors, [n, d].

    Returns:
        A scalar, lower for pairs that are close and modalities that are spread.
    """
    alignment = (image_features - text_features).square().sum(1).mean()
    uniformity = sum(_uniformity(features) for features in (image_features, text_features)) / 2
    return alignment + uniformity


def _uniformity(features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    n = len(features)
    potential = (4 * features @ features.T - 4).exp()  # exp(-2 * squared distance)
    return ((potential.sum() - potential.diagonal().sum()) / (n * (n - 1))).log()


def cyclip_penalty(image_features: Float[Tensor, "n d"], text_features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
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


def siglip_loss(
    image_features: Float[Tensor, "n d"],
    text_features: Float[Tensor, "n d"],
    logit_scale: Float[Tensor, ""] | Number,
    labels: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
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
    positive = labels[:, None] == labels[None]
    bias = _sigmoid_bias(logits.detach().double(), positive).to(logits)
    signs = torch.where(positive, 1.0, -1.0).to(logits)
    return F.softplus(-signs * (logits + bias)).sum() / n


def _sigmoid_bias(logits: Float[Tensor, "n n"], positive: Tensor) -> Float[Tensor, ""]:
    """The bias at which the mean probability equals the fraction of positives; the loss is convex in it."""
    low, high = -logits.max() - 50, -logits.min() + 50
    target, bias = positive.double().mean(), (low + high) / 2
    for _ in range(NEWTON_STEPS):
        probability = torch.sigmoid(logits + bias)
        error = probability.mean() - target
        low, high = (torch.where(error < 0, bias, low), torch.where(error > 0, bias, high))
        step = bias - error / (probability * (1 - probability)).mean().clamp(min=1e-300)
        bias = torch.where((step > low) & (step < high), step, (low + high) / 2)
    return bias


class BaselineLoss(nn.Module):
    """A loss that CIBR is compared with; `forward` takes and returns what that of `CIBRLoss` does.

    Args:
        objective: one of `BASELINES`.
        beta: weight of the penalty, >= 0; `noise` and `siglip` have none.
        kappa_e: concentration of the noise.

    Raises:
        ValueError: an unknown objective.
    """

    critics = None

    def __init__(self, objective: str, beta: Number = 0.0, kappa_e: Number = 1024.0):
        super().__init__()
        if objective not in BASELINES:
            near = nearest(objective, BASELINES)
            raise ValueError(f"objective must be one of {', '.join(BASELINES)}, got {objective!r}{near}")
        self.objective, self.beta, self.kappa_e = objective, float(beta), float(kappa_e)

    def extra_repr(self) -> str:
        return f"objective={self.objective!r}, beta={self.beta}, kappa_e={self.kappa_e}"

    def forward(
        self,
        image_features: Float[Tensor, "n d"],
        text_features: Float[Tensor, "n d"],
        logit_scale: Float[Tensor, ""] | Number,
        labels: Int[Tensor, " n"] | None = None,
        *,
        beta: Number | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms of the loss, as `CIBRLoss.forward` has them; the residuals are those of its `vmf`.

        `clip_loss` is the contrastive term, for `siglip` its sigmoid loss, of which no bound on information is
        reported.
        """
        check_shapes(image_features, text_features, labels, None)
        image, text = full_precision(image_features), full_precision(text_features)
        weight = self.beta if beta is None else float(beta)
        if self.objective == "siglip":
            contrastive, reports = siglip_loss(image, text, logit_scale, labels), {}
        else:
            noisy = self.objective == "noise"
            z = [sample_vmf(side, self.kappa_e, generator) if noisy else side for side in (image, text)]
            contrastive = clip_loss(*z, logit_scale, labels)
            reports = {"mi_lower_bound_nats": info_nce_nats(contrastive.detach(), len(image))}
        penalty = self._penalty(image, text)
        cosine = (image * text).sum(1).mean().detach()
        residuals = vmf_penalty({"image": cosine, "text": cosine}, image.shape[1], self.kappa_e, 1.0)[1]
        reports |= residuals | {"penalty_excess": penalty}
        weighted = weight * penalty if weight else torch.zeros_like(contrastive)
        terms = {"clip_loss": contrastive, "penalty_loss": weighted, "loss": contrastive + weighted}
        return terms | {name: value.detach().to(contrastive) for name, value in reports.items()}

    def _penalty(self, image: Float[Tensor, "n d"], text: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        if self.objective == "cosine":
            return 1 - (image * text).sum(1).mean()
        if self.objective == "alignment_uniformity":
            return alignment_uniformity_penalty(image, text)
        if self.objective == "cyclip":
            return cyclip_penalty(image, text)
        return image.new_zeros(())
