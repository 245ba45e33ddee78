"""Geometry of a joint embedding space: alignment, uniformity, neighbourhoods, and the gap between
its modalities.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cibr.metrics.retrieval import check_embeddings, similarity_tiles

Images = Float[Tensor, "n d"]
Texts = Float[Tensor, "m d"]


def alignment(image_embeddings: Images, text_embeddings: Images) -> float:
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
    return (image_embeddings.double() - text_embeddings.double()).square().sum(1).mean().item()


def uniformity(embeddings: Images) -> float:
    """Log of the mean Gaussian potential exp(-2 |x - y|^2) over distinct items: 0 if all coincide.

    Source: Wang and Isola (2020, arXiv 2005.10242), section 4.1, with t = 2.

    Args:
        embeddings: unit vectors [n, d], at least two.

    Returns:
        A value in [-8, 0]; lower is more uniform.

    Raises:
        ValueError: a single item, rows that are not finite or not of unit length.
    """
    check_embeddings(unit=True, embeddings=embeddings)
    if len(embeddings) < 2:
        raise ValueError("a single embedding has no distances: pass at least two")
    total = 0.0
    n = len(embeddings)
    for rows, tile in similarity_tiles(embeddings, embeddings):
        potential = torch.exp(4 * (tile - 1)).double()
        total += (potential.sum() - potential[:, rows].diagonal().sum()).item()
    return math.log(total / (n * (n - 1)))


def modality_gap(image_embeddings: Images, text_embeddings: Texts) -> float:
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
    check_embeddings(unit=True, image_embeddings=image_embeddings, text_embeddings=text_embeddings)
    return (image_embeddings.double().mean(0) - text_embeddings.double().mean(0)).norm().item()


def linear_cka(image_embeddings: Images, text_embeddings: Images) -> float:
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
    _check_pairs(image_embeddings, text_embeddings, unit=False)
    _check_spread(image_embeddings=image_embeddings, text_embeddings=text_embeddings)
    x, y = (side.double() - side.double().mean(0) for side in (image_embeddings, text_embeddings))
    return ((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def mutual_knn(image_embeddings: Images, text_embeddings: Images, k: int = 10) -> float:
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
    n = len(image_embeddings)
    if not 1 <= k < n:
        raise ValueError(f"k={k} does not fit {n} pairs: it must be between 1 and {n - 1}")
    _check_spread(image_embeddings=image_embeddings, text_embeddings=text_embeddings)
    near_images = nearest_items(image_embeddings, k)
    near_texts = nearest_items(text_embeddings, k)
    shared = (near_images[:, :, None] == near_texts[:, None]).sum()
    return shared.item() / (k * n)


def nearest_items(embeddings: Images, k: int) -> Int[Tensor, "n k"]:
    """The k most similar other items of each unit vector, the most similar first."""
    return (embeddings @ embeddings.T).fill_diagonal_(-torch.inf).topk(k).indices


def neighbour_agreement(
    nearest: Int[Tensor, "n k"], factor: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Chance-corrected share of neighbours with an item's own value of a factor: 0 at chance, 1 for
    all.

    Args:
        nearest: from `nearest_items`.
        factor: small integers [n].

    Returns:
        (share - chance) / (1 - chance) [n], where chance is the probability that another random
        item has the same value.

    Raises:
        ValueError: a factor that does not vary.
    """
    share = (factor[nearest] == factor[:, None]).double().mean(1)
    counts = torch.bincount(factor).double()
    n = len(factor)
    chance = (counts * (counts - 1)).sum() / (n * (n - 1))
    if chance >= 1:
        raise ValueError("the factor has the same value everywhere: pass one that varies")
    return (share - chance) / (1 - chance)


def margins(similarity: Float[Tensor, "n m"], is_right: Bool[Tensor, "n m"]) -> Float[Tensor, " n"]:
    """Margin of the best correct answer over the best incorrect one; negative for an error.

    Args:
        similarity: cosines of queries (rows) with answers, [n, m].
        is_right: whether an answer is correct, [n, m]; both kinds in every row.

    Returns:
        Differences of cosines, [n].
    """
    best = similarity.masked_fill(~is_right, -torch.inf).amax(1)
    return best - similarity.masked_fill(is_right, -torch.inf).amax(1)


def _check_pairs(images: Tensor, texts: Tensor, unit: bool = True) -> None:
    if len(images) != len(texts):
        n = len(images)
        raise ValueError(f"{n} images but {len(texts)} texts: pass one text per image")
    check_embeddings(unit=unit, image_embeddings=images, text_embeddings=texts)


def _check_spread(**embeddings: Tensor) -> None:
    for name, side in embeddings.items():
        if (side - side[0]).abs().max() <= 1e-6 * side[0].abs().max():
            raise ValueError(f"all rows of {name} are equal: they have no neighbours and no shape")
