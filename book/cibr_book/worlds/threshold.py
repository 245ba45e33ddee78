"""One threshold: what linear CLIP makes of canonical correlations, in the limit and by its loss.

In the limit of large batches its gains have a closed form, theorem 3 of the book. For embeddings of
unit length, and in finite batches, they do not: `loss_gains` minimises CLIP's loss itself over the
gains, of Gaussian pairs with the given correlations. Neither has a parameter to fit.
"""

import math

import numpy as np
import torch
from jaxtyping import Float64
from scipy.optimize import minimize_scalar
from torch import Tensor

from cibr.losses import clip_loss

Correlations = Float64[Tensor, " s"]
_STEPS, _RATE = 300, 0.05  # of `loss_gains`; twice the steps change no gain by a hundredth
_LEAST = 1e-3  # a direction's gain at the start


def free_length_gains(rho: Correlations, beta: float = 0.0, noise: float = 0.0) -> Correlations:
    """Gains of the canonical directions at the optimum, for embeddings of free length.

    Args:
        rho: canonical correlations in [0, 1].
        beta: weight of the squared distance of paired embeddings, |u - w|^2 / (2 temperature);
            for unit vectors this is (1 - cos) / temperature.
        noise: variance of the noise in each coordinate of the embeddings, over the temperature;
            weight decay of the same size does the same to white inputs.
    """
    return torch.clamp((1 + beta) * rho - beta - noise, min=0)


def fixed_length_gains(rho: Correlations, temperature: float, beta: float = 0.0) -> Correlations:
    """The same for embeddings of mean squared length 1, whose gains sum up to 1 / temperature.

    Args:
        rho: canonical correlations in [0, 1], in any order.
        temperature: of the softmax.
        beta: as in `free_length_gains`.
    """
    scaled = (1 + beta) * rho
    n_kept = torch.arange(1, len(rho) + 1)
    excess = scaled.sort(descending=True).values.cumsum(0) - 1 / temperature
    return torch.clamp(scaled - (excess / n_kept).max().clamp(min=0), min=0)


def trained_temperature_gains(rho: Correlations, weight: float) -> tuple[Correlations, float]:
    """The same where the temperature is trained and the weight of 1 - cos is fixed.

    The limit of the loss may have several minima over the temperature; this is the lowest.

    Args:
        rho: canonical correlations in [0, 1], of which one at least is positive.
        weight: of 1 - cos.

    Returns:
        The gains, and the temperature, one over their sum.
    """

    def at(log: float) -> tuple[Correlations, float]:
        """The best gains at a temperature, and the limit of the loss."""
        gains = fixed_length_gains(rho, math.exp(log), weight * math.exp(log))
        shared = (1 + weight * math.exp(log)) * (gains * rho).sum()
        return gains, float(gains.square().sum() / 2 - shared)

    logs = np.linspace(-10, 10, 2001)
    best = int(np.argmin([at(log)[1] for log in logs[1:-1]])) + 1
    around = (logs[best - 1], logs[best + 1])
    found = minimize_scalar(lambda log: at(log)[1], bounds=around, options={"xatol": 1e-10})
    gains = at(found.x)[0]
    return gains, float(1 / gains.sum())


def loss_gains(
    rho: Correlations,
    temperature: float,
    beta: float,
    batch_size: int,
    seed: int = 0,
    unit: bool = True,
) -> Correlations:
    """The gains that minimise CLIP's loss itself, for Gaussian pairs with these correlations.

    An embedding is each direction times the root of its gain, then normalised; so only ratios of
    gains matter.

    Args:
        rho: correlations in [0, 1], of all directions that the embeddings can hold.
        temperature: of the softmax.
        beta: weight of (1 - cos) / temperature.
        batch_size: pairs in a batch.
        seed: of the pairs, which are drawn anew in every step.
        unit: whether every embedding has unit length, or their mean square.

    Returns:
        The gains; they sum up to 1 / temperature.
    """
    generator = torch.Generator().manual_seed(seed)
    rho32 = rho.float().clamp(max=1 - 1e-6)
    start = fixed_length_gains(rho, temperature, beta).float().clamp(min=_LEAST)
    logs = (start.log() / 2).requires_grad_()
    descent = torch.optim.Adam([logs], lr=_RATE)
    cycle = torch.optim.lr_scheduler.OneCycleLR(descent, _RATE, _STEPS, cycle_momentum=False)
    for _ in range(_STEPS):
        x, own = torch.randn(2, batch_size, len(rho), generator=generator)
        y = rho32 * x + (1 - rho32.square()).sqrt() * own
        u, w = logs.exp() * x, logs.exp() * y
        lengths = [z.norm(dim=1, keepdim=True) if unit else logs.exp().norm() for z in (u, w)]
        u, w = u / lengths[0], w / lengths[1]
        pull = beta / temperature * (u - w).square().sum(1).mean() / 2
        descent.zero_grad()
        (clip_loss(u, w, 1 / temperature) + pull).backward()
        descent.step()
        cycle.step()
    gains = (2 * logs.detach().double()).exp()
    return gains / (temperature * gains.sum())


def shifted_nats(gains: Correlations, rho: Correlations) -> float:
    """log N minus CLIP's loss of a score, in the limit of large batches, at its best temperature.

    Args:
        gains: of the canonical directions in the score, up to a common factor.
        rho: correlations of these directions at test.
    """
    value = (gains * rho).sum().clamp(min=0) ** 2 / (2 * gains.square().sum())
    return float(torch.nan_to_num(value))
