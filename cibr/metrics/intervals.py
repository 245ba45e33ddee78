"""95 % intervals of means over items, and over training seeds and items.

They measure how much a score varies with the sample of test items (and training seeds). Dependent
items and means of means are first turned into one number per item (`of_clusters`, `of_groups`). Its
mean is the score; its standard error is, to first order, the score's.
"""

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

_Values = Shaped[np.ndarray, " n"] | Shaped[Tensor, " n"]
_Matrix = Shaped[np.ndarray, "s n"] | Shaped[Tensor, "s n"]


def mean_interval(values: _Values, clusters: _Values | None = None) -> tuple[float, float, float]:
    """The mean over items with Student's 95 % interval.

    For hits it is too narrow near 0 or 1: where all agree, its width is 0.

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


def paired_difference(a: _Matrix, b: _Matrix) -> tuple[float, float, float]:
    """Paired difference of models b and a on the same items, averaged over training seeds.

    The variances of the means over seeds and over items add up, with Satterthwaite's degrees of
    freedom. Noise of a single seed and item counts in both, so the interval is rather too wide. A
    single seed adds nothing.

    Source: Satterthwaite (1946), An Approximate Distribution of Estimates of Variance Components.

    Args:
        a: model a's value of every item under every seed [s, n].
        b: the same for model b, with the same seeds and items in the same order.

    Returns:
        The mean of b - a over seeds and items, and the lower and upper end of its 95 % interval,
        NaN for a single item.

    Raises:
        ValueError: shapes that differ, or values that are not finite.
    """
    from scipy import stats

    if a.ndim != 2 or a.shape != b.shape:
        fix = "give [seeds, items] with the same seeds and items"
        raise ValueError(f"a has shape {tuple(a.shape)} but b {tuple(b.shape)}: {fix}")
    values = _finite("b", b) - _finite("a", a)
    mean = float(values.mean())
    if values.shape[1] < 2:
        return mean, np.nan, np.nan
    of_means = [values.mean(axis) for axis in (0, 1) if values.shape[1 - axis] > 1]
    variances = np.array([stats.sem(means) ** 2 for means in of_means])
    if not variances.any():
        return mean, mean, mean
    own_degrees = [len(means) - 1 for means in of_means]
    degrees = variances.sum() ** 2 / (variances**2 / own_degrees).sum()
    half = float(stats.t.ppf(0.975, degrees) * np.sqrt(variances.sum()))
    return mean, mean - half, mean + half


def _finite(name: str, values: np.ndarray | Tensor) -> np.ndarray:
    values = np.asarray(values).astype(float)
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"{name} is empty or not finite: give one finite number per item")
    return values
