"""The symmetric contrastive loss of CLIP: its definition, and the same in less time and memory.

    L = -1/(2n) sum_i [ log softmax_j(s <x_i, t_j>)_i + log softmax_j(s <x_j, t_i>)_i ]

Source: Radford et al. (2021, arXiv 2103.00020), figure 3.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cibr.losses._blocked import blocked_clip_loss
from cibr.utils import check_number, check_unit_vectors

Features = Float[Tensor, "n d"]
Labels = Int[Tensor, " n"]
Scalar = Float[Tensor, ""]
Number = float | int
MAX_SCALE = 1e6  # the largest logit_scale that is accepted; CLIP's is at most 100


def plain_clip_loss(
    image: Features, text: Features, logit_scale: Scalar | Number, labels: Labels | None = None
) -> Scalar:
    """The definition: two cross-entropies over one matrix of similarities.

    `clip_loss` has its value and gradients in less time and memory, and checks its inputs. This one
    is for reading, and where a second derivative is needed.

    Source: Radford et al. (2021, arXiv 2103.00020), figure 3; labels as in supervised contrastive
    learning (Khosla et al. 2020, arXiv 2004.11362, L_out).

    Args:
        image: unit vectors, [n, d].
        text: unit vectors, [n, d]; row i belongs to image i.
        logit_scale: multiplier of the cosines, 1 / temperature.
        labels: pairs with one label are positives of each other, [n]; None when all differ.

    Returns:
        Nats, a scalar.
    """
    logits = logit_scale * image @ text.T  # [n, n]
    if labels is None:
        labels = torch.arange(len(logits), device=logits.device)
    is_positive = (labels[:, None] == labels).to(logits)
    targets = is_positive / is_positive.sum(1, keepdim=True)  # symmetric: one for both directions
    image_to_text = F.cross_entropy(logits, targets)
    text_to_image = F.cross_entropy(logits.T, targets)
    return (image_to_text + text_to_image) / 2


def clip_loss(
    image_features: Features,
    text_features: Features,
    logit_scale: Scalar | Number,
    labels: Labels | None = None,
    chunk_size: int | None = None,
) -> Scalar:
    """Symmetric InfoNCE: the mean of image-to-text and text-to-image cross-entropy.

    Value and gradients are those of `plain_clip_loss`, exact for every chunk_size; double backward
    is not supported. Under autocast, and for half-precision features, everything is computed in
    float32.

    Source: Radford et al. (2021, arXiv 2103.00020), figure 3; labels as in supervised contrastive
    learning (Khosla et al. 2020, arXiv 2004.11362, L_out).

    Args:
        image_features: unit vectors, [n, d]; other norms change the temperature of their row and
            are not rejected.
        text_features: unit vectors, [n, d]; row i belongs to image i.
        logit_scale: multiplier of the cosines, 1 / temperature, not its logarithm.
        labels: the m pairs with one label are positives of each other and share the target mass, 1
            / m each, [n]; None when all differ.
        chunk_size: rows of the similarity matrix in memory at a time; None keeps all of them up to
            n = 2,048 and takes 512 above.

    Returns:
        Nats, a scalar in the precision of the features, float32 at least.

    Raises:
        ValueError: fewer than two pairs, shapes that differ, entries that are not finite, a
            logit_scale that is not positive, or chunk_size < 1.

    Examples:
        >>> features = torch.eye(4)  # four pairs, orthogonal to each other
        >>> round(clip_loss(features, features, logit_scale=10.0).item(), 6)
        0.000136
    """
    if chunk_size is not None:
        check_number("chunk_size", chunk_size, low=1, whole=True)
    image, text, scale = checked_features(image_features, text_features, logit_scale, labels)
    # Finite, of any length.
    check_unit_vectors(tolerance=math.inf, image_features=image, text_features=text)
    return blocked_clip_loss(image, text, scale, labels, chunk_size)


def checked_features(
    image: Tensor, text: Tensor, scale: Tensor | Number, labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks shapes and the scale, and brings the inputs of a loss to one precision.

    Args:
        image: features of the images, [n, d].
        text: features of the texts, [n, d].
        scale: multiplier of the cosines.
        labels: as in `clip_loss`, [n].

    Returns:
        The features, [n, d], in their common precision, float32 at least, and the scale as a
        scalar tensor.

    Raises:
        ValueError: as `clip_loss`, but entries of features are not looked at.
    """
    if image.ndim != 2 or image.shape != text.shape or len(image) < 2:
        raise ValueError(
            "image_features and text_features must be [n, d], n >= 2, got "
            f"{list(image.shape)} and {list(text.shape)}"
        )
    if labels is not None and (labels.is_floating_point() or labels.shape != image.shape[:1]):
        raise ValueError(
            f"labels must be integers, [{len(image)}], got {labels.dtype} {list(labels.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    scale = torch.as_tensor(scale, dtype=dtype, device=image.device).reshape(())
    check_number("logit_scale", scale.item(), low=1e-6, high=MAX_SCALE)
    return image.to(dtype), text.to(dtype), scale
