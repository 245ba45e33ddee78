"""95 % intervals of means over items, and over training seeds and items.

    mean +- t_{0.975}(n - 1) s / sqrt(n)     for n independent numbers of standard deviation s

An interval says how much a score varies with the sample of test items (and training seeds).
Dependent items are first turned into one number per cluster (`cluster_values`), and items of a mean
of means into one number each (`group_balanced_values`). The mean of these numbers is the score; its
standard error is, to first order, the score's.

Source: Student's interval; Wilson (1927) where all items agree; Satterthwaite (1946) for seeds and
items.
"""

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

_UPPER_LEVEL = 0.975  # of the upper end of a 95 % interval
_NORMAL_QUANTILE = 1.959964  # at that level
_Values = Shaped[np.ndarray, " n"] | Shaped[Tensor, " n"]
_Matrix = Shaped[np.ndarray, "s n"] | Shaped[Tensor, "s n"]


def mean_interval(values: _Values, clusters: _Values | None = None) -> tuple[float, float, float]:
    """The mean over items with Student's 95 % interval.

    For hits use `proportion_interval`: where all agree, the width of this one is 0.

    Args:
        values: one number per item [n], such as a hit (0 or 1).
        clusters: the cluster of each item [n], such as a text's image, if those of one cluster are
            not independent.

    Returns:
        The mean and the lower and upper end of its interval, NaN for a single item or cluster.

    Raises:
        ValueError: clusters and values differ in number.
    """
    from scipy import stats

    values = np.asarray(values, dtype=float)
    if clusters is not None:
        values = cluster_values(values, np.asarray(clusters))
    mean = float(values.mean())
    if len(values) < 2:
        return mean, np.nan, np.nan
    half_width = float(stats.t.ppf(_UPPER_LEVEL, len(values) - 1) * stats.sem(values))
    return mean, mean - half_width, mean + half_width


def proportion_interval(values: _Values) -> tuple[float, float, float]:
    """The mean of hits with a 95 % interval within 0 and 1.

    The interval is Student's, see `mean_interval`, unless the mean is 0 or 1, so that all n items
    miss or all hit. Student's would have no width there, so the interval is Wilson's, which is
    3.84 / (n + 3.84) wide if the items are independent.

    Source: Wilson (1927), Probable Inference, the Law of Succession, and Statistical Inference.

    Args:
        values: one number per item [n], such as a hit (0 or 1), whose mean is in [0, 1].

    Returns:
        The mean and the lower and upper end of its interval, NaN for a single item whose value is
        neither 0 nor 1.
    """
    mean, low, high = mean_interval(values)
    if np.isnan(mean):
        return mean, np.nan, np.nan
    if 0 < mean < 1:
        return mean, max(low, 0.0), min(high, 1.0)
    wilson_width = _NORMAL_QUANTILE**2 / (len(values) + _NORMAL_QUANTILE**2)
    if mean <= 0:  # all miss; rounding may take a mean of 0 below 0, and one of 1 above 1
        return mean, 0.0, wilson_width
    return mean, 1 - wilson_width, 1.0


def cluster_values(
    values: Float[np.ndarray, " n"], clusters: Shaped[np.ndarray, " n"]
) -> Float[np.ndarray, " c"]:
    """One number per cluster; their mean is the mean over items.

    Their standard error is that of the ratio estimator (sum of values over number of items), as
    clusters have unequal numbers of items.

    Args:
        values: one number per item [n].
        clusters: the cluster of each item [n].

    Returns:
        One number per cluster, [c]: mean + (sum of its values - mean * its size) / mean size.

    Raises:
        ValueError: clusters and values differ in number.
    """
    cluster_indices = np.unique(clusters, return_inverse=True)[1]
    sizes = np.bincount(cluster_indices)
    sums = np.bincount(cluster_indices, values)
    mean = values.mean()
    return mean + (sums - mean * sizes) / sizes.mean()


def group_balanced_values(
    values: Float[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """One number per item; their mean is the mean of group means.

    Groups, such as classes or data sets, have equal weight. The standard error is that of a mean of
    means: only the spread within groups counts, and a group of one item adds none. An item x of
    group g, one of G groups, which has n_g of the n items and the mean m_g, becomes

        (m_1 + ... + m_G) / G + weight_g * correction_g * (x - m_g)
        weight_g     = n / (G n_g)
        correction_g = sqrt((n - 1) / n * n_g / (n_g - 1))

    Args:
        values: one number per item [n].
        groups: the group of each item [n].

    Returns:
        The mean of group means plus the item's scaled deviation from its group's mean, [n].
    """
    group_indices = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(group_indices)
    means = np.bincount(group_indices, values) / sizes
    n = len(values)
    n_groups = len(sizes)
    # The mean of G means has the variance sum_g SS_g / (n_g (n_g - 1)) / G^2, with SS_g the squared
    # deviations in group g. That of the mean of n numbers is their squared deviations over
    # n (n - 1). Both are equal if deviations in g are multiplied by weight_g * correction_g.
    weights = n / n_groups / sizes
    corrections = np.sqrt((n - 1) / n * sizes / np.maximum(1, sizes - 1))  # of degrees of freedom
    scales = weights * corrections
    deviations = values - means[group_indices]
    return means.mean() + scales[group_indices] * deviations


def paired_difference(a: _Matrix, b: _Matrix) -> tuple[float, float, float]:
    """The mean of b - a, of two models on the same items, with its interval over seeds and items.

    The variances of the means over seeds and over items add up, with Satterthwaite's degrees of
    freedom. Noise of a single seed and item counts in both, so the interval is on the wide side. A
    single seed adds nothing.

    Source: Satterthwaite (1946), An Approximate Distribution of Estimates of Variance Components.

    Args:
        a: model a's value of every item under every seed [s, n].
        b: the same for model b, with the same seeds and items in the same order.

    Returns:
        The mean of b - a over seeds and items, and the lower and upper end of its 95 % interval,
        NaN for a single item.

    Raises:
        ValueError: shapes that differ.
    """
    from scipy import stats

    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(
            "a and b must be [seeds, items], the same ones, got "
            f"{tuple(a.shape)} and {tuple(b.shape)}"
        )
    differences = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    n_seeds, n_items = differences.shape
    mean = float(differences.mean())
    if n_items < 2:
        return mean, np.nan, np.nan
    samples = [differences.mean(axis=0)]  # one mean for each item
    if n_seeds > 1:  # a single seed has no variance
        samples.append(differences.mean(axis=1))
    variances = np.array([stats.sem(sample) ** 2 for sample in samples])
    if not variances.any():
        return mean, mean, mean
    degrees_of_samples = np.array([len(sample) - 1 for sample in samples])
    degrees = variances.sum() ** 2 / (variances**2 / degrees_of_samples).sum()  # Satterthwaite's
    half_width = float(stats.t.ppf(_UPPER_LEVEL, degrees) * np.sqrt(variances.sum()))
    return mean, mean - half_width, mean + half_width
