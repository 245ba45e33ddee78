"""The measures and tests of experiments/finished/confirmation.md, from the rows of its runs."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from cibr.metrics import mean_interval, paired_difference
from cibr_book.experiments.tables import RESULTS, differences, interval_text, p_text
from cibr_book.intervals import decided

MARGIN = 0.5  # points of mean recall within which two methods count as equal
GAIN = 1.0  # points of zero-shot accuracy below which a gain counts as none
SEEDS = list(range(200, 216))
CLAIM = ["hypothesis", "condition", "method", "control"]
# How often each photo is found by the runs of `COMPARED`, of 30 times: its query counts five times
# among the first 1, 5 and 10, each of its five captions once. So the mean is the mean recall.
HITS = RESULTS / "confirmation_hits.npz"
FORMS = ("CIBR vMF", "CIBR vMF, sampled", "CIBR crossfit")
COMPARED = ("CLIP", "CLIP, CCA start", "closed-form CCA", "CCA anchor", "CIBR MINE", *FORMS)
PHOTOS = {"Flickr8k": "mini/flickr8k", "coco-mini": "confirmation/coco-mini"}
SETS = {
    "mini": "cifar10 caltech101-mini food101-64px imagenette intel-scenes dtd10 pacs",
    "confirmation": "clothing10 flowers5 rsscn7 glyph_digits",
}
FEW_OR_WRONG = ("Flickr8k, 10 % of the pairs", "Flickr8k, 30 % shuffled captions, drawn anew")
_CONDITIONS = {
    FEW_OR_WRONG[0]: "600 photos",
    FEW_OR_WRONG[1]: "wrong captions",
    "Flickr8k": "6,000 photos",
}
_METHODS = {
    "CLIP, weight averaging": "CLIP-averaged",
    "CLIP, CCA start": "CCA-start",
    "CLIP, self-training": "self-training",
    "closed-form CCA": "CCA",
    "CCA anchor": "CCA-anchor",
    "CIBR MINE": "MINE",
    "CIBR vMF": "vMF",
    "CIBR vMF, sampled": "vMF, sampled",
    "CIBR crossfit": "cross-fitting",
}
# The names of the chapters, for `DataFrame.replace`.
IN_WORDS = {"condition": _CONDITIONS, "method": _METHODS, "control": _METHODS}
WAYS = {"image to text": "image_to_text", "text to image": "text_to_image"}
RECALLS = [f"recall on {name}" for name in PHOTOS]
DIRECTIONS = [f"{way}, {name}" for name in PHOTOS for way in WAYS]
_TASKS = {f"accuracy on {n}": f"{s}/{n}" for s, names in SETS.items() for n in names.split()}
ACCURACIES = list(_TASKS)
VALIDATION = "recall on validation"
DEGRADED = "recall on degraded photos"
_SHIFTS = ("noise", "blur", "contrast", "jpeg", "occlusion")


def measure_columns() -> dict[str, list[str]]:
    """The columns of the rows whose mean is a measure, by the measure's name."""
    recalls = {way: [f"{way}_recall@{k}" for k in (1, 5, 10)] for way in WAYS.values()}
    both = [recall for names in recalls.values() for recall in names]
    columns = {VALIDATION: [f"validation_{recall}" for recall in both]}
    for photos, task in PHOTOS.items():
        columns[f"recall on {photos}"] = [f"{task}/{recall}" for recall in both]
        for words, way in WAYS.items():
            columns[f"{words}, {photos}"] = [f"{task}/{recall}" for recall in recalls[way]]
    accuracies = [f"{task}/accuracy@1" for task in _TASKS.values()]
    columns |= {name: [column] for name, column in zip(_TASKS, accuracies, strict=True)}
    columns |= {"zero-shot accuracy": accuracies, "accuracy on the new sets": accuracies[-4:]}
    columns[DEGRADED] = [f"shift/{name}-{k}/recall" for name in _SHIFTS for k in (1, 2, 3)]
    return columns


