"""Overviews: the training curves of a run, and grids of images.

Each function returns its Axes, and draws in the current style of matplotlib.
"""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from PIL import Image

from cibr_book.pages.plots import BLUE, GREEN, GREY, ORANGE, WIDTH, panels, wrap

_BELOW = dict(loc="upper center", bbox_to_anchor=(0.5, -0.26))


def training_curves(history: pd.DataFrame) -> list[Axes]:
    """Contrastive loss, penalty excess with its weight, and validation recall over the epochs, side
    by side.

    The loss that is minimised is not drawn: it mixes the two with a weight that rises.

    Args:
        history: as `cibr.fit` returns it.

    Returns:
        Three Axes.
    """
    axes = panels(1, 3, WIDTH, 2.6)[1][0]
    epochs = history["epoch"]
    curves = {
        "clip_loss": ("contrastive loss", BLUE),
        "penalty_excess": ("penalty excess, weight", ORANGE),
    }
    for axis, (column, (title, colour)) in zip(axes, curves.items(), strict=False):
        axis.plot(epochs, history[column], "o-", ms=3, color=colour, label="excess")
        axis.set(title=title, xlabel="epoch", ylabel="nats", ylim=(0, None))
    weight = axes[1].twinx()
    weight.step(epochs, history["beta"], where="pre", color=GREY, lw=1, label="beta")
    weight.set(ylabel="beta", ylim=(0, max(history["beta"].max() * 1.1, 0.01)))
    weight.grid(False)
    axes[1].legend(handles=[*axes[1].get_lines(), *weight.get_lines()], **_BELOW)
    for k, colour in ((1, BLUE), (10, GREEN)):
        for side, line in (("image_to_text", "-"), ("text_to_image", "--")):
            label = f"{side.replace('_', ' ')}, k={k}"
            names = [f"{side}_recall@{k}", f"{side}_label_recall@{k}"]
            for column in history.columns.intersection(names):
                axes[2].plot(epochs, 100 * history[column], line, color=colour, label=label)
    axes[2].set(title="validation recall@k", xlabel="epoch", ylabel="%", ylim=(0, 100))
    if axes[2].lines:  # runs without validation have none
        axes[2].legend(**_BELOW)
    return list(axes)


def image_grid(
    images: Sequence[Image.Image], titles: Sequence[str] | None = None, n_columns: int = 6
) -> list[Axes]:
    """Images in rows, each under its title, which is broken into three lines at most.

    Args:
        images: PIL images.
        titles: one an image, or None.
        n_columns: images in a row.

    Returns:
        One Axes an image.
    """
    n_rows = -(-len(images) // n_columns)
    titles = [wrap(text, 90 // n_columns) for text in titles or []]
    n_lines = max((text.count("\n") + 1 for text in titles), default=0)
    height = n_rows * (WIDTH / n_columns + 0.15 * n_lines)
    axes = panels(n_rows, n_columns, WIDTH, height)[1]
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles or [""] * len(images), strict=False):
        axis.imshow(image.convert("RGB"))
        axis.set_title(title, fontweight="normal", parse_math=False)  # a dollar is a dollar
    return list(axes.flat)[: len(images)]
