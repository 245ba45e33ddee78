"""The style of the study's figures, what several of them share, galleries of images, and forests.

Each function takes tidy rows or tensors and returns its Axes. Colours are Okabe and Ito's, which
colour-blind readers can tell apart: green is right, red is wrong, grey is context.
"""

import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6E6E6E"
PINK, SKY = "#CC79A7", "#56B4E9"
RIGHT, WRONG = "#007A59", "#B84F00"  # green and red for text, dark enough on white and inverted
_PALETTE = (BLUE, ORANGE, GREEN, RED, PINK, SKY, "#F0E442", "#000000")
WIDTH = 7.2  # inches: at 100 px an inch the width of a page's text
_MEAN = "mean, each set counts once"
_HEADINGS = {"accuracy@1": "zero-shot accuracy", "mean": _MEAN}
for _recall in ("recall@1", "label_recall@1"):
    _HEADINGS[f"image_to_text_{_recall}"] = "recall@1, image → text"
    _HEADINGS[f"text_to_image_{_recall}"] = "recall@1, text → image"


def set_style() -> None:
    """The book's style; call it once in a notebook, before the first figure."""
    text = ("font.size", "axes.titlesize", "axes.labelsize", "figure.labelsize", "legend.fontsize")
    text += ("legend.title_fontsize", "xtick.labelsize", "ytick.labelsize")
    settings = dict.fromkeys(text, 9) | {"axes.titleweight": "bold", "legend.frameon": False}
    settings |= {"figure.dpi": 200, "savefig.bbox": "tight", "savefig.pad_inches": 0.02}
    settings |= {"axes.spines.top": False, "axes.spines.right": False, "grid.color": "#E5E5E5"}
    sns.set_theme(context="paper", style="whitegrid", palette=_PALETTE, rc=settings)


def panels(
    n_rows: int, n_columns: int, width: float, height: float, **options
) -> tuple[Figure, np.ndarray]:
    """A figure of a size in inches and its Axes [n_rows, n_columns]."""
    options = {"layout": "constrained", "squeeze": False} | options
    return plt.subplots(n_rows, n_columns, figsize=(width, height), **options)


def draw_interval(
    axis: Axes, place: float, row: Any, marker: str, colour: str, hollow: bool = False
) -> None:
    """A row's interval, `low` to `high`, as a horizontal line with a mark at its `difference`."""
    axis.plot([row.low, row.high], [place, place], color=colour, lw=1.8, solid_capstyle="butt")
    axis.plot(row.difference, place, marker, ms=5, mec=colour, mfc="white" if hollow else colour)


def draw_image(axis: Axes, image: Image.Image, frame: str | None = None) -> None:
    """An image without ticks, in a frame of a colour or without one."""
    axis.imshow(image.convert("RGB"))
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set(visible=frame is not None, color=frame, linewidth=2.5)


