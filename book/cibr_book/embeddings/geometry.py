"""Geometry of a joint embedding space, as the rows of the experiments describe it."""

import math

import torch
from jaxtyping import Float, Int
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
        A value in [0, 1]; without meaning if all rows of a side are equal.

    Raises:
        ValueError: different numbers of rows, rows that are zero or not finite.
    """
    _check_pairs(image_embeddings, text_embeddings, unit=False)
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
        ValueError: different numbers of rows, rows that are not finite or not of unit length.
    """
    _check_pairs(image_embeddings, text_embeddings)
    near_images = nearest_items(image_embeddings, k)
    near_texts = nearest_items(text_embeddings, k)
    shared = (near_images[:, :, None] == near_texts[:, None]).sum()
    return shared.item() / (k * len(image_embeddings))


def nearest_items(embeddings: Images, k: int) -> Int[Tensor, "n k"]:
    """The k most similar other items of each unit vector, the most similar first."""
    return (embeddings @ embeddings.T).fill_diagonal_(-torch.inf).topk(k).indices


def _check_pairs(images: Tensor, texts: Tensor, unit: bool = True) -> None:
    if len(images) != len(texts):
        n = len(images)
        raise ValueError(f"{n} images but {len(texts)} texts: pass one text per image")
    check_embeddings(unit=unit, image_embeddings=images, text_embeddings=texts)
