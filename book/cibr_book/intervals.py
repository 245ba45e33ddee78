"""Student's 95 % confidence intervals of means over seeds: the study's one interval."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats


def student_interval(
    values: Sequence[float] | np.ndarray | pd.Series,
) -> tuple[float, float, float]:
    """The mean of independent values with Student's 95 % confidence interval.

    Args:
        values: one a seed.

    Returns:
        The mean and both ends of the interval, which are NaN for a single value.
    """
    values = np.asarray(values, dtype=float)
    mean = values.mean()
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return mean, mean - half, mean + half


def mean_intervals(rows: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """`student_interval` of a column over the seeds of each group.

    Args:
        rows: tidy rows, one per seed.
        by: the columns that identify a group.
        value: the column to average.

    Returns:
        One row per group, with the columns of `by`, then `mean, low, high, n`; without an interval
        if n is 1.
    """
    groups = rows.groupby(list(by), sort=False)[value]
    found = groups.agg([student_interval, "count"])
    bounds = pd.DataFrame(found["student_interval"].tolist(), columns=["mean", "low", "high"])
    keys = found.index.to_frame(index=False)
    return pd.concat([keys, bounds], axis=1).assign(n=found["count"].to_numpy())
