"""Figures of the study: each function draws tidy rows, and returns its Axes.

Rows with intervals have the columns `mean, low, high`. Reference series, which are no method, are
grey.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image
from torch import Tensor

from cibr_book.pages.plots import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, WIDTH, panels, wrap

_Values = Sequence[float | int] | Tensor
_LINES = (BLUE, ORANGE, GREEN, RED, PINK, SKY, "black")  # the palette's yellow is too pale
_MARKERS = "os^DvP*X"
SHADES = ("black", "#440154", "#31688E", "#35B779", "#B5A300")  # of growing beta
# Colour and marker of methods and estimators, the same in every figure.
_NAMES = {
    ("black", "D"): ("CLIP",),
    (BLUE, "o"): ("CIBR", "CIBR vMF", "InfoNCE"),
    (GREEN, "^"): ("NWJ",),
    (ORANGE, "v"): ("DV",),
    (RED, "s"): ("SMILE, clip 1",),
    (RED, "P"): ("noise only",),
}
_STYLES = {name: style for style, names in _NAMES.items() for name in names}
_MOST = 10  # points of a map at which a colour is darkest


def _styles(names: Sequence[str], references: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
    """Colour and marker by name: those of `_STYLES`, or grey for references, or the next free."""
    taken = {_STYLES[name][0] for name in names if name in _STYLES}
    free = (style for style in zip(_LINES, _MARKERS, strict=False) if style[0] not in taken)
    return {
        name: (GREY, "s") if name in references else _STYLES.get(name) or next(free)
        for name in names
    }


def _legend_above(figure: Figure, axis: Axes) -> None:
    """The names of an Axes' lines above all panels."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncol=min(len(names), 4))


def curve_panels(
    curves_by_title: Mapping[str, Mapping[str, tuple[_Values, _Values]]], **settings
) -> list[Axes]:
    """Curves side by side, one panel for each title.

    Args:
        curves_by_title: by title, for each curve (by its label) its x and y values.
        settings: of every Axes, such as `xlabel` or `xscale`.

    Returns:
        One Axes a panel.
    """
    _, axes = panels(1, len(curves_by_title), 6.4, 2.7)
    for axis, (title, curves) in zip(axes[0], curves_by_title.items(), strict=True):
        for name, (colour, _) in _styles(list(curves)).items():
            axis.plot(*curves[name], color=colour, lw=2, label=name)
        axis.set(title=title, ylim=(0, None), **settings)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.26))
    return list(axes[0])


def interval_lines(
    rows: pd.DataFrame, x: str, by: str, panel: str | None = None, log: bool = False
) -> list[Axes]:
    """Means with intervals over a column: one line for each value of `by`, side by side in panels.

    Args:
        rows: `mean, low, high` and the columns named here, one row a point.
        x: the column of the horizontal axis.
        by: the column of the lines.
        panel: the column of the panels' titles; one panel if None.
        log: whether the horizontal axis is logarithmic, with a tick at every value.

    Returns:
        One Axes a panel.
    """
    parts = [("", rows)] if panel is None else list(rows.groupby(panel, sort=False))
    size = (4.8, 3.2) if panel is None else (min(3.2 * len(parts), WIDTH), 2.6)
    figure, axes = panels(1, len(parts), *size, sharey=True)
    drawn = _styles(list(rows[by].unique()))
    ticks = sorted(rows[x].unique())
    for axis, (title, part) in zip(axes.flat, parts, strict=True):
        for i, (name, (colour, marker)) in enumerate(drawn.items()):
            line = part[part[by] == name].sort_values(x)
            # A shift on a logarithmic axis, so that intervals stand apart.
            shift = 1.04 ** (i - (len(drawn) - 1) / 2) if log else 1
            errors = [line["mean"] - line["low"], line["high"] - line["mean"]]
            style = dict(color=colour, marker=marker, lw=1.4, ms=5, capsize=2, label=name)
            axis.errorbar(shift * line[x], line["mean"], yerr=errors, **style)
        axis.set(title=title, xlabel=x.replace("_", " "))
        if log:
            axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.xaxis.set_minor_formatter(NullFormatter())
    _legend_above(figure, axes.flat[0])
    return list(axes.flat)


