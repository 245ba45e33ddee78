"""The measures and tests of moving-fair.md, moving-temperature.md and doses.md, plans under
experiments/, from the runs' rows.
"""

from collections.abc import Sequence

import pandas as pd
from statsmodels.stats.weightstats import DescrStatsW

from cibr.metrics import mean_interval
from cibr_book import intervals
from cibr_book.experiments import ablation
from cibr_book.experiments.ablation import ZERO_SHOT
from cibr_book.experiments.confirmation import MARGIN, means, measure_columns

SEEDS, LATER_SEEDS = list(range(900, 916)), list(range(920, 936))
# Conditions of the rows.
MOVING, DOSES = "600 photos, tuned alike", "600 photos, fixed doses"
TEMPERATURE = "600 photos, any temperature"
CONDITIONS = (MOVING, TEMPERATURE, DOSES)
_N_CLASSES = {"cifar10": 10, "caltech101-mini": 101, "food101-64px": 101, "imagenette": 10}
_N_CLASSES |= {"intel-scenes": 6, "dtd10": 10, "pacs": 7, "clothing10": 10, "flowers5": 5}
_N_CLASSES |= {"rsscn7": 7, "glyph_digits": 10}
_LEFT_OUT = ("food101-64px", "dtd10", "glyph_digits")
SETS = [name for name in _N_CLASSES if name not in _LEFT_OUT]  # `beats_chance` in `start_accuracy`


def start_accuracy(rows: pd.DataFrame) -> pd.DataFrame:
    """Zero-shot accuracy of the start with 600 photos, beside chance, one over the classes.

    Args:
        rows: of moving.csv, from `read_table`; of these the starts that moving.yaml tests count.

    Returns:
        By set, `start` and `chance` in per cent, the mean over seeds, and whether it `beats_chance`
        by five points.
    """
    starts = rows[(rows["method"] == "start") & (rows["condition"] == "600 photos")]
    columns = [measure_columns()[f"accuracy on {name}"][0] for name in _N_CLASSES]
    table = pd.DataFrame({"start": 100 * starts[columns].mean().to_numpy()}, index=[*_N_CLASSES])
    table["chance"] = 100 / pd.Series(_N_CLASSES)
    return table.assign(beats_chance=table["start"] >= table["chance"] + 5)


def with_measures(rows: pd.DataFrame, conditions: Sequence[str] = CONDITIONS) -> pd.DataFrame:
    """The planned runs with `ablation.MEASURES`, in points, zero-shot accuracy over `SETS` alone.

    Args:
        rows: of moving.csv or ablation.csv, from `read_table`; trials are left out.
        conditions: of the runs.
    """
    planned = rows["condition"].isin(conditions) & rows["seed"].isin(SEEDS + LATER_SEEDS)
    rows = ablation.with_measures(rows[planned])
    accuracies = [measure_columns()[f"accuracy on {name}"][0] for name in SETS]
    return rows.assign(**means(rows, {ZERO_SHOT: accuracies}))


def _gain(rows: pd.DataFrame, method: str, measure: str, seeds: Sequence[int] = SEEDS) -> pd.Series:
    """Differences from CLIP, by seed.

    Raises:
        ValueError: one of the two lacks seeds of the plan.
    """
    of = rows.set_index("seed").sort_index()
    gain = of.loc[of["method"] == method, measure] - of.loc[of["method"] == "CLIP", measure]
    if gain.dropna().index.tolist() != seeds:
        raise ValueError(f"{method!r} and 'CLIP' need {measure} with each seed of {seeds}, once")
    return gain


def claim_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The claims of experiments/moving-fair.md.

    Args:
        rows: of moving.csv, from `read_table`, all of them.

    Returns:
        Of `cibr_book.intervals.outcomes`, with differences in points.
    """
    rows = with_measures(rows, [MOVING])
    claims = [("1", ZERO_SHOT, "vMF"), ("2", ZERO_SHOT, "MINE"), ("3", "search", "vMF")]
    return intervals.outcomes(
        (number, f"{measure}: {method} above CLIP", _gain(rows, method, measure))
        for number, measure, method in claims
    )


def temperature_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The claims of experiments/moving-temperature.md: vMF is above CLIP where each has its own
    temperature.

    Args:
        rows: of moving.csv, from `read_table`, all of them.

    Returns:
        Of `cibr_book.intervals.outcomes`, with differences in points.
    """
    rows = with_measures(rows, [TEMPERATURE])
    return intervals.outcomes(
        (number, f"{measure}: vMF above CLIP", _gain(rows, "vMF", measure, LATER_SEEDS))
        for number, measure in (("1", "search"), ("2", ZERO_SHOT))
    )


def dose_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The claims of experiments/doses.md: at each dose recall is within `MARGIN` of CLIP's.

    Args:
        rows: of ablation.csv, from `read_table`, all of them.

    Returns:
        `method, measure`; the mean `difference` in points with Student's 95 % interval over seeds
        `low, high`; `p_value`, of two one-sided tests, and `holm`, corrected for all claims; and
        the `outcome`: `holds` at 5 %, `contradicted` if the interval is beyond the margin, or
        `undecided`.
    """
    rows = with_measures(rows, [DOSES])
    table = []
    for method in rows["method"].unique():
        for measure in ("search", "naming") if method != "CLIP" else ():
            gain = _gain(rows, method, measure).to_numpy()
            p_value = DescrStatsW(gain).ttost_mean(-MARGIN, MARGIN)[0]
            table.append([method, measure, *mean_interval(gain), p_value])
    names = ["method", "measure", "difference", "low", "high", "p_value"]
    tests = pd.DataFrame(table, columns=names)
    beyond = (tests["low"] > MARGIN) | (tests["high"] < -MARGIN)
    return intervals.decided(tests, beyond)
