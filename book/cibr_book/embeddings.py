"""Geometry of a joint embedding space: alignment, uniformity, neighbourhoods, and the gap between
its modalities.
"""

import math
from collections.abc import Callable

import pandas as pd
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


def effective_dimension(embeddings: Images) -> float:
    """Participation ratio of the covariance of embeddings [n, d]: (sum of eigenvalues)^2 / sum of
    their squares.

    Returns:
        A number from 1 to d, the number of directions if their variances are equal.
    """
    centred = embeddings.double() - embeddings.double().mean(0)
    covariance = centred.T @ centred
    return (covariance.trace().square() / covariance.square().sum()).item()


def gap_share(image_embeddings: Images, text_embeddings: Texts) -> float:
    """Share of the modality gap in the directions that explain 90 % of the embeddings' variance.

    Source: Zhang et al. (2023, arXiv 2302.04269), who find CLIP's gap orthogonal to the embeddings'
    span.

    Returns:
        A share of the squared norm: 0 if orthogonal, 1 if within.
    """
    images, texts = image_embeddings.double(), text_embeddings.double()
    centred = torch.cat([images - images.mean(0), texts - texts.mean(0)])
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    share = values.flip(0).cumsum(0) / values.sum()
    top = vectors.flip(1)[:, : int((share < 0.9).sum()) + 1]
    gap = images.mean(0) - texts.mean(0)
    return ((gap @ top).square().sum() / gap.square().sum()).item()


def gap_table(image_embeddings: Images, text_embeddings: Images) -> dict[str, float]:
    """Summary statistics of the geometry of a joint space.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [n, d], paired with the images row by row.

    Returns:
        `paired_cosine` and `unpaired_cosine`, means over pairs and over mismatched pairs;
        `modality_gap`, the distance between the means; `gap_share`; `image_dimension` and
        `text_dimension`, effective dimensions; `image_uniformity` and `text_uniformity`.
    """
    n = len(image_embeddings)
    paired = (image_embeddings * text_embeddings).sum(1).double().sum()
    total = (image_embeddings.double().sum(0) * text_embeddings.double().sum(0)).sum()
    return {
        "paired_cosine": (paired / n).item(),
        "unpaired_cosine": ((total - paired) / (n * (n - 1))).item(),
        "modality_gap": modality_gap(image_embeddings, text_embeddings),
        "gap_share": gap_share(image_embeddings, text_embeddings),
        "image_dimension": effective_dimension(image_embeddings),
        "text_dimension": effective_dimension(text_embeddings),
        "image_uniformity": uniformity(image_embeddings),
        "text_uniformity": uniformity(text_embeddings),
    }


def subsampling_intervals(
    statistic: Callable[[Int[Tensor, " n"]], dict[str, float]], n: int, n_resamples: int = 200
) -> pd.DataFrame:
    """Statistics of n items with 95 % subsampling intervals, from random halves of the items.

    The repeated items of a bootstrap distort a statistic of pairs, such as uniformity. To first
    order, a half drawn without replacement varies around the whole as the whole does around its
    population.

    Source: Politis, Romano and Wolf (1999), Subsampling. The variance of a mean over a half, drawn
    from n items without replacement, is sigma^2 / n: that of the mean over n independent items.

    Args:
        statistic: takes indices of items and returns numbers by name.
        n: number of items, at least 20.
        n_resamples: number of halves.

    Returns:
        `value, low, high`, one row per name.

    Raises:
        ValueError: too few items.
    """
    if n < 20:
        raise ValueError(f"{n} items are too few for halves: pass at least 20")
    value = pd.Series(statistic(torch.arange(n)))
    generator = torch.Generator().manual_seed(0)
    halves = (torch.randperm(n, generator=generator)[: n // 2] for _ in range(n_resamples))
    errors = pd.DataFrame([statistic(half) for half in halves])
    errors = errors - errors.mean()  # some, such as a probe's, depend on the number of items
    low, high = (value + errors.quantile(q) for q in (0.025, 0.975))
    return pd.DataFrame({"value": value, "low": low, "high": high})


def _check_pairs(images: Tensor, texts: Tensor, unit: bool = True) -> None:
    if len(images) != len(texts):
        n = len(images)
        raise ValueError(f"{n} images but {len(texts)} texts: pass one text per image")
    check_embeddings(unit=unit, image_embeddings=images, text_embeddings=texts)


def _check_spread(**embeddings: Tensor) -> None:
    for name, side in embeddings.items():
        if (side - side[0]).abs().max() <= 1e-6 * side[0].abs().max():
            raise ValueError(f"all rows of {name} are equal: they have no neighbours and no shape")
