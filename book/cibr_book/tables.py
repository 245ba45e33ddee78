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
from cibr_book.analysis import mean_intervals

RESULTS = project_root() / "data" / "results"
_SETS = {
    "mean": "mean of 7",
    "cifar": "cifar10",
    "caltech": "caltech101-mini",
    "food": "food101-64px",
}
_SETS |= {"imagenette": "imagenette", "scenes": "intel-scenes", "dtd": "dtd10", "pacs": "pacs"}
ZERO_SHOT = {title: f"mini/{name}/accuracy@1" for title, name in _SETS.items()}
RETRIEVAL = {
    f"{title} @{k}": f"mini/flickr8k/{way}_recall@{k}"
    for title, way in (("image to text", "image_to_text"), ("text to image", "text_to_image"))
    for k in (1, 5, 10)
}
HEADLINE = ("zero-shot", "image to text", "text to image")
KEY = ["condition", "method", "beta", "hyperparameters"]
NOT_TUNED = (
    "seed",
    "suites",
    "dataset",
    "model",
    "corruption",
    "penalty",
    "sample",
    "contrastive",
    "beta",
)
NOT_TUNED += ("validate_every", "unpaired", "adapted")
# A method and its control, which differ by one ingredient, each with its best settings on
# validation.
CONTRASTS = (
    ("CIBR anchor", "CLIP, CCA start"),
    ("CIBR anchor", "CLIP, CCA start, anchor's settings"),
    ("CIBR anchor + crops", "CLIP, CCA start + crops"),
    ("CIBR anchor + two captions + noise", "CLIP, CCA start + two captions + noise"),
    (
        "CIBR anchor + crops + two captions + noise",
        "CLIP, CCA start + crops + two captions + noise",
    ),
    ("CIBR anchor, self-training", "CLIP, self-training"),
    ("CLIP, self-training", "CIBR anchor + crops"),
    ("closed-form CCA, unpaired too", "closed-form CCA"),
    ("CIBR vMF, sampled", "noise only"),
    ("consistency", "CLIP, same grouped batches"),
    ("CLIP, in both styles", "consistency"),
)
KINDS = {  # pattern of the method's name, the first that matches
    "the residual penalty": r"^CIBR (?:vMF|crossfit|MINE)",
    "the anchor": r"^CIBR anchor(?!.*(?:other weights|self-training))",
    "best other method": r"^(?!CLIP$|CIBR|.*other )",
}
_SCORES = {  # pattern of the columns by name; each row has a value in one of them
    "zero-shot": r"/mean of \d+/accuracy@1$",
    "image to text": r"^(?:mini/flickr8k|glyphs/glyphs)/image_to_text_(?:label_)?recall@1$",
    "text to image": r"^(?:mini/flickr8k|glyphs/glyphs)/text_to_image_(?:label_)?recall@1$",
    "validation": r"^validation_(?:image_to_text|text_to_image)_(?:label_)?recall@(?:1|5|10)$",
}


def read_table(name: str | Path = "ablation.csv") -> pd.DataFrame:
    """The rows of a sweep's table, one per run, with the headline scores in per cent.

    Args:
        name: of a file under data/results, or the path of another file.

    Returns:
        The table with `zero-shot` (mean of the suite's seven sets), `image to text` and `text to
        image` (recall@1 on the test split), NaN for runs that were not tested; `validation`, the
        mean of recall@1, 5 and 10 in both directions; `hyperparameters` in words, without beta.
    """
    file = RESULTS / name if (RESULTS / name).exists() else name
    rows = pd.read_csv(file, dtype={"run": str, "commit": str})
    found = {
        score: 100 * rows.filter(regex=columns).mean(axis=1) for score, columns in _SCORES.items()
    }
    words = rows["configuration"].map(json.loads).map(_in_words)
    return pd.concat([rows, pd.DataFrame(found).assign(hyperparameters=words)], axis=1).copy()


def _in_words(settings: dict) -> str:
    tuned = {name: value for name, value in settings.items() if name not in NOT_TUNED}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in tuned.items())


