"""Views of a picture: changed in style, not in content, so that a text says the same of all of them.

    small     as a picture of a few pixels would show it
    contours  its outlines, dark on light, without colour
    flat      few colours in plain patches, like a poster
    grey      without colour
    negative  dark for light: for validation alone, so that a choice is made on a change that no training saw

What differs between views is information of the image alone: that is what the penalty is about.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from PIL import Image, ImageFilter, ImageOps

from cibr.data.pairs import Pairs

SMALL = 24  # px of the shorter side


def _small(image: Image.Image) -> Image.Image:
    scale = SMALL / min(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    return image.resize(size, Image.Resampling.BOX).resize(image.size, Image.Resampling.BILINEAR)


def _contours(image: Image.Image) -> Image.Image:
    edges = ImageOps.grayscale(image).filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)
    # The filter marks the frame of the picture itself.
    inner = ImageOps.expand(ImageOps.crop(edges, 1), 1, fill=0)
    return ImageOps.invert(ImageOps.autocontrast(inner, cutoff=1)).convert("RGB")


def _flat(image: Image.Image) -> Image.Image:
    return ImageOps.posterize(image.filter(ImageFilter.MedianFilter(5)), 2)


def _grey(image: Image.Image) -> Image.Image:
    return ImageOps.grayscale(image).convert("RGB")


VIEWS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "small": _small,
    "contours": _contours,
    "flat": _flat,
    "grey": _grey,
    "negative": ImageOps.invert,
}
TRAINED_VIEWS = ("small", "contours", "flat")
HELD_OUT_VIEW = "negative"


def with_views(pairs: Pairs) -> Pairs:
    """Every picture as it is and in each of `TRAINED_VIEWS`, all with its captions and one label.

    Args:
        pairs: a training split.

    Returns:
        Four times as many pairs: first the pictures as they are, then view by view. Labels are those of the
        pairs, or the number of the picture.
    """
    labels = torch.arange(len(pairs)) if pairs.labels is None else pairs.labels
    n, views = len(pairs), ("", *TRAINED_VIEWS)
    repeated = replace(pairs, labels=labels).subset(list(range(n)) * len(views))
    return in_views(repeated, [view for view in views for _ in range(n)])


def seen_through(pairs: Pairs, view: str) -> Pairs:
    """The same pairs with every picture in one of `VIEWS`.

    Raises:
        ValueError: a view that is none of them.
    """
    if view not in VIEWS:
        raise ValueError(f"there is no view {view!r}: there are {', '.join(VIEWS)}")
    return in_views(pairs, [view] * len(pairs))


def in_views(pairs: Pairs, views: list[str]) -> Pairs:
    """The same pairs with each picture in a view of its own, or as it is where the view is empty; keys tell."""
    keys = [f"{key}/{view}" if view else key for key, view in zip(pairs.keys, views, strict=True)]
    return replace(pairs, keys=keys, load=_Viewed(pairs.load, views))


@dataclass(frozen=True)
class _Viewed:
    """Loads picture i in its view."""

    load: Callable[[int], Image.Image]
    views: list[str]

    def __call__(self, i: int) -> Image.Image:
        image, view = self.load(i), self.views[i]
        return VIEWS[view](image) if view else image
