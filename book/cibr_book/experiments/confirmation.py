"""The measures, tests and figures of experiments/confirmation.md, from the rows of its runs."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib.axes import Axes
from scipy import stats

from cibr.evaluate import read_predictions
from cibr.metrics import paired_difference
from cibr_book.experiments.shifts import SHIFTS
from cibr_book.experiments.tables import RESULTS, differences, holm, read_table
from cibr_book.pages.figures import STYLES, legend_above, log_axis
from cibr_book.pages.plots import BLUE, WIDTH, panels, wrap

MARGIN = 0.5  # points of mean recall within which two methods count as equal
GAIN = 1.0  # points of zero-shot accuracy below which a gain counts as none
SEEDS = list(range(200, 216))
CLAIM = ["hypothesis", "condition", "method", "control"]
HITS = RESULTS / "confirmation_hits.npz"
FORMS = ("CIBR vMF", "CIBR vMF, sampled", "CIBR crossfit")
COMPARED = ("CLIP", "CLIP, CCA start", "closed-form CCA", "CCA anchor", "CIBR MINE", *FORMS)
PHOTOS = {"Flickr8k": "mini/flickr8k", "coco-mini": "confirmation/coco-mini"}
SETS = {
    "mini": "cifar10 caltech101-mini food101-64px imagenette intel-scenes dtd10 pacs",
    "confirmation": "clothing10 flowers5 rsscn7 glyph_digits",
}
STYLES_OF_PACS = ("photo", "art_painting", "cartoon", "sketch")
FEW_OR_WRONG = ("Flickr8k, 10 % of the pairs", "Flickr8k, 30 % shuffled captions, drawn anew")
IN_WORDS = dict(
    zip(
        (*FEW_OR_WRONG, "Flickr8k"),
        ("10 % of the pairs", "wrong captions", "all pairs"),
        strict=True,
    )
)
RECALLS = [f"recall on {name}" for name in PHOTOS]
ACCURACIES = [f"accuracy on {name}" for names in SETS.values() for name in names.split()]
NEW = ACCURACIES[-4:]
VALIDATION = "recall on validation"
STRENGTHS = ["recall on Flickr8k", *(f"recall at strength {k}" for k in (1, 2, 3))]
_TASKS = [f"{suite}/{name}" for suite, names in SETS.items() for name in names.split()]
_MEASURES = {  # number and pattern of the columns by the name of their mean
    **{f"recall on {name}": (6, f"^{task}/.*_recall@(?:1|5|10)$") for name, task in PHOTOS.items()},
    VALIDATION: (6, "^validation_(?:image_to_text|text_to_image)_recall@(?:1|5|10)$"),
    **{name: (1, f"^{task}/accuracy@1$") for name, task in zip(ACCURACIES, _TASKS, strict=True)},
    "zero-shot accuracy": (11, f"^(?:{'|'.join(_TASKS)})/accuracy@1$"),
    "accuracy on the new sets": (4, f"^(?:{'|'.join(_TASKS[-4:])})/accuracy@1$"),
    **{f"accuracy on PACS, {s}": (1, f"^mini/pacs-{s}/accuracy@1$") for s in STYLES_OF_PACS},
    **{f"recall under {name}": (3, f"^shift/{name}-./recall$") for name in SHIFTS},
    **{STRENGTHS[k]: (5, f"^shift/.*-{k}/recall$") for k in (1, 2, 3)},
}


def best_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """The best trial of each method in each condition, and which of its values end their range.

    Args:
        trials: from `read_table("confirmation_trials.csv")`.

    Returns:
        `condition, method, n`, the number of trials; `validation`, the mean of six recalls in per
        cent; a column per setting that was varied; `ends`, the names of settings whose value is the
        smallest or the largest one tried.
    """
    settings = trials["configuration"].map(json.loads)
    table = []
    for (condition, method), own in trials.groupby(["condition", "method"], sort=False):
        tried = pd.DataFrame(settings.loc[own.index].tolist(), index=own.index)
        tried = tried.drop(columns=["corruption"], errors="ignore")
        if "unpaired" in tried:
            tried["repeats"] = tried["unpaired"].map(lambda unpaired: unpaired.get("repeats", 1))
        numbers = tried.select_dtypes("number")
        varied = numbers.loc[:, numbers.nunique() > 1]
        best = own["validation"].idxmax()
        at_end = (varied.loc[best] == varied.min()) | (varied.loc[best] == varied.max())
        row = {"condition": condition, "method": method, "n": len(own)}
        row |= {"validation": own.loc[best, "validation"], **varied.loc[best]}
        table.append(row | {"ends": ", ".join(varied.columns[at_end])})
    return pd.DataFrame(table)


def with_measures(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of confirmation.csv with the plan's measures, in points.

    Args:
        rows: one per run. A run that diverged, which has an `error` in place of scores, scores 0.

    Returns:
        The rows with `RECALLS` and `VALIDATION`, each the mean of recall@1, 5 and 10 in both
        directions on a set of photos, the last one Flickr8k's validation split;
        `ACCURACIES` and `zero-shot accuracy`, their mean; `accuracy on the new sets`, that of the
        four which are new; `accuracy on PACS, <style>`; and
        `recall under <shift>`, the mean over three strengths, and `STRENGTHS`, of which the last
        three are means over five shifts. Conditions are in the order of `IN_WORDS`.

    Raises:
        ValueError: a score of the plan has no column, or a run that did not diverge lacks scores.
    """
    diverged = rows["error"].notna() if "error" in rows else pd.Series(False, rows.index)
    measures = {}
    for name, (n_columns, pattern) in _MEASURES.items():
        scores = rows.filter(regex=pattern).where(~diverged, 0.0, axis=0)
        if scores.shape[1] != n_columns:
            raise ValueError(f"{name} has {scores.shape[1]} columns and needs {n_columns}")
        measures[name] = 100 * scores.mean(axis=1, skipna=False)
    table = pd.DataFrame(measures)
    incomplete = table.isna().any(axis=1)
    if incomplete.any():
        runs = ", ".join(rows.loc[incomplete, "run"])
        raise ValueError(f"the runs {runs} lack scores: execute them again")
    places = {condition: place for place, condition in enumerate(IN_WORDS)}
    measured = pd.concat([rows.drop(columns="zero-shot", errors="ignore"), table], axis=1)
    return measured.sort_values("condition", key=lambda names: names.map(places), kind="stable")


