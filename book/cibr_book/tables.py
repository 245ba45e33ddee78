"""The tables under data/results as chapters read them: scores by name, differences to tuned CLIP with intervals.

A *condition* is what all methods meet alike (the data and what was done to it). A *method* is a loss under the
hyper-parameters that were tuned for it. The control of a condition is its CLIP; of several CLIPs, the one with the
best mean of validation recalls.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cibr.utils import project_root
from cibr_book.analysis import mean_intervals
from cibr_book.plan import read_plan

RESULTS = project_root() / "data" / "results"
HEADLINE = ("zero-shot", "image to text", "text to image")
KEY = ["condition", "method", "beta", "hyperparameters"]
NOT_TUNED = ("seed", "suites", "dataset", "model", "corruption", "penalty", "sample", "contrastive", "beta")
_SCORES = {  # by name, the columns of which a row has one
    "zero-shot": r"/mean of \d+/accuracy@1$",
    "image to text": r"^(?:mini/flickr8k|glyphs/glyphs)/image_to_text_(?:label_)?recall@1$",
    "text to image": r"^(?:mini/flickr8k|glyphs/glyphs)/text_to_image_(?:label_)?recall@1$",
    "validation": r"^validation_(?:image_to_text|text_to_image)_(?:label_)?recall@(?:1|5|10)$",
}


def read_table(name: str | Path = "ablation.csv") -> pd.DataFrame:
    """The rows of a sweep's table, one a run, with the scores that chapters speak of, in per cent.

    Args:
        name: of a file under data/results, or another file.

    Returns:
        The table with `zero-shot` (mean of the suite's seven sets), `image to text` and `text to image` (recall@1
        of the test split), NaN where a run was not tested; `validation`, the mean of recall@1, 5 and 10 in both
        directions; `hyperparameters` in words, without beta.
    """
    rows = pd.read_csv(RESULTS / name, dtype={"run": str, "commit": str})
    found = {score: 100 * rows.filter(regex=columns).mean(axis=1) for score, columns in _SCORES.items()}
    words = rows["configuration"].map(json.loads).map(_in_words)
    return pd.concat([rows, pd.DataFrame(found).assign(hyperparameters=words)], axis=1).copy()


def _in_words(settings: dict) -> str:
    tuned = {name: value for name, value in settings.items() if name not in NOT_TUNED}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in tuned.items())


def control_of(rows: pd.DataFrame, method: str = "CLIP") -> pd.DataFrame:
    """The rows of a method in one condition; of several variants those with the best mean on validation."""
    own = rows[rows["method"] == method]
    best = own.groupby(KEY)["validation"].mean().idxmax()
    return own[(own[KEY] == pd.Series(best, index=KEY)).all(axis=1)]


def differences(rows: pd.DataFrame, measures: Sequence[str] = HEADLINE, control: str = "CLIP") -> pd.DataFrame:
    """Every method against the control of its condition, seed by seed.

    Intervals are Student's over seeds, for the same test items; seeds that one side lacks are left out.

    Args:
        rows: from `read_table`.
        measures: columns.
        control: the method that others are compared with; conditions without it are left out.

    Returns:
        A row a method and measure: `condition, method, beta, hyperparameters, measure`, `control` and `value`, the
        means of both, `difference` with the 95 % interval `low, high`, `n_seeds`, and `significance`.
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
    intervals = mean_intervals(long, by, "difference").rename(columns={"mean": "difference", "n": "n_seeds"})
    table = table.merge(intervals, on=by)
    return table.assign(significance=significance(table))


def significance(rows: pd.DataFrame) -> np.ndarray:
    """Whether each interval `low, high` lies above zero (gain), below it (loss) or holds it."""
    return np.select([rows["low"] > 0, rows["high"] < 0], ["gain", "loss"], "not significant")


def in_points(rows: pd.DataFrame, index: Sequence[str] = ("condition", "method", "beta")) -> pd.DataFrame:
    """Differences as text, `+0.31 [+0.14, +0.48] *`, a row a method and a column a measure; * leaves zero out."""
    text = [
        f"{r.difference:+.2f} [{r.low:+.2f}, {r.high:+.2f}]{'' if r.significance == 'not significant' else ' *'}"
        for r in rows.itertuples()
    ]
    columns = list(dict.fromkeys(rows["measure"]))
    return rows.assign(text=text).pivot(index=[*index], columns="measure", values="text")[columns]


def main() -> None:
    """Write mini_suite.csv: CLIP and CIBR vMF of experiments/photos.yaml, item by item, from the runs' folders."""
    from cibr.evaluate import compare, read_evaluation

    plan = read_plan(project_root() / "experiments" / "photos.yaml")
    folders = {
        method: [run for run, s in plan.runs.items() if s["method"] == method and s["seed"] <= 5]
        for method in ("CLIP", "CIBR vMF")
    }
    runs = project_root() / "runs" / "photos"
    sides = [[read_evaluation(runs / run, "mini", method) for run in ids] for method, ids in folders.items()]
    compare(*sides).to_csv(RESULTS / "mini_suite.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