def means(rows: pd.DataFrame, columns: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Means of columns by the names of measures, in points; where a run diverged, they are 0."""
    found = {name: 100 * rows[own].mean(axis=1, skipna=False) for name, own in columns.items()}
    table = pd.DataFrame(found)
    table[rows.reindex(columns=["error"])["error"].notna()] = 0.0
    return table


def best_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """The best trial of each method in each condition, and which of its values end their range.

    Args:
        trials: from `read_table("confirmation_trials.csv")`.

    Returns:
        `condition, method, n`, the number of settings; `validation`, the mean of six recalls in per
        cent, over the seeds of a setting; `ends`, the names of settings whose value is the smallest
        or the largest one tried.
    """
    settings = trials["configuration"].map(json.loads)
    table = []
    for (condition, method), own in trials.groupby(["condition", "method"], sort=False):
        # Only `repeats` of self-training may be missing, and is 1 then.
        tried = pd.json_normalize(settings[own.index].tolist()).fillna(1).set_index(own.index)
        numbers = tried.drop(columns="seed", errors="ignore").select_dtypes("number")
        varied = numbers.loc[:, numbers.nunique() > 1]
        point = settings[own.index].map(lambda of: json.dumps(of | {"seed": 0}, sort_keys=True))
        scores = own["validation"].groupby(point).transform(lambda of: of.mean(skipna=False))
        best = scores.idxmax()
        at_end = (varied.loc[best] == varied.min()) | (varied.loc[best] == varied.max())
        names = varied.columns[at_end].str.split(".").str[-1]
        row = {"condition": condition, "method": method, "n": point.nunique()}
        row |= {"validation": scores[best], "ends": ", ".join(names)}
        table.append(row)
    return pd.DataFrame(table)


def best_forms(trials: pd.DataFrame) -> dict[str, str]:
    """For each condition, the form of the residual penalty whose best trial is best.

    Args:
        trials: from `read_table("confirmation_trials.csv")`.
    """
    forms = trials[trials["method"].isin(FORMS)]
    best = forms.loc[forms.groupby("condition", sort=False)["validation"].idxmax()]
    return best.set_index("condition")["method"].to_dict()


def with_measures(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of confirmation.csv with the plan's measures, in points.

    Args:
        rows: one per run.

    Returns:
        The rows with `RECALLS` and `VALIDATION`, each the mean of recall@1, 5 and 10 in both
        directions on a set of photos, the last one Flickr8k's validation split; `DIRECTIONS`, the
        same in one direction; `ACCURACIES`; `zero-shot accuracy`, the mean over eleven sets, and
        `accuracy on the new sets`, over four of them; `DEGRADED`, the mean over five shifts at
        three strengths. Conditions are in the order of `IN_WORDS`.
    """
    measured = pd.concat([rows, means(rows, measure_columns())], axis=1)
    places = list(_CONDITIONS).index
    return measured.sort_values("condition", key=lambda names: names.map(places), kind="stable")


def _paired(rows: pd.DataFrame, method: str, control: str, measures: Sequence[str]) -> pd.DataFrame:
    """Differences of a method from a control in one condition, [seed, measure], in points."""
    by_seed = rows.set_index(["method", "seed"])[[*measures]].sort_index()
    return by_seed.loc[method] - by_seed.loc[control]


def hypothesis_tests(rows: pd.DataFrame, forms: Mapping[str, str]) -> pd.DataFrame:
    """Every test of H1 to H3, and the outcomes of their claims.

    A claim is a hypothesis in a condition for a method and a control. H1 and H2 are tested by
    Student's paired test over seeds, H3 by two one-sided tests of a difference within the margin.
    The claim's p-value is the larger of those on the two photo sets, and Holm's correction is over
    the claims.

    Args:
        rows: from `with_measures`.
        forms: for each condition, the form of the penalty that H3 is about, from `best_forms`.

    Returns:
        `hypothesis, condition, method, control, measure`; `difference` in points, with Student's
        95 % interval over seeds `low, high`; `p_value`; and of its claim `holm`, the corrected
        p-value, and `outcome`: `holds` at 5 %, `contradicted` if on both photo sets the interval
        excludes what is claimed, or `undecided`.
    """
    controls = [("H1", "CLIP"), ("H2", "CLIP, CCA start"), ("H2", "closed-form CCA")]
    claims = [(h, where, "CCA anchor", c) for h, c in controls for where in FEW_OR_WRONG]
    for condition, form in forms.items():
        claims += [("H3", condition, method, "CLIP") for method in ("CIBR MINE", form)]
    table = []
    for claim in claims:
        hypothesis, condition, method, control = claim
        gaps = _paired(rows[rows["condition"] == condition], method, control, RECALLS)
        for measure, values in gaps.items():
            seeds = DescrStatsW(values)
            mean, low, high = mean_interval(values.to_numpy())
            if hypothesis == "H3":
                p_value = seeds.ttost_mean(-MARGIN, MARGIN)[0]
                signs = True, low > MARGIN or high < -MARGIN
            else:
                p_value = seeds.ttest_mean(0)[1]
                signs = mean > 0, high < 0
            table.append([*claim, measure, mean, low, high, p_value, *signs])
    names = ["measure", "difference", "low", "high", "p_value", "supported", "excluded"]
    tests = pd.DataFrame(table, columns=[*CLAIM, *names])
    on_both = {"p_value": "max", "supported": "all", "excluded": "all"}
    outcomes = tests.groupby(CLAIM, sort=False).agg(on_both).reset_index()
    outcomes = decided(outcomes, outcomes["excluded"], outcomes["supported"])
    return tests[[*CLAIM, *names[:5]]].merge(outcomes[[*CLAIM, "holm", "outcome"]], on=CLAIM)


def zero_shot_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """H4 for every method in every condition: the gain over CLIP is below a point.

    The curves over beta are left out.

    Args:
        rows: from `with_measures`.

    Returns:
        `condition, method`; `difference` in points, the mean over seeds and sets, with Student's
        95 % interval over seeds `low, high`; `holm`, the p-value of a gain below `GAIN` over seeds,
        corrected over the table; whether a gain of any size is found `over_seeds` and `over_sets`,
        corrected likewise; `outcome`: `holds` at 5 %, `contradicted` if `low` is above `GAIN`, or
        `undecided`.
    """
    planned = rows[~rows["method"].str.endswith("over beta")]
    table = []
    for condition, own in planned.groupby("condition", sort=False):
        for method in own["method"].unique():
            if method == "CLIP":
                continue
            gaps = _paired(own, method, "CLIP", ACCURACIES)
            seeds, sets = gaps.mean(axis=1), gaps.mean(axis=0)
            p_values = [
                DescrStatsW(seeds).ttest_mean(GAIN, "smaller")[1],
                DescrStatsW(seeds).ttest_mean(0, "larger")[1],
                DescrStatsW(sets).ttest_mean(0, "larger")[1],
            ]
            table.append([condition, method, *mean_interval(seeds.to_numpy()), *p_values])
    names = ["condition", "method", "difference", "low", "high"]
    tests = pd.DataFrame(table, columns=[*names, "p_value", "over_seeds", "over_sets"])
    for name in ("over_seeds", "over_sets"):
        tests[name] = multipletests(tests[name], method="holm")[0]
    return decided(tests, tests["low"] > GAIN).drop(columns="p_value")


def outcome_table(tests: pd.DataFrame) -> pd.DataFrame:
    """H1 to H3 as a table of text: `outcome`, the differences on both sets of photos with their
    intervals over seeds, and the corrected p-value.

    Args:
        tests: from `hypothesis_tests`.
    """
    texts = tests.replace(IN_WORDS).assign(text=interval_text(tests))
    texts["p, Holm"] = texts["holm"].map(p_text)
    names = [*CLAIM, "outcome", "p, Holm"]
    wide = texts.pivot(index=names, columns="measure", values="text").reset_index()
    table = texts[names].drop_duplicates().merge(wide).set_index(CLAIM)
    table = table.rename_axis(index={"hypothesis": "claim"})
    return table[["outcome", *RECALLS, "p, Holm"]].rename(columns=_short)


def _short(measure: str) -> str:
    return measure.removeprefix("recall on ")


def zero_shot_table(rows: pd.DataFrame) -> pd.DataFrame:
    """H4 as a table of text.

    Args:
        rows: from `with_measures`.

    Returns:
        One row per method and condition: the outcome of `gains less than a point`; `eleven sets`,
        the gain with its interval over seeds, with a star if a gain is found after correction; the
        same over `four new sets`, without one; and the corrected p-value `p, Holm`.
    """
    key = ["condition", "method"]
    tests = zero_shot_tests(rows).replace(IN_WORDS).set_index(key)
    new = differences(rows, ["accuracy on the new sets"]).replace(IN_WORDS).set_index(key)
    table = {
        "gains less than a point": tests["outcome"],
        "eleven sets": interval_text(tests) + tests["over_seeds"].map({True: " *", False: ""}),
        "four new sets": interval_text(new.loc[tests.index]),
        "p, Holm": tests["holm"].map(p_text),
    }
    return pd.DataFrame(table)


def photo_intervals(
    tests: pd.DataFrame, rows: pd.DataFrame, hits: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """The differences of H1 to H3 with intervals over seeds and photos together.

    Args:
        tests: from `hypothesis_tests`.
        rows: of the runs.
        hits: `run`, the ids; and for each of `PHOTOS` the hits of its photos [run, photo].

    Returns:
        The tests with `low` and `high` over seeds and photos.
    """
    runs = rows.set_index(["condition", "method", "seed"])["run"]
    place = {run: i for i, run in enumerate(hits["run"])}
    table = []
    for row in tests.to_dict("records"):
        recalls = 100 / 30 * hits[_short(row["measure"])]
        of = {
            method: recalls[[place[runs[row["condition"], method, seed]] for seed in SEEDS]]
            for method in (row["control"], row["method"])
        }
        mean, low, high = paired_difference(of[row["control"]], of[row["method"]])
        assert abs(mean - row["difference"]) < 1e-3, "the hits are of other runs"
        table.append(row | {"low": low, "high": high})
    return pd.DataFrame(table)
