"""Zero-shot classification by the nearest class embedding, the mean of a class's prompt embeddings.

As in retrieval, an image's rank is the number of incorrect classes at least as similar as its own,
so ties count against the model and collapsed embeddings score 0.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cibr.metrics.retrieval import (
    check_embeddings,
    check_one_each,
    count_reaching,
    similarity_tiles,
)

Images = Float[Tensor, "n d"]
Classes = Float[Tensor, "c d"]


def class_embeddings(prompt_embeddings: Float[Tensor, "c t d"]) -> Float[Tensor, "c d"]:
    """Class embeddings: the mean of the unit vectors of a class's prompts, renormalised.

    Source: Radford et al. (2021, arXiv 2103.00020), section 3.1.4, ensembling over the embedding
    space.

    Args:
        prompt_embeddings: embeddings [c, t, d] of c classes in t templates, of any norm.

    Returns:
        Unit vectors [c, d], float32.

    Raises:
        ValueError: no class or template, a prompt that is zero or not finite, a class whose prompts
            cancel.
    """
    if prompt_embeddings.ndim != 3 or not prompt_embeddings.numel():
        shape = tuple(prompt_embeddings.shape)
        raise ValueError(
            f"prompt_embeddings {shape} must be [classes, templates, d], one of each at least"
        )
    check_embeddings(prompt_embeddings=prompt_embeddings.flatten(0, 1))
    means = F.normalize(prompt_embeddings.float(), dim=2).mean(1)
    # a sum that cancels leaves about 1e-8 in float32
    cancelled = (means.norm(dim=1) < 1e-6).nonzero().flatten().tolist()
    if cancelled:
        raise ValueError(
            f"the prompts of class {cancelled[0]} cancel: their mean is zero and has no direction"
        )
    return F.normalize(means, dim=1)


def class_ranks(
    image_embeddings: Images, class_embeddings: Classes, labels: Int[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """The number of incorrect classes at least as similar as each image's own.

    Args:
        image_embeddings: unit vectors [n, d].
        class_embeddings: unit vectors [c, d].
        labels: the class of each image [n], in 0..c-1.

    Returns:
        Ranks [n], from 0.

    Raises:
        ValueError: shapes that do not fit, embeddings that are zero or not finite, a label outside
            the classes.
    """
    check_embeddings(image_embeddings=image_embeddings, class_embeddings=class_embeddings)
    check_one_each(labels, image_embeddings, "labels")
    outside = ((labels < 0) | (labels >= len(class_embeddings))).nonzero().flatten().tolist()
    if outside:
        found = f"{len(outside)} labels lie outside the classes, first {labels[outside[0]]} of image {outside[0]}"
        raise ValueError(f"{found}: labels count from 0 to {len(class_embeddings) - 1}")
    ranks = torch.empty(len(labels), device=labels.device)
    for rows, tile in similarity_tiles(image_embeddings, class_embeddings):
        own = tile.gather(1, labels[rows, None].long()).squeeze(1)
        ranks[rows] = count_reaching(tile, own) - 1  # the correct class reaches its own threshold
    return ranks.long()


def predictions(image_embeddings: Images, class_embeddings: Classes) -> Int[Tensor, " n"]:
    """The most similar class of every image; ties are broken arbitrarily.

    Args:
        image_embeddings: unit vectors [n, d].
        class_embeddings: unit vectors [c, d].

    Returns:
        Class indices [n].

    Raises:
        ValueError: shapes that do not fit, embeddings that are zero or not finite.
    """
    check_embeddings(image_embeddings=image_embeddings, class_embeddings=class_embeddings)
    nearest = torch.empty(len(image_embeddings), dtype=torch.long, device=image_embeddings.device)
    for rows, tile in similarity_tiles(image_embeddings, class_embeddings):
        nearest[rows] = tile.argmax(1)
    return nearest


def zeroshot_accuracy(
    image_embeddings: Images, class_embeddings: Classes, labels: Int[Tensor, " n"]
) -> dict[str, float]:
    """Top-1, top-5 and mean per-class accuracy.

    Args:
        image_embeddings: unit vectors [n, d].
        class_embeddings: unit vectors [c, d].
        labels: the class of each image [n], in 0..c-1.

    Returns:
        `accuracy@1`, `accuracy@5` if there are at least five classes, and
        `mean_per_class_accuracy`, over the classes that occur among the labels. All in [0, 1].

    Raises:
        ValueError: as `class_ranks`.
    """
    ranks = class_ranks(image_embeddings, class_embeddings, labels)
    parts = accuracy_parts(ranks, labels, len(class_embeddings))
    return {name: float(sum(w * hits.mean() for w, hits in each)) for name, each in parts.items()}


def accuracy_parts(
    ranks: Int[Tensor, " n"], labels: Int[Tensor, " n"], n_classes: int
) -> dict[str, list[tuple[float, Float[np.ndarray, " _"]]]]:
    """The accuracies as weighted sums of means over images, for scores and their intervals.

    Args:
        ranks: the rank of each image's own class [n], see `class_ranks`.
        labels: the class of each image [n].
        n_classes: number of classes to choose from.

    Returns:
        By metric, the weight and the hits (0 or 1) of each mean: one over all images, or one per
        class.
    """
    ranks, labels = ranks.cpu().numpy(), labels.cpu().numpy()
    found = {f"accuracy@{k}": [(1.0, (ranks < k).astype(float))] for k in (1, 5) if k <= n_classes}
    by_class = [(ranks[labels == c] < 1).astype(float) for c in np.unique(labels)]
    return found | {"mean_per_class_accuracy": [(1 / len(by_class), hits) for hits in by_class]}
