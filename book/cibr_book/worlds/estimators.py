"""Estimators of mutual information, in nats, and samplers with known mutual information to test
them.

A critic scores every pair, scores[i, j] = T(x_i, y_j). The diagonal contains samples of the joint
distribution P, the rest samples of the product of the marginals Q. With the critic T = log p(x,y) /
p(x)p(y) each estimate from that matrix tends to I(X;Y); they differ for an imperfect critic or a
small batch.

    InfoNCE    lower bound, also for a batch       never above log n
    NWJ        lower bound in expectation          variance grows like e^I
    DV         lower bound as n grows              the log of a batch mean is too small: too high
    SMILE      no bound                            the clipped e^T misses most of the mean: too high
    plug-in    no bound                            as good as the critic
    CLUB       upper bound for the true q(y|x)     none for a fitted one

Source: Poole et al. (2019, arXiv 1905.06922) for the family, Kraskov et al. (2004) for KSG, which
needs no critic, Czyz et al. (2023, arXiv 2306.11078), section 3, for the families of samplers,
which are implemented here.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.special import digamma, gammaln
from sklearn.neighbors import KDTree, NearestNeighbors
from torch import Tensor, nn
from torch.nn import functional as F

from cibr.losses import critics
from cibr.losses.clip import check_finite
from cibr.utils import check_known

Nats = Float[Tensor, ""]
Scores = Float[Tensor, "n n"]
X = Float[Tensor, "n d"]
Y = Float[Tensor, "n e"]
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

    Raises:
        ValueError: scores that are not square, not finite, or of fewer than two pairs.
    """
    _split(scores)
    both_directions = scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal()
    return math.log(len(scores)) + both_directions.mean() / 2


def nwj_nats(scores: Scores) -> Nats:
    """Nguyen, Wainwright and Jordan: E_P[T] - E_Q[e^(T - 1)], a lower bound in expectation for
    every critic.

    Source: Nguyen et al. (2010, arXiv 0809.0853), section II, for the divergence of P from Q; Poole
    et al. (2019), section 2.2. The optimal critic is 1 + log p(x,y) / p(x)p(y). Scores and errors
    as for `nce_nats`.
    """
    joint, mismatched = _split(scores)
    return joint.mean() - torch.exp(critics.log_mean_exp(mismatched) - 1)


def dv_nats(scores: Scores) -> Nats:
    """Donsker and Varadhan: E_P[T] - log E_Q[e^T], a lower bound as n grows, possibly too high for
    small n.

    Source: Belghazi et al. (2018, arXiv 1801.04062), definition 3.1. The mean over Q is taken over
    all mismatched pairs of the batch, not over one permutation. Scores and errors as for
    `nce_nats`.
    """
    joint, mismatched = _split(scores)
    return joint.mean() - critics.log_mean_exp(mismatched)


def smile_nats(scores: Scores, clip: float = 5.0) -> Nats:
    """SMILE: Donsker-Varadhan with e^T clipped to [e^-clip, e^clip] under Q, for bounded variance;
    not a bound.

    Source: Song & Ermon (2020, arXiv 1910.06222), section 5. It is trained with `jsd_objective`, as
    there. Scores and errors as for `nce_nats`.
    """
    joint, mismatched = _split(scores)
    return joint.mean() - critics.log_mean_exp(mismatched.clamp(-clip, clip))


def jsd_objective(scores: Scores) -> Nats:
    """E_P[-softplus(-T)] - E_Q[softplus(T)], with optimal critic log p(x,y) / p(x)p(y); not an
    information.

    Source: Hjelm et al. (2019, arXiv 1808.06670), eq. 4. Its maximum is 2 JSD(P, Q) - 2 log 2.
    Scores and errors as for `nce_nats`.
    """
    joint, mismatched = _split(scores)
    return -F.softplus(-joint).mean() - F.softplus(mismatched).mean()


def plug_in_nats(scores: Scores) -> Nats:
    """E_P[T]: the information if T is the log ratio of densities, as a critic of `jsd_objective`
    tends to be.
    """
    return scores.diagonal().mean()


def club_nats(log_q: Scores) -> Nats:
    """CLUB: E_P[log q(y|x)] - E_Q[log q(y|x)], an upper bound if q is the true conditional.

    For a fitted q it is an upper bound only if q is closer to p(x,y) than to p(x)p(y).

    Source: Cheng et al. (2020, arXiv 2006.12013), sections 3.1 and 3.2. The second mean excludes
    the diagonal; theirs includes it, which makes the value lower by a share of 1/n.

    Args:
        log_q: log q(y_j|x_i), [n, n].

    Returns:
        Nats, a scalar.

    Raises:
        ValueError: as `nce_nats`.
    """
    joint, mismatched = _split(log_q)
    return joint.mean() - mismatched.mean()


