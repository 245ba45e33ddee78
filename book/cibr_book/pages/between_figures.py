"""The map of `between`: gains over tuned CLIP in every cell, who is best where, and its figures;
and what the map predicts for places on it, beside the rows of the ablation.
"""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from scipy import stats
from scipy.interpolate import RegularGridInterpolator

from cibr_book.experiments.tables import chosen, differences
from cibr_book.pages.figures import STYLES, legend_above, styles
from cibr_book.pages.plots import GREEN, ORANGE, PINK, WIDTH, panels, wrap

CELL = ["pairs", "nuisance"]
# Methods that compete with tuned CLIP in linear towers, in the order of legends: the simplest last.
CONTENDERS = {
    "CIBR vMF": STYLES["CIBR vMF"],
    "CIBR vMF, sampled": STYLES["CIBR vMF, sampled"],
    "noise only": STYLES["noise only"],
    "CLIP, width": (ORANGE, "v"),
    "CLIP, CCA start": (GREEN, "^"),
    "ridge CCA": (PINK, "X"),
}
COLOURS = {"CLIP": ("#FFFFFF", "D")} | CONTENDERS
TIE = 0.5  # points of recall within which methods count as equally good
_MOST = 10  # points at which a colour is darkest
_RECALL = r"^(?:mini/flickr8k|glyphs/glyphs)/\w+_recall@1$"  # both directions in the ablation
_IN_ABLATION = {name: name for name in CONTENDERS} | {"ridge CCA": "closed-form CCA"}


def gains(rows: pd.DataFrame, value: str = "test_recall") -> pd.DataFrame:
    """Differences from tuned CLIP with the same towers, paired by seed.

    Args:
        rows: the map's table, from `between`.
        value: the column to compare.

    Returns:
        A row for each cell, tower and method but CLIP: `pairs, nuisance, tower, method`, the mean
        of the `value` and of its difference from CLIP, `mean`, with Student's 95 % interval `low,
        high` over `n` seeds; the `p_value` of Student's test, and `q_value`, adjusted by Benjamini
        and Hochberg over all contenders and cells.
    """
    by = [*CELL, "tower"]
    cells = rows.assign(condition=rows.groupby(by, sort=False).ngroup())
    known = cells.assign(beta=0.0, hyperparameters="", validation=0.0)
    names = {"difference": "mean", "n_seeds": "n"}
    table = differences(known, [value]).rename(columns=names)
    table = cells[["condition", *by]].drop_duplicates().merge(table)
    counted = (table["tower"] == "linear") & table["method"].isin(CONTENDERS)
    counted &= table["p_value"].notna()
    table.loc[counted, "q_value"] = stats.false_discovery_control(table.loc[counted, "p_value"])
    return table


def winners(table: pd.DataFrame) -> pd.DataFrame:
    """The best method of each cell: of the contenders that gain over CLIP significantly and by half
    a point, the simplest that is within half a point of the largest gain; CLIP if there is none.

    Args:
        table: from `gains`.

    Returns:
        A row for each cell: `pairs, nuisance, method`, and `mean`, the gain, 0 for CLIP.
    """
    cells = table[CELL].drop_duplicates()
    better = table[(table["q_value"] < 0.05) & (table["mean"] >= TIE)]
    better = better[better["mean"] > better.groupby(CELL)["mean"].transform("max") - TIE]
    simplicity = better["method"].map([*CONTENDERS].index)
    best = better.loc[simplicity.groupby([better[name] for name in CELL]).idxmax()]
    best = best[[*CELL, "method", "mean"]]
    return cells.merge(best, on=CELL, how="left").fillna({"method": "CLIP", "mean": 0.0})


