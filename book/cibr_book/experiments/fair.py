"""The measures and tests of the plans that tune all methods alike, doses.md in experiments/, and
moving-fair.md and moving-temperature.md in experiments/finished/; and all changes of recall in one
table.
"""

from collections.abc import Sequence

import pandas as pd
from statsmodels.stats.weightstats import DescrStatsW

from cibr.metrics import mean_interval
from cibr_book import intervals
from cibr_book.experiments import ablation
from cibr_book.experiments.ablation import ZERO_SHOT
from cibr_book.experiments.confirmation import MARGIN, RECALLS, means, measure_columns

SEEDS, LATER_SEEDS = list(range(900, 916)), list(range(920, 936))
_GAINS_FROM = 960  # the first seed of gains.md
# Conditions of the rows.
MOVING, BETAS = "600 photos, tuned alike", "600 photos, fixed doses"
TEMPERATURE = "600 photos, any temperature"
FEW = "Flickr8k, 10 % of the pairs"
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


def with_measures(rows: pd.DataFrame) -> pd.DataFrame:
    """The planned runs, and noise without a penalty at CLIP's settings beside CLIP, with
    `ablation.MEASURES`, in points, zero-shot accuracy over `SETS` alone.

    Args:
        rows: of moving.csv or ablation.csv, from `read_table`; others are left out.
    """
    planned = rows["condition"].isin([MOVING, TEMPERATURE, BETAS])
    planned &= rows["seed"].isin(SEEDS + LATER_SEEDS)
    noise = rows["condition"].eq(FEW) & rows["method"].isin(["CLIP", "noise only"])
    rows = ablation.with_measures(rows[planned | noise])
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
    """The claims of experiments/finished/moving-fair.md.

    Args:
        rows: of moving.csv, from `read_table`, all of them.

    Returns:
        Of `cibr_book.intervals.outcomes`, with differences in points.
    """
    rows = with_measures(rows[rows["condition"] == MOVING])
    claims = [("1", ZERO_SHOT, "vMF"), ("2", ZERO_SHOT, "MINE"), ("3", "search", "vMF")]
    return intervals.outcomes(
        (number, f"{measure}: {method} above CLIP", _gain(rows, method, measure))
        for number, measure, method in claims
    )


def temperature_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The claims of experiments/finished/moving-temperature.md: vMF is above CLIP where each has
    its own temperature.

    Args:
        rows: of moving.csv, from `read_table`, all of them.

    Returns:
        Of `cibr_book.intervals.outcomes`, with differences in points.
    """
    rows = with_measures(rows[rows["condition"] == TEMPERATURE])
    return intervals.outcomes(
        (number, f"{measure}: vMF above CLIP", _gain(rows, "vMF", measure, LATER_SEEDS))
        for number, measure in (("1", "search"), ("2", ZERO_SHOT))
    )


def beta_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The claims of experiments/doses.md: at each beta recall is within `MARGIN` of CLIP's.

    Args:
        rows: of ablation.csv, from `read_table`, all of them.

    Returns:
        `method, measure`; the mean `difference` in points with Student's 95 % interval over seeds
        `low, high`; `p_value`, of two one-sided tests, and `holm`, corrected for all claims; and
        the `outcome`: `holds` at 5 %, `contradicted` if the interval is beyond the margin, or
        `undecided`.
    """
    rows = with_measures(rows[rows["condition"] == BETAS])
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


def summary(tuned: pd.DataFrame, alike: pd.DataFrame, closed: pd.DataFrame) -> pd.DataFrame:
    """What the penalty, CCA and linear heads change in the recall of Flickr8k's test photos, from
    heads that are trained with CLIP's loss, tuned, on the same photos.

    Args:
        tuned: of confirmation.csv, with `confirmation.with_measures`.
        alike: of moving.csv and ablation.csv, with `with_measures`; of the fixed betas
            those of vMF count.
        closed: of gains.csv, from `read_table`; trials are left out.

    Returns:
        `group, row, photos, mean, low, high, n`: the mean recall of both directions in points, with
        95 % intervals over seeds, by number of photos.
    """
    gains = {}
    frozen = "the penalty over frozen encoders, tuned"
    recall = tuned.pivot_table(RECALLS[0], ["condition", "seed"], "method")
    of_photos = {6000: recall.loc["Flickr8k"], 600: recall.loc[FEW]}
    forms = {"MINE": "MINE", "vMF": "vMF", "crossfit": "cross-fitting"}
    for photos, of in of_photos.items():
        for form in ("crossfit" if photos == 6000 else "vMF", "MINE"):
            gains[frozen, forms[form], photos] = of[f"CIBR {form}"] - of["CLIP"]
    recall = alike.assign(recall=alike[["search", "naming"]].mean(axis=1))
    recall = recall.pivot_table("recall", ["condition", "seed"], "method")
    trained = "the penalty, with the last stages trained as well, tuned"
    at_betas = "the penalty over frozen encoders, all else tuned for each beta"
    noise = "noise alone"
    compared = [(frozen, f"{noise}, not tuned", FEW, "noise only")]
    compared += [(trained, "vMF, one temperature for both", MOVING, "vMF")]
    compared += [(trained, "vMF, temperature tuned as well", TEMPERATURE, "vMF")]
    compared += [(trained, "MINE", MOVING, "MINE"), (trained, noise, MOVING, "noise only")]
    compared += [(at_betas, f"vMF, beta {b}", BETAS, f"vMF at {b}") for b in (0.05, 0.2, 0.75)]
    for group, row, condition, method in compared:
        of = recall.loc[condition]
        gains[group, row, 600] = (of[method] - of["CLIP"]).dropna()
    closed = closed[closed["seed"] >= _GAINS_FROM]
    recall = 100 * closed.filter(regex=r"^flickr8k/.*recall@").mean(axis=1)
    recall = recall.groupby([closed["condition"], closed["method"], closed["seed"]]).mean()
    instead = {"CCA alone": "power", "heads + CCA": "heads + power", "linear heads": "linear"}
    for photos in (6000, 3000, 600, 150):
        of = recall[f"{photos:,} photos"]
        for row, method in instead.items():
            gains["instead of a penalty, tuned", row, photos] = of[method] - of["heads"]
    rows = [(*key, *mean_interval(gain.to_numpy()), len(gain)) for key, gain in gains.items()]
    return pd.DataFrame(rows, columns=["group", "row", "photos", "mean", "low", "high", "n"])
