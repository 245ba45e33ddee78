"""The ablation's figures: scores over beta, and differences of all methods to tuned CLIP."""

import re
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from cibr_book.experiments.tables import KINDS, differences
from cibr_book.pages.figures import STYLES, legend_above, log_axis
from cibr_book.pages.plots import BLUE, GREY, RED, WIDTH, draw_interval, panels, wrap

CURVES = ("CIBR vMF", "CIBR vMF, sampled", "CIBR crossfit", "CIBR MINE")
_MARKS = {"gain": ("^", BLUE), "loss": ("v", RED), "not significant": ("o", GREY)}


def method_forest(rows: pd.DataFrame) -> list[Axes]:
    """Differences with their intervals: one row a condition, one column a measure, a line a method.

    A filled triangle points to the side of zero on which the whole interval lies; a hollow circle
    holds zero.

    Args:
        rows: from `tables.comparisons`, in the order to show; methods are named with
            their control where that is not CLIP.

    Returns:
        The Axes, row by row.
    """
    names = rows["method"] + rows["beta"].map(lambda beta: f", beta {beta:g}" if beta else "")
    pairs = zip(rows["method"], rows["against"], strict=True)
    names = names.where(rows["against"] == "CLIP", [_contrast(*pair) for pair in pairs])
    names = [wrap(name, 50) for name in names + rows["n_seeds"].map(" ({})".format)]
    parts = dict(list(rows.assign(name=names).groupby("condition", sort=False)))
    places = {condition: _places(list(part["name"].unique())) for condition, part in parts.items()}
    heights = [2.2 + max(at.values()) for at in places.values()]
    measures = list(rows["measure"].unique())
    options = dict(sharex=True, height_ratios=heights)
    size = (WIDTH, 0.6 + 0.19 * sum(heights))
    figure, axes = panels(len(parts), len(measures), *size, **options)
    for line, (condition, part) in zip(axes, parts.items(), strict=True):
        at = places[condition]
        for axis, measure in zip(line, measures, strict=True):
            axis.axvline(0, color="black", lw=0.8)
            for row in part[part["measure"] == measure].itertuples():
                marker, colour = _MARKS[row.significance]
                draw_interval(axis, at[row.name], row, marker, colour, marker == "o")
            axis.set_yticks(list(at.values()), [])
            axis.set_ylim(max(at.values()) + 0.6, -0.6)
            axis.grid(axis="y", visible=False)
        line[0].set_yticklabels(at)
        line[0].set_title(condition, loc="left")
    for axis, measure in zip(axes[-1], measures, strict=True):
        axis.set_xlabel(measure, fontweight="bold")
    controls = {True: "tuned CLIP", False: "the method after vs"}
    controls = dict.fromkeys((rows["against"] == "CLIP").map(controls))
    figure.supxlabel(f"difference from {' or from '.join(controls)}, percentage points")
    return list(axes.flat)


def _contrast(method: str, control: str) -> str:
    """`a vs b, with c`, where both are trained with c."""
    ours, theirs = (re.sub("^CIBR |^CLIP, ", "", name).split(" + ") for name in (method, control))
    both = [part for part in ours if part in theirs]
    own = [" + ".join(p for p in parts if p not in both) for parts in (ours, theirs)]
    return " vs ".join(own) + (f", with {' + '.join(both)}" if both else "")


def _places(labels: Sequence[str]) -> dict[str, float]:
    """Places of labels one below another, one apart, and more where a label has several lines."""
    extra = [0.5 * label.count("\n") for label in labels]
    return {label: i + 2 * sum(extra[:i]) + extra[i] - extra[0] for i, label in enumerate(labels)}


