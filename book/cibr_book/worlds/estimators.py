"""Estimators of mutual information, in nats, and Gaussian samples with known information.

A critic scores every pair, scores[i, j] = T(x_i, y_j). The diagonal contains samples of the joint
distribution P, the rest samples of the product of the marginals Q. With the critic T = log p(x,y) /
p(x)p(y), for NWJ plus 1, each estimate from that matrix but SMILE's tends to I(X;Y); they differ
for an imperfect critic or a small batch.

    InfoNCE    lower bound, also for a batch       never above log n
    NWJ        lower bound in expectation          variance grows like e^I
    DV         lower bound as n grows              the log of a batch mean is too small: too high
    SMILE      no bound                            the clipped e^T misses most of the mean: too high

Source: Poole et al. (2019, arXiv 1905.06922) for the family.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cibr.losses import critics

Nats = Float[Tensor, ""]
Scores = Float[Tensor, "n n"]
X = Float[Tensor, "n d"]
Y = Float[Tensor, "n e"]
_BATCH_SIZE = 128  # pairs per training step, without replacement, and per batch of InfoNCE
_N_BLOCKS = 5  # of held-out samples, over which a value is averaged


def nce_nats(scores: Scores) -> Nats:
    """InfoNCE: log n + E[log softmax probability of the true candidate], averaged over both
    directions.

    Source: van den Oord et al. (2018, arXiv 1807.03748), eq. 4 and section 2.3; Poole et al.
    (2019), section 2.3.
    Symmetric here, as in CLIP: `nce_nats(scores)` is log n - `clip_loss`.

    Args:
        scores: [n, n], diagonal from P.

    Returns:
        Nats, a scalar; a lower bound in expectation, and always at most log n.
    """
    both_directions = scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal()
    return math.log(len(scores)) + both_directions.mean() / 2


def _nwj_nats(scores: Scores) -> Nats:
    """Nguyen, Wainwright and Jordan: E_P[T] - E_Q[e^(T - 1)], a lower bound in expectation for
    every critic.

    Source: Nguyen et al. (2010, arXiv 0809.0853), section II, for the divergence of P from Q; Poole
    et al. (2019), section 2.2. The optimal critic is 1 + log p(x,y) / p(x)p(y).
    """
    joint, mismatched = _split(scores)
    return joint.mean() - torch.exp(critics.log_mean_exp(mismatched) - 1)


def _dv_nats(scores: Scores) -> Nats:
    """Donsker and Varadhan: E_P[T] - log E_Q[e^T], a lower bound as n grows, possibly too high for
    small n.

    Source: Belghazi et al. (2018, arXiv 1801.04062), definition 3.1. The mean over Q is taken over
    all mismatched pairs of the batch, not over one permutation.
    """
    joint, mismatched = _split(scores)
    return joint.mean() - critics.log_mean_exp(mismatched)


def smile_nats(scores: Scores, clip: float = 5.0) -> Nats:
    """SMILE: Donsker-Varadhan with e^T clipped to [e^-clip, e^clip] under Q, for bounded variance;
    not a bound.

    Source: Song & Ermon (2020, arXiv 1910.06222), section 5. Its critic is trained with
    `_jsd_objective`, as there. Scores as for `nce_nats`.
    """
    joint, mismatched = _split(scores)
    return joint.mean() - critics.log_mean_exp(mismatched.clamp(-clip, clip))


def _jsd_objective(scores: Scores) -> Nats:
    """E_P[-softplus(-T)] - E_Q[softplus(T)], with optimal critic log p(x,y) / p(x)p(y); not an
    information.

    Source: Hjelm et al. (2019, arXiv 1808.06670), eq. 4. Its maximum is 2 JSD(P, Q) - 2 log 2.
    """
    joint, mismatched = _split(scores)
    return -F.softplus(-joint).mean() - F.softplus(mismatched).mean()


def _split(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the joint samples, from P, and of the mismatched pairs, from Q."""
    return scores.diagonal(), critics.mismatches(scores)


