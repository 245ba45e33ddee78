"""Changes of a training set: a subset, shuffled captions, images in another style.

Styles change the rendering of an image but not its content, so its captions stay valid:

    tint      with an amber cast, as by lamplight
    lime      black on lime paper

A corruption affects the same images for every training seed, unless `redraw` is set.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image, ImageOps
from torch import Tensor

from cibr.data.pairs import Pairs
from cibr.utils import check_known

_AMBER = (1, 0, 0, 0, 0, 0.75, 0, 0, 0, 0, 0.45, 0)  # the rows of red, green and blue

STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "tint": lambda image: image.convert("RGB", _AMBER),
    "lime": lambda image: ImageOps.colorize(ImageOps.grayscale(image), "black", "lime"),
}


@dataclass(frozen=True)
class Corruption:
    """Settings of the changes to a training set; the defaults change nothing.

    Args:
        fraction: share of the images that is kept, in (0, 1]; smaller subsets are nested in larger
            ones.
        shuffled_captions: share of the kept images whose captions are permuted among them.
        redraw: draw the subset and the shuffled captions anew for each training seed.

    Raises:
        ValueError: a share outside its range.
    """

    fraction: float | int = 1.0
    shuffled_captions: float | int = 0.0
    redraw: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.fraction <= 1 and 0 <= self.shuffled_captions <= 1):
            raise ValueError(f"fraction and shuffled_captions are shares, at most 1: got {self}")


def corrupt(pairs: Pairs, corruption: Corruption, seed: int = 0) -> Pairs:
    """Corrupts a training split: takes a subset, shuffles captions.

    Args:
        pairs: a training split.
        corruption: the changes.
        seed: of the subset and the shuffled captions, where they are redrawn.
    """
    n_kept = max(2, round(corruption.fraction * len(pairs)))
    order = _order(len(pairs), 1_000 + seed if corruption.redraw else 0)
    kept = pairs.subset(order[:n_kept].sort().values)
    order = _order(len(kept), 2_000 + seed if corruption.redraw else 1)
    return _with_shuffled_captions(kept, corruption, order)


def _with_shuffled_captions(pairs: Pairs, corruption: Corruption, order: Tensor) -> Pairs:
    """Shifts the captions and labels of a share of the images cyclically, in random order."""
    chosen = order[: round(corruption.shuffled_captions * len(pairs))]
    source = torch.arange(len(pairs))
    source[chosen] = chosen.roll(1)
    captions = [pairs.captions[i] for i in source.tolist()]
    labels = None if pairs.labels is None else pairs.labels[source]
    return replace(pairs, captions=captions, labels=labels)


def in_both_styles(pairs: Pairs, style: str) -> Pairs:
    """All pairs unchanged, then all with their images in one of `STYLES`, the suffix of their keys.

    Both renderings of an image have its captions, so they are positives of each other's texts.

    Raises:
        ValueError: an unknown style.
    """
    check_known("style", style, STYLES)
    keys = [*pairs.keys, *(f"{key}/{style}" for key in pairs.keys)]
    load = partial(_styled, pairs.image, len(pairs), style)
    return replace(pairs.subset(torch.arange(len(pairs)).repeat(2)), keys=keys, load=load)


def _styled(load: Callable[[int], Image.Image], n: int, style: str, i: int) -> Image.Image:
    """Loads image i, of which those from n on are in the style."""
    return load(i) if i < n else STYLES[style](load(i - n))


def _order(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))
