"""Figures of the chapter on what the bottleneck discards: maps of the space, neighbours, intervals, attribution.

Models are columns or colours, in the order given; each function draws on new Axes and returns them.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from cibr.plots import BLUE, GREEN, GREY, ORANGE, PALETTE, RED, pictures_beside_words

PAIR = (BLUE, ORANGE)
MARKERS = "osD^vP*X"
POINT_COLOURS = (*PALETTE[:6], "#000000", GREY)


def space_maps(places: Mapping[str, np.ndarray], factors: Mapping[str, Sequence[str]]) -> list[Axes]:
    """Maps of the embeddings, one column a model and one row a factor, a colour and a marker for each value.

    Args:
        places: points [n, 2] of each model.
        factors: the value of each factor for each item; the eight most frequent are shown, the rest in grey dots.

    Returns:
        Axes row by row.
    """
    size = (4.6 * len(places), 3.3 * len(factors))
    _, axes = plt.subplots(len(factors), len(places), figsize=size, squeeze=False, layout="constrained")
    for row, (factor, values) in zip(axes, factors.items(), strict=True):
        values = pd.Series(list(values)).astype(str)
        common = values.value_counts().index[: len(POINT_COLOURS)]
        for axis, (model, points) in zip(row, places.items(), strict=True):
            rest = (~values.isin(common)).to_numpy()
            axis.scatter(*points[rest].T, s=4, color="#D0D0D0", linewidths=0)
            for value, colour, marker in zip(common, POINT_COLOURS, MARKERS, strict=False):
                chosen = (values == value).to_numpy()
                axis.scatter(
                    *points[chosen].T, s=11, color=colour, marker=marker, alpha=0.75, linewidths=0, label=value
                )
            axis.set(title=f"{model}, by {factor}", xticks=[], yticks=[])
            axis.grid(False)
        row[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9, markerscale=1.6)
    return list(axes.flat)


def neighbour_rows(
    pictures: Sequence[Image.Image],
    queries: Sequence[int],
    nearest: Mapping[str, Int[Tensor, "n k"]],
    alike: Mapping[str, Bool[Tensor, "n k"]],
) -> list[Axes]:
    """Queries at the left, and their nearest pictures under each model, framed green where they are alike.

    Args:
        pictures: all n items.
        queries: which items are asked.
        nearest: the neighbours of all items under each model.
        alike: which of them count as the same.

    Returns:
        One Axes a picture, row by row.
    """
    k = next(iter(nearest.values())).shape[1]
    n_columns = 1 + len(nearest) * (k + 1)
    widths = [1.0, *([0.35, *[1.0] * k] * len(nearest))]
    _, axes = plt.subplots(
        len(queries), n_columns, figsize=(0.72 * sum(widths), 0.8 * len(queries) + 0.35),
        width_ratios=widths, squeeze=False, layout="constrained",
    )  # fmt: skip
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.axis("off")
    axes[0, 0].set_title("query", fontsize=9)
    shown = []
    for row, query in zip(axes, queries, strict=True):
        _framed(row[0], pictures[query], "black")
        shown.append(row[0])
        for m, model in enumerate(nearest):
            for j in range(k):
                axis = row[2 + m * (k + 1) + j]
                item, same = int(nearest[model][query, j]), bool(alike[model][query, j])
                _framed(axis, pictures[item], GREEN if same else "#C8C8C8")
                shown.append(axis)
    for m, model in enumerate(nearest):
        axes[0, 2 + m * (k + 1)].set_title(f"nearest under {model}", fontsize=9, loc="left")
    return shown


def _framed(axis: Axes, picture: Image.Image, colour: str) -> None:
    axis.axis("on")
    axis.imshow(picture.convert("RGB"))
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.2)


def interval_bars(
    table: pd.DataFrame,
    by: str,
    colour_by: str,
    label: str,
    scale: float | int = 1,
    references: Sequence[str] = (),
) -> Axes:
    """Values with intervals, one group a line and one colour a model.

    Args:
        table: `value, low, high` and the two columns named by `by` and `colour_by`, in the order to show.
        by: the column of the lines.
        colour_by: the column of the models.
        label: of the values' axis.
        scale: what values are multiplied by, such as 100 for percent.
        references: models that are shown in grey, for comparison.

    Returns:
        The Axes.
    """
    groups, models = list(dict.fromkeys(table[by])), list(dict.fromkeys(table[colour_by]))
    _, axis = plt.subplots(figsize=(8.0, 0.6 + 0.16 * len(groups) * (len(models) + 1)), layout="constrained")
    coloured = [model for model in models if model not in references]
    step = 1 / (len(models) + 1)
    for m, model in enumerate(models):
        rows = table[table[colour_by] == model].set_index(by)
        at = np.array([groups.index(group) for group in rows.index]) + (m - (len(models) - 1) / 2) * step
        value, low, high = (scale * rows[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
        grey = model in references
        colour = GREY if grey else POINT_COLOURS[coloured.index(model)]
        axis.barh(at, value, step, color=colour, alpha=0.35 if grey else 0.75, label=model)
        axis.errorbar(value, at, xerr=[value - low, high - value], fmt="none", ecolor="black", lw=1.1, capsize=2)
    axis.axvline(0, color="black", lw=0.8)
    axis.set(yticks=range(len(groups)), yticklabels=groups, xlabel=label)
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.grid(False, axis="y")
    axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return axis


def cosine_histograms(
    paired: Mapping[str, Float[Tensor, " n"]], other: Mapping[str, Float[Tensor, " m"]]
) -> list[Axes]:
    """Cosines of pairs and of strangers, one Axes a model on common scales."""
    size = (4.4 * len(paired), 3.0)
    _, axes = plt.subplots(1, len(paired), figsize=size, sharex=True, sharey=True, layout="constrained")
    bins = np.linspace(-1, 1, 61)
    for axis, model in zip(np.atleast_1d(axes), paired, strict=True):
        axis.hist(other[model].numpy(), bins, density=True, color=GREY, alpha=0.6, label="strangers")
        axis.hist(paired[model].numpy(), bins, density=True, color=GREEN, alpha=0.7, label="pairs")
        axis.set(title=model, xlabel="cosine of image and text")
    np.atleast_1d(axes)[0].set_ylabel("density")
    np.atleast_1d(axes)[0].legend(frameon=False, loc="upper left", fontsize=9)
    return list(np.atleast_1d(axes))


def answer_rows(
    pictures: Sequence[Image.Image],
    truths: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    n_columns: int = 2,
) -> list[Axes]:
    """Pictures beside what each model takes them for, right answers in green and wrong ones in red.

    Returns:
        One Axes a picture, the one that holds the words.
    """
    words = pictures_beside_words(pictures, n_columns, (5.0, 0.95), 5.0, (0.04, 0.15))
    for i in range(len(pictures)):
        lines = [(f"is: {truths[i]}", "black")]
        for model, answer in answers.items():
            right = answer[i] == truths[i]
            lines.append((f"{'✓' if right else '✗'} {model}: {answer[i]}", GREEN if right else RED))
        for line, (text, colour) in enumerate(lines):
            short = text if len(text) <= 52 else text[:51] + "…"
            words[i].text(
                0, 0.95 - 0.32 * line, short, color=colour, fontsize=9.5, va="top",
                transform=words[i].transAxes, parse_math=False,
            )  # fmt: skip
    return words


def attribution_rows(
    pictures: Sequence[Image.Image], titles: Sequence[str], maps: Mapping[str, Float[Tensor, "n h w"]]
) -> list[Axes]:
    """Pictures in the first row, and below them each kind of map, laid over the pale picture; dark is much.

    Args:
        pictures: n pictures.
        titles: one a picture.
        maps: attribution of each kind, each map scaled to its own maximum; below zero counts as none.

    Returns:
        Axes row by row.
    """
    n = len(pictures)
    size = (1.15 * n + 1.1, 1.18 * (1 + len(maps)) + 0.25)
    _, axes = plt.subplots(1 + len(maps), n, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
    for i, picture in enumerate(pictures):
        axes[0, i].imshow(picture.convert("RGB"))
        axes[0, i].set_title(titles[i], fontsize=8, fontweight="normal", parse_math=False)
        for row, kind in enumerate(maps, 1):
            grey = np.asarray(picture.convert("L"), dtype=float)
            positive = maps[kind][i].clamp(min=0).numpy()
            axes[row, i].imshow(255 - (255 - grey) * 0.35, cmap="gray", vmin=0, vmax=255)
            extent = (-0.5, grey.shape[1] - 0.5, grey.shape[0] - 0.5, -0.5)
            strength = positive / max(positive.max(), 1e-30)
            axes[row, i].imshow(strength, cmap="Blues", alpha=0.85 * strength**0.5, extent=extent, vmin=0, vmax=1)
    for row, kind in enumerate(maps, 1):
        axes[row, 0].set_ylabel(kind, fontsize=8, rotation=0, ha="right", va="center")
    return list(axes.flat)


def deletion_curves(fractions: Sequence[float | int], curves: Mapping[str, pd.DataFrame], label: str) -> Axes:
    """Mean scores with intervals as pixels are deleted, one line an order of deletion.

    Args:
        fractions: shares of pixels that are gone.
        curves: `value, low, high` at each fraction; names that start with "random" are grey.
        label: of the scores.

    Returns:
        The Axes.
    """
    _, axis = plt.subplots(figsize=(7.0, 3.8), layout="constrained")
    colours = iter(POINT_COLOURS)
    styles = iter(("-", "--", "-.", ":"))
    for name, rows in curves.items():
        colour = GREY if name.startswith("random") else next(colours)
        style = ":" if name.startswith("random") else next(styles)
        axis.plot(100 * np.asarray(fractions), rows["value"], style, color=colour, label=name)
        axis.fill_between(100 * np.asarray(fractions), rows["low"], rows["high"], color=colour, alpha=0.15, lw=0)
    axis.set(xlabel="pixels deleted (%)", ylabel=label)
    axis.legend(frameon=False, fontsize=9)
    return axis
