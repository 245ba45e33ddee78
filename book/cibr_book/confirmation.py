"""The measures, tests and figure of experiments/confirmation.md, from the rows of its runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from cibr_book.figures import STYLES, legend_above, log_axis
from cibr_book.plots import BLUE, WIDTH, panels, wrap
from cibr_book.shifts import SHIFTS
from cibr_book.tables import differences, holm

MARGIN = 0.5  # points of mean recall within which two methods count as equal
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
        rows: one per run.

    Returns:
        The rows with `RECALLS`, each the mean of recall@1, 5 and 10 in both directions on a set;
        `ACCURACIES` and `zero-shot accuracy`, their mean; `accuracy on PACS, <style>`; and
        `recall under <shift>`, the mean over three strengths, and `STRENGTHS`, of which the last
        three are means over five shifts.
    """
    measures = {
        name: 100 * rows.filter(regex=pattern).mean(axis=1) for name, pattern in _MEASURES.items()
    }
    return pd.concat([rows, pd.DataFrame(measures)], axis=1)


def paired(rows: pd.DataFrame, method: str, control: str, measures: Sequence[str]) -> pd.DataFrame:
    """Differences of a method from a control in one condition, [seed, measure], in points.

    Raises:
        ValueError: the two have different seeds.
    """
    sides = [
        rows[rows["method"] == name].set_index("seed")[[*measures]] for name in (method, control)
    ]
    if not sides[0].index.is_unique or set(sides[0].index) != set(sides[1].index):
        counts = " and ".join(str(sorted(side.index)) for side in sides)
        raise ValueError(f"{method!r} and {control!r} have the seeds {counts}: give both the same")
    return sides[0] - sides[1]


def hypothesis_tests(rows: pd.DataFrame, best_form: dict[str, str]) -> pd.DataFrame:
    """Every test of H1 to H4, with Holm's correction over all of them.

    Args:
        rows: from `with_measures`.
        best_form: for each condition, the form of the penalty that is best on validation, for H3.

    Returns:
        `hypothesis, condition, method, control, measure`; `difference` in points, with Student's
        95 % interval over seeds `low, high`; `p_value`; `holm`, adjusted over the table; `found`,
        whether the test finds what it looks for at 5 %: a gain (H1, H2, H4) or equality (H3).
    """
    tests = pd.DataFrame([*_gains(rows), *_equalities(rows, best_form), *_zero_shot(rows)])
    tests["holm"] = holm(tests["p_value"])
    is_gain = (tests["difference"] > 0) | (tests["hypothesis"] == "H3")
    return tests.assign(found=(tests["holm"] < 0.05) & is_gain)


def _test(hypothesis: str, condition: str, method: str, control: str, values: pd.Series) -> dict:
    interval = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    names = ["hypothesis", "condition", "method", "control", "measure"]
    row = dict(zip(names, [hypothesis, condition, method, control, values.name], strict=True))
    return row | {"difference": values.mean(), "low": interval[0], "high": interval[1]}


def _gains(rows: pd.DataFrame) -> Iterator[dict]:
    """H1 and H2: the anchor and CLIP, the anchor and what it is made of."""
    controls = [("H1", "CLIP"), ("H2", "CLIP, CCA start"), ("H2", "closed-form CCA")]
    for (hypothesis, control), condition in product(controls, FEW_OR_WRONG):
        own = rows[rows["condition"] == condition]
        gaps = paired(own, "CCA anchor", control, RECALLS)
        for _, values in gaps.items():
            test = _test(hypothesis, condition, "CCA anchor", control, values)
            yield test | {"p_value": stats.ttest_1samp(values, 0).pvalue}


def _equalities(rows: pd.DataFrame, best_form: dict[str, str]) -> Iterator[dict]:
    """H3: two one-sided tests of a difference within the margin."""
    for condition, form in best_form.items():
        own = rows[rows["condition"] == condition]
        for method in ("CIBR MINE", form):
            gaps = paired(own, method, "CLIP", RECALLS)
            for _, values in gaps.items():
                above = stats.ttest_1samp(values, -MARGIN, alternative="greater").pvalue
                below = stats.ttest_1samp(values, MARGIN, alternative="less").pvalue
                test = _test("H3", condition, method, "CLIP", values)
                yield test | {"p_value": max(above, below)}


def _zero_shot(rows: pd.DataFrame) -> Iterator[dict]:
    """H4: a gain over seeds and over sets."""
    for condition, own in rows.groupby("condition", sort=False):
        for method in own["method"].unique():
            if method != "CLIP":
                gaps = paired(own, method, "CLIP", ACCURACIES)
                over_seeds = gaps.mean(axis=1).rename("zero-shot accuracy")
                ways = (over_seeds, gaps.mean(axis=0))
                values = [stats.ttest_1samp(x, 0, alternative="greater").pvalue for x in ways]
                test = _test("H4", condition, method, "CLIP", over_seeds)
                yield test | {"p_value": max(values)}


def over_sets(rows: pd.DataFrame, control: str = "CLIP") -> pd.DataFrame:
    """Zero-shot differences of every method, with intervals over seeds and over sets.

    Args:
        rows: from `with_measures`, of one condition.
        control: the method to compare with.

    Returns:
        One row per method: `difference` in points, the mean over seeds and eleven sets, `low, high`
        over seeds, `sets_low, sets_high` over sets.
    """
    table = {}
    for method in rows["method"].unique():
        if method != control:
            gaps = paired(rows, method, control, ACCURACIES)
            seeds, means = gaps.mean(axis=1), gaps.mean(axis=0)
            intervals = [
                stats.t.interval(0.95, len(x) - 1, x.mean(), stats.sem(x)) for x in (seeds, means)
            ]
            table[method] = (means.mean(), *intervals[0], *intervals[1])
    names = ["difference", "low", "high", "sets_low", "sets_high"]
    return pd.DataFrame(table, index=names).T.rename_axis("method")


def verdicts(tests: pd.DataFrame) -> pd.DataFrame:
    """H1 to H3 as a table: differences on both sets of photos, and whether the hypothesis holds.

    Args:
        tests: from `hypothesis_tests`.

    Returns:
        One row per hypothesis, condition, method and control, and one column per measure, with
        `+1.23 [+0.98, +1.48] *`, a star where the test finds what it looks for; `holds`, "yes" with
        both stars.
    """
    own = tests[tests["hypothesis"] != "H4"]
    text = [
        f"{r.difference:+.2f} [{r.low:+.2f}, {r.high:+.2f}]{' *' * r.found}"
        for r in own.itertuples()
    ]
    index = ["hypothesis", "condition", "method", "control"]
    groups = own.assign(text=text).groupby([*index, "measure"], sort=False)
    table = groups["text"].first().unstack(sort=False)
    holds = own.groupby(index, sort=False)["found"].all()
    return table.assign(holds=holds.map({True: "yes", False: "no"}))


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
            point of the curve if it has the same settings but beta.
        others: the name to print of each other method.

    Returns:
        The Axes of the curve and that of the other methods.
    """
    compared = differences(rows, ["recall on Flickr8k"]).sort_values("beta")
    names = ["CIBR vMF over beta", "CIBR vMF"]
    settings = compared.loc[compared["method"] == names[0], "hyperparameters"]
    curve = compared[compared["method"].isin(names) & compared["hyperparameters"].isin(settings)]
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