def best_forms(trials: pd.DataFrame) -> dict[str, str]:
    """For each condition, the form of the residual penalty whose best trial is best.

    Args:
        trials: from `read_table("confirmation_trials.csv")`.
    """
    best = best_trials(trials[trials["method"].isin(FORMS)])
    highest = best.loc[best.groupby("condition", sort=False)["validation"].idxmax()]
    return highest.set_index("condition")["method"].to_dict()


def paired(rows: pd.DataFrame, method: str, control: str, measures: Sequence[str]) -> pd.DataFrame:
    """Differences of a method from a control in one condition, [seed, measure], in points.

    Raises:
        ValueError: one of the two has other seeds than the plan's.
    """
    sides = []
    for name in (method, control):
        side = rows[rows["method"] == name].set_index("seed")[[*measures]]
        if sorted(side.index) != SEEDS:
            raise ValueError(
                f"{name!r} has the seeds {sorted(side.index)}: execute {SEEDS}, once each"
            )
        sides.append(side)
    return sides[0] - sides[1]


def hypothesis_tests(rows: pd.DataFrame, forms: Mapping[str, str]) -> pd.DataFrame:
    """Every test of H1 to H3, and the verdicts on their claims.

    A claim is a hypothesis in a condition for a method and a control. Its p-value is the larger of
    those on the two photo sets, and Holm's correction is over the claims.

    Args:
        rows: from `with_measures`.
        forms: for each condition, the form of the penalty that H3 is about, from `best_forms`.

    Returns:
        `hypothesis, condition, method, control, measure`; `beta`, the method's; `difference` in
        points, with Student's 95 % interval over seeds `low, high`; `p_value`; and of its claim
        `holm`, the corrected p-value, and `verdict`: `holds` at 5 %, `contradicted` if on both
        photo sets the interval excludes what is claimed, or `undecided`.
    """
    tests = pd.DataFrame([*_gains(rows), *_equalities(rows, forms)])
    claims = tests.groupby(CLAIM, sort=False)
    table = claims.agg(p_value=("p_value", "max"), least=("difference", "min"))
    table["holm"] = holm(table["p_value"])
    equality = table.index.get_level_values("hypothesis") == "H3"
    holds = (table["holm"] < 0.05) & (equality | (table["least"] > 0))
    outside = (tests["low"] > MARGIN) | (tests["high"] < -MARGIN)
    excluded = outside.where(tests["hypothesis"] == "H3", tests["high"] < 0)
    against = excluded.groupby([tests[name] for name in CLAIM], sort=False).all()
    table["verdict"] = np.select([holds, against], ["holds", "contradicted"], "undecided")
    betas = rows.groupby(["condition", "method"])["beta"].first().reset_index()
    return tests.merge(table[["holm", "verdict"]].reset_index(), on=CLAIM).merge(betas)