def _split(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the joint samples, from P, and of the mismatched pairs, from Q."""
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or len(scores) < 2:
        raise ValueError(f"scores must be [n, n] with n at least 2, got {list(scores.shape)}")
    check_finite(scores=scores)
    return scores.diagonal(), critics.mismatches(scores)


class GaussianConditional(nn.Module):
    """Gaussian q(y|x) with independent coordinates, whose mean and variance a network predicts.

    Source: the variational network of Cheng et al. (2020, arXiv 2006.12013), section 3.2.

    Args:
        dim_x: width of x.
        dim_y: width of y.
        dim_hidden: width of the two hidden layers.
    """

    def __init__(self, dim_x: int, dim_y: int, dim_hidden: int = 64):
        super().__init__()
        self.net = critics.mlp(dim_x, dim_hidden, 2 * dim_y)

    def parameters_of(self, x: X) -> tuple[Y, Y]:
        """Means and log variances of q(y|x), [n, e] each."""
        mean, raw = self.net(x).chunk(2, dim=1)
        return mean, 8 * torch.tanh(raw / 8)  # at most 8, to keep the density finite

    def log_likelihood(self, x: X, y: Y) -> Float[Tensor, " n"]:
        """log q(y_i|x_i) in nats, [n]; fitting q maximises its mean."""
        mean, log_variance = self.parameters_of(x)
        error = (y - mean) ** 2 * torch.exp(-log_variance)
        return -(error + log_variance + math.log(2 * math.pi)).sum(1) / 2

    def forward(self, x: X, y: Y) -> Scores:
        """log q(y_j|x_i) in nats, [n, n]."""
        mean, log_variance = self.parameters_of(x)
        precision = torch.exp(-log_variance)
        # sum over coordinates of (y - mean)^2 / variance, expanded to avoid an [n, n, e] tensor
        error = precision @ (y**2).T - 2 * (mean * precision) @ y.T
        error = error + (mean**2 * precision).sum(1, keepdim=True)
        constant = log_variance.sum(1, keepdim=True) + y.shape[1] * math.log(2 * math.pi)
        return -(error + constant) / 2


# The estimate from held-out scores, by estimator.
READINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "MINE": dv_nats,
    "NWJ": nwj_nats,
    "InfoNCE": nce_nats,
    "SMILE": smile_nats,
    "JSD": plug_in_nats,
    "CLUB": club_nats,
}
# What a critic is trained to maximise. `MINE` also uses a moving average and `CLUB` the likelihood;
# `SMILE` has the critic of `JSD`.
_OBJECTIVES = {"NWJ": nwj_nats, "InfoNCE": nce_nats, "JSD": jsd_objective, "SMILE": jsd_objective}


def fit_critic(
    x: X, y: Y, estimator: str, n_steps: int = 400, batch_size: int = 128, seed: int = 0
) -> nn.Module:
    """Trains the critic of an estimator on samples.

    Args:
        x: samples, [n, d].
        y: samples, row i drawn jointly with row i of x, [n, e].
        estimator: one of `READINGS`.
        n_steps: steps of Adam, with a cosine schedule to zero.
        batch_size: pairs per step, drawn without replacement within the step.
        seed: of the weights and the batches.

    Returns:
        The critic; `critic(x, y)` is [n, n].

    Raises:
        ValueError: an unknown estimator, samples of different numbers, or fewer samples than a
            batch.
    """
    check_known("estimator", estimator, READINGS)
    _check_samples(x, y, least=batch_size)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic_class = GaussianConditional if estimator == "CLUB" else critics.SeparableCritic
        critic = critic_class(x.shape[1], y.shape[1]).to(x.dtype)
    average = critics.MovingAverage()
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(n_steps):
        rows = torch.randperm(len(x), generator=generator)[:batch_size]
        if estimator == "CLUB":
            gain = critic.log_likelihood(x[rows], y[rows]).mean()
        elif estimator == "MINE":
            scores = critic(x[rows], y[rows])
            gain = critics.mine_nats(scores, average.update(scores))
        else:
            gain = _OBJECTIVES[estimator](critic(x[rows], y[rows]))
        optimizer.zero_grad()
        (-gain).backward()
        optimizer.step()
        schedule.step()
    return critic


def estimate_nats(
    x: X, y: Y, estimators: Sequence[str], batch_size: int = 128, **options
) -> dict[str, float]:
    """I(X;Y) from samples by several estimators, with critics trained on one half and evaluated on
    the other.

    Columns are standardised first, which does not change the information. InfoNCE is evaluated in
    batches of `batch_size` and cannot exceed its log; the others are evaluated in five blocks.

    Args:
        x: samples, [n, d].
        y: samples, row i drawn jointly with row i of x, [n, e].
        estimators: of `READINGS`; `SMILE` and `JSD` share a critic.
        batch_size: pairs per training step, and per batch of InfoNCE.
        options: of `fit_critic`.

    Returns:
        Nats by estimator.

    Raises:
        ValueError: as `fit_critic`.
    """
    _check_samples(x, y, least=2 * max(batch_size, 2 * _N_BLOCKS))
    half = len(x) // 2
    x, y = (((s - s[:half].mean(0)) / s[:half].std(0).clamp(min=1e-12)).float() for s in (x, y))
    trained: dict[str, nn.Module] = {}
    nats = {}
    for estimator in estimators:
        key = "JSD" if estimator == "SMILE" else estimator
        if key not in trained:
            trained[key] = fit_critic(x[:half], y[:half], key, batch_size=batch_size, **options)
        size = batch_size if estimator == "InfoNCE" else (len(x) - half) // _N_BLOCKS
        blocks = zip(x[half:].split(size), y[half:].split(size), strict=True)
        with torch.no_grad():
            scores = [trained[key](a, b) for a, b in blocks if len(a) == size]
            nats[estimator] = torch.stack([READINGS[estimator](s) for s in scores]).mean().item()
    return nats


def estimate_rows(
    tasks: Sequence["InformationTask"], n_samples: int, seeds: Sequence[int], **options
) -> pd.DataFrame:
    """Estimates of every estimator, including KSG, on fresh samples of every task.

    Args:
        tasks: samplers with their true information.
        n_samples: samples per task; half of them train a critic, KSG uses all.
        seeds: of samples, weights and batches, one run each.
        options: of `estimate_nats`.

    Returns:
        Tidy rows with the columns `task, truth, seed, estimator, nats`.
    """
    rows = []
    for task, seed in itertools.product(tasks, seeds):
        x, y = task.sample(n_samples, seed)
        estimates = estimate_nats(x, y, tuple(READINGS), seed=seed, **options)
        estimates["KSG"] = ksg_nats(x, y)
        rows += [(task.name, task.nats, seed, name, nats) for name, nats in estimates.items()]
    return pd.DataFrame(rows, columns=["task", "truth", "seed", "estimator", "nats"])


def ksg_nats(x: X, y: Y, n_neighbors: int = 3) -> float:
    """Kraskov, Stoegbauer and Grassberger: psi(k) + psi(n) - E[psi(n_x + 1) + psi(n_y + 1)], not a
    bound.

    n_x and n_y count the neighbours of x and y within the distance of the k-th joint neighbour,
    with scikit-learn's trees. In one dimension it is
    `sklearn.feature_selection.mutual_info_regression`, clipped at 0.

    Source: Kraskov et al. (2004, arXiv cond-mat/0305641), eq. 8, with the maximum norm.

    Args:
        x: samples, [n, d].
        y: samples, row i drawn jointly with row i of x, [n, e].
        n_neighbors: k; a small one has less bias, a large one less variance.

    Returns:
        Nats.

    Raises:
        ValueError: shapes that do not fit, or fewer than k + 1 samples.
    """
    _check_samples(x, y, least=max(2, n_neighbors + 1))
    sides = [(side / side.std(0).clamp(min=1e-30)).double().numpy() for side in (x, y)]
    neighbors = NearestNeighbors(n_neighbors=n_neighbors, metric="chebyshev").fit(np.hstack(sides))
    distance = neighbors.kneighbors()[0][:, -1]
    # Strictly closer than the k-th neighbour; each point counts itself, which is the + 1.
    radius = np.nextafter(distance, 0)
    marginal = 0.0
    for side in sides:
        counts = KDTree(side, metric="chebyshev").query_radius(side, radius, count_only=True)
        marginal += digamma(counts).mean()
    return float(digamma(len(x)) + digamma(n_neighbors) - marginal)


def _check_samples(x: Tensor, y: Tensor, least: int) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < least:
        got = f"got {list(x.shape)} and {list(y.shape)}"
        raise ValueError(f"x and y must be [n, d] and [n, e], n at least {least}, {got}")
    check_finite(x=x, y=y)


# Invertible maps of single coordinates, which do not change the information.
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "half-cube": lambda x: x * x.abs().sqrt(),
    "asinh": torch.asinh,
    "wiggly": lambda x: x + 0.4 * torch.sin(x) + 0.3 * torch.sin(1.7 * x + 1),
}


@dataclass(frozen=True)
class InformationTask:
    """A named, preconfigured sampler and its true information.

    Args:
        name: for tables.
        nats: the true I(X;Y).
        draw: takes a number of samples and a generator, and returns x [n, d] and y [n, e].
    """

    name: str
    nats: float
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]

    def sample(self, n: int, seed: int = 0) -> tuple[X, Y]:
        """n pairs, float64, determined by the seed."""
        return self.draw(n, torch.Generator().manual_seed(seed))

    def seen_through(self, name: str) -> "InformationTask":
        """The task with every coordinate transformed by one of `MAPS`, which keeps the information.

        Raises:
            ValueError: an unknown map.
        """
        check_known("map", name, MAPS)

        def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            return tuple(MAPS[name](side) for side in self.draw(n, generator))

        return InformationTask(f"{self.name}, {name}", self.nats, draw)


def correlation_of(nats: float, dim: int = 1) -> float:
    """The correlation at which dim independent pairs of Gaussians have this total information.

    Raises:
        ValueError: nats that are negative or not finite.
    """
    if not 0 <= nats < math.inf:
        raise ValueError(f"nats must be finite and at least 0, got {nats}")
    return math.sqrt(-math.expm1(-2 * nats / dim))


def _correlated(dim: int, rho: float, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x, noise = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def gaussian_task(dim: int, nats: float) -> InformationTask:
    """A task of dim independent pairs of Gaussians with equal correlation."""
    rho = correlation_of(nats, dim)
    return InformationTask(f"Gaussian {dim} x {dim}", nats, partial(_correlated, dim, rho))


def sparse_task(dim: int = 5, n_pairs: int = 2, correlation: float = 0.8) -> InformationTask:
    """A Gaussian task in which only the first n_pairs coordinates of x and y are correlated.

    Two pairs with correlation 0.8 have -log(1 - 0.64) = 1.0217 nats, the value in Czyz et al.
    (2023).
    """

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, y = _correlated(dim, 0.0, n, generator)
        noise = math.sqrt(1 - correlation**2) * y[:, :n_pairs]
        y[:, :n_pairs] = correlation * x[:, :n_pairs] + noise
        return x, y

    nats = -n_pairs * math.log1p(-(correlation**2)) / 2
    return InformationTask(f"{n_pairs} pairs in {dim} x {dim}", nats, draw)


def student_task(dim: int, dof: float, nats_of_gaussian: float = 0.0) -> InformationTask:
    """A multivariate Student t task: x and y share a heavy-tailed scale, which adds information."""
    rho = correlation_of(nats_of_gaussian, dim)

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, y = _correlated(dim, rho, n, generator)
        # Chi-squared as a Gamma, by torch's internal sampler, which takes a generator.
        shape = torch.full((n, 1), dof / 2, dtype=torch.float64)
        scale = torch.sqrt(dof / (2 * torch._standard_gamma(shape, generator=generator)))
        return scale * x, scale * y

    nats = nats_of_gaussian + student_excess_nats(dof, dim, dim)
    return InformationTask(f"Student {dim} x {dim}, {dof:g} d.o.f.", nats, draw)


def student_excess_nats(dof: float, dim_x: int, dim_y: int) -> float:
    """Information of a multivariate Student t beyond that of the Gaussian with the same dispersion.

    f(v) + f(v + m + n) - f(v + m) - f(v + n) with f(x) = log Gamma(x/2) - x/2 psi(x/2).

    Source: the entropies of Arellano-Valle et al. (2013), eq. 7, as in Czyz et al. (2023, arXiv
    2306.11078).

    Args:
        dof: degrees of freedom > 0.
        dim_x: m.
        dim_y: n.

    Returns:
        Nats.
    """

    def f(x: float) -> float:
        return float(gammaln(x / 2) - x / 2 * digamma(x / 2))

    return f(dof) + f(dof + dim_x + dim_y) - f(dof + dim_x) - f(dof + dim_y)


def gaussian_log_ratio(x: X, y: X, correlation: float) -> Scores:
    """The optimal critic of `gaussian_task`: log p(x_i, y_j) / p(x_i) p(y_j), [n, n], in nats."""
    gap = 1 - correlation**2
    squares = correlation**2 * ((x**2).sum(1)[:, None] + (y**2).sum(1)[None])
    return -x.shape[1] * math.log(gap) / 2 - (squares - 2 * correlation * x @ y.T) / (2 * gap)
