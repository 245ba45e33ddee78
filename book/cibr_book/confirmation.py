"""The measures, tests and figures of experiments/confirmation.md, from the rows of its runs."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64
from matplotlib.axes import Axes
from scipy import stats

from cibr.evaluate import by_unit, read_predictions
from cibr.metrics import paired_difference
from cibr_book.figures import STYLES, legend_above, log_axis
from cibr_book.plots import BLUE, WIDTH, panels, wrap
from cibr_book.shifts import SHIFTS
from cibr_book.tables import RESULTS, differences, holm, read_table

MARGIN = 0.5  # points of mean recall within which two methods count as equal
GAIN = 1.0  # points of zero-shot accuracy below which a gain counts as none
SEEDS = list(range(200, 216))
CLAIM = ["hypothesis", "condition", "method", "control"]
FORMS = ("CIBR vMF", "CIBR vMF, sampled", "CIBR crossfit")
PHOTOS = {"Flickr8k": "mini/flickr8k", "coco-mini": "confirmation/coco-mini"}
SETS = {
    "mini": "cifar10 caltech101-mini food101-64px imagenette intel-scenes dtd10 pacs",
    "confirmation": "clothing10 flowers5 rsscn7 glyph_digits",
}
STYLES_OF_PACS = ("photo", "art_painting", "cartoon", "sketch")
FEW_OR_WRONG = ("Flickr8k, 10 % of the pairs", "Flickr8k, 30 % shuffled captions, drawn anew")
RECALLS = [f"recall on {name}" for name in PHOTOS]
ACCURACIES = [f"accuracy on {name}" for names in SETS.values() for name in names.split()]
STRENGTHS = ["recall on Flickr8k", *(f"recall at strength {k}" for k in (1, 2, 3))]
_TASKS = [f"{suite}/{name}" for suite, names in SETS.items() for name in names.split()]
_MEASURES = {  # pattern of the columns by the name of their mean
    **{f"recall on {name}": f"^{task}/.*_recall@(?:1|5|10)$" for name, task in PHOTOS.items()},
    **{name: f"^{task}/accuracy@1$" for name, task in zip(ACCURACIES, _TASKS, strict=True)},
    "zero-shot accuracy": f"^(?:{'|'.join(_TASKS)})/accuracy@1$",
    **{f"accuracy on PACS, {s}": f"^mini/pacs-{s}/accuracy@1$" for s in STYLES_OF_PACS},
    **{f"recall under {name}": f"^shift/{name}-./recall$" for name in SHIFTS},
    **{STRENGTHS[k]: f"^shift/.*-{k}/recall$" for k in (1, 2, 3)},
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
        The rows with `RECALLS`, each the mean of recall@1, 5 and 10 in both directions on a set;
        `ACCURACIES` and `zero-shot accuracy`, their mean; `accuracy on PACS, <style>`; and
        `recall under <shift>`, the mean over three strengths, and `STRENGTHS`, of which the last
        three are means over five shifts.

    Raises:
        ValueError: a run without all scores that did not diverge.
    """
    diverged = rows["error"].notna() if "error" in rows else pd.Series(False, rows.index)
    measures = {}
    for name, pattern in _MEASURES.items():
        scores = rows.filter(regex=pattern).where(~diverged, 0.0, axis=0)
        measures[name] = 100 * scores.mean(axis=1, skipna=False)
    table = pd.DataFrame(measures)
    incomplete = table.isna().any(axis=1)
    if incomplete.any():
        runs = ", ".join(rows.loc[incomplete, "run"])
        raise ValueError(f"the runs {runs} lack scores: execute them again")
    return pd.concat([rows, table], axis=1)


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
        `hypothesis, condition, method, control, measure`; `difference` in points, with Student's
        95 % interval over seeds `low, high`; `p_value`; and of its claim `holm`, the corrected
        p-value, and `verdict`: `holds` at 5 %, `contradicted` if on both photo sets the interval
        excludes what is claimed, or `undecided`.
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
    return tests.merge(table[["holm", "verdict"]].reset_index(), on=CLAIM)


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


