"""Figures of the map: what each method gains, and the information in its embeddings."""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from cibr_book.pages.figures import STYLES, legend_above
from cibr_book.pages.plots import GREEN, PINK, WIDTH, panels, wrap
from cibr_book.worlds.map import CONTENDERS

_STYLES = STYLES | {"CLIP, CCA start": (GREEN, "^"), "ridge CCA": (PINK, "X")}
COLOURS = {"CLIP": "#FFFFFF"} | {name: _STYLES[name][0] for name in CONTENDERS}  # on the page
_MOST = 10  # points at which a colour is darkest


def gain_maps(table: pd.DataFrame, methods: Sequence[str] = CONTENDERS) -> list[Axes]:
    """Gains over CLIP in points for several methods: blue is better than CLIP, red is worse.

    Args:
        table: from `cibr_book.worlds.map.gains`.
        methods: one Axes each.

    Returns:
        The Axes; bold numbers have an interval without zero.
    """
    n_rows = -(-len(methods) // 3)
    axes = panels(n_rows, 3, WIDTH, 2.4 * n_rows, sharex=True, sharey=True)[1]
    for axis in axes.flat[len(methods) :]:
        axis.axis("off")
    for axis, method in zip(axes.flat, methods, strict=False):
        part = table[table["method"] == method]
        part = part.assign(sure=part["low"] * part["high"] > 0)
        maps = part.pivot(index="pairs", columns="nuisance").sort_index(ascending=False)
        texts = maps["mean"].map(lambda x: f"{x:+.0f}" if abs(x) >= 9.5 else f"{x:+.1f}")
        style = dict(cmap="RdBu", vmin=-_MOST, vmax=_MOST, cbar=False, annot_kws={"size": 7})
        sns.heatmap(maps["mean"], annot=texts, fmt="", ax=axis, **style)
        sure = maps["sure"].to_numpy()[maps["mean"].notna()]
        for text, is_sure in zip(axis.texts, sure, strict=True):
            text.set_fontweight("bold" if is_sure else "normal")
        axis.set(title=wrap(method, 22), xlabel="nuisance scale", ylabel="")
        axis.set_yticklabels([f"{n:,}" for n in maps.index], rotation=0)
    for axis in axes[:, 0]:
        axis.set_ylabel("training pairs")
    return list(axes.flat[: len(methods)])


def information_maps(
    rows: pd.DataFrame, cells: Sequence[tuple[int, float]], noise: float
) -> list[Axes]:
    """Exact shared against residual information in some cells: every run, by method.

    Args:
        rows: of the map's table.
        cells: pairs and nuisance scale of each panel.
        noise: variance at which information is reported.

    Returns:
        One Axes a cell.
    """
    figure, axes = panels(1, len(cells), WIDTH, 2.9, sharex=True, sharey=True)
    for axis, (pairs, nuisance) in zip(axes[0], cells, strict=True):
        part = rows[(rows["pairs"] == pairs) & (rows["nuisance"] == nuisance)]
        for method in ("CLIP", *CONTENDERS):
            own = part[part["method"] == method]
            colour, marker = _STYLES[method]
            places = [own[f"{kind}_nats_at_{noise:g}"] for kind in ("residual", "shared")]
            axis.plot(*places, marker, color=colour, ms=3.5, alpha=0.7, label=method)
        axis.set(title=f"{pairs:,} pairs, nuisance {nuisance:g}", xlabel="residual (nats)")
    axes[0, 0].set_ylabel("shared (nats)")
    legend_above(figure, axes[0, 0])
    return list(axes[0])