def _as_map(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Values of a column by pairs, most at the top, and nuisance scale."""
    return rows.pivot(index="pairs", columns="nuisance", values=column).sort_index(ascending=False)


def _label(axis: Axes, values: pd.DataFrame) -> None:
    axis.set(xlabel="nuisance scale", ylabel="training pairs")
    axis.set_yticklabels([f"{n:,}" for n in values.index], rotation=0)
    axis.set_xticklabels([f"{s:g}" for s in values.columns])


def winner_map(best: pd.DataFrame, places: pd.DataFrame | None = None) -> Axes:
    """The best method of each cell as its colour, with its gain over CLIP in points.

    Args:
        best: from `winners`.
        places: `data, fraction, pairs, nuisance`, drawn as points, from `between_place`.

    Returns:
        The Axes.
    """
    names = [name for name in COLOURS if name in set(best["method"])]
    codes = _as_map(best.assign(code=best["method"].map(names.index)), "code")
    texts = _as_map(best, "mean").map(lambda gain: f"+{gain:.1f}" if gain else "")
    figure, axes = panels(1, 1, 5.2, 3.9)
    axis = axes[0, 0]
    tints = ListedColormap([sns.light_palette(COLOURS[name][0], 10)[4] for name in names])
    style = dict(cbar=False, linewidths=1, linecolor="#DDDDDD", vmin=-0.5, vmax=len(names) - 0.5)
    style["annot_kws"] = {"color": "black"}
    sns.heatmap(codes, cmap=tints, annot=texts, fmt="", ax=axis, **style)
    for i, name in enumerate(names):
        label = "CLIP: nothing gains half a point" if name == "CLIP" else name
        axis.scatter([], [], marker="s", s=60, color=[tints(i)], edgecolor="#888888", label=label)
    for data, part in [] if places is None else places.groupby("data", sort=False):
        x = np.interp(np.log(part["nuisance"]), np.log(codes.columns), _middles(codes.columns))
        y = np.interp(-np.log(part["pairs"]), -np.log(codes.index), _middles(codes.index))
        style = dict(ls=":", color="black", mfc="white", label=data)
        axis.plot(x, y, marker="o" if data == "photos" else "P", **style)  # numbers lie over marks
    _label(axis, codes)
    legend_above(figure, axis, 3)
    return axis


def _middles(labels: pd.Index) -> np.ndarray:
    return np.arange(len(labels)) + 0.5


def gain_maps(table: pd.DataFrame, shown: dict[str, tuple[str, str]]) -> list[Axes]:
    """Gains over CLIP in points for several methods: blue is better than CLIP, red is worse.

    Args:
        table: from `gains`.
        shown: by title, the tower and the method.

    Returns:
        One Axes a method; bold numbers have an interval without zero.
    """
    n_columns = min(len(shown), 3)
    n_rows = -(-len(shown) // n_columns)
    size = (WIDTH, 2.4 * n_rows)
    axes = panels(n_rows, n_columns, *size)[1]
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for i, (title, (tower, method)) in enumerate(shown.items()):
        axis = axes.flat[i]
        part = table[(table["tower"] == tower) & (table["method"] == method)]
        values = _as_map(part, "mean")
        excludes_zero = _as_map(part.assign(sure=part["low"] * part["high"] > 0), "sure")
        colours = dict(cmap="RdBu", vmin=-_MOST, vmax=_MOST, cbar=False)
        texts = values.map(lambda gain: f"{gain:+.0f}" if abs(gain) >= 9.5 else f"{gain:+.1f}")
        sns.heatmap(values, annot=texts, fmt="", ax=axis, annot_kws={"size": 7}, **colours)
        certain = excludes_zero.to_numpy()[values.notna()]
        for text, sure in zip(axis.texts, certain, strict=True):
            text.set_fontweight("bold" if sure else "normal")
        axis.set_title(wrap(title, 22))
        _label(axis, values)
        if i % n_columns:
            axis.set(ylabel="", yticks=[])
        if i + n_columns < len(shown):
            axis.set(xlabel="", xticks=[])
    return list(axes.flat[: len(shown)])


def information_maps(
    rows: pd.DataFrame, cells: list[tuple[int, float]], noise: float
) -> list[Axes]:
    """Exact shared against residual information in some cells: every run, by method.

    Args:
        rows: of the map's table, linear towers.
        cells: pairs and nuisance scale of each panel.
        noise: variance at which information is reported.

    Returns:
        One Axes a cell.
    """
    figure, axes = panels(1, len(cells), WIDTH, 2.9, sharex=True, sharey=True)
    drawn = styles(list(rows["method"].unique())) | CONTENDERS
    for axis, cell in zip(axes[0], cells, strict=True):
        part = rows[(rows[CELL] == list(cell)).all(axis=1)]
        for method, own in part.groupby("method", sort=False):
            colour, marker = drawn[method]
            places = [own[f"{kind}_nats_at_{noise:g}"] for kind in ("residual", "shared")]
            axis.plot(*places, marker, color=colour, ms=3.5, alpha=0.7, label=method)
        axis.set_title(f"{cell[0]:,} pairs, nuisance {cell[1]:g}")
        axis.set_xlabel("residual (nats)")
    axes[0, 0].set_ylabel("shared (nats)")
    legend_above(figure, axes[0, 0])
    return list(axes[0])


def predictions(table: pd.DataFrame, places: pd.DataFrame) -> pd.DataFrame:
    """What the map predicts: the contenders' gains at places, interpolated in the logarithms of
    both axes; a place beyond the map has the gain of its border.

    Args:
        table: from `gains`.
        places: `data, fraction, pairs, nuisance`, from `between_place`.

    Returns:
        A row for each place and contender: the columns of `places`, `method`, and `predicted`.
    """
    parts = []
    for method, part in table[table["tower"] == "linear"].groupby("method", sort=False):
        values = part.pivot(index="pairs", columns="nuisance", values="mean").sort_index()
        axes = [np.log(values.index), np.log(values.columns)]
        points = [
            np.log(places[name]).clip(axis[0], axis[-1])
            for name, axis in zip(CELL, axes, strict=True)
        ]
        found = RegularGridInterpolator(axes, values.to_numpy())(np.stack(points, 1))
        if method in CONTENDERS:
            parts.append(places.assign(method=method, predicted=found))
    return pd.concat(parts, ignore_index=True)


def beside_ablation(predicted: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Predictions beside the differences from CLIP that the ablation measured, where it did.

    Args:
        predicted: from `predictions`.
        rows: of the ablation, from `cibr_book.experiments.tables.read_table`.

    Returns:
        The predictions with `condition`, and `difference, low, high` of the mean recall@1 of both
        directions in points, paired by seed over `n_seeds`.
    """
    rows = rows[rows["method"].isin({"CLIP", *_IN_ABLATION.values()})]
    recall = 100 * rows.filter(regex=_RECALL).mean(axis=1)
    measured = differences(chosen(rows.assign(measured=recall)), ["measured"])
    measured["method"] = measured["method"].replace({new: old for old, new in _IN_ABLATION.items()})
    names = predicted["data"].map({"photos": "Flickr8k", "glyphs": "glyphs"})
    part = predicted["fraction"].map(lambda f: "" if f == 1 else f", {100 * f:g} % of the pairs")
    columns = ["condition", "method", "difference", "low", "high", "n_seeds"]
    return predicted.assign(condition=names + part).merge(
        measured[columns], on=["condition", "method"]
    )
