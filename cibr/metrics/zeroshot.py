"""Zero-shot classification by the nearest class embedding, the mean of a class's prompt embeddings.

As in retrieval, an image's rank is the number of incorrect classes at least as similar as its own,
so ties count against the model and collapsed embeddings score 0.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cibr.metrics.retrieval import (
    _check_ks,
    _check_labels,
    _ranks_and_precisions,
    check_embeddings,
    similarity_tiles,
)

_Images = Float[Tensor, "n d"]
_Classes = Float[Tensor, "c d"]
_Labels = Int[Tensor, " n"]
_Ks = Sequence[int]


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
    if not isinstance(prompt_embeddings, Tensor) or prompt_embeddings.ndim != 3:
        raise ValueError("prompt_embeddings must be a torch tensor [classes, templates, d]")
    check_embeddings(prompt_embeddings=prompt_embeddings.flatten(0, 1))
    means = F.normalize(prompt_embeddings.float(), dim=2).mean(1)
    # a sum that cancels leaves about 1e-8 in float32
    cancelled = (means.norm(dim=1) < 1e-6).nonzero().flatten().tolist()
    if cancelled:
        raise ValueError(f"the prompts of class {cancelled[0]} cancel: their mean is zero")
    return F.normalize(means, dim=1)


def class_ranks(image_embeddings: _Images, class_embeddings: _Classes, labels: _Labels) -> _Labels:
    """Rank of each image's class, from 0: the number of other classes at least as similar.

    Args:
        image_embeddings: unit vectors [n, d].
        class_embeddings: unit vectors [c, d].
        labels: the class of each image [n], in 0..c-1.

    Returns:
        Ranks [n], from 0.

    Raises:
        ValueError: an argument that is not a torch tensor, shapes that do not fit, embeddings that
            are not finite unit vectors, a label outside the classes.
    """
    check_embeddings(
        unit=True, image_embeddings=image_embeddings, class_embeddings=class_embeddings
    )
    _check_labels("labels", labels, len(image_embeddings))
    classes = torch.arange(len(class_embeddings), device=labels.device)
    return _ranks_and_precisions(image_embeddings, labels, class_embeddings, classes)[0]


def predictions(image_embeddings: _Images, class_embeddings: _Classes) -> _Labels:
    """The most similar class of every image, ties broken arbitrarily; score with `class_ranks`.

    Args:
        image_embeddings: unit vectors [n, d].
        class_embeddings: unit vectors [c, d].

    Returns:
        Class indices [n].

    Raises:
        ValueError: as `class_ranks`.
    """
    check_embeddings(
        unit=True, image_embeddings=image_embeddings, class_embeddings=class_embeddings
    )
    tiles = similarity_tiles(image_embeddings, class_embeddings)
    return torch.cat([tile.argmax(1) for _, tile in tiles])


def zeroshot_accuracy(
    image_embeddings: _Images, class_embeddings: _Classes, labels: _Labels, ks: _Ks = (1, 5)
) -> dict[str, float]:
    """Top-k and mean per-class accuracy.

    Args:
        image_embeddings: unit vectors [n, d].
        class_embeddings: unit vectors [c, d].
        labels: the class of each image [n], in 0..c-1.
        ks: the cut-offs; those above the number of classes are left out.

    Returns:
        `accuracy@k` for each k, and `mean_per_class_accuracy`, the mean accuracy@1 of the classes
        that occur among the labels. All in [0, 1].

    Raises:
        ValueError: as `class_ranks`, or a k that is not a whole number from 1.
    """
    ranks = class_ranks(image_embeddings, class_embeddings, labels)
    means = accuracy_hits(ranks, labels, len(class_embeddings), ks)
    return {
        name: float(sum(1 / len(hits) * x.mean() for x in hits)) for name, hits in means.items()
    }


def accuracy_hits(
    ranks: _Labels, labels: _Labels, n_classes: int, ks: _Ks = (1, 5)
) -> dict[str, list[Float[np.ndarray, " _"]]]:
    """The hits (0 or 1) whose means are averaged to an accuracy, for scores and their intervals.

    Args:
        ranks: the rank of each image's own class [n], see `class_ranks`.
        labels: the class of each image [n].
        n_classes: number of classes to choose from.
        ks: the cut-offs; those above `n_classes` are left out.

    Returns:
        By metric, one array over all images, or one per class. Where every class has one image
        there is nothing to resample within a class, and its hits are in one array.

    Raises:
        ValueError: a k that is not a whole number from 1.
    """
    _check_ks(ks)
    ranks, labels = ranks.cpu().numpy(), labels.cpu().numpy()
    hits = {f"accuracy@{k}": [(ranks < k).astype(float)] for k in ks if k <= n_classes}
    top = (ranks < 1).astype(float)
    by_class = [top[labels == c] for c in np.unique(labels)]
    hits["mean_per_class_accuracy"] = [top] if len(by_class) == len(top) else by_class
    return hits
