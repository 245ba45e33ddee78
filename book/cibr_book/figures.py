"""Figures of the study, in the style of `cibr_book.plots`: each function draws tidy rows and returns its
Axes.

Rows with intervals have the columns `mean, low, high`. Reference series, which are no method, are
grey.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image
from torch import Tensor

from cibr_book.plots import BELOW, BLUE, GREEN, GREY, ORANGE, PALETTE, RED, WIDTH, shorten, wrap

Values = Sequence[float | int] | Tensor
PINK, SKY, FRAME = PALETTE[4], PALETTE[5], "#C8C8C8"
LINES = (
    BLUE,
    ORANGE,
    GREEN,
    RED,
    PINK,
    SKY,
    "black",
)  # without the yellow, which is too pale for a line
MARKERS = "os^DvP*X"
# Colour and marker of methods and estimators, the same in every figure.
STYLES = {
    "CLIP": ("black", "D"),
    "CIBR": (BLUE, "o"),
    "CIBR vMF": (BLUE, "o"),
    "CIBR vMF, sampled": (SKY, "s"),
    "CIBR crossfit": (GREEN, "^"),
    "CIBR MINE": (ORANGE, "v"),
    "the residual penalty": (BLUE, "o"),
    "the anchor": (PINK, "s"),
    "best other method": ("black", "D"),
    "InfoNCE": (BLUE, "o"),
    "NWJ": (GREEN, "^"),
    "MINE": (ORANGE, "v"),
    "DV": (ORANGE, "v"),
    "SMILE": (RED, "s"),
    "SMILE, clip 1": (RED, "s"),
    "JSD": (PINK, "P"),
    "CLUB": (SKY, "X"),
    "KSG": ("black", "*"),
}


def styles(names: Sequence[str], references: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
    """Colour and marker by name: those of STYLES, grey for references, and the next free ones for
    others.
    """
    known = {name: STYLES.get(name) for name in names}
    taken = {style[0] for style in known.values() if style}
    free = iter([pair for pair in zip(LINES, MARKERS, strict=False) if pair[0] not in taken])
    greys = iter([(GREY, marker) for marker in "s^Dv"])
    return {
        name: next(greys) if name in references else known[name] or next(free) for name in names
    }


def curve_panels(
    panels: Mapping[str, Mapping[str, tuple[Values, Values]]], **settings
) -> list[Axes]:
    """Curves side by side, a panel a title.

    Args:
        panels: by title, for each curve (by its label) its x and y values.
        settings: of every Axes, such as `xlabel` or `xscale`.

    Returns:
        One Axes a panel.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6.4, 2.7), layout="constrained", squeeze=False
    )
    shared = len({tuple(curves) for curves in panels.values()}) == 1  # one legend is enough
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for (name, (x, y)), (colour, _) in zip(
            curves.items(), styles(list(curves)).values(), strict=True
        ):
            axis.plot(x, y, color=colour, lw=2, label=name)
        axis.set(title=title, ylim=(0, None), **settings)
        if len(curves) > 1 and not shared:
            axis.legend(**BELOW)
    if shared and len(curves) > 1:
        _legend_above(figure, axes[0, 0])
    return list(axes[0])


