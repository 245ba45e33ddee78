"""Every figure of the book, in one visual language: each function draws on Axes and returns them.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; the background is white so that a
figure reads the same on a light and on a dark page.
"""

import textwrap
import unicodedata
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6E6E6E"
PALETTE = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#F0E442", "#000000")


def set_style() -> None:
    """The book's style; call it once in a notebook, before the first figure."""
    settings = {
        "figure.dpi": 110,
        "figure.facecolor": "white",
        "savefig.bbox": "tight",
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": "#E5E5E5",
    }
    sns.set_theme(context="notebook", style="whitegrid", palette=PALETTE, rc=settings)


def training_curves(history: pd.DataFrame) -> list[Axes]:
    """Loss, penalty and validation recall over the epochs of `fit`'s history, side by side.

    Args:
        history: as `cibr.fit` returns it.

    Returns:
        Three Axes.
    """
    _, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    epochs = history["epoch"]
    axes[0].plot(epochs, history["clip_loss"], "o-", ms=3, color=BLUE)
    axes[0].set(title="contrastive loss", xlabel="epoch", ylabel="nats", ylim=(0, None))
    axes[1].plot(epochs, history["penalty_excess"], "o-", ms=3, color=ORANGE, label="excess")
    weight = axes[1].twinx()
    weight.step(epochs, history["beta"], where="pre", color=GREY, lw=1, label="beta")
    weight.set(ylabel="beta", ylim=(0, max(history["beta"].max() * 1.1, 0.01)))
    weight.grid(False)
    axes[1].set(title="penalty excess and its weight", xlabel="epoch", ylabel="nats", ylim=(0, None))
    lines = axes[1].get_lines() + weight.get_lines()
    below = dict(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2, frameon=False, fontsize=9)
    axes[1].legend(lines, [line.get_label() for line in lines], **below)
    for k, colour in ((1, BLUE), (10, GREEN)):
        for side, style in (("image_to_text", "-"), ("text_to_image", "--")):
            column = f"{side}_recall@{k}"
            if column in history:
                label = f"{side.replace('_', ' ')}, k={k}"
                axes[2].plot(epochs, 100 * history[column], style, color=colour, label=label)
    axes[2].set(title="validation recall@k", xlabel="epoch", ylabel="%", ylim=(0, 100))
    if axes[2].lines:  # runs without validation have none
        axes[2].legend(**below)
    return list(axes)


def image_grid(
    images: Sequence[Image.Image], titles: Sequence[str] | None = None, n_columns: int = 8, size: float = 1.2
) -> list[Axes]:
    """Pictures in rows, each under its title.

    Args:
        images: PIL images.
        titles: one a picture, or None.
        n_columns: pictures in a row.
        size: width of a picture in inches.

    Returns:
        One Axes a picture.
    """
    n_rows = -(-len(images) // n_columns)
    height = size * (1.35 if titles else 1.02)
    _, axes = plt.subplots(
        n_rows, n_columns, figsize=(n_columns * size, n_rows * height), layout="constrained", squeeze=False
    )
    flat = list(axes.flat)
    for axis in flat:
        axis.axis("off")
    for i, image in enumerate(images):
        flat[i].imshow(image.convert("RGB"))
        if titles:
            flat[i].set_title(titles[i], fontsize=8, fontweight="normal", parse_math=False)
    return flat[: len(images)]


def retrieval_gallery(
    images: Sequence[Image.Image],
    captions: Sequence[Sequence[str]],
    texts: Sequence[str],
    similarity: Float[Tensor, "n m"],
    n_shown: int = 3,
    n_columns: int = 2,
) -> list[Axes]:
    """Each picture beside the texts that a model ranks first, right ones in green and wrong ones in red.

    Where none of them is right, the best ranked right text follows with its rank.

    Args:
        images: n pictures.
        captions: the right texts of each picture.
        texts: m candidate texts.
        similarity: cosines [n, m].
        n_shown: texts a picture.
        n_columns: pictures in a row.

    Returns:
        One Axes a picture, the one that holds its texts.
    """
    words = pictures_beside_words(images, n_columns, (4.6, 1.05), 3.6)
    for i in range(len(images)):
        order = similarity[i].argsort(descending=True).tolist()
        for line, j in enumerate(order[:n_shown]):
            mark, colour = ("✓", GREEN) if texts[j] in captions[i] else ("✗", RED)
            _write_line(words[i], line, f"{mark} {shorten(texts[j])}", colour)
        rank = next((place for place, j in enumerate(order) if texts[j] in captions[i]), None)
        if rank is None:
            raise ValueError(f"none of the captions of picture {i} is among the texts: add {captions[i][0]!r}")
        if rank >= n_shown:
            _write_line(words[i], n_shown, f"rank {rank + 1:,}: {shorten(texts[order[rank]], 38)}", GREY)
    return words


def pictures_beside_words(
    images: Sequence[Image.Image],
    n_columns: int,
    size: tuple[float, float],
    width_of_words: float,
    space: tuple[float, float] = (0.04, 0.12),
) -> list[Axes]:
    """Pictures in rows, each beside empty Axes for words about it.

    Args:
        images: PIL images.
        n_columns: pictures in a row.
        size: width and height of a picture with its words, in inches.
        width_of_words: of the words, in widths of the picture.
        space: between columns and between rows, in widths and heights of the Axes.

    Returns:
        The Axes for words, one a picture.
    """
    n_rows = -(-len(images) // n_columns)
    figure, axes = plt.subplots(
        n_rows,
        2 * n_columns,
        figsize=(size[0] * n_columns, size[1] * n_rows),
        width_ratios=[1, width_of_words] * n_columns,
        squeeze=False,
    )
    figure.subplots_adjust(wspace=space[0], hspace=space[1], left=0, right=1, top=1, bottom=0)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes[:, 0::2].flat, images, strict=False):
        axis.imshow(image.convert("RGB"))
    return list(axes[:, 1::2].flat)[: len(images)]


def _write_line(axis: Axes, line: int, text: str, colour: str) -> None:
    place = (0, 0.95 - 0.25 * line)
    options = dict(fontsize=9.5, va="top", transform=axis.transAxes, parse_math=False)  # a dollar is a dollar
    axis.text(*place, text, color=colour, **options)


def wrap(text: str, width: int = 16) -> str:
    """A text broken into lines of at most `width` characters, three at most."""
    return "\n".join(textwrap.wrap(text, width, max_lines=3, placeholder="…"))


def shorten(text: str, limit: int = 44) -> str:
    """A text cut to `limit` characters, with an ellipsis where something was cut."""
    text = unicodedata.normalize("NFC", text)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def pick_right_and_wrong(hits: Bool[Tensor, " m"], n: int, seed: int = 0) -> Int[Tensor, " n"]:
    """Indices of queries for a gallery: as many hits as misses where there are enough, in a random order."""
    order = torch.randperm(len(hits), generator=torch.Generator().manual_seed(seed))
    right, wrong = order[hits[order]], order[~hits[order]]
    n_right = max(min(n // 2 + n % 2, len(right)), n - len(wrong))
    chosen = torch.cat([right[:n_right], wrong[: n - n_right]])
    return chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))]
