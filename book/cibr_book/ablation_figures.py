"""The ablation's figures: scores over beta, a line a penalty; and differences of all methods to
tuned CLIP.
"""

import re
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from cibr_book.analysis import mean_intervals
from cibr_book.figures import STYLES
from cibr_book.plots import BLUE, GREY, RED, WIDTH, wrap
from cibr_book.tables import KINDS

CURVES = ("CIBR vMF", "CIBR vMF, sampled", "CIBR crossfit", "CIBR MINE")
MARKS = {"gain": ("^", BLUE), "loss": ("v", RED), "not significant": ("o", GREY)}


def method_forest(rows: pd.DataFrame) -> list[Axes]:
    """Differences with their intervals: a line a method, a block a condition, a column a measure.

    A filled triangle points to the side of zero on which the whole interval lies; a hollow circle
    holds zero.

    Args:
        rows: from `cibr_book.tables.comparisons`, in the order to show; methods are named with
            their control where that is not CLIP.

    Returns:
        The Axes, block by block.
    """
    names = rows["method"] + rows["beta"].map(lambda beta: f", beta {beta:g}" if beta else "")
    added = [_contrast(*pair) for pair in zip(rows["method"], rows["against"], strict=True)]
    names = names.where(rows["against"] == "CLIP", added)
    rows = rows.assign(name=names + rows["n_seeds"].map(" ({})".format))
    blocks, measures = (
        dict(list(rows.groupby("condition", sort=False))),
        list(rows["measure"].unique()),
    )
    labels = {
        condition: [wrap(name, 50) for name in part["name"].unique()]
        for condition, part in blocks.items()
    }
    places = {condition: _places(texts) for condition, texts in labels.items()}
    heights = [2.2 + at[-1] for at in places.values()]
    figure, axes = plt.subplots(
        len(blocks),
        len(measures),
        figsize=(WIDTH, 0.6 + 0.19 * sum(heights)),
        squeeze=False,
        sharex=True,
        layout="constrained",
        height_ratios=heights,
    )
    for line, (condition, part) in zip(axes, blocks.items(), strict=True):
        names, at = list(part["name"].unique()), places[condition]
        for axis, measure in zip(line, measures, strict=True):
            axis.axvline(0, color="black", lw=0.8)
            for row in part[part["measure"] == measure].itertuples():
                place, (marker, colour) = at[names.index(row.name)], MARKS[row.significance]
                axis.plot([row.low, row.high], [place, place], color=colour, lw=1.6)
                face = "white" if marker == "o" else colour
                axis.plot(row.difference, place, marker, ms=5, mec=colour, mfc=face)
            axis.set(yticks=at, yticklabels=[], ylim=(at[-1] + 0.6, -0.6))
            axis.grid(axis="y", visible=False)
        line[0].set_yticklabels(labels[condition])
        line[0].set_title(condition, loc="left")
    for axis, measure in zip(axes[-1], measures, strict=True):
        axis.set_xlabel(measure, fontweight="bold")
    controls = dict.fromkeys(
        (rows["against"] == "CLIP").map({True: "tuned CLIP", False: "the method after vs"})
    )
    figure.supxlabel(f"difference from {' or from '.join(controls)}, percentage points")
    return list(axes.flat)


def _contrast(method: str, control: str) -> str:
    """`a vs b, with c`, where both are trained with c."""
    ours, theirs = (re.sub("^CIBR |^CLIP, ", "", name).split(" + ") for name in (method, control))
    both = [part for part in ours if part in theirs]
    ours, theirs = (
        " + ".join(part for part in parts if part not in both) for parts in (ours, theirs)
    )
    return f"{ours} vs {theirs}" + (f", with {' + '.join(both)}" if both else "")


def _places(texts: Sequence[str]) -> list[float]:
    """Places of labels one below another: a step of one, and more room around those of several
    lines.
    """
    extra = [0.5 * text.count("\n") for text in texts]
    return [i + 2 * sum(extra[:i]) + extra[i] - extra[0] for i in range(len(texts))]