def _legend_above(figure: Figure, axis: Axes) -> None:
    """The names of an Axes' lines above all panels, four in a row."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncol=min(len(names), 4))


def interval_lines(
    rows: pd.DataFrame,
    x: str,
    by: str,
    panel: str | None = None,
    log: bool = False,
    references: Sequence = (),
) -> list[Axes]:
    """Means with intervals over a column, one line a value of another, one panel a value of a
    third.

    Args:
        rows: `mean, low, high` and the columns named here, one row a point.
        x: the column of the horizontal axis.
        by: the column of the lines.
        panel: the column of the panels; one panel if None.
        log: whether the horizontal axis is logarithmic, with a tick at every value.
        references: lines that are grey and dotted.

    Returns:
        One Axes a panel.
    """
    panels = [("", rows)] if panel is None else list(rows.groupby(panel, sort=False))
    size = (4.8, 3.2) if panel is None else (min(3.2 * len(panels), WIDTH), 2.6)
    figure, axes = plt.subplots(
        1, len(panels), figsize=size, layout="constrained", sharey=True, squeeze=False
    )
    names = list(rows[by].unique())
    drawn = styles(names, references)
    for axis, (value, part) in zip(axes[0], panels, strict=True):
        for i, name in enumerate(names):
            line, (colour, marker) = part[part[by] == name], drawn[name]
            shift = (
                1.04 ** (i - (len(names) - 1) / 2) if log else 1
            )  # so that intervals stand apart
            errors = [line["mean"] - line["low"], line["high"] - line["mean"]]
            style = dict(color=colour, ls=":" if name in references else "-", marker=marker, ms=5)
            style |= dict(lw=1.4, capsize=2, label=name)
            axis.errorbar(shift * line[x], line["mean"], yerr=errors, **style)
        axis.set(
            title=f"{panel.replace('_', ' ')} {value}" if panel else "", xlabel=x.replace("_", " ")
        )
        if log:
            ticks = sorted(rows[x].unique())
            axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.xaxis.set_minor_formatter(NullFormatter())
    _legend_above(figure, axes[0, 0])
    return list(axes[0])


def reference_line(axis: Axes, value: float, text: str) -> None:
    """A dotted horizontal line with its name at the right end."""
    axis.axhline(value, color=GREY, lw=1, ls=":")
    place = axis.get_yaxis_transform()
    axis.text(1.01, value, text, color=GREY, va="center", transform=place)


def interval_bars(
    rows: pd.DataFrame,
    by: str,
    colour_by: str,
    label: str,
    scale: float | int = 1,
    references: Sequence[str] = (),
    ceilings: Mapping[str, float] | None = None,
) -> Axes:
    """Bars with intervals: a group of bars a value of one column, a colour a value of another.

    Args:
        rows: `mean, low, high` and the two columns named by `by` and `colour_by`, in the order to
            show.
        by: the column of the groups.
        colour_by: the column of the colours, such as the model.
        label: of the values' axis.
        scale: what values are multiplied by, such as 100 for percent.
        references: values of `colour_by` that are grey.
        ceilings: for each group the most that a bar can reach, drawn as a line across it.

    Returns:
        The Axes.
    """
    groups, series = list(rows[by].unique()), list(rows[colour_by].unique())
    drawn = styles(series, references)
    _, axis = plt.subplots(
        figsize=(6.4, 0.6 + 0.13 * len(groups) * (len(series) + 1)), layout="constrained"
    )
    step = 1 / (len(series) + 1)
    for i, name in enumerate(series):
        part = rows[rows[colour_by] == name].set_index(by)
        at = (
            np.array([groups.index(group) for group in part.index])
            + (i - (len(series) - 1) / 2) * step
        )
        mean, low, high = (
            scale * part[column].to_numpy(dtype=float) for column in ("mean", "low", "high")
        )
        style = dict(color=drawn[name][0], alpha=0.35 if name in references else 1)
        axis.barh(at, mean, step, label=name, **style)
        axis.errorbar(
            mean, at, xerr=[mean - low, high - mean], fmt="none", ecolor=GREY, lw=1.1, capsize=2
        )
    for group, ceiling in (ceilings or {}).items():
        place = groups.index(group)
        axis.plot([scale * ceiling] * 2, [place - 0.45, place + 0.45], color="black", lw=1.5)
    axis.axvline(0, color="black", lw=0.8)
    axis.set(
        yticks=range(len(groups)), yticklabels=groups, xlabel=label, ylim=(len(groups) - 0.5, -0.5)
    )
    axis.grid(False, axis="y")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return axis


def information_plane(curve: pd.DataFrame, clip: pd.DataFrame, limit: float) -> Axes:
    """Shared against residual information: the CIB curve over beta, and what beta = 0 leaves open.

    Args:
        curve: `beta, residual_nats, shared_nats`, one row a beta.
        clip: `codes, residual_nats, shared_nats`, one row a run at beta = 0.
        limit: I(X_v;X_t) in nats, which no encoder exceeds.

    Returns:
        The Axes.
    """
    _, axis = plt.subplots(figsize=(4.8, 3.2), layout="constrained")
    curve = curve.sort_values("residual_nats")
    axis.plot(
        curve["residual_nats"],
        curve["shared_nats"],
        "o-",
        color=BLUE,
        label="CIB, β rising to the left",
    )
    labelled: list[float] = []
    for row in curve.itertuples():
        if all(abs(row.residual_nats - x) > 0.05 for x in labelled):
            at, style = (row.residual_nats, row.shared_nats), dict(color=BLUE)
            axis.annotate(
                f"β={row.beta:g}", at, xytext=(4, -12), textcoords="offset points", **style
            )
            labelled.append(row.residual_nats)
    for (codes, runs), colour, marker in zip(
        clip.groupby("codes"), (GREEN, RED), "s^", strict=False
    ):
        style = dict(color=colour, ls="", ms=7, alpha=0.8, label=f"β=0, {codes:g} codes")
        axis.plot(runs["residual_nats"], runs["shared_nats"], marker, **style)
    axis.set(
        xlabel="residual information R (nats)",
        ylabel="shared information (nats)",
        xlim=(-0.02, None),
    )
    reference_line(axis, limit, "I(image; text)")
    axis.legend(loc="center right")
    return axis


def error_table(errors: pd.DataFrame, truths: Mapping[str, float]) -> Axes:
    """Errors of every estimator on every task as a table of colours: red too high, blue too low.

    Args:
        errors: estimate minus truth in nats, [task, estimator].
        truths: the true nats of each task, written beside its name.

    Returns:
        The Axes.
    """
    _, axis = plt.subplots(figsize=(6.4, 0.32 * len(errors) + 0.4), layout="constrained")
    text = errors.map(lambda e: f"{e:+.2f}" if abs(e) < 100 else f"{e:+.0f}".replace("inf", "∞"))
    colours = dict(cmap="RdBu_r", vmin=-1, vmax=1, cbar=False)
    sns.heatmap(errors.clip(-1, 1), annot=text, fmt="", ax=axis, **colours)
    axis.set(
        xlabel="", ylabel="", yticklabels=[f"{task} ({truths[task]:.2f})" for task in errors.index]
    )
    axis.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    return axis


def confusion_matrices(
    labels: Int[Tensor, " n"], predicted: Mapping[str, Int[Tensor, " n"]], classnames: Sequence[str]
) -> list[Axes]:
    """Which class each model takes for which, side by side, in per cent of the images of a class.

    Args:
        labels: the right class of each image, an index into the names.
        predicted: the predicted classes, by the name of the model.
        classnames: the names; with more than twelve there are neither names nor numbers. Classes
            without an image have no row.

    Returns:
        One Axes a model.
    """
    few, side = len(classnames) <= 12, min(0.24 * len(classnames) + 0.6, 3.0)
    size = (1.2 + side * len(predicted), side + 1.2)
    _, axes = plt.subplots(
        1, len(predicted), figsize=size, squeeze=False, layout="constrained", sharey=True
    )
    for axis, (model, answers) in zip(axes[0], predicted.items(), strict=True):
        percent = 100 * pd.crosstab(labels.numpy(), answers.numpy(), normalize="index")
        percent = percent.reindex(columns=range(len(classnames)), fill_value=0)
        percent.index, percent.columns = [classnames[c] for c in percent.index], list(classnames)
        text = percent.map(lambda p: f"{p:.0f}" if p >= 0.5 else "")
        style = dict(
            cmap="Blues", vmin=0, vmax=100, cbar=False, square=True, linewidths=0.5 if few else 0
        )
        names = dict(xticklabels=few, yticklabels=few, annot=text if few else None)
        sns.heatmap(percent, fmt="", ax=axis, **style, **names)
        axis.set(title=model, xlabel="predicted")
    axes[0, 0].set_ylabel("shown")
    return list(axes[0])


def space_maps(
    places: Mapping[str, np.ndarray], factors: Mapping[str, Sequence[str]]
) -> list[Axes]:
    """Maps of the embeddings, one column a model and one row a factor, a colour and a marker for
    each value.

    Args:
        places: points [n, 2] of each model.
        factors: the value of each factor for each item; the seven most frequent are shown, the rest
            in grey dots.

    Returns:
        Axes row by row.
    """
    size = (min(3.3 * len(places) + 1, WIDTH), 2.6 * len(factors))
    _, axes = plt.subplots(
        len(factors), len(places), figsize=size, squeeze=False, layout="constrained"
    )
    for row, (factor, values) in zip(axes, factors.items(), strict=True):
        values = np.array([str(value) for value in values])
        common = pd.Series(values).value_counts().index[: len(LINES)]
        for axis, (model, points) in zip(row, places.items(), strict=True):
            axis.scatter(*points[~np.isin(values, common)].T, s=4, color=FRAME, linewidths=0)
            for value, colour, marker in zip(common, LINES, MARKERS, strict=False):
                style = dict(s=11, color=colour, marker=marker, alpha=0.75, linewidths=0)
                axis.scatter(*points[values == value].T, label=value, **style)
            axis.set(title=f"{model}, by {factor}", xticks=[], yticks=[])
        row[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.6)
    return list(axes.flat)


def neighbour_rows(
    images: Sequence[Image.Image],
    queries: Sequence[int],
    nearest: Mapping[str, Int[Tensor, "n k"]],
    alike: Mapping[str, Bool[Tensor, "n k"]],
) -> list[Axes]:
    """Queries at the left, and their nearest images under each model, framed green where they are
    alike.

    Args:
        images: all n items.
        queries: which items are asked.
        nearest: the neighbours of all items under each model.
        alike: which of them count as the same.

    Returns:
        One Axes an image, row by row.
    """
    k = next(iter(nearest.values())).shape[1]
    widths = [1.0, *([0.35, *[1.0] * k] * len(nearest))]  # an empty column before each model
    options = dict(
        figsize=(WIDTH, WIDTH / sum(widths) * len(queries) + 0.5),
        width_ratios=widths,
        squeeze=False,
    )
    _, axes = plt.subplots(len(queries), len(widths), layout="constrained", **options)
    for row, query in zip(axes, queries, strict=True):
        _show(row[0], images[query], "black")
        for m, model in enumerate(nearest):
            row[1 + m * (k + 1)].axis("off")
            for j, axis in enumerate(row[2 + m * (k + 1) :][:k]):
                frame = GREEN if alike[model][query, j] else FRAME
                _show(axis, images[int(nearest[model][query, j])], frame)
    axes[0, 0].set_title("query")
    for m, model in enumerate(nearest):
        axes[0, 2 + m * (k + 1)].set_title(f"nearest under {model}", loc="left")
    return [axis for axis in axes.flat if axis.images]


def _show(axis: Axes, image: Image.Image, frame: str) -> None:
    axis.imshow(image.convert("RGB"))
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set(visible=True, color=frame, linewidth=2.2)


def answer_rows(
    images: Sequence[Image.Image], truths: Sequence[str], answers: Mapping[str, Sequence[str]]
) -> list[Axes]:
    """Images beside what each model names them, right answers in green and wrong ones in red; two
    in a row.

    Returns:
        One Axes an image, the one that holds the words.
    """
    n_rows = -(-len(images) // 2)
    options = dict(
        figsize=(WIDTH, 0.72 * n_rows), width_ratios=[1, 5] * 2, squeeze=False, layout="constrained"
    )
    _, axes = plt.subplots(n_rows, 4, **options)
    for axis in axes.flat:
        axis.axis("off")
    words = list(axes[:, 1::2].flat)[: len(images)]
    for i, (axis, image) in enumerate(zip(axes[:, 0::2].flat, images, strict=False)):
        axis.imshow(image.convert("RGB"))
        lines = [(f"is: {truths[i]}", "black")]
        for model, answer in answers.items():
            right = answer[i] == truths[i]
            lines.append((f"{'✓' if right else '✗'} {model}: {answer[i]}", GREEN if right else RED))
        for line, (text, colour) in enumerate(lines):
            style = dict(color=colour, va="top", transform=words[i].transAxes, parse_math=False)
            words[i].text(0, 0.95 - 0.32 * line, shorten(text, 40), **style)
    return words


def attribution_rows(
    images: Sequence[Image.Image], titles: Sequence[str], maps: Mapping[str, Float[Tensor, "n h w"]]
) -> list[Axes]:
    """Images in the first row, and below them each kind of map, laid over the pale image; dark is
    much.

    Args:
        images: n images.
        titles: one an image.
        maps: attribution of each kind, each map scaled to its own maximum; below zero counts as
            none.

    Returns:
        Axes row by row.
    """
    size = (WIDTH, (WIDTH - 0.9) / len(images) * (1 + len(maps)) + 0.5)
    _, axes = plt.subplots(
        1 + len(maps), len(images), figsize=size, squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
    for i, image in enumerate(images):
        axes[0, i].imshow(image.convert("RGB"))
        axes[0, i].set_title(
            wrap(titles[i], 80 // len(images)), fontweight="normal", parse_math=False
        )
        grey = np.asarray(image.convert("L"), dtype=float)
        extent = (-0.5, grey.shape[1] - 0.5, grey.shape[0] - 0.5, -0.5)
        for axis, kind in zip(axes[1:, i], maps.values(), strict=True):
            positive = kind[i].clamp(min=0).numpy()
            strength = positive / max(positive.max(), 1e-30)
            axis.imshow(255 - (255 - grey) * 0.35, cmap="gray", vmin=0, vmax=255)
            axis.imshow(
                strength, cmap="Blues", alpha=0.85 * strength**0.5, extent=extent, vmin=0, vmax=1
            )
    for axis, kind in zip(axes[1:, 0], maps, strict=True):
        axis.set_ylabel(wrap(kind, 9), rotation=0, ha="right", va="center")
    return list(axes.flat)
