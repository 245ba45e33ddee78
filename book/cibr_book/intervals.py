"""Student's 95 % confidence intervals of means over seeds, by group, and exact tests of claims."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

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


def against_clip(
    runs: pd.DataFrame, scores: Sequence[str], where: str, names: Sequence[str] = ()
) -> pd.DataFrame:
    """Scores of runs beside those of `CLIP` in the same condition with the same seed, in points.

    Args:
        runs: one row each.
        scores: columns `<where>/<score>`; where a run diverged, they are 0.
        where: what the first part is, such as a test set.
        names: columns to keep.

    Returns:
        One row per run and score: `condition, seed, method`, the names, `where`, `score, value,
        clip, difference`.
    """
    keys = ["condition", "seed", "measure"]
    runs = runs.fillna(dict.fromkeys(scores, 0.0))
    long = runs.melt([*keys[:2], "method", *names], scores, "measure", "value")
    long["value"] *= 100
    clip = long.loc[long["method"] == "CLIP", [*keys, "value"]]
    table = long.merge(clip.rename(columns={"value": "clip"}), on=keys)
    table["difference"] = table["value"] - table["clip"]
    table[[where, "score"]] = table["measure"].str.split("/", expand=True).to_numpy()
    return table.drop(columns="measure")


def outcomes(claims: Iterable[tuple]) -> pd.DataFrame:
    """Claims that a mean difference is positive, each with its exact test and Holm's correction.

    Args:
        claims: hypothesis, claim, and the difference under each seed.

    Returns:
        `hypothesis, claim`; the mean `difference` with Student's 95 % interval over seeds `low,
        high`; `p_value`, of the mean over all changes of the seeds' signs, one-sided, and `holm`,
        corrected for all claims; and the `outcome`: `holds` at 5 %, `contradicted` if the interval
        is below 0, or `undecided`.
    """
    table = []
    for hypothesis, claim, seeds in claims:
        values = np.asarray(seeds)
        signs = np.array([*itertools.product((1, -1), repeat=len(values))])
        mean, low, high = mean_interval(values)
        p_value = ((signs * values).mean(1) >= mean - 1e-12).mean()
        table.append([hypothesis, claim, mean, low, high, p_value])
    columns = ["hypothesis", "claim", "difference", "low", "high", "p_value"]
    tests = pd.DataFrame(table, columns=columns)
    return decided(tests, tests["high"] < 0)


def decided(
    tests: pd.DataFrame, contradicted: pd.Series, supported: pd.Series | bool = True
) -> pd.DataFrame:
    """Claims with their p-values `holm`, corrected over all, and their `outcome`.

    Args:
        tests: a claim a row, with its `p_value`.
        contradicted: whether the interval excludes a claim.
        supported: whether a claim may hold, beside a p-value below 5 %.
    """
    holm = multipletests(tests["p_value"], method="holm")[1]
    choices = [supported & (holm < 0.05), contradicted]
    outcome = np.select(choices, ["holds", "contradicted"], "undecided")
    return tests.assign(holm=holm, outcome=outcome)
