"""The result tables under data/results: scores by name, and differences to tuned CLIP with
intervals.

A *condition* is the data that all methods share, with any corruption of it. A *method* is a loss
with the hyper-parameters tuned for it. The control of a condition is its CLIP; of several CLIPs,
the one with the best mean validation recall.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from cibr.utils import project_root
from cibr_book.intervals import mean_intervals

RESULTS = project_root() / "data" / "results"
HEADLINE = ("zero-shot", "recall")
KEY = ["condition", "method", "beta", "hyperparameters"]
_NOT_TUNED = ["seed", "suites", "dataset", "model", "corruption", "penalty", "sample"]
_NOT_TUNED += ["contrastive", "beta", "validate_every", "unpaired", "adapted"]
_SCORES = {  # pattern of the columns by name; their mean
    "zero-shot": r"/mean of \d+/accuracy@1$",
    "recall": r"^(?:mini/flickr8k|glyphs/glyphs)/\w+_recall@(?:1|5|10)$",
    "validation": r"^validation_(?:image_to_text|text_to_image)_(?:label_)?recall@(?:1|5|10)$",
}


def read_table(name: str | Path = "ablation.csv") -> pd.DataFrame:
    """The rows of a sweep's table, one per run, with the headline scores in per cent.

    Args:
        name: of a file under data/results, or the path of another file.

    Returns:
        The table with `zero-shot`, the mean accuracy on the suite's seven sets, `recall`, the mean
        of recall@1, 5 and 10 in both directions on the test split, both NaN for runs that were not
        tested; `validation`, the same mean on the validation split; `hyperparameters` in words,
        without beta.
    """
    file = RESULTS / name if (RESULTS / name).exists() else name
    rows = pd.read_csv(file, dtype={"run": str, "commit": str})
    scores = {
        score: 100 * rows.filter(regex=pattern).mean(axis=1) for score, pattern in _SCORES.items()
    }
    words = rows["configuration"].map(json.loads).map(_in_words)
    return pd.concat([rows, pd.DataFrame(scores).assign(hyperparameters=words)], axis=1).copy()


def _in_words(settings: dict) -> str:
    tuned = {name: value for name, value in settings.items() if name not in _NOT_TUNED}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in tuned.items())


def chosen(rows: pd.DataFrame, within: Sequence[str] = ("condition", "method")) -> pd.DataFrame:
    """The rows with the hyper-parameters, including beta, that are best on validation.

    Args:
        rows: from `read_table`.
        within: the columns for each of whose values the best is chosen: for each method in each
            condition.
    """
    by = list(dict.fromkeys([*KEY, *within]))
    means = rows.groupby(by, sort=False)["validation"].mean().reset_index()
    best = means.loc[means.groupby([*within], sort=False)["validation"].idxmax(), KEY]
    return rows[pd.MultiIndex.from_frame(rows[KEY]).isin(pd.MultiIndex.from_frame(best))]


def score_table(rows: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Scores of each method as text, `34.88 ± 0.21`, with half of Student's 95 % interval.

    Args:
        rows: from `read_table`, of one condition, with one variant per method.
        columns: column of the rows, in fractions of one, by heading.

    Returns:
        One row per method and one column per heading; `seeds` is the number of seeds, and one has
        no interval.
    """
    table = {}
    for method, own in rows.groupby("method", sort=False):
        scores = own[[*columns.values()]]
        half = scores.sem() * stats.t.ppf(0.975, len(own) - 1)
        cells = zip(columns, 100 * scores.mean(), 100 * half, strict=True)
        texts = {name: f"{mean:.1f} ± {h:.1f}".removesuffix(" ± nan") for name, mean, h in cells}
        table[method] = texts | {"seeds": len(own)}
    return pd.DataFrame(table).T.rename_axis("method")


def differences(
    rows: pd.DataFrame, measures: Sequence[str] = HEADLINE, control: str = "CLIP"
) -> pd.DataFrame:
    """Difference of every method to the control of its condition, paired by seed.

    Intervals are Student's over seeds, for fixed test items. Seeds that one side lacks are left
    out.

    Args:
        rows: from `read_table`.
        measures: columns.
        control: the method to compare with, with its best hyper-parameters on validation;
            conditions without it are left out.

    Returns:
        One row per method and measure, with `condition, method, beta, hyperparameters, measure`,
        the means `control` and `value`, `difference` with its 95 % interval `low, high`, `n_seeds`,
        `significance` (whether the interval is above zero, a gain, below it, a loss, or neither)
        and the `p_value` of Student's test.
    """
    base = chosen(rows[rows["method"] == control])
    pair = ["condition", "seed", "measure"]
    values = rows.drop(base.index).melt([*KEY, "seed"], measures, "measure", "value")
    long = values.merge(base.melt(pair[:2], measures, "measure", "control"), on=pair).dropna()
    long["difference"] = long["value"] - long["control"]
    by = [*KEY, "measure"]
    groups = long.groupby(by, sort=False)
    names = {"mean": "difference", "n": "n_seeds"}
    table = groups[["control", "value"]].mean().reset_index()
    table = table.merge(mean_intervals(long, by, "difference").rename(columns=names), on=by)
    table = table.merge(groups["difference"].apply(_p_value).rename("p_value").reset_index(), on=by)
    signs = [table["low"] > 0, table["high"] < 0]
    return table.assign(significance=np.select(signs, ["gain", "loss"], "not significant"))


def _p_value(values: pd.Series) -> float:
    return stats.ttest_1samp(values, 0).pvalue if values.nunique() > 1 else np.nan


def holm(p_values: pd.Series) -> pd.Series:
    """The p-values adjusted by Holm's method, which controls the family-wise error rate."""
    ordered = p_values.sort_values(kind="stable")
    adjusted = (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1)
    return adjusted.reindex(p_values.index)


def in_points(
    rows: pd.DataFrame, index: Sequence[str] = ("condition", "method", "beta")
) -> pd.DataFrame:
    """Differences as text, `+0.31 [+0.14, +0.48] *`, one row per method and one column per measure.

    Args:
        rows: from `comparisons`, or from `differences`.
        index: the columns that identify a row.

    Returns:
        The texts, with one star where the interval excludes zero, two where it also does after
        Benjamini and Hochberg's correction.
    """
    survives = rows["q_value"] < 0.05 if "q_value" in rows else False
    stars = (rows["significance"] != "not significant") * (1 + np.asarray(survives))
    text = [
        f"{r.difference:+.2f} [{r.low:+.2f}, {r.high:+.2f}] {'*' * n}".strip()
        for r, n in zip(rows.itertuples(), stars, strict=True)
    ]
    columns = list(dict.fromkeys(rows["measure"]))
    return rows.assign(text=text).pivot(index=[*index], columns="measure", values="text")[columns]
