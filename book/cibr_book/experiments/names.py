"""What the rows of names.csv say: the start that knows names, beside heads + CCA and controls."""

from functools import cache

import numpy as np
import pandas as pd
from timm.data import ImageNetInfo

from cibr.data import load_pairs
from cibr.data.photos import CLASSES

RETRIEVAL = (
    "flickr8k search",
    "flickr8k text retrieval",
    "coco search",
    "coco text retrieval",
)
CLASS_SETS = tuple(name.removeprefix("photos-") for name in CLASSES)
CONTROLS = ("shuffled texts", "random texts", "random classifier")
SIZES = ("150", "600", "3000")  # photos to learn from
_SCORES = [*RETRIEVAL, "zero-shot", "zero-shot, other names"]
_MODELS = (
    "start",
    "fine-tuned",
    "fine-tuned + CCA",
    "fine-tuned + CCA + heads",
    "two fine-tuned",
    "fine-tuned + heads",
    "heads",
    "CCA",
    "heads + CCA",
    "heads + CCA, ridges as committed",
)
_PARTS = ("two maps trained", "names without definitions", "not centred", *CONTROLS)


def means_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over draws in per cent, by condition and method.

    Args:
        rows: of names.csv.

    Returns:
        Search and text retrieval on both sets (means of recall at 1, 5 and 10); zero-shot, the mean
        of the seven sets; the same over the sets most of whose class names ImageNet lacks; and each
        of the sets.
    """
    points = 100 * rows.set_index(["condition", "method"])[[*RETRIEVAL, *CLASS_SETS]]
    points["zero-shot"] = points[[*CLASS_SETS]].mean(axis=1)
    unknown = [name for name, share in known_names().items() if share < 0.5]
    points["zero-shot, other names"] = points[unknown].mean(axis=1)
    columns = [*RETRIEVAL, "zero-shot", "zero-shot, other names", *CLASS_SETS]
    return points.groupby(["condition", "method"], sort=False)[columns].mean()


def models_table(rows: pd.DataFrame) -> pd.DataFrame:
    """`means_of` the start, heads and CCA, and their sums, by number of photos."""
    means = means_of(rows)
    order = [(n, method) for n in SIZES for method in _MODELS if (n, method) in means.index]
    return means.loc[order, _SCORES]


def parts_table(rows: pd.DataFrame) -> pd.DataFrame:
    """`means_of` the start without a part of it and of controls, untrained and fine-tuned."""
    means = means_of(rows)
    methods = ["start", "fine-tuned"]
    for part in _PARTS:
        methods += [f"{part}, untrained", part]
    order = [(n, method) for n in SIZES for method in methods if (n, method) in means.index]
    return means.loc[order, _SCORES]


@cache
def known_names() -> dict[str, float]:
    """The share of each set's class names that are names of ImageNet's classes."""
    names = {
        name.strip().lower()
        for description in ImageNetInfo().label_descriptions()
        for name in description.split(",")
    }
    return {
        title: float(np.mean([name.lower() in names for name in classnames]))
        for title, classnames in _classnames().items()
    }


def chance() -> float:
    """The zero-shot mean of guessing a class, in per cent."""
    return 100 * float(np.mean([1 / len(classnames) for classnames in _classnames().values()]))


@cache
def _classnames() -> dict[str, list[str]]:
    return {
        title: load_pairs(name, "test").classnames
        for title, name in zip(CLASS_SETS, CLASSES, strict=True)
    }
