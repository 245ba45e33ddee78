"""Zero-shot classification by the nearest class embedding, the mean of a class's prompt embeddings.

    rank(image) = number of other classes c with <image, class c> >= <image, own class> - e
    accuracy    = share of images with rank 0

The margin e is that of retrieval's ranks, the rounding of cosines, so ties count against the model
and collapsed embeddings score 0.

Source: Radford et al. (2021, arXiv 2103.00020), section 3.1.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cibr.metrics.intervals import group_balanced_values
from cibr.metrics.retrieval import label_ranks
from cibr.utils import check_unit_vectors

_Images = Float[Tensor, "n d"]
_Classes = Float[Tensor, "c d"]
_Labels = Int[Tensor, " n"]


def class_embeddings(prompt_embeddings: Float[Tensor, "c t d"]) -> Float[Tensor, "c d"]:
    """Class embeddings: the mean of the unit vectors of a class's prompts, renormalised.

    Source: Radford et al. (2021, arXiv 2103.00020), section 3.1.4, ensembling over the embedding
    space.

    Args:
        prompt_embeddings: embeddings [c, t, d] of c classes in t templates, of any norm.

    Returns:
        Unit vectors [c, d], float32.

    Raises:
        ValueError: no class or template, or a prompt that is zero or not finite.
    """
    prompts = F.normalize(prompt_embeddings.float(), dim=2)  # [c, t, d]
    check_unit_vectors(prompt_embeddings=prompts.flatten(0, 1))
    return F.normalize(prompts.mean(dim=1), dim=1)


def class_ranks(image_embeddings: _Images, class_embeddings: _Classes, labels: _Labels) -> _Labels:
    """Rank of each image's class, from 0: the number of other classes at least as similar, up to
    rounding.

    Args:
        image_embeddings: unit vectors [n, d].
        class_embeddings: unit vectors [c, d].
        labels: the class of each image [n], in 0..c-1.

    Returns:
        Ranks [n], from 0.

    Raises:
        ValueError: embeddings that are not finite unit vectors, a label outside the classes.
    """
    check_unit_vectors(image_embeddings=image_embeddings, class_embeddings=class_embeddings)
    classes = torch.arange(len(class_embeddings), device=labels.device)
    return label_ranks(image_embeddings, labels, class_embeddings, classes)


def zeroshot_accuracy(
    image_embeddings: _Images, class_embeddings: _Classes, labels: _Labels
) -> dict[str, float]:
    """Top-1 and mean per-class accuracy.

    Args:
        image_embeddings: unit vectors [n, d].
        class_embeddings: unit vectors [c, d].
        labels: the class of each image [n], in 0..c-1.

    Returns:
        `accuracy@1`, and `mean_per_class_accuracy`, its mean over the classes that occur among the
        labels. Both in [0, 1].

    Raises:
        ValueError: as `class_ranks`.
    """
    ranks = class_ranks(image_embeddings, class_embeddings, labels)
    items = accuracy_items(ranks, labels)
    return {name: float(values.mean()) for name, values in items.items()}


def accuracy_items(ranks: _Labels, labels: _Labels) -> dict[str, Float[np.ndarray, " n"]]:
    """One number per image for each accuracy of `zeroshot_accuracy`, which is their mean.

    Args:
        ranks: the rank of each image's own class [n], see `class_ranks`.
        labels: the class of each image [n].

    Returns:
        `accuracy@1`, a hit or a miss of each image, [n], and `mean_per_class_accuracy`, the same
        with equal weights of classes, see `group_balanced_values`, [n].
    """
    hits = (ranks == 0).double().cpu().numpy()
    classes = labels.cpu().numpy()
    has_one_image_per_class = len(np.unique(classes)) == len(classes)
    # Nothing varies within a class of one image: without this case the interval would have width 0.
    balanced_hits = hits if has_one_image_per_class else group_balanced_values(hits, classes)
    return {"accuracy@1": hits, "mean_per_class_accuracy": balanced_hits}
