"""Mutual information from samples: a critic is trained on one half and the information read off the other.

`ESTIMATORS` names what can be asked for. The critic of `smile` and of `jsd` is the same one, trained with the
Jensen-Shannon objective; `ksg_nats` needs no critic.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from scipy.special import digamma
from sklearn.neighbors import KDTree, NearestNeighbors
from torch import Tensor, nn

from cibr.information import scores as of
from cibr.information.checks import check_samples
from cibr.information.critics import GaussianConditional, MovingAverage, SeparableCritic
from cibr.information.tasks import Task
from cibr.names import nearest

# What each estimator reads off the held-out scores; `mine` is the only one whose training needs memory.
VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "mine": of.dv_nats,
    "nwj": of.nwj_nats,
    "nce": of.nce_nats,
    "smile": of.smile_nats,
    "jsd": of.plug_in_nats,
    "club": of.club_nats,
}
OBJECTIVES = {"nwj": of.nwj_nats, "nce": of.nce_nats, "smile": of.jsd_objective, "jsd": of.jsd_objective}
TRAINED_AS = {"smile": "jsd"}
ESTIMATORS = tuple(VALUES)
KNOWN = ", ".join(ESTIMATORS)
N_BLOCKS = 5  # of held-out samples; the standard error is that of their mean


class Estimate(NamedTuple):
    """An estimate in nats, and the standard error of its mean over blocks of held-out samples."""

    nats: float
    standard_error: float


def fit_critic(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n e"],
    estimator: str,
    n_steps: int = 400,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    dim_hidden: int = 64,
    seed: int = 0,
) -> nn.Module:
    """Trains the critic of an estimator on samples; its output goes into the functions of `scores`.

    Args:
        x: samples, [n, d].
        y: samples, row i drawn with row i of x, [n, e].
        estimator: one of `ESTIMATORS`.
        n_steps: steps of Adam.
        batch_size: pairs a step, drawn without repetition within the step.
        learning_rate: of Adam, falling to zero along a half cosine.
        dim_hidden: width of the critic.
        seed: of its weights and of the batches.

    Returns:
        The critic; `critic(x, y)` is [n, n].

    Raises:
        ValueError: an unknown estimator, or samples that do not fit each other or a batch.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}{nearest(estimator, ESTIMATORS) or '.'} Known: {KNOWN}")
    check_samples(x, y, least=batch_size)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = GaussianConditional if estimator == "club" else SeparableCritic
        critic = kind(x.shape[1], y.shape[1], dim_hidden).to(x.dtype)
    average = MovingAverage()
    optimizer = torch.optim.Adam(critic.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(n_steps):
        rows = torch.randperm(len(x), generator=generator)[:batch_size]
        if estimator == "club":
            gain = critic.log_likelihood(x[rows], y[rows]).mean()
        else:
            found = critic(x[rows], y[rows])
            gain = (
                of.mine_nats(found, average.update(found)) if estimator == "mine" else OBJECTIVES[estimator](found)
            )
        optimizer.zero_grad()
        (-gain).backward()
        optimizer.step()
        schedule.step()
    return critic


def estimate_nats(
    x: Float[Tensor, "n d"], y: Float[Tensor, "n e"], estimator: str, batch_size: int = 128, **options
) -> Estimate:
    """I(X;Y) from samples: `fit_critic` on the first half, the value on the second.

    Columns are standardised first, which changes no information. InfoNCE is read in batches of `batch_size` and
    cannot exceed its log; the others are read in `N_BLOCKS` blocks.

    Args:
        x: samples, [n, d].
        y: samples, row i drawn with row i of x, [n, e].
        estimator: one of `ESTIMATORS`.
        batch_size: pairs a step of training, and a batch of InfoNCE.
        options: of `fit_critic`.

    Returns:
        The estimate and its standard error, in nats.

    Raises:
        ValueError: as `fit_critic`.
    """
    return _estimates(x, y, (estimator,), batch_size, **options)[estimator]


def _estimates(x: Tensor, y: Tensor, estimators: Sequence[str], batch_size: int, **options) -> dict[str, Estimate]:
    """Several estimates of the same samples; those that train alike share a critic."""
    check_samples(x, y, least=2 * max(batch_size, 2 * N_BLOCKS))
    half = len(x) // 2
    x, y = (_standardised(side, half) for side in (x, y))
    critics: dict[str, nn.Module] = {}
    found = {}
    for estimator in estimators:
        trained_as = TRAINED_AS.get(estimator, estimator)
        if trained_as not in critics:
            critics[trained_as] = fit_critic(x[:half], y[:half], trained_as, batch_size=batch_size, **options)
        found[estimator] = read_nats(critics[trained_as], x[half:], y[half:], estimator, batch_size)
    return found


@torch.no_grad()
def read_nats(
    critic: nn.Module, x: Float[Tensor, "n d"], y: Float[Tensor, "n e"], estimator: str, batch_size: int = 128
) -> Estimate:
    """The value of an estimator on samples that its critic has not seen; see `estimate_nats`."""
    size = batch_size if estimator == "nce" else len(x) // N_BLOCKS
    blocks = [(a, b) for a, b in zip(x.split(size), y.split(size), strict=True) if len(a) == size]
    values = torch.stack([VALUES[estimator](critic(a, b)) for a, b in blocks])
    error = values.std() / len(values) ** 0.5 if len(values) > 1 else torch.tensor(float("nan"))
    return Estimate(values.mean().item(), error.item())


def estimate_rows(
    tasks: Sequence[Task], n_samples: int, seeds: Sequence[int], batch_size: int = 128, **options
) -> pd.DataFrame:
    """Every estimator, KSG among them, on fresh samples of every task.

    Args:
        tasks: samplers with their truth.
        n_samples: samples of each; half of them train a critic, KSG has all.
        seeds: one run each, of samples, weights and batches.
        batch_size: pairs a step of training, and a batch of InfoNCE.
        options: of `fit_critic`.

    Returns:
        Tidy rows: `task, truth, seed, estimator, nats, standard_error`.
    """
    rows = []
    for task, seed in itertools.product(tasks, seeds):
        x, y = task.sample(n_samples, seed)
        found = _estimates(x, y, ESTIMATORS, batch_size, seed=seed, **options)
        found["ksg"] = Estimate(ksg_nats(x, y), float("nan"))
        setting = dict(task=task.name, truth=task.nats, seed=seed)
        rows += [setting | {"estimator": name} | estimate._asdict() for name, estimate in found.items()]
    return pd.DataFrame(rows)


def ksg_nats(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"], n_neighbors: int = 3) -> float:
    """Kraskov, Stoegbauer and Grassberger: from how many neighbours each side has within the joint distance.

    psi(k) + psi(n) - E[psi(n_x + 1) + psi(n_y + 1)], on scikit-learn's trees. In one dimension a side it is
    `sklearn.feature_selection.mutual_info_regression`, which has no more; that clips at 0, this does not.

    Source: Kraskov et al. (2004, arXiv cond-mat/0305641), eq. 8, with the maximum norm.

    Args:
        x: samples, [n, d].
        y: samples, row i drawn with row i of x, [n, e].
        n_neighbors: k; small is less biased, large varies less.

    Returns:
        Nats.

    Raises:
        ValueError: shapes that do not fit, or no more samples than neighbours.
    """
    check_samples(x, y, least=max(2, n_neighbors + 1))
    if n_neighbors < 1:
        raise ValueError(f"n_neighbors must be at least 1, got {n_neighbors}")
    sides = [(side / side.std(0).clamp(min=1e-30)).double().numpy() for side in (x, y)]
    joint = torch.cat([torch.from_numpy(side) for side in sides], 1).numpy()
    neighbors = NearestNeighbors(n_neighbors=n_neighbors, metric="chebyshev").fit(joint)
    distance = torch.from_numpy(neighbors.kneighbors()[0][:, -1])
    # Strictly closer than the k-th neighbour; each point counts itself, which is the + 1.
    radius = torch.nextafter(distance, torch.zeros_like(distance)).numpy()
    counts = [KDTree(side, metric="chebyshev").query_radius(side, radius, count_only=True) for side in sides]
    ours = digamma(len(x)) + digamma(n_neighbors)
    return float(ours - sum(digamma(count).mean() for count in counts))


def _standardised(side: Tensor, n_fit: int) -> Tensor:
    """Columns with the mean and deviation of the first rows made 0 and 1, as float32."""
    mean, deviation = side[:n_fit].mean(0), side[:n_fit].std(0)
    return ((side - mean) / deviation.clamp(min=1e-12)).float()
