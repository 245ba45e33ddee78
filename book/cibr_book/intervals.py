"""Student's 95 % confidence intervals of means over seeds, by group."""

from collections.abc import Sequence

import pandas as pd

from cibr.metrics import mean_interval


def mean_intervals(rows: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """`cibr.metrics.mean_interval` of a column over the seeds of each group.

    Args:
        rows: tidy rows, one per seed; those without the value are left out.
        by: the columns that identify a group.
        value: the column to average.

    Returns:
        One row per group, with the columns of `by`, then `mean, low, high, n`; without an interval
        if n is 1.
    """
    groups = rows.dropna(subset=[value]).groupby(list(by), sort=False)[value]
    table = [(*key, *mean_interval(seeds.to_numpy()), len(seeds)) for key, seeds in groups]
    return pd.DataFrame(table, columns=[*by, "mean", "low", "high", "n"])
