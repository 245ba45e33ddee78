"""How two measures go together over runs, with an interval that knows which runs belong together."""

import numpy as np
from scipy.stats import rankdata

from cibr.metrics.intervals import N_RESAMPLES, Values


def rank_correlation(
    x: Values,
    y: Values,
    clusters: Values | None = None,
    groups: Values | None = None,
    level: float = 0.95,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> dict[str, float]:
    """Spearman's correlation with its percentile bootstrap interval over clusters.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13; whole clusters are drawn.

    Args:
        x: one number a run [n].
        y: as x.
        clusters: the cluster of each run [n], such as its arm and setting: the seeds of one are no news to each
            other and are drawn together. Each run its own by default.
        groups: where given [n], means of x and y within each group are taken off first, so that only what varies
            within a group counts, such as arms within one setting.
        level: the share of resamples between the ends, in (0, 1).
        seed: of the resamples.
        n_resamples: how many.

    Returns:
        `correlation`, `low, high`, and `n` runs in `n_clusters`. NaN where a side does not vary.

    Raises:
        ValueError: lengths that differ, values that are not finite, fewer than three clusters.
    """
    x, y = (np.asarray(v).astype(float) for v in (x, y))
    names = np.arange(len(x)) if clusters is None else np.asarray(clusters)
    if not len(x) == len(y) == len(names) or not np.isfinite([x, y]).all():
        raise ValueError(
            f"{len(x)}, {len(y)} and {len(names)} values: give two finite numbers a run, and its cluster"
        )
    codes = np.unique(names, return_inverse=True)[1]
    n_clusters = int(codes.max(initial=-1)) + 1
    if n_clusters < 3:
        raise ValueError(f"{n_clusters} clusters: an interval over clusters needs three at least")
    if groups is not None:
        x, y = (_centred(v, np.asarray(groups)) for v in (x, y))
    members = [np.flatnonzero(codes == c) for c in range(n_clusters)]
    rng, resampled = np.random.default_rng(seed), []
    for _ in range(n_resamples):
        rows = np.concatenate([members[c] for c in rng.integers(n_clusters, size=n_clusters)])
        resampled.append(_spearman(x[rows], y[rows]))
    found = np.array(resampled)
    found = found[np.isfinite(found)]
    ends = np.quantile(found, [(1 - level) / 2, (1 + level) / 2]) if len(found) else (np.nan, np.nan)
    low, high = (float(end) for end in ends)
    return {"correlation": _spearman(x, y), "low": low, "high": high, "n": len(x), "n_clusters": n_clusters}


def _centred(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    codes = np.unique(groups, return_inverse=True)[1]
    return values - (np.bincount(codes, values) / np.bincount(codes))[codes]


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    ranks = rankdata(x), rankdata(y)
    if min(np.ptp(r) for r in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
