"""Figures of the ablation's chapter, in the visual language of `cibr.plots` and at the width of a phone.

Differences are percentage points against tuned CLIP, and a mark's shape says what its interval says: a filled
triangle points to the side of zero on which all of it lies, a hollow circle has zero inside. Colour only repeats
the shape.
"""

import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from cibr.plots import BLUE, GREY, RED, wrap

WIDTH = 5.6  # inches: at 360 px, half of its 110 dpi, what is written is 8 px high and more
PALE = {"above 0": "#9CCBE8", "around 0": "#F2F2F2", "below 0": "#F3B48A"}
MARKS = {"above 0": ("^", BLUE, BLUE), "below 0": ("v", RED, RED), "around 0": ("o", GREY, "white")}
MARKS["one seed"] = ("x", GREY, GREY)
SIGNS = {"above 0": "▲", "below 0": "▼", "around 0": "○", "one seed": "×"}
LINES = (BLUE, "#CC79A7", "#E69F00", "#009E73", RED, "#56B4E9", "#000000")
SHAPES = "osD^vP*Xh<>p8"


def arm_forest(rows: pd.DataFrame, measures: Sequence[str]) -> list[Axes]:
    """Every arm's difference to tuned CLIP with its interval: a line an arm, a block a setting.

    Args:
        rows: `setting, arm, measure, difference, low, high, verdict`; differences as shares.
        measures: the columns, from left to right.

    Returns:
        The Axes, block by block.
    """
    blocks = {setting: list(part["arm"].unique()) for setting, part in rows.groupby("setting", sort=False)}
    heights = [1.2 + len(arms) for arms in blocks.values()]
    size = (WIDTH, 0.7 * len(blocks) + 0.29 * sum(heights))
    options = dict(squeeze=False, sharex="col", layout="constrained", height_ratios=heights)
    _, axes = plt.subplots(len(blocks), len(measures), figsize=size, **options)
    for line, (setting, arms) in zip(axes, blocks.items(), strict=True):
        for axis, measure in zip(line, measures, strict=True):
            part = rows[(rows["setting"] == setting) & (rows["measure"] == measure)]
            _draw_intervals(axis, part, arms)
            axis.set(yticks=range(len(arms)), yticklabels=[], ylim=(len(arms) - 0.4, -0.6))
        line[0].set_yticklabels([wrap(arm, 22) for arm in arms], fontsize=8.5)
        line[len(measures) // 2].set_title(f"{setting}\n{measures[len(measures) // 2]}", fontsize=9)
        for axis, measure in zip(line, measures, strict=True):
            axis.set_title(axis.get_title() or measure, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("points", fontsize=8)
    return list(axes.flat)


def _draw_intervals(axis: Axes, rows: pd.DataFrame, arms: Sequence[str]) -> None:
    axis.axvline(0, color="black", lw=0.8)
    for row in rows.itertuples():
        place = arms.index(row.arm)
        marker, edge, face = MARKS[row.verdict]
        axis.plot([100 * row.low, 100 * row.high], [place, place], color=edge, lw=1.6)
        axis.plot(100 * row.difference, place, marker, ms=6, mec=edge, mfc=face)
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", visible=False)


def verdict_map(rows: pd.DataFrame, measures: Sequence[str]) -> list[Axes]:
    """Where arms help, where they do not and where they hurt: a field an arm and setting, a panel a measure.

    A field is shaded and marked by its interval, never by its point estimate; the number is the point estimate.

    Args:
        rows: `arm, setting, measure, difference, verdict`; combinations that are not there stay blank.
        measures: the panels, from top to bottom.

    Returns:
        One Axes a measure.
    """
    arms, settings = list(rows["arm"].unique()), list(rows["setting"].unique())
    upright = len(settings) > 3
    labels = [wrap(setting, 28 if upright else 22) for setting in settings]
    height = len(measures) * (0.35 + 0.24 * len(arms)) + 1.4
    _, axes = plt.subplots(
        len(measures), 1, figsize=(WIDTH, height), layout="constrained", sharex=True, squeeze=False
    )
    order = list(PALE)
    for axis, measure in zip(axes[:, 0], measures, strict=True):
        part = rows[rows["measure"] == measure]
        codes = np.full((len(arms), len(settings)), np.nan)
        for row in part.itertuples():
            at = arms.index(row.arm), settings.index(row.setting)
            codes[at] = order.index(row.verdict) if row.verdict in order else np.nan
            text = f"{SIGNS[row.verdict]} {100 * row.difference:+.1f}"
            axis.text(at[1], at[0], text, ha="center", va="center", fontsize=7.5)
        axis.imshow(codes, cmap=ListedColormap(list(PALE.values())), vmin=0, vmax=2, aspect="auto")
        axis.set(title=measure, yticks=range(len(arms)), xticks=range(len(settings)))
        axis.set_yticklabels(arms, fontsize=8)
        axis.set_xticklabels(labels, fontsize=8, rotation=90 if upright else 0)
        axis.grid(False)
    return list(axes[:, 0])


def beta_curves(rows: pd.DataFrame, measures: Sequence[str]) -> list[Axes]:
    """Differences to tuned CLIP over the penalty's weight, with intervals: a line a setting, a column a measure.

    Args:
        rows: `setting, arm, beta, measure, difference, low, high`, one beta an arm or more, all above 0.
        measures: the columns, from left to right.

    Returns:
        The Axes, line by line.
    """
    settings, arms = list(rows["setting"].unique()), list(rows["arm"].unique())
    size = (WIDTH, 1.8 * len(settings) + 0.7 + 0.1 * len(arms))
    options = dict(layout="constrained", sharex="row", squeeze=False)
    figure, axes = plt.subplots(len(settings), len(measures), figsize=size, **options)
    for (i, setting), (j, measure) in itertools.product(enumerate(settings), enumerate(measures)):
        axis = axes[i, j]
        axis.axhline(0, color="black", lw=0.8)
        for arm, curve in rows[(rows["measure"] == measure) & (rows["setting"] == setting)].groupby("arm"):
            place = arms.index(arm)
            curve = curve.sort_values("beta")
            shift = 1.05 ** (place - (len(arms) - 1) / 2)  # so that intervals stand side by side
            errors = 100 * np.array([curve["difference"] - curve["low"], curve["high"] - curve["difference"]])
            style = dict(color=LINES[place % len(LINES)], marker=SHAPES[place], ms=4, capsize=2, lw=1.2)
            axis.errorbar(curve["beta"] * shift, 100 * curve["difference"], yerr=errors, label=arm, **style)
        axis.set(xscale="log", xlabel="beta" if setting == settings[-1] else "")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(f"{setting}\n{measure}" if j == len(measures) // 2 else measure, fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0, 0].figure.supylabel("points", fontsize=9)
    _shared_legend(figure, axes)
    return list(axes.flat)


def plane_over_training(curves: pd.DataFrame, ends: pd.DataFrame) -> list[Axes]:
    """The information plane, a line a setting: on the left paths over the epochs, on the right where arms end.

    Args:
        curves: `setting, arm, epoch, residual_nats, mi_lower_bound_nats` on training batches, one row an epoch;
            arms of which one is not known have no path.
        ends: `setting, arm, residual_nats, mi_lower_bound_nats`, means over seeds on validation pairs.

    Returns:
        The Axes, line by line.
    """
    columns = ["residual_nats", "mi_lower_bound_nats"]
    settings, arms = list(ends["setting"].unique()), list(ends["arm"].unique())
    size = (WIDTH, 2.8 * len(settings) + 0.6 + 0.09 * len(arms))
    figure, axes = plt.subplots(len(settings), 2, figsize=size, layout="constrained", squeeze=False)
    for (over, end), setting in zip(axes, settings, strict=True):
        part = curves[curves["setting"] == setting].dropna(subset=columns)
        for arm, curve in part.groupby("arm", sort=False):
            x, y = curve.sort_values("epoch")[columns].to_numpy().T
            over.plot(x, y, "-", lw=0.8, color=_of_arm(arm))
            _letter(over, arms, arm, x[-1], y[-1])
        for row in ends[ends["setting"] == setting].itertuples():
            _letter(end, arms, row.arm, row.residual_nats, row.mi_lower_bound_nats)
        over.set_title(f"{wrap(setting, 30)}\nover training", fontsize=9)
        end.set_title("at the end, unseen pairs", fontsize=9)
        end.margins(0.1)
    for axis in axes[-1]:
        axis.set_xlabel("residual, upper bound (nats)", fontsize=9)
    for axis in axes.flat:
        axis.tick_params(labelsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(5))
    figure.supylabel("shared, lower bound (nats)", fontsize=9)
    _shared_legend(figure, axes)
    return list(axes.flat)


def leakage_against_score(rows: pd.DataFrame, xlabel: str, ylabel: str) -> list[Axes]:
    """One letter an arm: what its embeddings leak against what it scores, both against tuned CLIP at the origin.

    Args:
        rows: `setting, arm`, and of the leakage and of the score the difference and its interval: `x, x_low,
            x_high` and `y, y_low, y_high`.
        xlabel: of the leakage.
        ylabel: of the score.

    Returns:
        One Axes a setting.
    """
    settings, arms = list(rows["setting"].unique()), ["CLIP", *rows["arm"].unique()]  # letters as in the plane
    size = (WIDTH, 2.6 * len(settings) + 0.5 + 0.1 * len(arms))
    figure, axes = plt.subplots(len(settings), 1, figsize=size, layout="constrained", squeeze=False)
    for axis, setting in zip(axes[:, 0], settings, strict=True):
        axis.axvline(0, color="black", lw=0.8)
        axis.axhline(0, color="black", lw=0.8)
        _letter(axis, arms, arms[0], 0.0, 0.0)
        for row in rows[rows["setting"] == setting].itertuples():
            axis.plot([row.x_low, row.x_high], [row.y, row.y], color=_of_arm(row.arm), lw=0.8, alpha=0.6)
            axis.plot([row.x, row.x], [row.y_low, row.y_high], color=_of_arm(row.arm), lw=0.8, alpha=0.6)
            _letter(axis, arms, row.arm, row.x, row.y)
        axis.set_title(setting, fontsize=9)
        axis.set_ylabel(ylabel, fontsize=9)
    axes[-1, 0].set_xlabel(xlabel, fontsize=9)
    _shared_legend(figure, axes)
    return list(axes[:, 0])


def measure_against_gap(rows: pd.DataFrame, panels: dict[str, str], gap: str) -> list[Axes]:
    """Every run as a point, its setting as shape and colour: measures of information against the train-test gap.

    Args:
        rows: one row a run with `setting` and the columns.
        panels: labels by column, from left to right.
        gap: the column of the gap.

    Returns:
        One Axes a panel.
    """
    settings = list(rows["setting"].unique())
    size = (WIDTH, 3.4 + 0.14 * len(settings))
    _, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axis, (column, label) in zip(axes[0], panels.items(), strict=True):
        for i, setting in enumerate(settings):
            part = rows[rows["setting"] == setting]
            style = dict(color=LINES[i % len(LINES)], marker=SHAPES[i % len(SHAPES)], ls="", ms=4, alpha=0.7)
            axis.plot(part[column], part[gap], label=setting, **style)
        axis.set_xlabel(wrap(label, 26), fontsize=9)
    axes[0][0].set_ylabel("train-test gap of the bound (nats)", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    axes[0][0].figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=8, ncols=2)
    return list(axes[0])


def _letter(axis: Axes, arms: Sequence[str], arm: str, x: float, y: float) -> None:
    """A point as its arm's letter, since a dozen names would lie on each other; the legend reads them."""
    letter = chr(ord("A") + arms.index(arm))
    axis.plot(x, y, marker=f"${letter}$", ls="", ms=8, color=_of_arm(arm), label=arm, zorder=3)


def _of_arm(arm: str) -> str:
    return BLUE if arm.startswith("CIBR") else GREY


def _shared_legend(figure: Figure, axes: np.ndarray) -> None:
    """One legend under all panels, each name once, in the order of the names' letters or first lines."""
    named = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    labels = sorted(named, key=lambda label: getattr(named[label], "get_marker", str)() or "")
    options = dict(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.legend([named[label] for label in labels], labels, **options)