def photo_recalls(file: Path) -> Float64[np.ndarray, " n"]:
    """Each photo's part in the mean recall, the mean over photos, in points.

    Args:
        file: predictions of a retrieval set, saved by `cibr.evaluate.evaluate`.
    """
    items = {name: values.numpy() for name, values in read_predictions(file).items.items()}
    parts = [
        by_unit((items[f"{side}_ranks"] < k).astype(float), items[f"{side}_units"])
        for side in ("image", "text")
        for k in (1, 5, 10)
    ]
    return 100 * np.mean(parts, axis=0)


def photo_intervals(tests: pd.DataFrame, rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The differences of H1 to H3 with intervals over seeds and photos together.

    Args:
        tests: from `hypothesis_tests`.
        rows: of the runs.
        folder: that of the runs, with their predictions.

    Returns:
        `hypothesis, condition, method, control, measure`; `difference, low, high` in points, of
        the bootstrap over seeds and photos.
    """
    runs = rows.set_index(["condition", "method", "seed"])["run"]
    table = []
    for row in tests[[*CLAIM, "measure"]].to_dict("records"):
        suite, name = PHOTOS[row["measure"].removeprefix("recall on ")].split("/")
        sides = []
        for method in (row["control"], row["method"]):
            own = [folder / runs[row["condition"], method, seed] for seed in SEEDS]
            files = [run / suite / f"{name}-retrieval.safetensors" for run in own]
            sides.append([np.stack([photo_recalls(file) for file in files])])
        interval = paired_difference(*sides)
        table.append(row | {"difference": interval.pop("mean")} | interval)
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


def verdicts(tests: pd.DataFrame) -> pd.DataFrame:
    """H1 to H3 as a table: differences on both photo sets, and the verdict.

    Args:
        tests: from `hypothesis_tests`.

    Returns:
        One row per claim, and one column per measure, with `+1.23 [+0.98, +1.48]`; and `verdict`.
    """
    text = [f"{r.difference:+.2f} [{r.low:+.2f}, {r.high:+.2f}]" for r in tests.itertuples()]
    groups = tests.assign(text=text).groupby([*CLAIM, "measure"], sort=False)
    table = groups["text"].first().unstack(sort=False)
    return table.assign(verdict=tests.groupby(CLAIM, sort=False)["verdict"].first())


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
        axis.set_title(wrap(condition.replace("Flickr8k, ", ""), 22))
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
    names = ["CIBR vMF over beta", "CIBR vMF"]
    of_curve = rows[rows["method"] == names[0]]
    with_its_seeds = rows[rows["seed"].isin(of_curve["seed"])]
    curve = differences(with_its_seeds, ["recall on Flickr8k"]).sort_values("beta")
    is_alike = curve["hyperparameters"].isin(of_curve["hyperparameters"])
    curve = curve[curve["method"].isin(names) & is_alike]
    _, axes = panels(1, 2, 5.3, 3.0, sharey=True, width_ratios=[2.2, 1])
    for axis in axes[0]:
        axis.axhline(0, color="black", lw=0.8)
    left, right = axes[0]
    left.plot(curve["beta"], curve["difference"], "o-", ms=4, color=BLUE)
    left.fill_between(curve["beta"], curve["low"], curve["high"], color=BLUE, alpha=0.15, lw=0)
    log_axis(left, [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0])
    left.set(xlabel="beta", ylabel="mean recall, points from CLIP", title="the penalty")
    for place, method in enumerate(others):
        row = compared[compared["method"] == method].iloc[0]
        colour, marker = STYLES[method]
        right.vlines(place, row["low"], row["high"], color=colour, lw=1.8)
        right.plot(place, row["difference"], marker, ms=6, color=colour)
    right.set_xticks(range(len(others)), [wrap(name, 8) for name in others.values()])
    right.set(title="other methods", xlim=(-0.6, len(others) - 0.4))
    right.grid(axis="x", visible=False)
    return [left, right]


def main() -> None:
    """Write confirmation_photos.csv: H1 to H3 with intervals over seeds and photos."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="the runs, such as runs/confirmation")
    folder = parser.parse_args().folder
    rows = read_table("confirmation.csv")
    tests = hypothesis_tests(with_measures(rows), best_forms(read_table("confirmation_trials.csv")))
    table = photo_intervals(tests, rows, folder)
    table.to_csv(RESULTS / "confirmation_photos.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
