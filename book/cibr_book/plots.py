"""What the chapters draw beside `cibr.plots`: galleries of images and forests of evaluations.

Each function takes tidy rows or tensors and returns its Axes. Colours are Okabe and Ito's, which
colour-blind readers can tell apart: green is right, red is wrong, grey is context.
"""

import textwrap
import unicodedata
from collections.abc import Callable, Sequence

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
WIDTH = 7.2  # inches: at 100 px an inch the width of a page's text
BELOW = dict(loc="upper center", bbox_to_anchor=(0.5, -0.26))
MEAN = "mean, each set counts once"
HEADINGS = {"accuracy@1": "zero-shot accuracy", "mean": MEAN}
HEADINGS |= {
    f"image_to_text_{name}@1": "recall@1, image → text" for name in ("recall", "label_recall")
}
HEADINGS |= {
    f"text_to_image_{name}@1": "recall@1, text → image" for name in ("recall", "label_recall")
}


def set_style() -> None:
    """The book's style; call it once in a notebook, before the first figure."""
    text = ("font.size", "axes.titlesize", "axes.labelsize", "figure.labelsize", "legend.fontsize")
    text += ("legend.title_fontsize", "xtick.labelsize", "ytick.labelsize")
    settings = dict.fromkeys(text, 9) | {"axes.titleweight": "bold", "legend.frameon": False}
    settings |= {"figure.dpi": 200, "savefig.bbox": "tight", "savefig.pad_inches": 0.02}
    settings |= {"axes.spines.top": False, "axes.spines.right": False, "grid.color": "#E5E5E5"}
    sns.set_theme(context="paper", style="whitegrid", palette=PALETTE, rc=settings)


