"""Figures of evaluations: differences with intervals, confusions, and galleries of what a model finds.

They share the colours of `cibr.plots`: green is right, red is wrong, grey is context. A figure that is read number
by number is narrow enough for a telephone.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from cibr.plots import BLUE, GREEN, GREY, RED, pictures_beside_words, plt, shorten

MEAN = "mean, each set counts once"
HEADINGS = {
    "accuracy@1": "zero-shot accuracy",
    "mean": MEAN,
    "image_to_text_recall@1": "recall@1, image → text",
    "text_to_image_recall@1": "recall@1, text → image",
}


def forest(rows: pd.DataFrame, a: str = "CLIP", b: str = "CIBR") -> Axes:
    """Paired differences of two models in percentage points, a line a score, with their intervals.

    Zero-shot accuracies come first, then their mean, set apart, then recalls at 1. An interval without zero has a
    colour: blue where b is better, red where a is. The members of a group stand below it, in grey.

    Args:
        rows: as `cibr.compare` returns them: `dataset, kind, metric, difference, low, high` in [-1, 1].
        a: what the first model is called; a difference is b - a.
        b: what the second model is called.

    Returns:
        The Axes; zero is a grey line.

    Raises:
        ValueError: none of the rows is an accuracy or a recall at 1.
    """
    blocks = _blocks(rows)
    n_lines = sum(1 + len(block) for block in blocks.values())
    _, axis = plt.subplots(figsize=(4.4, 0.9 + 0.27 * n_lines), layout="constrained")
    axis.axvline(0, color=GREY, lw=1)
    ticks, line = [], 0.0
    for heading, block in blocks.items():
        ticks.append((line, heading, True))
        for row in block.itertuples():
            line += 1
            _draw_interval(axis, line, row, "D" if heading == MEAN else "o")
            ticks.append((line, row.label, False))
        line += 1.4
    axis.set_yticks([place for place, *_ in ticks], [text for _, text, _ in ticks], fontsize=9)
    for label, (_, text, is_heading) in zip(axis.get_yticklabels(), ticks, strict=True):
        label.set_fontweight("bold" if is_heading else "normal")
        label.set_color(GREY if text.startswith("·") else "black")
        label.set_parse_math(False)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set(ylim=(line - 0.6, -0.7))
    axis.set_xlabel(f"{b} minus {a}, percentage points", fontsize=9.5)
    axis.tick_params(axis="x", labelsize=9)
    reach = max(abs(x) for x in axis.get_xlim())
    axis.set_xlim(-reach, reach)
    axis.set_title(f"← {a} better    {b} better →", fontsize=9, fontweight="normal", color=GREY)
    return axis


def _blocks(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each heading with their `label`, empty ones left out."""
    kept = rows[rows["metric"].isin(HEADINGS)]
    if kept.empty:
        metrics = ", ".join(metric for metric in HEADINGS if metric != "mean")
        raise ValueError(f"there is nothing to draw: none of the rows is one of {metrics}")
    sets = list(kept["dataset"].unique())
    groups = {name: next((g for g in sets if name.startswith(f"{g}-")), None) for name in sets}
    place = {
        name: sets.index(name) if group is None else sets.index(group) + 0.5 for name, group in groups.items()
    }
    kept = kept.assign(
        label=[f"· {name}" if groups[name] else name for name in kept["dataset"]],
        part=kept["metric"].where(~kept["dataset"].str.startswith("mean of "), "mean"),
        place=kept["dataset"].map(place),
    ).sort_values("place", kind="stable")
    return {text: kept[kept["part"] == part] for part, text in HEADINGS.items() if (kept["part"] == part).any()}


def _draw_interval(axis: Axes, line: float, row, marker: str) -> None:
    colour = BLUE if row.low > 0 else RED if row.high < 0 else GREY
    low, mean, high = (100 * value for value in (row.low, row.difference, row.high))
    axis.plot([low, high], [line, line], color=colour, lw=2, solid_capstyle="butt")
    axis.plot([mean], [line], marker, color=colour, ms=6 if marker == "D" else 5)


def confusion_matrices(
    labels: Int[Tensor, " n"], predicted: Mapping[str, Int[Tensor, " n"]], classnames: Sequence[str]
) -> list[Axes]:
    """Which class each model takes for which, side by side, in per cent of the pictures of a class.

    Classes without a picture have no row. Words that all names begin or end with are left out, and so are numbers
    below half a per cent; where there are more than twelve classes there are neither names nor numbers.

    Args:
        labels: the right class of each picture, an index into the names.
        predicted: the predicted classes, by the name of the model.
        classnames: the names.

    Returns:
        One Axes a model.
    """
    present = labels.unique().tolist()
    n, few, classnames = len(classnames), len(classnames) <= 12, _without_shared_words(classnames)
    side = min(0.36 * n + 0.6, 4.2)
    _, axes = plt.subplots(
        1, len(predicted), figsize=(1.2 + side * len(predicted), side + 1.2), squeeze=False, layout="constrained"
    )
    for axis, (model, answers) in zip(axes.flat, predicted.items(), strict=True):
        counts = torch.bincount(labels * n + answers, minlength=n * n).reshape(n, n)[present].double()
        percent = 100 * counts / counts.sum(1, keepdim=True)
        text = np.array([[f"{x:.0f}" if x >= 0.5 else "" for x in row] for row in percent.tolist()])
        names = dict(xticklabels=list(classnames) if few else False)
        names |= dict(yticklabels=[classnames[c] for c in present] if few and axis is axes.flat[0] else False)
        sns.heatmap(
            percent.numpy(),
            vmin=0,
            vmax=100,
            cmap="Blues",
            annot=text if few else None,
            fmt="",
            annot_kws=dict(fontsize=9),
            cbar=False,
            square=True,
            linewidths=0.5 if few else 0,
            ax=axis,
            **names,
        )
        axis.set(title=model)
        axis.set_xlabel("predicted", fontsize=9.5)
        axis.tick_params(labelsize=9, length=0)
        axis.tick_params(axis="y", rotation=0)
    axes.flat[0].set_ylabel("shown", fontsize=9.5)
    return list(axes.flat)