# The estimate from held-out scores, by estimator.
READINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "MINE": _dv_nats,
    "NWJ": _nwj_nats,
    "InfoNCE": nce_nats,
    "SMILE": smile_nats,
}
# What a critic is trained to maximise; `MINE` also uses a moving average.
_OBJECTIVES = {"NWJ": _nwj_nats, "InfoNCE": nce_nats, "SMILE": _jsd_objective}


def _fit_critic(x: X, y: Y, estimator: str, n_steps: int = 400, seed: int = 0) -> nn.Module:
    """Trains the critic of an estimator on samples.

    Args:
        x: samples, [n, d].
        y: samples, row i drawn jointly with row i of x, [n, e].
        estimator: one of `READINGS`.
        n_steps: steps of Adam, with a cosine schedule to zero.
        seed: of the weights and the batches.

    Returns:
        The critic; `critic(x, y)` is [n, n].
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = critics.SeparableCritic(x.shape[1], y.shape[1]).to(x.dtype)
    mine_nats = critics.MineNats()
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(n_steps):
        rows = torch.randperm(len(x), generator=generator)[:_BATCH_SIZE]
        scores = critic(x[rows], y[rows])
        if estimator == "MINE":
            gain = mine_nats(scores, update_average=True)
        else:
            gain = _OBJECTIVES[estimator](scores)
        optimizer.zero_grad()
        (-gain).backward()
        optimizer.step()
        schedule.step()
    return critic


def estimate_nats(
    x: X, y: Y, estimators: Sequence[str] = tuple(READINGS), **options: int
) -> dict[str, float]:
    """I(X;Y) from samples by several estimators, with critics trained on one half and evaluated on
    the other.

    Columns are standardised first, which does not change the information. InfoNCE is evaluated in
    batches of 128 and cannot exceed its log; the others are evaluated in five blocks.

    Args:
        x: samples, [n, d].
        y: samples, row i drawn jointly with row i of x, [n, e].
        estimators: of `READINGS`.
        options: of `_fit_critic`.

    Returns:
        Nats by estimator.

    Raises:
        ValueError: a half has fewer samples than a batch.
    """
    if len(x) < 2 * _BATCH_SIZE:
        raise ValueError(f"{len(x)} samples: pass {2 * _BATCH_SIZE} or more, two batches")
    half = len(x) // 2
    x, y = (_standardised(samples, half) for samples in (x, y))
    nats = {}
    for estimator in estimators:
        critic = _fit_critic(x[:half], y[:half], estimator, **options)
        size = _BATCH_SIZE if estimator == "InfoNCE" else (len(x) - half) // _N_BLOCKS
        blocks = zip(x[half:].split(size), y[half:].split(size), strict=True)
        with torch.no_grad():
            values = [READINGS[estimator](critic(a, b)) for a, b in blocks if len(a) == size]
        nats[estimator] = torch.stack(values).mean().item()
    return nats


def _standardised(samples: Tensor, half: int) -> Tensor:
    """Columns of mean 0 and variance 1 in the first half; nearly constant ones become 0."""
    spread = samples[:half].std(0)
    spread = spread.where(spread > 1e-2 * spread.max(), torch.inf)
    return ((samples - samples[:half].mean(0)) / spread).float()


def _correlation_of(nats: float, dim: int) -> float:
    """The correlation at which dim independent pairs of Gaussians have this total information."""
    return math.sqrt(-math.expm1(-2 * nats / dim))


def gaussian_pairs(dim: int, nats: float, n: int, seed: int = 0) -> tuple[X, Y]:
    """Samples of dim independent pairs of Gaussians with equal correlation, float64.

    Args:
        dim: number of pairs of coordinates.
        nats: their total information.
        n: number of samples.
        seed: of the samples.
    """
    rho = _correlation_of(nats, dim)
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def gaussian_log_ratio(x: X, y: X, nats: float) -> Scores:
    """The optimal critic of `gaussian_pairs` of these nats: log p(x_i, y_j) / p(x_i) p(y_j)."""
    rho = _correlation_of(nats, x.shape[1])
    squares = rho**2 * ((x**2).sum(1)[:, None] + (y**2).sum(1)[None])
    return nats - (squares - 2 * rho * x @ y.T) / (2 * (1 - rho**2))