def lines_beside(
    images: Sequence[Image.Image], lines: Sequence[Sequence[tuple[str, str]]], n_columns: int = 2
) -> list[Axes]:
    """Images in rows, each with up to four lines of text and colour beside it.

    Returns:
        One Axes an image, the one that holds its lines.
    """
    n_rows = -(-len(images) // n_columns)
    options = dict(layout=None, width_ratios=[1, 3.6] * n_columns)
    figure, axes = panels(n_rows, 2 * n_columns, WIDTH, 0.8 * n_rows, **options)
    figure.subplots_adjust(wspace=0.04, hspace=0.12, left=0, right=1, top=1, bottom=0)
    for axis in axes.flat:
        axis.axis("off")
    texts = list(axes[:, 1::2].flat)[: len(images)]
    for image_axis, axis, image, own in zip(axes[:, ::2].flat, texts, images, lines, strict=False):
        image_axis.imshow(image.convert("RGB"))
        for i, (text, colour) in enumerate(own):
            axis.text(0, 0.95 - 0.25 * i, text, color=colour, va="top", parse_math=False)
    return texts


def retrieval_gallery(
    images: Sequence[Image.Image],
    captions: Sequence[Sequence[str]],
    texts: Sequence[str],
    similarity: Float[Tensor, "n m"],
    n_shown: int = 3,
) -> list[Axes]:
    """Each image beside the texts that a model ranks first: right in green, wrong in red.

    Where none of them is right, the best ranked right text follows with its rank.

    Args:
        images: n images.
        captions: the right texts of each image.
        texts: m candidate texts.
        similarity: cosines [n, m].
        n_shown: texts an image.

    Returns:
        One Axes an image, the one that holds its texts.

    Raises:
        ValueError: an image whose captions are not among the texts.
    """
    lines = []
    for i, right in enumerate(captions):
        ranked = [texts[j] for j in similarity[i].argsort(descending=True).tolist()]
        rank = next((place for place, text in enumerate(ranked) if text in right), None)
        if rank is None:
            fix = f"add {right[0]!r}"
            raise ValueError(f"none of the captions of image {i} is among the texts: {fix}")
        marks = [("✓", RIGHT) if text in right else ("✗", WRONG) for text in ranked[:n_shown]]
        shown = zip(marks, ranked, strict=False)
        lines.append([(f"{mark} {shorten(text, 38)}", colour) for (mark, colour), text in shown])
        if rank >= n_shown:
            lines[i].append((f"rank {rank + 1:,}: {shorten(ranked[rank], 30)}", GREY))
    return lines_beside(images, lines)


def search_gallery(
    queries: Sequence[str],
    similarity: Float[Tensor, "q n"],
    load: Callable[[int], Image.Image],
    right: Int[Tensor, " q"] | None = None,
    n_shown: int = 5,
) -> list[Axes]:
    """Each text above the images that a model ranks first; a right one has a green frame.

    Where the right image is not among them, it closes the row, with its rank and in a grey frame.
    An image with the same similarity as the right one ranks before it.

    Args:
        queries: q texts.
        similarity: cosines of texts to n images [q, n].
        load: takes an index and returns the image, such as `pairs.image`.
        right: the index of each text's image, if they are known.
        n_shown: images a text, at most.

    Returns:
        The Axes of the images, row by row, without those that stay empty.
    """
    n_columns = min(n_shown, similarity.shape[1]) + (right is not None)
    width = WIDTH - 1.6
    height = len(queries) * (width / n_columns + 0.34)
    figure, axes = panels(len(queries), n_columns, width, height, layout=None)
    figure.subplots_adjust(wspace=0.08, hspace=0.38, left=0.01, right=0.99, top=0.96, bottom=0.01)
    for axis in axes.flat:
        axis.axis("off")
    for i, (query, row) in enumerate(zip(queries, axes, strict=True)):
        row[0].set_title(shorten(query, 62), loc="left", fontweight="normal", parse_math=False)
        own = None if right is None else int(right[i])
        shown = similarity[i].argsort(descending=True, stable=True)[:n_shown].tolist()
        frames = [GREEN if j == own else None for j in shown]
        if own is not None and own not in shown:
            shown.append(own)
            frames.append(GREY)
            rank = int((similarity[i] >= similarity[i, own]).sum())
            row[-1].set_title(f"rank {rank:,}", fontweight="normal", color=GREY)
        for axis, j, frame in zip(row, shown, frames, strict=False):
            axis.axis("on")
            draw_image(axis, load(j), frame)
    return [axis for axis in axes.flat if axis.images]


def forest(rows: pd.DataFrame, a: str = "CLIP", b: str = "CIBR") -> Axes:
    """Paired differences of two models in percentage points, a line a score, with their intervals.

    Zero-shot accuracies come first, then their mean, set apart, then recalls at 1. An interval
    without zero has a colour: blue where b is better, red where a is. The members of a group stand
    below it, in grey.

    Args:
        rows: as `cibr.evaluate.compare` returns them: `dataset, kind, metric, difference, low,
            high` in [-1, 1].
        a: what the first model is called; a difference is b - a.
        b: what the second model is called.

    Returns:
        The Axes; zero is a grey line.

    Raises:
        ValueError: none of the rows is an accuracy or a recall at 1.
    """
    blocks = _blocks(rows)
    n_lines = sum(1 + len(block) for block in blocks.values())
    axis = panels(1, 1, 4.4, 0.9 + 0.24 * n_lines)[1][0, 0]
    axis.axvline(0, color=GREY, lw=1)
    places: list[float] = []
    labels: list[str] = []
    for heading, block in blocks.items():
        places.append(places[-1] + 1.4 if places else 0.0)
        labels.append(heading)
        for row in block.itertuples():
            places.append(places[-1] + 1)
            labels.append(row.label)
            colour = BLUE if row.low > 0 else RED if row.high < 0 else GREY
            draw_interval(axis, places[-1], row, "D" if heading == _MEAN else "o", colour)
    axis.set_yticks(places, labels)
    for label in axis.get_yticklabels():
        text = label.get_text()
        label.set(fontweight="bold" if text in blocks else "normal", parse_math=False)
        label.set_color(GREY if text.startswith("·") else "black")
    axis.grid(axis="y", visible=False)
    axis.spines["left"].set_visible(False)
    reach = max(abs(x) for x in axis.get_xlim())
    axis.set(ylim=(places[-1] + 0.8, -0.7), xlim=(-reach, reach))
    axis.set_xlabel(f"{b} minus {a}, percentage points")
    axis.set_title(f"← {a} better    {b} better →", fontweight="normal", color=GREY)
    return axis


def _blocks(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each heading in percentage points, with their `label`."""
    rows = rows[rows["metric"].isin(_HEADINGS)]
    if rows.empty:
        raise ValueError("there is nothing to draw: none of the rows is accuracy@1 or a recall@1")
    names = list(rows["dataset"].unique())
    group = {name: g for name in names for g in names if name.startswith(f"{g}-")}
    place = {name: names.index(group.get(name, name)) + (name in group) / 2 for name in names}
    metric = rows["metric"].mask(rows["dataset"].str.startswith("mean of "), "mean")
    rows = rows.assign(
        label=[f"· {name}" if name in group else name for name in rows["dataset"]],
        heading=metric.map(_HEADINGS),
        **100 * rows[["difference", "low", "high"]],
    )
    rows = rows.sort_values("dataset", key=lambda names: names.map(place), kind="stable")
    blocks = dict(list(rows.groupby("heading")))
    return {text: blocks[text] for text in dict.fromkeys(_HEADINGS.values()) if text in blocks}


def pick_evenly(
    groups: Int[Tensor, " m"] | Bool[Tensor, " m"], n: int, seed: int = 0
) -> Int[Tensor, " n"]:
    """Indices of n items for a gallery, by group: as many of each, such as hits and misses."""
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).numpy()
    table = pd.DataFrame({"group": groups.numpy()[order]}, index=order)
    table["turn"] = table.groupby("group").cumcount()
    chosen = table.sort_values(["turn", "group"]).head(n).sort_values(["group", "turn"])
    return torch.tensor(chosen.index.to_numpy())


def wrap(text: str, width: int = 16) -> str:
    """A text broken into lines of at most `width` characters, three at most."""
    return "\n".join(textwrap.wrap(text, width, max_lines=3, placeholder="…"))


def shorten(text: str, limit: int = 44) -> str:
    """A text cut to `limit` characters, with an ellipsis where something was cut."""
    text = unicodedata.normalize("NFC", text)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