def _test(hypothesis: str, condition: str, method: str, control: str, values: pd.Series) -> dict:
    names = [*CLAIM, "measure"]
    row = dict(zip(names, [hypothesis, condition, method, control, values.name], strict=True))
    return row | dict(zip(("difference", "low", "high"), _interval(values), strict=True))


def _interval(values: pd.Series) -> tuple[float, float, float]:
    """The mean and Student's 95 % interval."""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return values.mean(), low, high


def _gains(rows: pd.DataFrame) -> Iterator[dict]:
    """H1 and H2: the anchor and CLIP, the anchor and what it is made of."""
    controls = [("H1", "CLIP"), ("H2", "CLIP, CCA start"), ("H2", "closed-form CCA")]
    for (hypothesis, control), condition in product(controls, FEW_OR_WRONG):
        own = rows[rows["condition"] == condition]
        gaps = paired(own, "CCA anchor", control, RECALLS)
        for _, values in gaps.items():
            test = _test(hypothesis, condition, "CCA anchor", control, values)
            yield test | {"p_value": stats.ttest_1samp(values, 0).pvalue}


def _equalities(rows: pd.DataFrame, forms: Mapping[str, str]) -> Iterator[dict]:
    """H3: two one-sided tests of a difference within the margin."""
    for condition, form in forms.items():
        own = rows[rows["condition"] == condition]
        for method in ("CIBR MINE", form):
            gaps = paired(own, method, "CLIP", RECALLS)
            for _, values in gaps.items():
                above = stats.ttest_1samp(values, -MARGIN, alternative="greater").pvalue
                below = stats.ttest_1samp(values, MARGIN, alternative="less").pvalue
                test = _test("H3", condition, method, "CLIP", values)
                yield test | {"p_value": max(above, below)}


def photo_hits(file: Path) -> UInt8[np.ndarray, " n"]:
    """How often each photo is found, of 30 times; its mean over photos is the mean recall.

    The photo's query counts five times among the first 1, 5 and 10, each of its five captions once.

    Args:
        file: predictions of a retrieval set, saved by `cibr.evaluate.evaluate`.

    Raises:
        ValueError: a photo that does not have five captions.
    """
    items = {name: values.numpy() for name, values in read_predictions(file).items.items()}
    of_image, of_text = (
        sum((items[f"{side}_ranks"] < k).astype(int) for k in (1, 5, 10))
        for side in ("image", "text")
    )
    units = items["text_units"]
    if set(np.bincount(units)) != {5}:
        raise ValueError(
            f"{str(file)!r}: a photo has other than five captions, which is not handled"
        )
    return (5 * of_image + np.bincount(units, of_text)).astype(np.uint8)


