"""95 % intervals of means over items: Student's, and a bootstrap over training seeds and items.

They measure how much a score varies with the sample of test items (and training seeds). Dependent
items and means of means are first turned into one number per item (`of_clusters`, `of_groups`). Its
mean is the score; its standard error is, to first order, the score's. `scipy.stats.bootstrap` does
not resample seeds and items jointly.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

_N_RESAMPLES = 2000
_DRAWS = 2**20  # items drawn at a time (8 MiB of weights)

_Values = Shaped[np.ndarray, " n"] | Shaped[Tensor, " n"]
_Matrix = Shaped[np.ndarray, "s n"] | Shaped[Tensor, "s n"]


def mean_interval(values: _Values, clusters: _Values | None = None) -> tuple[float, float, float]:
    """The mean over items with Student's 95 % interval.

    Args:
        values: one number per item [n], such as a hit (0 or 1).
        clusters: the cluster of each item [n], such as a text's image, if those of one cluster are
            not independent.

    Returns:
        The mean and the lower and upper end of its interval, NaN for a single item or cluster.

    Raises:
        ValueError: values that are empty or not finite, or not one cluster per item.
    """
    from scipy import stats

    values = _finite("values", values)
    if clusters is not None:
        values = of_clusters(values, np.asarray(clusters))
    mean = float(values.mean())
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def of_clusters(
    values: Float[np.ndarray, " n"], clusters: Shaped[np.ndarray, " n"]
) -> Float[np.ndarray, " c"]:
    """One number per cluster; their mean is the mean over items.

    Their standard error is that of the ratio estimator, as clusters have unequal numbers of items.

    Raises:
        ValueError: not one cluster per item.
    """
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} items but {len(clusters)} clusters: give one per item")
    clusters = np.unique(clusters, return_inverse=True)[1]
    counts = np.bincount(clusters)
    mean = values.mean()
    return mean + (np.bincount(clusters, values) - mean * counts) / counts.mean()


def of_groups(
    values: Float[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """One number per item; their mean is the mean of group means.

    Groups, such as classes or data sets, have equal weight. The standard error is that of a mean of
    means: only the spread within groups counts, and a group of one item adds none.
    """
    groups = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(groups)
    means = np.bincount(groups, values) / sizes
    n = len(values)
    unbiased = np.sqrt((n - 1) / n * sizes / np.maximum(1, sizes - 1))
    scales = n / len(sizes) / sizes * unbiased
    return means.mean() + scales[groups] * (values - means[groups])


def paired_difference(a: _Matrix, b: _Matrix, seed: int = 0) -> tuple[float, float, float]:
    """Paired difference of models b and a on the same items, averaged over training seeds.

    A resample draws seeds and items. With few seeds the interval is too narrow: where s seeds
    decide, by a factor of sqrt(1 - 1/s), and Student's quantile is not used.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.

    Args:
        a: model a's value of every item under every seed [s, n].
        b: the same for model b, with the same seeds and items in the same order.
        seed: of the resampling.

    Returns:
        The mean of b - a over seeds and items, and the lower and upper end of its 95 % interval.

    Raises:
        ValueError: shapes that differ, or values that are not finite.
    """
    if a.ndim != 2 or a.shape != b.shape:
        fix = "give [seeds, items] with the same seeds and items"
        raise ValueError(f"a has shape {tuple(a.shape)} but b {tuple(b.shape)}: {fix}")
    values = _finite("b", b) - _finite("a", a)
    rng = np.random.default_rng(seed)
    drawn_seeds = np.concatenate(list(_draws(len(values), rng)))
    resampled = (drawn_seeds * _drawn_sums(values, rng)).sum(1) / values.size
    low, high = np.quantile(resampled, (0.025, 0.975)).tolist()
    return float(values.mean()), low, high


def _draws(n: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each of n is drawn in n draws with replacement, [r, n] per block of resamples."""
    block = max(1, _DRAWS // n)
    for start in range(0, _N_RESAMPLES, block):
        rows = min(block, _N_RESAMPLES - start)
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)


def _drawn_sums(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sums of n drawn items [r, s]; if items have few distinct values, as hits do, only their
    counts are drawn.
    """
    n = values.shape[1]
    distinct, counts = np.unique(values, axis=1, return_counts=True)
    if 8 * len(counts) > n:
        return np.concatenate([w @ values.T for w in _draws(n, rng)])
    return rng.multinomial(n, counts / n, _N_RESAMPLES) @ distinct.T


def _finite(name: str, values: np.ndarray | Tensor) -> np.ndarray:
    values = np.asarray(values).astype(float)
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"{name} is empty or not finite: give one finite number per item")
    return values
