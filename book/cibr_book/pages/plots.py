"""The style of the study's figures, what several of them share, the training curves of a run, and
galleries of images.

Colours are Okabe and Ito's, which colour-blind readers can tell apart: green is right, red is
wrong, grey is context.
"""

import textwrap
from collections.abc import Callable, Sequence

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


def set_style() -> None:
    """The book's style; call it once in a notebook, before the first figure."""
    sizes = ("font.size", "axes.titlesize", "axes.labelsize", "legend.fontsize")
    sizes += ("xtick.labelsize", "ytick.labelsize")
    settings = dict.fromkeys(sizes, 9) | {"axes.titleweight": "bold", "legend.frameon": False}
    settings |= {"figure.dpi": 200, "savefig.bbox": "tight", "savefig.pad_inches": 0.02}
    settings |= {"axes.spines.top": False, "axes.spines.right": False, "grid.color": "#E5E5E5"}
    sns.set_theme(context="paper", style="whitegrid", palette=_PALETTE, rc=settings)


def panels(
    n_rows: int, n_columns: int, width: float, height: float, **options
) -> tuple[Figure, np.ndarray]:
    """A figure of a size in inches and its Axes [n_rows, n_columns]."""
    options = {"layout": "constrained", "squeeze": False} | options
    return plt.subplots(n_rows, n_columns, figsize=(width, height), **options)


def image_grid(
    images: Sequence[Image.Image], titles: Sequence[str], n_columns: int = 6
) -> list[Axes]:
    """Images in rows, each under its title, which is broken into three lines at most.

    Args:
        images: PIL images.
        titles: one an image.
        n_columns: images in a row.

    Returns:
        One Axes an image.
    """
    n_rows = -(-len(images) // n_columns)
    titles = [wrap(text, 90 // n_columns) for text in titles]
    n_lines = max(text.count("\n") + 1 for text in titles)
    height = n_rows * (WIDTH / n_columns + 0.15 * n_lines)
    axes = panels(n_rows, n_columns, WIDTH, height, dpi=130)[1]
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image.convert("RGB"))
        axis.set_title(title, fontweight="normal", parse_math=False)  # a dollar is a dollar
    return list(axes.flat)[: len(images)]


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
        texts: m candidate texts, the captions among them.
        similarity: cosines [n, m].
        n_shown: texts an image.

    Returns:
        One Axes an image, the one that holds its texts.
    """
    n_rows = -(-len(images) // 2)
    figure, axes = panels(n_rows, 4, WIDTH, 0.8 * n_rows, layout=None, width_ratios=[1, 3.6] * 2)
    figure.subplots_adjust(wspace=0.04, hspace=0.12, left=0, right=1, top=1, bottom=0)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes[:, ::2].flat, images, strict=False):
        axis.imshow(image.convert("RGB"))
    beside = list(axes[:, 1::2].flat)[: len(images)]
    for axis, right, cosines in zip(beside, captions, similarity, strict=True):
        ranked = [texts[j] for j in cosines.argsort(descending=True).tolist()]
        shown = []
        for text in ranked[:n_shown]:
            mark, colour = ("✓", RIGHT) if text in right else ("✗", WRONG)
            shown.append((f"{mark} {_shorten(text, 38)}", colour))
        rank = min(ranked.index(text) for text in right)
        if rank >= n_shown:
            shown.append((f"rank {rank + 1:,}: {_shorten(ranked[rank], 30)}", GREY))
        for i, (line, colour) in enumerate(shown):
            axis.text(0, 0.95 - 0.25 * i, line, color=colour, va="top", parse_math=False)
    return beside


def search_gallery(
    queries: Sequence[str],
    similarity: Float[Tensor, "q n"],
    load: Callable[[int], Image.Image],
    right: Sequence[int],
    n_shown: int = 5,
) -> list[Axes]:
    """Each text above the images that a model ranks first, with its own image framed.

    Args:
        queries: q texts.
        similarity: cosines of texts to n images [q, n].
        load: takes an index and returns the image, such as `pairs.image`.
        right: the index of each text's own image, q.
        n_shown: images per text.

    Returns:
        The Axes of the images, row by row.
    """
    width = WIDTH - 1.6
    height = len(queries) * (width / n_shown + 0.34)
    figure, axes = panels(len(queries), n_shown, width, height, layout=None, dpi=110)
    figure.subplots_adjust(wspace=0.08, hspace=0.38, left=0.01, right=0.99, top=0.96, bottom=0.01)
    nearest = similarity.argsort(dim=1, descending=True, stable=True)[:, :n_shown]
    for query, row, shown, own in zip(queries, axes, nearest.tolist(), right, strict=True):
        row[0].set_title(_shorten(query, 62), loc="left", fontweight="normal", parse_math=False)
        for axis, i in zip(row, shown, strict=True):
            axis.imshow(load(i).convert("RGB"))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(visible=i == own, color=GREEN, linewidth=3)
    return list(axes.flat)


def pick_evenly(groups: Bool[Tensor, " m"], n: int) -> Int[Tensor, " n"]:
    """Indices of n items for a gallery, by group: as many hits as misses."""
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0)).numpy()
    table = pd.DataFrame({"group": groups.numpy()[order]}, index=order)
    table["turn"] = table.groupby("group").cumcount()
    chosen = table.sort_values(["turn", "group"]).head(n).sort_values(["group", "turn"])
    return torch.tensor(chosen.index.to_numpy())


def wrap(text: str, width: int = 16) -> str:
    """A text broken into lines of at most `width` characters, three at most."""
    return "\n".join(textwrap.wrap(text, width, max_lines=3, placeholder="…"))


def _shorten(text: str, limit: int) -> str:
    """A text of at most `limit` characters, without its middle: names differ at their ends."""
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half].rstrip()}…{text[-half:].lstrip()}"
