"""Bounds on mutual information that are functions of plain tensors, in nats.

Upper bounds come as a divergence of an encoder from a backward encoder, one value per
sample whose mean is the bound; lower bounds come from a contrastive loss.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cibr.information.checks import check_finite

Number = float | int


def gaussian_kl_nats(
    mean_e: Float[Tensor, "n d"],
    log_variance_e: Float[Tensor, "n d"],
    mean_b: Float[Tensor, "n d"],
    log_variance_b: Float[Tensor, "n d"],
) -> Float[Tensor, " n"]:
    """KL(N(mean_e, diag var_e) || N(mean_b, diag var_b)) of each row.

    With e(z|x_v) and b(z|x_t) its mean over pairs bounds I(Z_v; X_v | X_t) from above.

    Args:
        mean_e: means of the encoder, [n, d].
        log_variance_e: log variances of the encoder, [n, d].
        mean_b: means of the backward encoder, [n, d].
        log_variance_b: log variances of the backward encoder, [n, d].

    Returns:
        Nats, [n]; 0 where the two agree.

    Raises:
        ValueError: shapes that differ, or entries that are not finite.
    """
    named = {
        "mean_e": mean_e,
        "log_variance_e": log_variance_e,
        "mean_b": mean_b,
        "log_variance_b": log_variance_b,
    }
    if mean_e.ndim != 2 or len({value.shape for value in named.values()}) > 1:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in named.items())
        raise ValueError(f"means and log variances must all be [n, d], got {shapes}")
    for name, value in named.items():
        check_finite(name, value.detach())
    log_ratio = log_variance_e - log_variance_b
    distance = (mean_e - mean_b) ** 2 * torch.exp(-log_variance_b)
    return (torch.expm1(log_ratio) - log_ratio + distance).sum(1) / 2


def info_nce_nats(loss: Float[Tensor, ""] | Number, n: int) -> Float[Tensor, ""] | Number:
    """Lower bound on mutual information that an InfoNCE loss over n pairs certifies.

    Source: van den Oord et al. (2018, arXiv 1807.03748), I >= log n - loss.

    Args:
        loss: mean cross-entropy in nats.
        n: pairs in the batch; the bound cannot exceed log n.

    Returns:
        Nats, of the kind of `loss`.

    Raises:
        ValueError: fewer than two pairs.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}: a pair alone has nothing to be told from")
    return math.log(n) - loss
