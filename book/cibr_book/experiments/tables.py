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
# A method and its control, which differ by one ingredient, each with its best settings on
# validation.
CONTRASTS = (
    ("CCA anchor", "CLIP, CCA start"),
    ("CCA anchor", "closed-form CCA"),
    ("CIBR vMF, sampled", "noise only"),
    ("consistency", "CLIP, same grouped batches"),
    ("CLIP, in both styles", "consistency"),
)
KINDS = {  # pattern of the methods' names, and the control that they are compared with
    "the residual penalty": (r"^CIBR (?:vMF|crossfit|MINE)", "CLIP"),
    "the CCA start": (r"^CLIP, CCA start$", "CLIP"),
    "the anchor, over the CCA start": (r"^CCA anchor$", "CLIP, CCA start"),
    "best other control": (r"^(?!CLIP$|CLIP, CCA start$|CCA anchor$|CIBR)", "CLIP"),
}
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


def contenders(rows: pd.DataFrame) -> pd.DataFrame:
    """The best method of each kind in each condition, and its best hyper-parameters, on validation.

    Args:
        rows: from `read_table`.

    Returns:
        `condition, method, beta, hyperparameters`; `kind`, one of `KINDS`; `against`, its control.
    """
    parts = []
    for kind, (pattern, control) in KINDS.items():
        best = chosen(rows[rows["method"].str.contains(pattern)], ["condition"])[KEY]
        parts.append(best.drop_duplicates().assign(kind=kind, against=control))
    return pd.concat(parts, ignore_index=True)


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


def comparisons(rows: pd.DataFrame) -> pd.DataFrame:
    """All comparisons of the study: every method with the CLIP of its condition, and `CONTRASTS`.

    Args:
        rows: from `read_table`.

    Returns:
        As `differences`, with `against`, the name of the control, and `q_value`, the p-value
        adjusted by Benjamini and Hochberg over all of them.
    """
    parts = [differences(rows).assign(against="CLIP")]
    best = chosen(rows)
    for method, control in CONTRASTS:
        pair = best[best["method"].isin([method, control])]
        pair = pair[pair.groupby("condition")["method"].transform("nunique") == 2]
        if len(pair):
            parts.append(differences(pair, control=control).assign(against=control))
    table = pd.concat(parts, ignore_index=True)
    tested = table["p_value"].notna()
    table.loc[tested, "q_value"] = stats.false_discovery_control(table.loc[tested, "p_value"])
    return table


def _p_value(values: pd.Series) -> float:
    return stats.ttest_1samp(values, 0).pvalue if values.nunique() > 1 else np.nan


def holm(p_values: pd.Series) -> pd.Series:
    """The p-values adjusted by Holm's method, which controls the family-wise error rate."""
    ordered = p_values.sort_values(kind="stable")
    adjusted = (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1)
    return adjusted.reindex(p_values.index)


def survivors(rows: pd.DataFrame) -> pd.DataFrame:
    """Numbers of significant comparisons, without and with correction for multiple testing.

    Args:
        rows: from `differences`, of all comparisons.

    Returns:
        Rows `gain` and `loss` with the numbers that are significant uncorrected, under Holm's
        control of the family-wise error rate, and under Benjamini and Hochberg's control of the
        false discovery rate, at 5 %.
    """
    tested = rows.dropna(subset=["p_value"]).sort_values("p_value")
    p = tested["p_value"].to_numpy()
    adjusted = {
        "one by one": p,
        "Holm": holm(tested["p_value"]).to_numpy(),
        "Benjamini-Hochberg": stats.false_discovery_control(p),
    }
    is_gain = (tested["difference"] > 0).to_numpy()
    significant = pd.DataFrame(adjusted) < 0.05
    return pd.DataFrame({"gain": significant[is_gain].sum(), "loss": significant[~is_gain].sum()}).T


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


def main() -> None:
    """Write mini_suite.csv: CLIP and CIBR vMF of experiments/photos_beta.yaml, from their runs."""
    from cibr.evaluate import Evaluation, compare, read_predictions, suite_tasks

    methods = ["CLIP", "CIBR vMF"]
    rows = read_table()
    rows = chosen(rows[(rows["condition"] == "Flickr8k") & rows["method"].isin(methods)])
    rows = rows[rows["seed"].isin(rows.loc[rows["method"] == "CIBR vMF", "seed"])]
    runs = project_root() / "runs" / "photos_beta"
    sides: dict[str, list] = {name: [] for name in methods}
    for name, run in zip(rows["method"], rows["run"], strict=True):
        files = {task: runs / run / "mini" / task.file for task in suite_tasks("mini")}
        predictions = {task: read_predictions(file) for task, file in files.items()}
        sides[name].append(Evaluation(name, "mini", predictions))
    table = compare(*sides.values())
    table.to_csv(RESULTS / "mini_suite.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