def summary_figure(rows: pd.DataFrame) -> list[Axes]:
    """What a kind of method gains over CLIP: a row a condition, a column a measure, a mark a kind.

    A filled mark's interval leaves zero out. The best other method stands below the condition.

    Args:
        rows: from `cibr_book.tables.comparisons`, with a column `kind`, one method a kind in each
            condition.

    Returns:
        The Axes, one a measure.
    """
    conditions, measures = list(rows["condition"].unique()), list(rows["measure"].unique())
    size = (5.3, 1.0 + 0.38 * len(conditions))
    shape = dict(figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")
    figure, axes = plt.subplots(1, len(measures), **shape)
    step = 0.22
    for axis, measure in zip(axes[0], measures, strict=True):
        axis.axvline(0, color="black", lw=0.8)
        for i, (kind, (colour, marker)) in enumerate((kind, STYLES[kind]) for kind in KINDS):
            part = rows[(rows["kind"] == kind) & (rows["measure"] == measure)]
            places = [conditions.index(name) + step * (i - 1) for name in part["condition"]]
            axis.hlines(places, part["low"], part["high"], color=colour, lw=1.8)
            for place, row in zip(places, part.itertuples(), strict=True):
                face = "white" if row.significance == "not significant" else colour
                axis.plot(row.difference, place, marker, ms=5, mec=colour, mfc=face)
            axis.plot([], [], marker, color=colour, ms=5, lw=1.8, ls="-", label=kind)
        axis.set_title(measure)
        axis.grid(axis="y", visible=False)
    controls = rows[rows["kind"] == "best other method"].groupby("condition")["method"].first()
    names = [re.sub("^Flickr8k$", "photos, all pairs", name) for name in conditions]
    names = [wrap(name.replace("Flickr8k", "photos"), 31) for name in names]
    told = controls.str.replace(r"^CLIP(?:, | \+ )", "", regex=True)
    names = [
        f"{name}{' ' if chr(10) in name else chr(10)}({told[condition]})"
        for name, condition in zip(names, conditions, strict=True)
    ]
    axes[0, 0].set(ylim=(len(conditions) - 0.4, -0.6))
    axes[0, 0].set_yticks(range(len(conditions)), names)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncol=len(labels))
    figure.supxlabel("difference from tuned CLIP, percentage points")
    return list(axes.flat)


def beta_curves(
    rows: pd.DataFrame,
    measures: Mapping[str, str],
    limits: Sequence[tuple[float, float] | None] = (),
) -> list[Axes]:
    """Differences to CLIP over beta: a line a penalty, a row a condition, a column a measure, bands
    of 95 %.

    Args:
        rows: from `cibr_book.tables.read_table`, of CLIP and of the penalties, one variant of each
            a condition.
        measures: column of the rows by the title of the panel.
        limits: of the vertical axis of each measure; a curve that leaves it is cut.

    Returns:
        The Axes, row by row.
    """
    conditions = dict(list(rows.groupby("condition", sort=False)))
    size = (WIDTH, 0.8 + 0.95 * len(conditions))
    shape = len(conditions), len(measures)
    figure, axes = plt.subplots(
        *shape, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey="col"
    )
    for line, (condition, part) in zip(axes, conditions.items(), strict=True):
        clip = part[part["method"] == "CLIP"].set_index("seed")
        for i, (axis, (title, column)) in enumerate(zip(line, measures.items(), strict=True)):
            axis.axhline(0, color="black", lw=0.8)
            for method in CURVES:
                colour, marker = STYLES[method]
                own = part[(part["method"] == method) & part["seed"].isin(clip.index)]
                paired = own.assign(shown=own[column] - clip.loc[own["seed"], column].to_numpy())
                curve = mean_intervals(paired, ["beta"], "shown").sort_values("beta")
                style = dict(color=colour, marker=marker, ms=3, lw=1.3, label=method)
                axis.plot(curve["beta"], curve["mean"], **style)
                axis.fill_between(
                    curve["beta"], curve["low"], curve["high"], color=colour, alpha=0.15, lw=0
                )
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())
            if limits and limits[i]:
                axis.set_ylim(*limits[i])
            if axis in axes[0]:
                axis.set_title(title)
        line[0].set_ylabel(
            wrap(re.sub("^Flickr8k$", "all pairs", condition).removeprefix("Flickr8k, "), 12),
            fontweight="bold",
        )
    figure.supxlabel("beta")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncol=len(names))
    return list(axes.flat)