def retrieval_gallery(
    images: Sequence[Image.Image],
    captions: Sequence[Sequence[str]],
    texts: Sequence[str],
    similarity: Float[Tensor, "n m"],
    n_shown: int = 3,
    n_columns: int = 2,
) -> list[Axes]:
    """Each image beside the texts that a model ranks first, right ones in green and wrong ones in
    red.

    Where none of them is right, the best ranked right text follows with its rank.

    Args:
        images: n images.
        captions: the right texts of each image.
        texts: m candidate texts.
        similarity: cosines [n, m].
        n_shown: texts an image.
        n_columns: images in a row.

    Returns:
        One Axes an image, the one that holds its texts.

    Raises:
        ValueError: an image whose captions are not among the texts.
    """
    n_rows = -(-len(images) // n_columns)
    size = dict(figsize=(WIDTH, 0.8 * n_rows), width_ratios=[1, 3.6] * n_columns)
    figure, axes = plt.subplots(n_rows, 2 * n_columns, squeeze=False, **size)
    figure.subplots_adjust(wspace=0.04, hspace=0.12, left=0, right=1, top=1, bottom=0)
    for axis in axes.flat:
        axis.axis("off")
    words = list(axes[:, 1::2].flat)[: len(images)]
    for i, (axis, image) in enumerate(zip(axes[:, 0::2].flat, images, strict=False)):
        axis.imshow(image.convert("RGB"))
        ranked = [texts[j] for j in similarity[i].argsort(descending=True).tolist()]
        rank = next((place for place, text in enumerate(ranked) if text in captions[i]), None)
        if rank is None:
            raise ValueError(
                f"none of the captions of image {i} is among the texts: add {captions[i][0]!r}"
            )
        marks = {True: ("✓", GREEN), False: ("✗", RED)}
        lines = [(*marks[text in captions[i]], shorten(text, 38)) for text in ranked[:n_shown]]
        if rank >= n_shown:
            lines.append((f"rank {rank + 1:,}:", GREY, shorten(ranked[rank], 30)))
        for line, (mark, colour, text) in enumerate(lines):
            style = dict(color=colour, va="top", transform=words[i].transAxes, parse_math=False)
            words[i].text(0, 0.95 - 0.25 * line, f"{mark} {text}", **style)
    return words


def search_gallery(
    queries: Sequence[str],
    similarity: Float[Tensor, "q n"],
    load: Callable[[int], Image.Image],
    right: Int[Tensor, " q"] | None = None,
    n_shown: int = 5,
) -> list[Axes]:
    """Each text above the images that a model ranks first; where a right one is known, it has a
    green frame.

    Where the right image is not among them, it closes the row, with its rank and in a grey frame.
    An image with the same similarity as the right one ranks before it.

    Args:
        queries: q texts.
        similarity: cosines of texts to n images [q, n].
        load: takes an index and returns the image, such as `pairs.image`.
        right: the index of each text's image, -1 where none is known, or None where none is for
            any.
        n_shown: images a text, at most.

    Returns:
        The Axes of the images, row by row, without those that stay empty.
    """
    n_shown = min(n_shown, similarity.shape[1])
    n_columns = n_shown + (right is not None)
    figsize = (WIDTH - 1.6, len(queries) * ((WIDTH - 1.6) / n_columns + 0.34))
    figure, axes = plt.subplots(len(queries), n_columns, figsize=figsize, squeeze=False)
    figure.subplots_adjust(wspace=0.08, hspace=0.38, left=0.01, right=0.99, top=0.96, bottom=0.01)
    for i, (query, row) in enumerate(zip(queries, axes, strict=True)):
        row[0].set_title(shorten(query, 62), loc="left", fontweight="normal", parse_math=False)
        own = -1 if right is None else int(right[i])
        shown = similarity[i].argsort(descending=True, stable=True)[:n_shown].tolist()
        frames = [GREEN if j == own else None for j in shown]
        if own >= 0 and own not in shown:
            shown, frames = [*shown, own], [*frames, GREY]
            rank = int((similarity[i] >= similarity[i, own]).sum())
            row[-1].set_title(f"rank {rank:,}", fontweight="normal", color=GREY)
        for axis in row:
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            axis.spines[:].set_visible(False)
        for axis, j, frame in zip(row, shown, frames, strict=False):
            axis.imshow(load(j).convert("RGB"))
            axis.spines[:].set(visible=frame is not None, color=frame, linewidth=3)
    return [axis for axis in axes.flat if axis.images]


def forest(rows: pd.DataFrame, a: str = "CLIP", b: str = "CIBR") -> Axes:
    """Paired differences of two models in percentage points, a line a score, with their intervals.

    Zero-shot accuracies come first, then their mean, set apart, then recalls at 1. An interval
    without zero has a
    colour: blue where b is better, red where a is. The members of a group stand below it, in grey.

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
    _, axis = plt.subplots(figsize=(4.4, 0.9 + 0.24 * n_lines), layout="constrained")
    axis.axvline(0, color=GREY, lw=1)
    ticks, line = [], 0.0
    for heading, block in blocks.items():
        ticks.append((line, heading))
        for row in block.itertuples():
            line += 1
            colour = BLUE if row.low > 0 else RED if row.high < 0 else GREY
            axis.plot(
                [100 * row.low, 100 * row.high],
                [line, line],
                color=colour,
                lw=2,
                solid_capstyle="butt",
            )
            axis.plot(
                100 * row.difference, line, "D" if heading == MEAN else "o", color=colour, ms=5.5
            )
            ticks.append((line, row.label))
        line += 1.4
    axis.set_yticks([place for place, _ in ticks], [text for _, text in ticks])
    for label, (_, text) in zip(axis.get_yticklabels(), ticks, strict=True):
        label.set(fontweight="bold" if text in HEADINGS.values() else "normal", parse_math=False)
        label.set_color(GREY if text.startswith("·") else "black")
    axis.grid(axis="y", visible=False)
    axis.spines["left"].set_visible(False)
    reach = max(abs(x) for x in axis.get_xlim())
    axis.set(ylim=(line - 0.6, -0.7), xlim=(-reach, reach))
    axis.set_xlabel(f"{b} minus {a}, percentage points")
    axis.set_title(f"← {a} better    {b} better →", fontweight="normal", color=GREY)
    return axis


def _blocks(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each heading with their `label`, empty ones left out."""
    kept = rows[rows["metric"].isin(HEADINGS)]
    if kept.empty:
        raise ValueError("there is nothing to draw: none of the rows is accuracy@1 or a recall@1")
    sets = list(kept["dataset"].unique())
    groups = {name: next((g for g in sets if name.startswith(f"{g}-")), None) for name in sets}
    places = {name: sets.index(group or name) + 0.5 * bool(group) for name, group in groups.items()}
    is_mean = kept["dataset"].str.startswith("mean of ")
    kept = kept.assign(
        label=[f"· {name}" if groups[name] else name for name in kept["dataset"]],
        heading=kept["metric"].where(~is_mean, "mean").map(HEADINGS),
        place=kept["dataset"].map(places),
    ).sort_values("place", kind="stable")
    headings = dict.fromkeys(HEADINGS.values())
    return {
        text: kept[kept["heading"] == text] for text in headings if (kept["heading"] == text).any()
    }


def pick_evenly(
    groups: Int[Tensor, " m"] | Bool[Tensor, " m"], n: int, seed: int = 0
) -> Int[Tensor, " n"]:
    """Indices of n items for a gallery, sorted by group: as many of each as there are, such as hits
    and misses.
    """
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).numpy()
    group = pd.Series(groups.numpy()[order], order)
    turn = group.groupby(group.to_numpy()).cumcount()
    table = pd.DataFrame({"turn": turn, "group": group}).sort_values(["turn", "group"])
    return torch.tensor(
        table.head(n).sort_values(["group", "turn"]).index.tolist(), dtype=torch.long
    )


def wrap(text: str, width: int = 16) -> str:
    """A text broken into lines of at most `width` characters, three at most."""
    return "\n".join(textwrap.wrap(text, width, max_lines=3, placeholder="…"))


def shorten(text: str, limit: int = 44) -> str:
    """A text cut to `limit` characters, with an ellipsis where something was cut."""
    text = unicodedata.normalize("NFC", text)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
