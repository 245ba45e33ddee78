"""Where glyphs and photos lie on the map of `between`, from their features alone.

Three numbers of a set of pairs are estimated by CCA on thirds of the pairs: the first fits it, the
second turns its variates into canonical ones, and the third measures. The *correlations* rho_i of
the variates on the third count as sum(rho^2)^2 / sum(rho^4) *shared dimensions*, 8 in the world.
The *share predicted* is the part of a modality's variance that the other modality's variates
predict; in the world it falls as the nuisance scale grows, so that it tells the scale. The strength
of the correlations, 0.95 in the world, has no axis on the map.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

import cibr
from cibr.data import Pairs
from cibr.losses.cca import canonical_maps, centred_moments
from cibr.models.features import prepare
from cibr_book.experiments.corruptions import Corruption, split_subset
from cibr_book.worlds.between_world import CORRELATION, N_OWN, N_SHARED

_RIDGES = (0.001, 0.01, 0.1, 1.0, 10.0)  # in units of the mean variance of a feature
_N_DIRECTIONS = 128
_N_ERRORS = 3  # standard errors above zero of a correlation that counts
# Shares of the training pairs in the conditions of the ablation.
_FRACTIONS = {"photos": (1, 0.3, 0.2, 0.1, 0.05), "glyphs": (1, 0.3, 0.1)}

Features = Float[Tensor, "n p"]
Sides = tuple[Features, Float[Tensor, "n q"]]


@dataclass(frozen=True)
class Structure:
    """What a set of pairs shares, see `shared_structure`.

    Args:
        shared_dimension: number of equally strong shared dimensions.
        correlation: root mean square of the correlations, weighted by their squares.
        predicted: share of a modality's variance that the other one predicts, the mean of both.
    """

    shared_dimension: float
    correlation: float
    predicted: float


def shared_structure(images: Features, texts: Float[Tensor, "n q"]) -> Structure:
    """Estimates the shared dimensions, their correlation and the share predicted.

    Args:
        images: features of images in random order, [n, p].
        texts: features of their texts, row by row, [n, q].

    Raises:
        ValueError: fewer than 300 pairs, or features without a correlation that is three standard
            errors above zero.
    """
    n = len(images) // 3
    if n < 100:
        raise ValueError(f"{len(images)} pairs are too few to measure correlations: give 300")
    thirds = [
        tuple(side[i * n : (i + 1) * n].double() for side in (images, texts)) for i in (0, 1, 2)
    ]
    maps = _canonical(thirds[0], thirds[1])
    variates = [[_standard(x @ m.T) for x, m in zip(third, maps, strict=True)] for third in thirds]
    correlations = (variates[2][0] * variates[2][1]).mean(0)
    kept = correlations > _N_ERRORS / n**0.5
    if not kept.any():
        raise ValueError("images and texts are uncorrelated, or their rows do not match")
    squares = correlations.square() - (1 - correlations.square()) / n  # without the sampling error
    predicted = []
    for own, other in ((0, 1), (1, 0)):
        # Covariances from two thirds, so that their errors are independent and cancel on average.
        covariances = [_covariance(thirds[i][own], variates[i][other]) for i in (1, 2)]
        variance = thirds[2][own].var(0, correction=0).sum()
        predicted.append((covariances[0] * covariances[1])[:, kept].sum() / variance)
    return Structure(
        shared_dimension=(squares.sum().square() / squares.square().sum()).item(),
        correlation=(squares.square().sum() / squares.sum()).sqrt().item(),
        predicted=sum(predicted).item() / 2,
    )


def _canonical(
    first: Sides, second: Sides
) -> tuple[Float64[Tensor, "d p"], Float64[Tensor, "d q"]]:
    """Maps of ridge CCA on the first pairs, with the ridge that is best on the second ones, rotated
    to the canonical variates of the second.
    """
    dim = min(_N_DIRECTIONS, first[0].shape[1], first[1].shape[1], len(second[0]) // 8)
    moments = centred_moments(*first)[1]
    best, best_sum = None, -1.0
    for ridge in _RIDGES:
        maps = canonical_maps(moments, dim, ridge, ridge)
        found = [_standard(x @ m.T) for x, m in zip(second, maps, strict=True)]
        total = (found[0] * found[1]).mean(0).clamp(min=0).square().sum().item()
        if total > best_sum:
            best, best_sum = maps, total
    reduced = [x @ m.T for x, m in zip(second, best, strict=True)]
    turned = canonical_maps(centred_moments(*reduced)[1], dim, 1e-6, 1e-6)
    return tuple(turn @ side for turn, side in zip(turned, best, strict=True))


def _standard(values: Tensor) -> Tensor:
    centred = values - values.mean(0)
    return centred / centred.square().mean(0).sqrt().clamp(min=1e-12)


def _covariance(features: Tensor, variates: Tensor) -> Tensor:
    return (features - features.mean(0)).T @ variates / len(features)


def place(n_pairs: float | int, structure: Structure) -> tuple[float, float]:
    """The place on the map of pairs with a structure.

    Args:
        n_pairs: number of training pairs.
        structure: from `shared_structure`.

    Returns:
        The number of pairs that the world has at as many pairs per shared dimension, and the
        nuisance scale at which it has the same share predicted; 0 if it has less at every scale.
    """
    own = N_SHARED * CORRELATION**2 / structure.predicted - N_SHARED
    nuisance = (max(own, 0.0) / N_OWN) ** 0.5
    return n_pairs * N_SHARED / structure.shared_dimension, nuisance


def _photos() -> tuple[Sides, Pairs]:
    """Features of the frozen towers, a photo with its first caption; and the training set."""
    pairs = cibr.load_pairs("flickr8k", "train")
    inputs = prepare(cibr.DualEncoder.frozen(), pairs, truncate=True)
    counts = [len(texts) for texts in pairs.captions]
    first = np.cumsum([0, *counts[:-1]])
    return (inputs.images, inputs.texts[0][first]), pairs


@torch.no_grad()
def _glyphs() -> tuple[Sides, Pairs]:
    """Pooled features of the shipped CLIP model for characters in a typeface that it has not seen;
    and its training set.
    """
    model = cibr.DualEncoder.from_pretrained("clip-tiny").eval()
    inputs = prepare(model, cibr.load_pairs("glyphs", "test"))
    images = [model.encode_images(part).pooled for part in inputs.images.split(256)]
    images = torch.cat(images).unflatten(1, (-1, 16)).mean(2)  # over positions
    texts = model.encode_texts(*inputs.texts).pooled
    return (images, texts), cibr.load_pairs("glyphs", "train")


SETS: dict[str, Callable[[], tuple[Sides, Pairs]]] = {"photos": _photos, "glyphs": _glyphs}


def places() -> pd.DataFrame:
    """Photos and glyphs, whole and in the parts that the ablation trains on.

    Returns:
        `data`, `fraction` of the training pairs, `n_pairs`, the number of items in that part (the
        images of a character are one), the three fields of `Structure`, and the place on the map,
        `pairs` and `nuisance`.
    """
    rows = []
    for data, load in SETS.items():
        sides, training_pairs = load()
        order = torch.randperm(len(sides[0]), generator=torch.Generator().manual_seed(0))
        structure = shared_structure(*(side[order] for side in sides))
        for fraction in _FRACTIONS[data]:
            part, _ = split_subset(training_pairs, Corruption(fraction=fraction))
            n_pairs = len(part.match_labels().unique())
            pairs, nuisance = place(n_pairs, structure)
            row = {"data": data, "fraction": fraction, "n_pairs": n_pairs} | vars(structure)
            rows.append(row | {"pairs": pairs, "nuisance": nuisance})
    return pd.DataFrame(rows).round(3)
