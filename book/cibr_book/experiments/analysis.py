"""Means over seeds with confidence intervals."""

from collections.abc import Sequence

import pandas as pd
from scipy.stats import t as student


def mean_intervals(rows: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Mean of a column over the seeds of each group, with Student's 95 % confidence interval.

    Args:
        rows: tidy rows, one per seed.
        by: the columns that identify a group.
        value: the column to average.

    Returns:
        One row per group, with the columns of `by`, then `mean, low, high, n`; without an interval
        if n is 1.
    """
    groups = rows.groupby(list(by), sort=False)[value].agg(["mean", "sem", "count"]).reset_index()
    half = groups["sem"] * student.ppf(0.975, groups["count"] - 1)
    bounds = {"low": groups["mean"] - half, "high": groups["mean"] + half, "n": groups["count"]}
    return groups.drop(columns=["sem", "count"]).assign(**bounds)
