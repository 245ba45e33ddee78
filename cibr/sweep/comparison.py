"""What arms did against tuned CLIP: paired differences with 95 % intervals.

Scores of test items are compared by `cibr.evaluate.compare`, whose bootstrap draws seeds and pictures again. What
a run has one number of, such as leakage, is compared over seeds by Student's interval. Seeds that only one side
has are left out and said.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cibr.evaluate import Evaluation, compare, read_evaluation
from cibr.information.intervals import mean_intervals
from cibr.sweep.arms import BASELINE, KEY, tuned_baseline

METRICS = ("accuracy@1", "image_to_text_recall@1", "text_to_image_recall@1")
HEADLINE = ("zero-shot mean", "image to text", "text to image")
CONTROLS = (BASELINE, "CLIP in groups")  # the second draws its batches as arms with a group size do
ABOVE, BELOW, AROUND, ALONE = "above 0", "below 0", "around 0", "one seed"

Say = Callable[[str], None]


def arm_differences(arms: pd.DataFrame, runs: str | Path, say: Say = print) -> pd.DataFrame:
    """Every arm against tuned CLIP of its setting, on the same pictures and seeds.

    Args:
        arms: from `read_arms`.
        runs: the folder with a folder a run, which holds the outcomes of single items.
        say: gets a line for whatever is left out.

    Returns:
        A row an arm, control and score: `setting, arm, beta, variant, against, suite, dataset, metric, measure`,
        `a` (the control's score) and `b`, `difference` = b - a with `low, high` of 95 %, `n` queries, `n_seeds`
        and `verdict`, which tells whether the interval lies above or below 0. Arms that draw batches in groups
        are compared with CLIP in groups too.
    """
    read = _reader(Path(runs), say)
    found = []
    for setting, rows in arms.groupby("setting", sort=False):
        by_key = _by_key(rows)
        controls = [c for c in (tuned_baseline(rows, name) for name in CONTROLS) if c is not None]
        if not controls or controls[0][1] != BASELINE:
            say(f"{setting}: no row of the arm {BASELINE!r}; nothing to compare with")
            continue
        for key, group in by_key.items():
            for control in controls:
                if key == control or (control != controls[0] and not _in_groups(group)):
                    continue
                pairs = _shared(
                    by_key[control], group, read, f"{', '.join(map(str, key))} against {control[1]}", say
                )
                if pairs:
                    about = dict(zip(KEY, key, strict=True)) | {"against": control[1]}
                    found.append(_compared(*zip(*pairs, strict=True)).assign(**about))
    columns = [*KEY, "against", "suite", "dataset", "metric", "measure", "a", "b", "difference", "low", "high"]
    columns += ["n", "n_seeds", "verdict"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def measure_differences(arms: pd.DataFrame, measures: Sequence[str] | Mapping[str, str]) -> pd.DataFrame:
    """Every arm against tuned CLIP in what a run has one number of, such as leakage; seeds are paired.

    Args:
        arms: from `read_arms`.
        measures: columns, or what readers call them by column; those that the rows lack are left out.

    Returns:
        A row an arm and measure: `setting, arm, beta, variant, measure`, `a` (tuned CLIP's mean over seeds) and
        `b`, `difference` with Student's `low, high` over seeds, `n_seeds`, `verdict`.
    """
    found = []
    for _, rows in arms.groupby("setting", sort=False):
        control = tuned_baseline(rows)
        if control is None:
            continue
        by_key = _by_key(rows)
        for key, group in by_key.items():
            for name in (name for name in measures if key != control and name in rows):
                both = pd.DataFrame({"a": by_key[control][name], "b": group[name]}).dropna()
                if not len(both):
                    continue
                each = both.assign(measure=name, difference=both["b"] - both["a"])
                of_seeds = mean_intervals(each, ["measure"], "difference").iloc[0]
                row = dict(zip(KEY, key, strict=True)) | {
                    "measure": name,
                    "a": both["a"].mean(),
                    "b": both["b"].mean(),
                }
                row |= {"difference": of_seeds["mean"], "low": of_seeds["low"], "high": of_seeds["high"]}
                found.append(row | {"n_seeds": len(both)})
    columns = [*KEY, "measure", "a", "b", "difference", "low", "high", "n_seeds"]
    rows = pd.DataFrame(found, columns=columns)
    if isinstance(measures, Mapping):
        rows["measure"] = rows["measure"].map(measures)
    return rows.assign(verdict=_verdicts(rows))


def _by_key(rows: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    """The rows of each arm and variant by their seed."""
    groups = rows.groupby(KEY, sort=False)
    return {key: group.drop_duplicates("seed", keep="last").set_index("seed") for key, group in groups}


def _compared(a: Sequence[Evaluation], b: Sequence[Evaluation]) -> pd.DataFrame:
    rows = compare(a, b)
    rows = rows[rows["metric"].isin(METRICS)]
    measures = [_measure(*row) for row in rows[["dataset", "metric"]].itertuples(index=False)]
    return rows.assign(measure=measures, verdict=_verdicts(rows))


def _measure(dataset: str, metric: str) -> str:
    """What readers call a score: the three of the headline, or the set it is of."""
    if metric == "accuracy@1":
        return HEADLINE[0] if dataset.startswith("mean of ") else dataset
    direction = HEADLINE[1] if metric.startswith("image") else HEADLINE[2]
    _, _, split = dataset.partition("/")
    return f"{direction}, {split.replace('_', ' ')}" if split else direction


def _verdicts(rows: pd.DataFrame) -> np.ndarray:
    if not len(rows):
        return np.array([], dtype=object)
    low, high = rows["low"].astype(float), rows["high"].astype(float)
    conditions = [rows["n_seeds"] < 2, low > 0, high < 0]
    return np.select(conditions, [ALONE, ABOVE, BELOW], AROUND)


def _in_groups(group: pd.DataFrame) -> bool:
    return all(json.loads(text).get("group_size", 1) > 1 for text in group["configuration"])


def _reader(runs: Path, say: Say) -> Callable[[pd.Series], Evaluation | None]:
    """Reads the outcomes of a run once; None, said once, where they are not there."""
    known: dict[str, Evaluation | None] = {}

    def read(row: pd.Series) -> Evaluation | None:
        run = row["run"]
        if run not in known:
            try:
                known[run] = read_evaluation(runs / run, row["suite"], row["arm"])
            except FileNotFoundError:
                known[run] = None
                say(f"{row['setting']}, {row['arm']}, seed {row.name}: no outcomes in {runs / run}")
        return known[run]

    return read


def _shared(a: pd.DataFrame, b: pd.DataFrame, read, name: str, say: Say) -> list[tuple[Evaluation, Evaluation]]:
    """Evaluations of the seeds that both sides have, in pairs."""
    seeds = sorted(set(a.index) & set(b.index))
    if left_out := sorted(set(a.index) ^ set(b.index)):
        say(f"{name}: seeds {', '.join(map(str, left_out))} are of one side alone and left out")
    pairs = [(read(a.loc[seed]), read(b.loc[seed])) for seed in seeds]
    pairs = [pair for pair in pairs if None not in pair]
    if not pairs:
        say(f"{name}: no seed with outcomes on both sides")
    return pairs
