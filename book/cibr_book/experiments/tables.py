"""The result tables of sweeps: scores by name, and differences to tuned CLIP with intervals.

A *condition* is the data that all methods share, with any corruption of it. A *method* is a loss
with the hyper-parameters tuned for it. The control of a condition is its CLIP; of several CLIPs,
the one with the best mean validation recall.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cibr.losses.clip import Number
from cibr.losses.vmf import vmf_mean_cosine
from cibr.utils import project_root
from cibr_book.intervals import mean_intervals

RESULTS = project_root() / "data" / "results"
HEADLINE = ("zero-shot", "recall")
KEY = ["condition", "method", "beta", "hyperparameters"]
KAPPA_B = 10.0  # of rows that name a `kappa_e` alone
_DIM = 512  # of the embeddings of heads on photos
_NOT_TUNED = ["seed", "suites", "dataset", "model", "corruption", "penalty", "sample"]
_NOT_TUNED += ["beta", "validate_every", "unpaired"]
_SCORES = {  # pattern of the columns by name; their mean
    "zero-shot": r"/mean of \d+/accuracy@1$",
    "recall": r"^(?:mini/flickr8k|glyphs/glyphs)/\w+_recall@(?:1|5|10)$",
    "validation": r"^validation_(?:image_to_text|text_to_image)_(?:label_)?recall@(?:1|5|10)$",
}


def read_table(name: str | Path) -> pd.DataFrame:
    """The rows of a sweep's table, one per run, with the headline scores in per cent.

    Args:
        name: of a file under data/results, or the path of another file.

    Returns:
        The table with `zero-shot`, the mean over suites of their mean accuracy, `recall`, the mean
        of recall@1, 5 and 10 in both directions on the test split, both NaN for runs that were not
        tested; `validation`, the same mean on the validation split; `hyperparameters` in words,
        without beta; and `beta`, see `beta_of`.
    """
    file = RESULTS / name if (RESULTS / name).exists() else name
    rows = pd.read_csv(file, dtype={"run": str, "commit": str})
    scores = {
        score: 100 * rows.filter(regex=pattern).mean(axis=1) for score, pattern in _SCORES.items()
    }
    settings = rows["configuration"].map(json.loads)
    if "beta" in rows:
        rows["beta"] = [*map(beta_of, settings, rows["beta"])]
    words = settings.map(_in_words)
    return pd.concat([rows, pd.DataFrame(scores).assign(hyperparameters=words)], axis=1).copy()


def beta_of(settings: dict[str, Any], beta: Number) -> Number:
    """The weight of a run's penalty, as `CIBRLoss` has it: that of (1 - cos) / temperature.

    Rows of earlier sweeps have another unit: their penalty was beta kappa_b A_d(kappa_e) (1 - cos),
    or they name the weight itself, as `dose`. Where the temperature was learned the two units
    differ in every step, so the row keeps its own; so do MINE, whose penalty is in nats, and
    penalties that are no part of the library.

    Args:
        settings: of the run.
        beta: the row's own.

    Returns:
        The weight, a conversion with two digits.
    """
    if "dose" in settings:
        return settings["dose"]
    if settings.get("penalty") not in ("vmf", "crossfit") or "temperature" not in settings:
        return beta
    if "kappa_e" not in settings:
        return beta
    cost = settings.get("kappa_b", KAPPA_B) * vmf_mean_cosine(settings["kappa_e"], _DIM)
    return float(f"{settings['beta'] * float(cost) * settings['temperature']:.2g}")


def _in_words(settings: dict) -> str:
    tuned = {name: value for name, value in settings.items() if name not in _NOT_TUNED}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in tuned.items())


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
        `difference` with its 95 % interval `low, high`, and `n_seeds`.
    """
    controls = rows[rows["method"] == control]
    validation = controls.groupby(KEY)["validation"].transform("mean")
    is_best = validation == validation.groupby(controls["condition"]).transform("max")
    base = controls[is_best]
    pair = ["condition", "seed", "measure"]
    values = rows.drop(base.index).melt([*KEY, "seed"], measures, "measure", "value")
    long = values.merge(base.melt(pair[:2], measures, "measure", "control"), on=pair).dropna()
    long["difference"] = long["value"] - long["control"]
    table = mean_intervals(long, [*KEY, "measure"], "difference")
    return table.rename(columns={"mean": "difference", "n": "n_seeds"})


def in_points(
    rows: pd.DataFrame, index: Sequence[str] = ("condition", "method", "beta")
) -> pd.DataFrame:
    """Differences as text, `+0.31 [+0.14, +0.48]`, one row per method and one column per measure.

    Args:
        rows: from `differences`.
        index: the columns that identify a row.
    """
    texts = rows.assign(text=interval_text(rows))
    table = texts.pivot(index=[*index], columns="measure", values="text")
    return table[list(rows["measure"].unique())]


def interval_text(rows: pd.DataFrame, digits: int = 2) -> pd.Series:
    """`difference`, `low` and `high` of each row as `+0.31 [+0.14, +0.48]`."""
    cells = rows[["difference", "low", "high"]].apply(tuple, axis=1)
    number = f"{{:+.{digits}f}}"
    return cells.map(lambda numbers: f"{number} [{number}, {number}]".format(*numbers))


def p_text(p_value: float) -> str:
    """A p-value with three decimals."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