def collect_hits(runs: Sequence[str], folder: Path) -> dict[str, np.ndarray]:
    """`photo_hits` of runs.

    Args:
        runs: their ids.
        folder: that of the runs, with their predictions.

    Returns:
        `run`, the ids; and for each of `PHOTOS` the hits [run, photo].
    """
    hits = {"run": np.array(runs)}
    for name, place in PHOTOS.items():
        files = [folder / run / f"{place}-retrieval.safetensors" for run in runs]
        hits[name] = np.stack([photo_hits(file) for file in files])
    return hits


def photo_intervals(
    tests: pd.DataFrame, rows: pd.DataFrame, hits: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """The differences of H1 to H3 with intervals over seeds and photos together.

    Args:
        tests: from `hypothesis_tests`.
        rows: of the runs.
        hits: from `collect_hits`.

    Returns:
        `hypothesis, condition, method, control, measure`; `difference, low, high` in points, of
        the bootstrap over seeds and photos.

    Raises:
        ValueError: hits that do not have a test's difference.
    """
    runs = rows.set_index(["condition", "method", "seed"])["run"]
    place = {run: i for i, run in enumerate(hits["run"])}
    table = []
    for row in tests[[*CLAIM, "measure", "difference"]].to_dict("records"):
        of_set = hits[row["measure"].removeprefix("recall on ")]
        sides = []
        for method in (row["control"], row["method"]):
            own = [place[runs[row["condition"], method, seed]] for seed in SEEDS]
            sides.append([100 / 30 * of_set[own]])
        mean, low, high = paired_difference(*sides).values()
        if abs(mean - row["difference"]) > 1e-3:
            what = f"{row['method']} minus {row['control']} in {row['condition']!r}"
            raise ValueError(
                f"{what} is {row['difference']:.4f} in the rows, {mean:.4f} in the hits"
            )
        table.append(row | {"difference": mean, "low": low, "high": high})
    return pd.DataFrame(table)


def zero_shot_tests(rows: pd.DataFrame, accuracies: Sequence[str] = ACCURACIES) -> pd.DataFrame:
    """H4 for every method in every condition: the gain over CLIP is below a point.

    The curves over beta are left out.

    Args:
        rows: from `with_measures`.
        accuracies: the sets.

    Returns:
        `condition, method`; `difference` in points, the mean over seeds and sets, with Student's
        95 % intervals `low, high` over seeds and `sets_low, sets_high` over sets; `holm`, the
        p-value of a gain below `GAIN` over seeds, corrected over the table; `verdict`: `holds` at
        5 %, `contradicted` if `low` is above `GAIN`, or `undecided`; and whether a gain of any size
        is found `over_seeds` and `over_sets`, corrected likewise.
    """
    table = []
    for condition, own in rows[~rows["method"].str.endswith("over beta")].groupby(
        "condition", sort=False
    ):
        for method in own["method"].unique():
            if method != "CLIP":
                gaps = paired(own, method, "CLIP", accuracies)
                table.append({"condition": condition, "method": method} | _of_gaps(gaps))
    tests = pd.DataFrame(table)
    for name in ("holm", "over_seeds", "over_sets"):
        tests[name] = holm(tests[name])
    conditions = [tests["holm"] < 0.05, tests["low"] > GAIN]
    tests["verdict"] = np.select(conditions, ["holds", "contradicted"], "undecided")
    return tests.assign(over_seeds=tests["over_seeds"] < 0.05, over_sets=tests["over_sets"] < 0.05)


def _of_gaps(gaps: pd.DataFrame) -> dict[str, float]:
    """Mean, intervals and p-values of differences in accuracy [seed, set]."""
    seeds, sets = gaps.mean(axis=1), gaps.mean(axis=0)
    mean, low, high = _interval(seeds)
    _, sets_low, sets_high = _interval(sets)
    row = dict(difference=mean, low=low, high=high, sets_low=sets_low, sets_high=sets_high)
    row["holm"] = stats.ttest_1samp(seeds, GAIN, alternative="less").pvalue
    row["over_seeds"] = stats.ttest_1samp(seeds, 0, alternative="greater").pvalue
    return row | {"over_sets": stats.ttest_1samp(sets, 0, alternative="greater").pvalue}


def verdict_table(tests: pd.DataFrame, photos: pd.DataFrame) -> pd.DataFrame:
    """H1 to H3 as a table of text.

    Args:
        tests: from `hypothesis_tests`.
        photos: from `photo_intervals`.

    Returns:
        One row per claim, with the `beta` of its method; for each set of photos
        `+1.23 [+0.98, +1.48]`, the difference with its interval over seeds, and the interval over
        seeds and photos; the corrected p-value `p, Holm`; and `verdict`.
    """
    tests = tests.replace({"condition": IN_WORDS})
    photos = photos.replace({"condition": IN_WORDS}).drop(columns="difference")
    index = [*CLAIM, "beta"]
    table = {}
    for name in PHOTOS:
        own = tests[tests["measure"] == f"recall on {name}"]
        own = own.merge(photos, on=[*CLAIM, "measure"], suffixes=("", "_photos")).set_index(index)
        table[name] = _as_text(own)
        table[f"{name}, photos too"] = _interval_text(own["low_photos"], own["high_photos"])
    claims = tests.groupby(index, sort=False).first()
    table |= {"p, Holm": claims["holm"].map(_p_text), "verdict": claims["verdict"]}
    return pd.DataFrame(table)


def zero_shot_table(rows: pd.DataFrame) -> pd.DataFrame:
    """H4 as a table of text.

    Args:
        rows: from `with_measures`.

    Returns:
        One row per method and condition: `eleven sets`, the gain with its interval over seeds, and
        the interval `over sets`, each with a star if a gain is found after correction; the
        corrected p-value `p, Holm` of a gain below a point; the verdict on `gains less than a
        point`; and `four new sets`, the gain on these with its interval over seeds.
    """
    rows = rows.replace({"condition": IN_WORDS})
    tests = zero_shot_tests(rows).set_index(["condition", "method"])
    new = zero_shot_tests(rows, NEW).set_index(["condition", "method"])
    star = {True: " *", False: ""}
    over_sets = _interval_text(tests["sets_low"], tests["sets_high"])
    table = {
        "eleven sets": _as_text(tests) + tests["over_seeds"].map(star),
        "over sets": over_sets + tests["over_sets"].map(star),
        "p, Holm": tests["holm"].map(_p_text),
        "gains less than a point": tests["verdict"],
        "four new sets": _as_text(new),
    }
    return pd.DataFrame(table)


def _as_text(rows: pd.DataFrame) -> pd.Series:
    """`+1.23 [+0.98, +1.48]`."""
    return rows["difference"].map("{:+.2f} ".format) + _interval_text(rows["low"], rows["high"])


def _interval_text(low: pd.Series, high: pd.Series) -> pd.Series:
    return "[" + low.map("{:+.2f}, ".format) + high.map("{:+.2f}]".format)


def _p_text(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def over_beta(rows: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Differences from CLIP along the curves over beta, for the seeds of each.

    A form's own runs are a point of its curve if they have its settings but beta.

    Args:
        rows: from `with_measures`.
        measures: columns.

    Returns:
        As `cibr_book.experiments.tables.differences`, with the form as `method`.
    """
    parts = []
    for _, own in rows.groupby("condition", sort=False):
        of_curve = own["method"].str.endswith("over beta")
        forms = own["method"].str.replace(r",? over beta$", "", regex=True)
        settings = forms + ": " + own["hyperparameters"]
        is_shown = settings.isin(settings[of_curve]) | (forms == "CLIP")
        is_shown &= own["seed"].isin(own.loc[of_curve, "seed"])
        parts.append(differences(own.assign(method=forms)[is_shown], measures))
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values("beta", kind="stable", ignore_index=True)


def shift_figure(rows: pd.DataFrame, methods: Sequence[str]) -> list[Axes]:
    """Differences from CLIP in mean recall on degraded photos, over the strength of the shift.

    Args:
        rows: from `with_measures`.
        methods: a line each.

    Returns:
        One Axes a condition.
    """
    compared = differences(rows, STRENGTHS)
    conditions = list(rows["condition"].unique())
    figure, axes = panels(1, len(conditions), WIDTH, 2.6, sharey=True)
    for axis, condition in zip(axes[0], conditions, strict=True):
        axis.axhline(0, color="black", lw=0.8)
        for i, method in enumerate(methods):
            own = compared[(compared["condition"] == condition) & (compared["method"] == method)]
            own = own.set_index("measure").reindex(STRENGTHS)
            at = [k + 0.08 * (i - (len(methods) - 1) / 2) for k in range(4)]
            colour, marker = STYLES[method]
            axis.plot(
                at, own["difference"], marker=marker, ms=4, lw=1.3, color=colour, label=method
            )
            axis.vlines(at, own["low"], own["high"], color=colour, lw=1.3)
        axis.set_title(IN_WORDS[condition])
        axis.set_xticks(range(4), ["none", "1", "2", "3"])
        axis.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel("mean recall, points from CLIP")
    figure.supxlabel("strength of the shift")
    legend_above(figure, axes[0, 0], 3)
    return list(axes[0])


def beta_figure(rows: pd.DataFrame, others: Mapping[str, str]) -> list[Axes]:
    """Difference from CLIP in mean recall over beta, and of other methods beside the curve.

    Args:
        rows: from `with_measures`, of one condition, with `CIBR vMF over beta`; `CIBR vMF` is a
            point of the curve, with the curve's seeds, if it has the same settings but beta.
        others: the name to print of each other method.

    Returns:
        The Axes of the curve and that of the other methods.
    """
    compared = differences(rows, ["recall on Flickr8k"])
    curve = over_beta(rows, ["recall on Flickr8k"])
    _, axes = panels(1, 2, 5.3, 3.0, sharey=True, width_ratios=[2.2, 1])
    for axis in axes[0]:
        axis.axhline(0, color="black", lw=0.8)
    left, right = axes[0]
    left.plot(curve["beta"], curve["difference"], "o-", ms=4, color=BLUE)
    left.fill_between(curve["beta"], curve["low"], curve["high"], color=BLUE, alpha=0.15, lw=0)
    log_axis(left, [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0])
    left.set(xlabel="beta", ylabel="mean recall, points from CLIP", title="the penalty (vMF)")
    for place, method in enumerate(others):
        row = compared[compared["method"] == method].iloc[0]
        colour, marker = STYLES[method]
        right.vlines(place, row["low"], row["high"], color=colour, lw=1.8)
        right.plot(place, row["difference"], marker, ms=4, color=colour)
    right.set_xticks(range(len(others)), [wrap(name, 8) for name in others.values()])
    right.set(title="other methods", xlim=(-0.6, len(others) - 0.4))
    right.grid(axis="x", visible=False)
    return [left, right]


def main() -> None:
    """Add the hits of the runs in a folder to confirmation_hits.npz."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="the runs, such as runs/confirmation")
    parser.add_argument("--output", type=Path, default=HITS, help="the file")
    given = parser.parse_args()
    folder, output = given.folder, given.output
    rows = read_table("confirmation.csv")
    runs = rows.loc[rows["method"].isin(COMPARED), "run"]
    hits = dict(np.load(output)) if output.exists() else {"run": np.array([])}
    new = [run for run in runs if run not in hits["run"] and (folder / run).is_dir()]
    if new:
        added = collect_hits(new, folder)
        if output.exists():
            added = {name: np.concatenate([hits[name], part]) for name, part in added.items()}
        hits = added
        np.savez_compressed(output, **hits)
    n_missing = len(set(runs) - set(hits["run"]))
    print(f"{output.name}: {len(new)} new runs; {n_missing} of the {len(runs)} runs have none")


if __name__ == "__main__":
    main()