def _without_shared_words(names: Sequence[str]) -> list[str]:
    """Names without the first and last words that are the same in all of them: digit one, digit two."""
    words = [name.split(" ") for name in names]
    for end in (0, -1):
        while len({each[end] for each in words}) == 1 and min(map(len, words)) > 1:
            for each in words:
                del each[end]
    return [" ".join(each) for each in words]


def pick_evenly(groups: Int[Tensor, " m"], n: int, seed: int = 0) -> Int[Tensor, " n"]:
    """Indices of n items for a gallery, as many of each group as there are, in a random order within groups."""
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    members = [order[groups[order] == group].tolist() for group in groups.unique().tolist()]
    turns = [(turn, i) for each in members for turn, i in enumerate(each)]
    chosen = [i for _, i in sorted(turns, key=lambda x: x[0])[:n]]
    return torch.tensor(sorted(chosen, key=lambda i: int(groups[i])), dtype=torch.long)


def prediction_gallery(
    images: Sequence[Image.Image],
    labels: Int[Tensor, " n"],
    predicted: Mapping[str, Int[Tensor, " n"]],
    classnames: Sequence[str],
    n_columns: int = 2,
) -> list[Axes]:
    """Each picture beside its class and the class that each model names, right in green and wrong in red.

    Args:
        images: n pictures.
        labels: the right class of each, an index into the names.
        predicted: the predicted classes, by the name of the model.
        classnames: the names.
        n_columns: pictures in a row.

    Returns:
        One Axes a picture, the one that holds its lines.
    """
    words = pictures_beside_words(images, n_columns, (3.1, 1.0), 2.2, (0.05, 0.15))
    for i in range(len(images)):
        lines = [(shorten(classnames[int(labels[i])], 24), "black")]
        for model, answers in predicted.items():
            right = int(answers[i]) == int(labels[i])
            answer = shorten(classnames[int(answers[i])], 22 - len(model))
            lines.append((f"{'✓' if right else '✗'} {model}: {answer}", GREEN if right else RED))
        for line, (text, colour) in enumerate(lines):
            options = dict(fontsize=9.5, va="top", transform=words[i].transAxes, parse_math=False)
            words[i].text(0, 0.9 - 0.29 * line, text, color=colour, **options)
    return words


def search_gallery(
    queries: Sequence[str],
    similarity: Float[Tensor, "q n"],
    load: Callable[[int], Image.Image],
    right: Int[Tensor, " q"] | None = None,
    n_shown: int = 5,
) -> list[Axes]:
    """Each text above the pictures that a model ranks first; where a right one is known, it has a green frame.

    Where the right picture is not among them, it closes the row, with its rank and in a grey frame. A picture with
    the same similarity as the right one ranks before it.

    Args:
        queries: q texts.
        similarity: cosines of texts to n pictures [q, n].
        load: takes an index and returns the picture, such as `pairs.image`.
        right: the index of each text's picture, -1 where none is known, or None where none is for any.
        n_shown: pictures a text, at most.

    Returns:
        The Axes of the pictures, row by row, without those that stay empty.
    """
    n_shown = min(n_shown, similarity.shape[1])
    n_columns = n_shown + (right is not None)
    size = 5.6 / n_columns
    figure, axes = plt.subplots(
        len(queries), n_columns, figsize=(5.6, len(queries) * (size + 0.34)), squeeze=False
    )
    figure.subplots_adjust(wspace=0.08, hspace=0.38, left=0.01, right=0.99, top=0.96, bottom=0.01)
    shown = []
    for i, query in enumerate(queries):
        order = similarity[i].argsort(descending=True, stable=True).tolist()
        own = None if right is None or right[i] < 0 else int(right[i])
        for axis in axes[i]:
            axis.axis("off")
        axes[i, 0].set_title(shorten(query, 62), loc="left", fontsize=9.5, fontweight="normal", parse_math=False)
        for axis, j in zip(axes[i], order[:n_shown], strict=False):
            _show(axis, load(j), GREEN if j == own else None)
            shown.append(axis)
        if own is not None and own not in order[:n_shown]:
            _show(axes[i, -1], load(own), GREY)
            rank = int((similarity[i] >= similarity[i, own]).sum())
            axes[i, -1].set_title(f"rank {rank:,}", fontsize=9, fontweight="normal", color=GREY)
            shown.append(axes[i, -1])
    return shown


def _show(axis: Axes, image: Image.Image, frame: str | None) -> None:
    axis.imshow(image.convert("RGB"))
    axis.axis("on")
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set(visible=frame is not None, color=frame, linewidth=3)