def summary_figure(rows: pd.DataFrame) -> list[Axes]:
    """Gains in every condition: a column a measure, photos above glyphs, a mark a kind of method.

    A filled mark's interval leaves zero out. The best other control stands below the condition.

    Args:
        rows: from `tables.comparisons`, with a column `kind`, one method a kind in each
            condition, in the order to show.

    Returns:
        The Axes, row by row.
    """
    measures = rows["measure"].unique()
    is_glyphs = rows["condition"].str.startswith("glyphs")
    parts = [part for part in (rows[~is_glyphs], rows[is_glyphs]) if len(part)]
    counts = [part["condition"].nunique() for part in parts]
    size = (WIDTH, 1.0 + 0.5 * sum(counts))
    options = dict(sharex="row", sharey="row", height_ratios=counts)
    figure, axes = panels(len(parts), len(measures), *size, **options)
    for line, part in zip(axes, parts, strict=True):
        places = {condition: place for place, condition in enumerate(part["condition"].unique())}
        for axis, measure in zip(line, measures, strict=True):
            axis.axvline(0, color="black", lw=0.8)
            for i, kind in enumerate(KINDS):
                colour, marker = STYLES[kind]
                for row in part[(part["kind"] == kind) & (part["measure"] == measure)].itertuples():
                    place = places[row.condition] + 0.2 * (i - 1.5)
                    hollow = row.significance == "not significant"
                    draw_interval(axis, place, row, marker, colour, hollow)
                axis.plot([], [], marker, color=colour, ms=5, lw=1.8, ls="-", label=kind)
            axis.grid(axis="y", visible=False)
        line[0].set_ylim(len(places) - 0.4, -0.6)
        line[0].set_yticks(list(places.values()), [_with_control(part, name) for name in places])
    for axis, measure in zip(axes[0], measures, strict=True):
        axis.set_title(measure)
    legend_above(figure, axes[0, 0], 2)
    figure.supxlabel("difference from the control, percentage points")
    return list(axes.flat)


def _with_control(rows: pd.DataFrame, condition: str) -> str:
    """`10 % of the pairs` and, in brackets below it, the best other control."""
    is_control = (rows["condition"] == condition) & (rows["kind"] == "best other control")
    name = "photos, all pairs" if condition == "Flickr8k" else condition
    name = wrap(name.replace("Flickr8k", "photos"), 31)
    controls = [re.sub(r"^CLIP(?:, | \+ )", "", x) for x in rows.loc[is_control, "method"].unique()]
    return "\n".join([name, *(f"({control})" for control in controls)])


def beta_curves(
    rows: pd.DataFrame,
    measures: Mapping[str, str],
    limits: Sequence[tuple[float, float] | None] = (),
) -> list[Axes]:
    """Differences to CLIP over beta, with bands of 95 %: one line for each penalty.

    Args:
        rows: from `tables.read_table`, of CLIP and of the penalties, one variant of each
            a condition.
        measures: column of the rows by the title of the panel.
        limits: of the vertical axis of each measure; a curve that leaves it is cut.

    Returns:
        The Axes, row by row, one row for each condition, one column for each measure.
    """
    conditions = rows["condition"].unique()
    size = (WIDTH, 0.8 + 0.95 * len(conditions))
    figure, axes = panels(len(conditions), len(measures), *size, sharex=True, sharey="col")
    compared = differences(rows, [*measures.values()]).sort_values("beta")
    for line, condition in zip(axes, conditions, strict=True):
        for axis, measure in zip(line, measures.values(), strict=True):
            axis.axhline(0, color="black", lw=0.8)
            for i, method in enumerate(CURVES):
                colour, marker = STYLES[method]
                is_shown = (compared["method"] == method) & (compared["measure"] == measure)
                curve = compared[is_shown & (compared["condition"] == condition)]
                style = dict(color=colour, marker=marker, ms=3, lw=1.3, label=method)
                beta = curve["beta"] * 1.07 ** (i - 1.5)  # beside each other
                axis.plot(beta, curve["difference"], **style)
                band = beta, curve["low"], curve["high"]
                axis.fill_between(*band, color=colour, alpha=0.15, lw=0)
            log_axis(axis)
        name = "all pairs" if condition == "Flickr8k" else condition.removeprefix("Flickr8k, ")
        line[0].set_ylabel(wrap(name, 12), fontweight="bold")
    for axis, title in zip(axes[0], measures, strict=True):
        axis.set_title(title)
    for axis, limit in zip(axes[0], limits, strict=False):
        axis.set_ylim(limit)
    figure.supxlabel("beta")
    legend_above(figure, axes[0, 0])
    return list(axes.flat)
