"""Bootstrap intervals of scores over items, clusters of items and training seeds.

Intervals are percentile intervals. They measure how much a score varies with the sample of test
items (and training seeds); where all items agree, as in 0 of n hits, they have zero width.
`scipy.stats.bootstrap` resamples neither clusters nor seeds and items jointly.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

_N_RESAMPLES = 2000
_ENDS = (0.025, 0.975)
_DRAWS = 2**20  # clusters drawn at a time (8 MiB of weights)

_Values = Shaped[np.ndarray, " n"] | Shaped[Tensor, " n"]
_DataSets = Sequence[Shaped[np.ndarray, "s _"] | Shaped[Tensor, "s _"]]


def bootstrap_interval(
    values: _Values, clusters: _Values | None = None, seed: int = 0, statistic: Callable = np.mean
) -> tuple[float, float, float]:
    """A mean, or another statistic, over items with its 95 % bootstrap interval.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13; clusters are
    resampled.

    Args:
        values: one number per item [n], such as a hit (0 or 1), a rank or an average precision.
        clusters: the cluster of each item [n], such as a text's image, whose items are drawn
            together.
        seed: of the resampling.
        statistic: of an array of values, such as `np.median`.

    Returns:
        The statistic of the items, and the lower and upper end of its interval.

    Raises:
        ValueError: values that are not finite, or fewer than two clusters.
    """
    values = _finite("values", values)
    labels = np.arange(len(values)) if clusters is None else np.asarray(clusters)
    distinct, members = np.unique(labels, return_inverse=True)
    if len(labels) != len(values) or len(distinct) < 2:
        counts = f"{len(values)} items but {len(labels)} clusters, {len(distinct)} distinct"
        raise ValueError(f"{counts}: give one cluster per item, and at least two")
    resampled = [
        statistic(np.repeat(values, row[members]))
        for rows in _draws(len(distinct), np.random.default_rng(seed))
        for row in rows
    ]
    low, high = np.quantile(resampled, _ENDS).tolist()
    return float(statistic(values)), low, high


def paired_difference(
    a: _DataSets, b: _DataSets, weights: Sequence[float] | None = None, seed: int = 0
) -> dict[str, float]:
    """Paired difference of models b and a on the same items, averaged over data sets and training
    seeds.

    A resample draws seeds, jointly for all data sets, and items within each set; with one seed it
    is the paired bootstrap over items. With s seeds the interval is too narrow, by up to a fraction
    1/(2s) of its width.

    Args:
        a: for each data set, model a's value of every item under every seed [s, n_k].
        b: the same for model b, with the same seeds and items in the same order.
        weights: of the data sets' means, equal by default; the four styles of PACS share the weight
            of one set. Only their ratios matter.
        seed: of the resampling.

    Returns:
        `mean` of b - a over data sets, seeds and items, and the ends of its 95 % interval, `low`
        and `high`.

    Raises:
        ValueError: lists or shapes that do not fit, values that are not finite, weights that are
            negative or all zero.
    """
    of_a, of_b = ([tuple(values.shape) for values in side] for side in (a, b))
    matrices = of_a and all(len(shape) == 2 for shape in of_a)
    if not matrices or of_a != of_b or len({n_seeds for n_seeds, _ in of_a}) > 1:
        fix = "give [seeds, items] for each of the same data sets, with the same seeds everywhere"
        raise ValueError(f"a has shapes {of_a} but b {of_b}: {fix}")
    differences = [_finite("b", y) - _finite("a", x) for x, y in zip(a, b, strict=True)]
    shares = np.ones(len(a)) if weights is None else np.asarray(weights, dtype=float)
    if shares.shape != (len(a),) or (shares < 0).any() or not 0 < shares.sum() < np.inf:
        fix = "give one per data set, none below zero and not all zero"
        raise ValueError(f"weights are {weights} for {len(a)} data sets: {fix}")
    rng = np.random.default_rng(seed)
    drawn_seeds = np.concatenate(list(_draws(len(differences[0]), rng)))
    mean = 0.0
    resampled = np.zeros(_N_RESAMPLES)
    for values, share in zip(differences, shares / shares.sum(), strict=True):
        mean += share * values.mean()
        resampled += share * (drawn_seeds * _drawn_sums(values, rng)).sum(1) / values.size
    low, high = np.quantile(resampled, _ENDS).tolist()
    return {"mean": float(mean), "low": low, "high": high}


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
