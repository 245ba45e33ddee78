"""Checks of an attribution map that could fail: against a known place, by deletion, and with a broken model."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from cibr.models import DualEncoder

Maps = Float[Tensor, "n h w"]


def share_inside(maps: Maps, region: Bool[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """The part of each map that lies in a region; values below zero count as none.

    Args:
        maps: attribution.
        region: where it should be.

    Returns:
        Shares in [0, 1]; a map that is nowhere positive has that of an even map, the region's area.
    """
    positive = maps.clamp(min=0).flatten(1)
    inside = (positive * region.flatten(1)).sum(1)
    total = positive.sum(1)
    area = region.flatten(1).float().mean(1)
    return torch.where(total > 0, inside / total.clamp(min=1e-30), area)


def deletion_curve(
    pixels: Float[Tensor, "n c h w"],
    maps: Maps,
    score: Callable[[Tensor], Float[Tensor, " n"]],
    fill: float,
    fractions: Sequence[float | int],
) -> Float[Tensor, "n k"]:
    """Scores as the pixels are painted over, those with the highest attribution first.

    Source: Samek et al. (2017, arXiv 1509.06321), section III, pixel by pixel.

    Args:
        pixels: normalised pictures.
        maps: attribution at the size of the pictures.
        score: pictures to one number each, such as the cosine with their text.
        fill: the value of a deleted pixel.
        fractions: shares of the pixels that are gone, in [0, 1].

    Returns:
        The score at each fraction.

    Raises:
        ValueError: maps of another size than the pictures, or fractions outside [0, 1].
    """
    n, _, h, w = pixels.shape
    if maps.shape != (n, h, w) or not all(0 <= f <= 1 for f in fractions):
        raise ValueError(
            f"pictures {list(pixels.shape)}, maps {list(maps.shape)}, fractions {list(fractions)}: enlarge the "
            "maps to the pictures, and give shares between 0 and 1"
        )
    place = (
        maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True).view(n, 1, h, w)
    )
    with torch.no_grad():
        curves = [score(torch.where(place < round(f * h * w), fill, pixels)) for f in fractions]
    return torch.stack(curves, 1)


def scrambled(model: DualEncoder, seed: int = 0) -> DualEncoder:
    """A copy whose image encoder has learned nothing: the entries of each of its weights in a random order.

    Source: Adebayo et al. (2018, arXiv 1810.03292), section 3; shuffled instead of drawn anew, so that sizes stay.
    """
    broken = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        parts = ("image_tower", "image_top", "image_head")
        for part in (getattr(broken.backbone, name) for name in parts if hasattr(broken.backbone, name)):
            for weight in part.parameters():
                order = torch.randperm(weight.numel(), generator=generator)
                weight.copy_(weight.flatten()[order].view_as(weight))
    return broken


def map_agreement(a: Maps, b: Maps) -> Float[Tensor, " n"]:
    """Spearman's rank correlation of two maps of each picture.

    Returns:
        Values in [-1, 1]; 0 where a map is flat.
    """
    ranks = [rankdata(m.flatten(1).numpy(), axis=1) for m in (a, b)]
    x, y = (r - r.mean(1, keepdims=True) for r in ranks)
    scale = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return torch.from_numpy(np.where(scale > 0, (x * y).sum(1) / np.maximum(scale, 1e-30), 0.0)).float()
