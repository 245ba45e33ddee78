"""The ablation's figure: differences of all methods to tuned CLIP, a block a condition and a column a score."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from cibr.plots import BLUE, GREY, RED, wrap

MARKS = {"gain": ("^", BLUE), "loss": ("v", RED), "not significant": ("o", GREY)}


def method_forest(rows: pd.DataFrame) -> list[Axes]:
    """Differences with their intervals: a line a method, a block a condition, a column a measure.

    A filled triangle points to the side of zero on which the whole interval lies; a hollow circle holds zero.

    Args:
        rows: from `cibr_book.tables.differences`, in the order to show.

    Returns:
        The Axes, block by block.
    """
    names = rows["method"] + rows["beta"].map(lambda beta: f", beta {beta:g}" if beta else "")
    rows = rows.assign(name=names + rows["n_seeds"].map(" ({})".format))
    blocks, measures = dict(list(rows.groupby("condition", sort=False))), list(rows["measure"].unique())
    heights = [1.6 + part["name"].nunique() for part in blocks.values()]
    figure, axes = plt.subplots(
        len(blocks),
        len(measures),
        figsize=(8.6, 0.6 + 0.27 * sum(heights)),
        squeeze=False,
        sharex="col",
        layout="constrained",
        height_ratios=heights,
    )
    for line, (condition, part) in zip(axes, blocks.items(), strict=True):
        lines = list(part["name"].unique())
        for axis, measure in zip(line, measures, strict=True):
            axis.axvline(0, color="black", lw=0.8)
            for row in part[part["measure"] == measure].itertuples():
                place, (marker, colour) = lines.index(row.name), MARKS[row.significance]
                axis.plot([row.low, row.high], [place, place], color=colour, lw=1.6)
                face = "white" if marker == "o" else colour
                axis.plot(row.difference, place, marker, ms=6, mec=colour, mfc=face)
            axis.set(yticks=range(len(lines)), yticklabels=[], ylim=(len(lines) - 0.4, -0.6))
            axis.grid(axis="y", visible=False)
        line[0].set_yticklabels([wrap(name, 40) for name in lines], fontsize=9)
        line[0].set_title(condition, fontsize=9.5, fontweight="bold", loc="left")
    for axis, measure in zip(axes[-1], measures, strict=True):
        axis.set_xlabel(measure, fontsize=9.5, fontweight="bold")
    figure.supxlabel("difference to tuned CLIP, percentage points", fontsize=9.5)
    return list(axes.flat)
