"""Geometry of paired embeddings: alignment, uniformity, modality gap, linear CKA and mutual nearest
neighbours.

All but `linear_cka` take unit vectors.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cibr.metrics.retrieval import check_embeddings, similarity_tiles

Vectors = Float[Tensor, "n d"]


def alignment(image_embeddings: Vectors, text_embeddings: Vectors) -> float:
    """Mean squared distance between pairs: 2 - 2 times the mean cosine, 0 if all pairs coincide.

    Source: Wang and Isola (2020, arXiv 2005.10242), section 4.1, with exponent 2.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [n, d], paired with the images row by row.

    Returns:
        A value in [0, 4].

    Raises:
        ValueError: shapes that do not fit, rows that are not finite or not of unit length.
    """
    _check_pairs(image_embeddings, text_embeddings)
    _check_unit(image_embeddings=image_embeddings, text_embeddings=text_embeddings)
    return (image_embeddings.double() - text_embeddings.double()).square().sum(1).mean().item()


def uniformity(embeddings: Vectors) -> float:
    """Log of the mean Gaussian potential exp(-2 |x - y|^2) over distinct items: 0 if all coincide.

    Source: Wang and Isola (2020, arXiv 2005.10242), section 4.1, with t = 2.

    Args:
        embeddings: unit vectors [n, d], at least two.

    Returns:
        A value in [-8, 0]; lower is more uniform.

    Raises:
        ValueError: a single item, rows that are not finite or not of unit length.
    """
    _check_unit(embeddings=embeddings)
    if len(embeddings) < 2:
        raise ValueError("a single embedding has no distances: pass at least two")
    total = 0.0
    n = len(embeddings)
    for rows, tile in similarity_tiles(embeddings, embeddings):
        potential = torch.exp(4 * (tile - 1)).double()
        total += (potential.sum() - potential[:, rows].diagonal().sum()).item()
    return math.log(total / (n * (n - 1)))


def modality_gap(image_embeddings: Vectors, text_embeddings: Float[Tensor, "m d"]) -> float:
    """Distance between the mean image embedding and the mean text embedding.

    Source: Liang et al. (2022, arXiv 2203.02053), section 4.2.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].

    Returns:
        A value in [0, 2].

    Raises:
        ValueError: shapes that do not fit, rows that are not finite or not of unit length.
    """
    _check_unit(image_embeddings=image_embeddings, text_embeddings=text_embeddings)
    return (image_embeddings.double().mean(0) - text_embeddings.double().mean(0)).norm().item()


def linear_cka(image_embeddings: Vectors, text_embeddings: Vectors) -> float:
    """Centred kernel alignment with linear kernels: 1 if the sides differ by a rotation and a
    scaling.

    Source: Kornblith et al. (2019, arXiv 1905.00414), section 3.

    Args:
        image_embeddings: [n, d], of any norm.
        text_embeddings: [n, d], paired with the images row by row.

    Returns:
        A value in [0, 1].

    Raises:
        ValueError: different numbers of rows, rows that are zero or not finite, a side whose rows
            are all equal.
    """
    _check_pairs(image_embeddings, text_embeddings)
    check_embeddings(image_embeddings=image_embeddings, text_embeddings=text_embeddings)
    _check_spread(image_embeddings=image_embeddings, text_embeddings=text_embeddings)
    x, y = (side.double() - side.double().mean(0) for side in (image_embeddings, text_embeddings))
    return ((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def mutual_knn(image_embeddings: Vectors, text_embeddings: Vectors, k: int = 10) -> float:
    """Mean overlap of a pair's k nearest neighbours among the images and among the texts.

    Source: Huh et al. (2024, arXiv 2405.07987), section 2. Ties for the k-th place are broken
    arbitrarily.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [n, d], paired with the images row by row.
        k: number of neighbours, between 1 and n - 1.

    Returns:
        A share in [0, 1]; about k / (n - 1) for unrelated sides.

    Raises:
        ValueError: different numbers of rows, a k out of range, rows that are not finite or not of
            unit length, a side whose rows are all equal.
    """
    _check_pairs(image_embeddings, text_embeddings)
    if not 1 <= k < len(image_embeddings):
        n = len(image_embeddings)
        raise ValueError(f"k={k} does not fit {n} pairs: it must be between 1 and {n - 1}")
    _check_unit(image_embeddings=image_embeddings, text_embeddings=text_embeddings)
    _check_spread(image_embeddings=image_embeddings, text_embeddings=text_embeddings)
    near_images, near_texts = (_neighbours(side, k) for side in (image_embeddings, text_embeddings))
    shared = sum((near_images[:, [i]] == near_texts).sum() for i in range(k))
    return shared.item() / (k * len(near_images))


def _neighbours(embeddings: Tensor, k: int) -> Tensor:
    """Indices of the k most similar other items of each item, [n, k]."""
    nearest = []
    for rows, tile in similarity_tiles(embeddings, embeddings):
        tile[:, rows].diagonal().fill_(-torch.inf)
        nearest.append(tile.topk(k).indices)
    return torch.cat(nearest)


def _check_pairs(images: Tensor, texts: Tensor) -> None:
    if len(images) != len(texts):
        n = len(images)
        raise ValueError(f"{n} images but {len(texts)} texts: pass one text per image")


def _check_unit(**embeddings: Tensor) -> None:
    check_embeddings(**embeddings)
    for name, side in embeddings.items():
        error = (side.float().norm(dim=1) - 1).abs().max().item()
        if error > 1e-2:  # bfloat16 has three digits
            raise ValueError(f"{name} has norms up to {error:.3g} away from 1: normalise the rows")


def _check_spread(**embeddings: Tensor) -> None:
    for name, side in embeddings.items():
        if (side - side[0]).abs().max() <= 1e-6 * side[0].abs().max():
            raise ValueError(f"all rows of {name} are equal: they have no neighbours and no shape")