def chosen(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each method in each condition with its best hyper-parameters, including beta, on
    validation.
    """
    means = rows.groupby(KEY, sort=False)["validation"].mean().reset_index()
    best = means.loc[means.groupby(["condition", "method"], sort=False)["validation"].idxmax(), KEY]
    return rows[pd.MultiIndex.from_frame(rows[KEY]).isin(pd.MultiIndex.from_frame(best))]


def contenders(rows: pd.DataFrame) -> pd.DataFrame:
    """The best method of each kind in each condition, with its best hyper-parameters, all on
    validation.

    Args:
        rows: from `read_table`.

    Returns:
        `condition, kind, method, beta, hyperparameters`, with kinds in the order of `KINDS`.
    """
    best = chosen(rows)
    kinds = {name: best["method"].str.contains(pattern) for name, pattern in KINDS.items()}
    best = best.assign(kind=np.select([*kinds.values()], [*kinds], ""))
    means = (
        best[best["kind"] != ""]
        .groupby([*KEY, "kind"], sort=False)["validation"]
        .mean()
        .reset_index()
    )
    found = means.loc[
        means.groupby(["condition", "kind"], sort=False)["validation"].idxmax(), [*KEY, "kind"]
    ]
    return found.sort_values("kind", key=lambda kind: kind.map([*KINDS].index), kind="stable")


def control_of(rows: pd.DataFrame, method: str = "CLIP") -> pd.DataFrame:
    """The rows of a method in one condition, with its best hyper-parameters on validation."""
    return chosen(rows[rows["method"] == method])


def score_table(rows: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Scores of each method as text, `34.88 ± 0.21`, with the half-width of Student's 95 %
    interval.

    Args:
        rows: from `read_table`, of one condition, with one variant per method.
        columns: column of the rows, in fractions of one, by heading.

    Returns:
        One row per method and one column per heading; `seeds` is the number of seeds, and one has
        no interval.
    """
    found = {}
    for method, own in rows.groupby("method", sort=False):
        half = own[[*columns.values()]].sem() * stats.t.ppf(0.975, len(own) - 1)
        cells = zip(columns, 100 * own[[*columns.values()]].mean(), 100 * half, strict=True)
        texts = {name: f"{mean:.1f} ± {h:.1f}".removesuffix(" ± nan") for name, mean, h in cells}
        found[method] = texts | {"seeds": len(own)}
    return pd.DataFrame(found).T.rename_axis("method")


def differences(
    rows: pd.DataFrame, measures: Sequence[str] = HEADLINE, control: str = "CLIP"
) -> pd.DataFrame:
    """Difference of every method to the control of its condition, paired by seed.

    Intervals are Student's over seeds, for fixed test items; bootstrap intervals over seeds are
    also given, which are too narrow for few seeds. Seeds that one side lacks are left out.

    Args:
        rows: from `read_table`.
        measures: columns.
        control: the method to compare with; conditions without it are left out.

    Returns:
        One row per method and measure: `condition, method, beta, hyperparameters, measure`, the
        means `control`
        and `value`, `difference` with its 95 % interval `low, high`, `n_seeds`, `significance`, the
        `p_value` of Student's test, and `bootstrap_low, bootstrap_high`.
    """
    found = []
    for _, part in rows.groupby("condition", sort=False):
        if not (part["method"] == control).any():
            continue
        base = control_of(part, control)
        others = part[~part.index.isin(base.index)]
        paired = others.merge(base[["seed", *measures]], on="seed", suffixes=("", " of control"))
        for measure in measures:
            values = {"value": paired[measure], "control": paired[f"{measure} of control"]}
            found.append(paired[[*KEY, "seed"]].assign(measure=measure, **values))
    long = pd.concat(found, ignore_index=True).dropna(subset=["value", "control"])
    long["difference"] = long["value"] - long["control"]
    by = [*KEY, "measure"]
    table = long.groupby(by, sort=False)[["control", "value"]].mean().reset_index()
    intervals = mean_intervals(long, by, "difference").rename(
        columns={"mean": "difference", "n": "n_seeds"}
    )
    extra = (
        long.groupby(by, sort=False)["difference"]
        .apply(_p_value_and_bootstrap)
        .unstack()
        .reset_index()
    )
    table = table.merge(intervals, on=by).merge(extra, on=by)
    return table.assign(significance=significance(table))


def comparisons(rows: pd.DataFrame) -> pd.DataFrame:
    """All comparisons of the study: every method with the CLIP of its condition, and `CONTRASTS`.

    Args:
        rows: from `read_table`.

    Returns:
        As `differences`, with `against`, the name of the control, and `q_value`, the p-value
        adjusted by Benjamini and Hochberg over all of them.
    """
    found, best = [differences(rows).assign(against="CLIP")], chosen(rows)
    for method, control in CONTRASTS:
        pair = best[best["method"].isin([method, control])]
        pair = pair[pair.groupby("condition")["method"].transform("nunique") == 2]
        if len(pair):
            found.append(differences(pair, control=control).assign(against=control))
    table = pd.concat(found, ignore_index=True)
    tested = table["p_value"].notna()
    table.loc[tested, "q_value"] = stats.false_discovery_control(table.loc[tested, "p_value"])
    return table


def _p_value_and_bootstrap(values: pd.Series) -> pd.Series:
    names = ["p_value", "bootstrap_low", "bootstrap_high"]
    if len(values) < 2 or values.nunique() == 1:
        return pd.Series([np.nan] * 3, names)
    means = np.random.default_rng(0).choice(values.to_numpy(), (9999, len(values))).mean(axis=1)
    return pd.Series(
        [stats.ttest_1samp(values, 0).pvalue, *np.percentile(means, [2.5, 97.5])], names
    )


def survivors(rows: pd.DataFrame) -> pd.DataFrame:
    """Numbers of significant comparisons, without and with correction for multiple testing.

    Args:
        rows: from `differences`, of all comparisons.

    Returns:
        Rows `gain` and `loss`: the numbers that are significant uncorrected, under Holm's control
        of the
        family-wise error rate, and under Benjamini and Hochberg's control of the false discovery
        rate, at 5 %.
    """
    tested = rows.dropna(subset=["p_value"]).sort_values("p_value")
    p, n = tested["p_value"].to_numpy(), len(tested)
    holm = np.maximum.accumulate(p * np.arange(n, 0, -1))
    adjusted = {
        "one by one": p,
        "Holm": holm,
        "Benjamini-Hochberg": stats.false_discovery_control(p),
    }
    up = (tested["difference"] > 0).to_numpy()
    significant = pd.DataFrame(adjusted) < 0.05
    return pd.DataFrame({"gain": significant[up].sum(), "loss": significant[~up].sum()}).T


def significance(rows: pd.DataFrame) -> np.ndarray:
    """Whether each interval `low, high` is above zero (gain), below it (loss) or contains it (not
    significant).
    """
    return np.select([rows["low"] > 0, rows["high"] < 0], ["gain", "loss"], "not significant")


def in_points(
    rows: pd.DataFrame, index: Sequence[str] = ("condition", "method", "beta")
) -> pd.DataFrame:
    """Differences as text, `+0.31 [+0.14, +0.48] *`, one row per method and one column per measure.

    Args:
        rows: from `comparisons`, or from `differences`.
        index: the columns that identify a row.

    Returns:
        The texts. One star: the interval excludes zero; two: also after Benjamini and Hochberg's
        correction.
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
    """Write mini_suite.csv: CLIP and CIBR vMF of experiments/photos_beta.yaml, paired by item, from
    runs.
    """
    from cibr.evaluate import compare, read_evaluation

    rows = read_table()
    rows = chosen(
        rows[(rows["condition"] == "Flickr8k") & rows["method"].isin(["CLIP", "CIBR vMF"])]
    )
    rows = rows[rows["seed"].isin(rows.loc[rows["method"] == "CIBR vMF", "seed"])]
    runs = project_root() / "runs" / "photos_beta"
    sides = [
        [
            read_evaluation(runs / run, "mini", method)
            for run in rows.loc[rows["method"] == method, "run"]
        ]
        for method in ("CLIP", "CIBR vMF")
    ]
    compare(*sides).to_csv(RESULTS / "mini_suite.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
