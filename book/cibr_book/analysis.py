"""Statistics over runs: means over seeds, and how two measures go together."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from scipy.stats import t as student


def mean_intervals(rows: pd.DataFrame, by: Sequence[str], value: str, level: float = 0.95) -> pd.DataFrame:
    """Mean of a column over the seeds of each group, with Student's interval.

    Args:
        rows: tidy rows, one a seed.
        by: the columns that name a group.
        value: the column to average.
        level: of the interval.

    Returns:
        A row a group: the columns of `by`, then `mean, low, high, n`; without an interval where n is 1.

    Raises:
        ValueError: a column that is not there.
    """
    missing = [name for name in (*by, value) if name not in rows]
    if missing:
        raise ValueError(f"the rows have no column {', '.join(missing)}; they have {', '.join(rows.columns)}")
    groups = rows.groupby(list(by), sort=False)[value].agg(["mean", "sem", "count"]).reset_index()
    half = groups["sem"] * student.ppf((1 + level) / 2, groups["count"] - 1)
    bounds = {"low": groups["mean"] - half, "high": groups["mean"] + half, "n": groups["count"]}
    return groups.drop(columns=["sem", "count"]).assign(**bounds)


def rank_correlation(
    x: ArrayLike,
    y: ArrayLike,
    clusters: ArrayLike | None = None,
    within: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
    n_resamples: int = 2000,
) -> dict[str, float]:
    """Spearman correlation with a cluster-bootstrap interval.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13; whole clusters are drawn.

    Args:
        x: one number a run [n].
        y: as x.
        clusters: the cluster of each run [n], such as its method and condition: seeds of one method are not
            independent evidence and are drawn together. Each run its own by default.
        within: where given [n], means of x and y over runs of the same value are subtracted first, so that only
            what varies within a condition counts.
        level: the share of resamples between the ends, in (0, 1).
        seed: of the resamples.
        n_resamples: how many.

    Returns:
        `correlation`, `low, high`, and `n` runs in `n_clusters`. NaN where a side does not vary.

    Raises:
        ValueError: lengths that differ, values that are not finite, fewer than three clusters.
    """
    runs = pd.DataFrame({"x": pd.Series(x, dtype=float), "y": pd.Series(y, dtype=float)})
    codes = pd.factorize(np.arange(len(runs)) if clusters is None else np.asarray(clusters))[0]
    n_clusters = len(set(codes))
    if len(codes) != len(runs) or not np.isfinite(runs).all(axis=None) or n_clusters < 3:
        raise ValueError(
            f"{len(x)} and {len(y)} values in {n_clusters} clusters: give two finite numbers a run, and its "
            "cluster, of which an interval needs three at least"
        )
    if within is not None:
        runs = runs - runs.groupby(np.asarray(within)).transform("mean")
    values = runs.to_numpy()
    members = [np.flatnonzero(codes == c) for c in range(n_clusters)]
    draws = np.random.default_rng(seed).integers(n_clusters, size=(n_resamples, n_clusters))
    found = np.array([_spearman(values[np.concatenate([members[c] for c in draw])]) for draw in draws])
    found = found[np.isfinite(found)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2]) if len(found) else (np.nan, np.nan)
    ends = {"low": float(low), "high": float(high), "n": len(runs), "n_clusters": n_clusters}
    return {"correlation": _spearman(values)} | ends


def _spearman(values: np.ndarray) -> float:
    ranks = rankdata(values, axis=0)
    return float(np.corrcoef(ranks.T)[0, 1]) if np.ptp(ranks, axis=0).min() > 0 else float("nan")