def changes_over_beta(by_seed: pd.DataFrame, intervals: pd.DataFrame) -> list[Axes]:
    """Differences from CLIP over beta, a panel a measure: dots are runs, lines their means.

    Args:
        by_seed: `measure, penalty, beta, seed, change`.
        intervals: `measure, penalty, beta, mean, low, high`, for bands; other measures have none.

    Returns:
        One Axes a measure.
    """
    measures = by_seed["measure"].unique()
    n_columns = 4
    n_rows = -(-len(measures) // n_columns)
    figure, axes = panels(n_rows, n_columns, WIDTH, 2.0 * n_rows)
    drawn = _styles(list(by_seed["penalty"].unique()))
    betas = sorted(by_seed["beta"].unique())
    for axis, measure in zip(axes.flat, measures, strict=False):
        for penalty, (colour, marker) in drawn.items():
            dots = by_seed.query("measure == @measure and penalty == @penalty")
            band = intervals.query("measure == @measure and penalty == @penalty")
            means = dots.groupby("beta")["change"].mean()
            axis.plot([0, *means.index], [0, *means], color=colour, lw=1.4, label=penalty)
            axis.plot(dots["beta"], dots["change"], marker, color=colour, ms=3, alpha=0.6)
            zero = [0.0] if len(band) else []
            limits = ([*zero, *band["low"]], [*zero, *band["high"]])
            axis.fill_between([*zero, *band["beta"]], *limits, color=colour, alpha=0.15, lw=0)
        axis.axhline(0, color="black", lw=0.6)
        axis.set_xscale("symlog", linthresh=betas[0], linscale=0.4)
        axis.set_xticks([0, *betas], ["0", *map("{:g}".format, betas)])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(wrap(measure, 20), fontweight="normal")
        axis.set_xlabel("beta")
    for axis in axes.flat[len(measures) :]:
        axis.remove()
    if len(drawn) > 1:
        _legend_above(figure, axes.flat[0])
    return list(axes.flat[: len(measures)])


def forms_over_beta(table: pd.DataFrame, spread: Mapping[str, float]) -> list[Axes]:
    """Differences of several forms of a penalty from CLIP over beta, a panel a measure.

    Lines are means and bands their intervals. The strip is how much CLIP's own value differs from
    draw to draw. Beyond a point the vertical axis is logarithmic.

    Args:
        table: `method, beta, measure, difference, low, high`; without rows at beta 0, where every
            form is CLIP.
        spread: by measure, the standard deviation of CLIP over draws, in the measure's unit.

    Returns:
        One Axes a measure.
    """
    measures = table["measure"].unique()
    n_columns = 3
    n_rows = -(-len(measures) // n_columns)
    figure, axes = panels(n_rows, n_columns, WIDTH, 2.3 * n_rows)
    drawn = _styles(list(table["method"].unique()))
    betas = sorted(table["beta"].unique())
    for axis, measure in zip(axes.flat, measures, strict=False):
        axis.axhspan(-spread[measure], spread[measure], color=GREY, alpha=0.15, lw=0)
        for method, (colour, marker) in drawn.items():
            of = table[(table["measure"] == measure) & (table["method"] == method)]
            of = of.sort_values("beta")
            beta = [0, *of["beta"]]
            line = [0, *of["difference"]]
            axis.plot(beta, line, marker, ls="-", color=colour, lw=1.2, ms=3, label=method)
            axis.fill_between(
                beta, [0, *of["low"]], [0, *of["high"]], color=colour, alpha=0.15, lw=0
            )
        axis.axhline(0, color="black", lw=0.6)
        axis.set_xscale("symlog", linthresh=betas[0], linscale=0.4)
        axis.set_xlim(0, 1.1 * betas[-1])
        axis.set_xticks([0, *betas], ["0", *map("{:g}".format, betas)], rotation=45)
        axis.xaxis.set_minor_formatter(NullFormatter())
        if table.loc[table["measure"] == measure, ["low", "high"]].abs().max(axis=None) > 2:
            axis.set_yscale("symlog", linthresh=1)
            axis.yaxis.set_major_formatter("{x:g}")
        axis.set_title(wrap(measure, 24), fontweight="normal")
        axis.set_xlabel("beta")
    for axis in axes.flat[len(measures) :]:
        axis.remove()
    _legend_above(figure, axes.flat[0])
    return list(axes.flat[: len(measures)])


def reference_line(axis: Axes, value: float, text: str) -> None:
    """A dotted horizontal line with its name at the right end."""
    axis.axhline(value, color=GREY, lw=1, ls=":")
    place = axis.get_yaxis_transform()
    axis.text(1.01, value, text, color=GREY, va="center", transform=place)


def predictions(rows: pd.DataFrame, panel: str, by: str) -> list[Axes]:
    """Measured against predicted values, with the diagonal on which both are equal.

    Args:
        rows: `predicted, measured` and the columns named here, one row a point.
        panel: the column of the panels, of which two are side by side.
        by: the column of the points' colours; the first value is drawn on top.

    Returns:
        One Axes a panel.
    """
    parts = list(rows.groupby(panel, sort=False))
    n_rows = -(-len(parts) // 2)
    figure, axes = panels(n_rows, 2, 6.4, 2.9 * n_rows)
    drawn = _styles(list(rows[by].unique()))
    for axis, (title, part) in zip(axes.flat, parts, strict=True):
        ends = [f(part[["predicted", "measured"]].to_numpy()) for f in (np.min, np.max)]
        axis.plot(ends, ends, color="black", lw=0.8)
        for name, (colour, _) in reversed(drawn.items()):
            own = part[part[by] == name]
            axis.scatter(own["predicted"], own["measured"], 9, colour, lw=0, alpha=0.7, label=name)
        axis.set(title=title, xlabel="predicted", ylabel="measured")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncol=len(names))
    return list(axes.flat)


def interval_bars(
    rows: pd.DataFrame, by: str, colour_by: str, label: str, references: Sequence[str] = ()
) -> Axes:
    """Bars in per cent with intervals: several for each value of one column, coloured by another.

    Args:
        rows: `mean, low, high` and the two columns named by `by` and `colour_by`, in the order to
            show.
        by: the column on the vertical axis.
        colour_by: the column of the colours, such as the model.
        label: of the values' axis.
        references: values of `colour_by` that are grey.

    Returns:
        The Axes.
    """
    places = {name: i for i, name in enumerate(rows[by].unique())}
    drawn = _styles(list(rows[colour_by].unique()), references)
    step = 1 / (len(drawn) + 1)
    axis = panels(1, 1, 6.4, 0.6 + 0.13 * len(places) * (len(drawn) + 1))[1][0, 0]
    for i, (name, (colour, _)) in enumerate(drawn.items()):
        part = rows[rows[colour_by] == name]
        at = part[by].map(places) + (i - (len(drawn) - 1) / 2) * step
        mean, low, high = 100 * part[["mean", "low", "high"]].to_numpy(dtype=float).T
        axis.barh(at, mean, step, label=name, color=colour)
        errors = [mean - low, high - mean]
        axis.errorbar(mean, at, xerr=errors, fmt="none", ecolor="black", lw=1.1, capsize=2)
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(list(places.values()), list(places))
    axis.set(xlabel=label, ylim=(len(places) - 0.5, -0.5))
    axis.grid(False, axis="y")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return axis


def information_planes(rows: pd.DataFrame, limit: float) -> list[Axes]:
    """Shared against residual information, a panel for each noise: every run, and means joined.

    Args:
        rows: `method, kappa, temperature, beta, n_steps, shared, residual`, one row a run; those of
            the method `optimum` are the boundary.
        limit: I(X_v;X_t) in nats, which no encoder exceeds.

    Returns:
        One Axes a value of kappa.
    """
    parts = list(rows.groupby("kappa", sort=False))
    figure, axes = panels(1, len(parts), WIDTH, 3.4)
    methods = [name for name in rows["method"].unique() if name != "optimum"]
    for axis, (kappa, part) in zip(axes[0], parts, strict=True):
        optimum = part[part["method"] == "optimum"].sort_values("residual")
        axis.plot(optimum["residual"], optimum["shared"], color=GREY, lw=2.5, label="optimum")
        for method, (colour, marker) in _styles(methods).items():
            runs = part[part["method"] == method]
            axis.plot(runs["residual"], runs["shared"], marker, color=colour, ms=2.5, alpha=0.3)
            usual = runs[runs["n_steps"] == runs["n_steps"].min()]
            by = ["temperature", "beta"]
            means = usual.groupby(by, sort=False)[["residual", "shared"]].mean()
            style = dict(color=colour, ms=5, lw=1.2, label=method)
            axis.plot(means["residual"], means["shared"], f"{marker}-", **style)
        axis.set(title=f"noise of concentration {kappa:g}", xlabel="residual (nats)")
    axes[0, 0].set_ylabel("shared (nats)")
    reference_line(axes[0, -1], limit, "I(image; text)")
    _legend_above(figure, axes[0, 0])
    return list(axes[0])


def attribution_rows(
    images: Sequence[Image.Image], titles: Sequence[str], maps: Mapping[str, Float[Tensor, "n h w"]]
) -> list[Axes]:
    """Images in the first row, and below them each kind of map, laid over the pale image.

    Args:
        images: n images.
        titles: one an image.
        maps: attribution of each kind, each map scaled to its own maximum, which is darkest; below
            zero counts as none.

    Returns:
        Axes row by row.
    """
    height = (WIDTH - 0.9) / len(images) * (1 + len(maps)) + 0.5
    _, axes = panels(1 + len(maps), len(images), WIDTH, height)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
    for axis, image, title in zip(axes[0], images, titles, strict=True):
        axis.imshow(image.convert("RGB"))
        axis.set_title(wrap(title, 80 // len(images)), fontweight="normal", parse_math=False)
    for row, (name, of_kind) in zip(axes[1:], maps.items(), strict=True):
        row[0].set_ylabel(wrap(name, 9), rotation=0, ha="right", va="center")
        for axis, image, one in zip(row, images, of_kind.clamp(min=0), strict=True):
            strength = (one / one.max().clamp(min=1e-30)).numpy()
            axis.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=255, alpha=0.35)
            extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
            style = dict(cmap="Blues", alpha=0.85 * strength**0.5, vmin=0, vmax=1)
            axis.imshow(strength, extent=extent, **style)
    return list(axes.flat)


def gain_maps(table: pd.DataFrame, methods: Sequence[str]) -> list[Axes]:
    """Gains over CLIP in points for several methods: blue is better than CLIP, red is worse.

    Args:
        table: from `cibr_book.worlds.map.gains`.
        methods: one Axes each.

    Returns:
        The Axes; bold numbers have an interval without zero.
    """
    axes = panels(1, len(methods), 2.4 * len(methods), 2.4, sharex=True, sharey=True)[1][0]
    for axis, method in zip(axes, methods, strict=True):
        part = table[table["method"] == method]
        maps = part.assign(sure=part["low"] * part["high"] > 0)
        maps = maps.pivot(index="pairs", columns="nuisance").sort_index(ascending=False)
        texts = maps["mean"].map(lambda x: f"{x:+.0f}" if abs(x) >= 9.5 else f"{x:+.1f}")
        style = dict(cmap="RdBu", vmin=-_MOST, vmax=_MOST, cbar=False, annot_kws={"size": 7})
        sns.heatmap(maps["mean"], annot=texts, fmt="", ax=axis, **style)
        sure = maps["sure"].to_numpy()[maps["mean"].notna()]
        for text, is_sure in zip(axis.texts, sure, strict=True):
            text.set_fontweight("bold" if is_sure else "normal")
        axis.set(title=method, xlabel="nuisance scale", ylabel="")
        axis.set_yticklabels([f"{n:,}" for n in maps.index], rotation=0)
    axes[0].set_ylabel("training pairs")
    return list(axes)


def forest(rows: pd.DataFrame) -> Axes:
    """Differences with their intervals as dots and lines, a row each, under the names of groups.

    Args:
        rows: `group, row, mean, low, high`, in the order from top to bottom.

    Returns:
        The Axes, with a line at 0.
    """
    groups = [*dict.fromkeys(rows["group"])]
    rows = rows.reset_index(drop=True)
    places = -rows.index - 1.25 * rows["group"].map(groups.index)
    axis = panels(1, 1, 6.6, 0.6 + 0.24 * (len(rows) + 1.2 * len(groups)))[1][0, 0]
    axis.axvline(0, color="black", lw=0.8)
    for i, group in enumerate(groups):
        of = rows[rows["group"] == group]
        widths = of["mean"] - of["low"], of["high"] - of["mean"]
        axis.errorbar(of["mean"], places[of.index], xerr=widths, fmt="o", ms=5, color=f"C{i}")
        top = places[of.index].max() + 0.9
        place = dict(transform=axis.get_yaxis_transform(), va="center")
        axis.text(0.01, top, group, **place, bbox={"color": "white", "pad": 1})
    axis.set_yticks(places, rows["row"])
    axis.set_ylim(places.min() - 0.7, 1.5)
    return axis
