"""The symmetric contrastive loss of CLIP, exact and in bounded memory.

    L = -1/(2n) sum_i [ log softmax_j(s <x_i, t_j>)_i + log softmax_j(s <x_j, t_i>)_i ]

Value and gradient are those of the full n x n similarity matrix; where it is large, only blocks of
its rows are in memory. Source: Radford et al. (2021, arXiv 2103.00020), figure 3.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from cibr.losses._checks import Number, checked_features
from cibr.utils import check_number

# Up to this n, one n x n matrix is kept for the backward pass (16 MiB in float32); above it, blocks
# of similarities are recomputed, at the cost of one matrix product in four.
_LARGEST_DIRECT = 2048
_AUTOMATIC_CHUNK = 512

Features = Float[Tensor, "n d"]
Labels = Int[Tensor, " n"]
Scalar = Float[Tensor, ""]


class _SymmetricInfoNCE(torch.autograd.Function):
    """Mean of both cross-entropies, from the full similarity matrix or from blocks of its rows.

    Each block serves both directions: rows are complete, columns keep a running maximum and sum.
    Maxima and sums are stored separately because a merged log-sum-exp would lose the digits of a
    loss near zero.
    """

    @staticmethod
    def forward(ctx, image, text, scale, labels, chunk):
        n = len(image)
        ctx.chunk = chunk
        if chunk >= n:
            logits = (scale * image) @ text.T
            targets = _shares(labels, slice(n), logits), slice(n)
            rows = logits.log_softmax(1)
            columns = logits.log_softmax(0)
            value = -(_target_mean(rows, *targets) + _target_mean(columns, *targets)).mean() / 2
            kept = [_minus_targets(rows.exp_().add_(columns.exp_()), *targets)]
        else:
            row_max, row_sum, positive = image.new_empty(3, n)
            column_max = image.new_full((n,), -math.inf)
            column_sum = image.new_zeros(n)
            for rows in _blocks(n, chunk):
                logits = (scale * image[rows]) @ text.T  # [chunk, n]
                row_max[rows] = logits.amax(1)
                row_sum[rows] = (logits - row_max[rows, None]).exp_().sum(1)
                highest = torch.maximum(column_max, logits.amax(0))
                column_sum *= (column_max - highest).exp_()
                column_sum += (logits - highest).exp_().sum(0)
                column_max = highest
                positive[rows] = _target_mean(logits, _shares(labels, rows, logits), rows)
            above = (row_max - positive) + (column_max - positive)
            value = (above + row_sum.log() + column_sum.log()).mean() / 2
            kept = [row_max, row_sum, column_max, column_sum]
        ctx.save_for_backward(image, text, scale, labels, *kept)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        image, text, scale, labels, *kept = ctx.saved_tensors
        with torch.autocast(image.device.type, enabled=False):
            if len(kept) == 1:
                grad_image = kept[0] @ text
                grad_text = kept[0].T @ image
            else:
                grad_image, grad_text = _in_blocks(image, text, scale, labels, ctx.chunk, *kept)
        weight = grad * scale / (2 * len(image))
        grad_image.mul_(weight)
        grad_scale = torch.dot(image.flatten(), grad_image.flatten()) / scale
        return grad_image, grad_text.mul_(weight), grad_scale, None, None


def _in_blocks(image, text, scale, labels, chunk, row_max, row_sum, column_max, column_sum):
    """The products of the slopes [n, n] with the texts and with the images, [n, d] each."""
    grad_image = torch.empty_like(image)
    grad_text = torch.zeros_like(text)
    for rows in _blocks(len(image), chunk):
        logits = (scale * image[rows]) @ text.T
        slope = (logits - row_max[rows, None]).exp_().div_(row_sum[rows, None])
        slope = slope.addcdiv_((logits - column_max).exp_(), column_sum)
        slope = _minus_targets(slope, _shares(labels, rows, slope), rows)
        torch.mm(slope, text, out=grad_image[rows])
        grad_text.addmm_(slope.T, image[rows])
    return grad_image, grad_text


def _blocks(n: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, n)) for start in range(0, n, chunk)]


def _shares(labels: Tensor | None, rows: slice, like: Tensor) -> Tensor | None:
    """Target distributions of some rows, 1 / m for each of the m columns with the row's label,
    [rows, n]; None if all mass is on the pair itself.
    """
    if labels is None:
        return None
    same = (labels[rows, None] == labels).to(like)
    return same.div_(same.sum(1, keepdim=True))


def _target_mean(matrix: Tensor, shares: Tensor | None, rows: slice) -> Tensor:
    """Mean of some rows of a matrix, [rows, n], over their targets, [rows]."""
    return matrix[:, rows].diagonal() if shares is None else (matrix * shares).sum(1)


def _minus_targets(slope: Tensor, shares: Tensor | None, rows: slice) -> Tensor:
    """The sum of both softmaxes [rows, n] minus the targets of both directions, in place."""
    if shares is not None:
        return slope.sub_(shares, alpha=2)
    slope[:, rows].diagonal().sub_(2)
    return slope


def info_nce(
    image: Tensor, text: Tensor, scale: Tensor, labels: Tensor | None, chunk_size: int | None = None
) -> Tensor:
    """`clip_loss` of what `checked_features` returned."""
    n = len(image)
    automatic = n if n <= _LARGEST_DIRECT else _AUTOMATIC_CHUNK
    with torch.autocast(image.device.type, enabled=False):
        return _SymmetricInfoNCE.apply(image, text, scale, labels, min(chunk_size or automatic, n))


def clip_loss(
    image_features: Features,
    text_features: Features,
    logit_scale: Scalar | Number,
    labels: Labels | None = None,
    chunk_size: int | None = None,
) -> Scalar:
    """Symmetric InfoNCE: the mean of image-to-text and text-to-image cross-entropy.

    Source: Radford et al. (2021, arXiv 2103.00020), figure 3; labels as in supervised contrastive
    learning (Khosla et al. 2020, arXiv 2004.11362, L_out). Value and gradient are exact for every
    chunk_size; double backward is not supported. Under autocast, and for half-precision features,
    everything is computed in float32.

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
        check_number("chunk_size", chunk_size, 1, whole=True)
    inputs = checked_features(image_features, text_features, logit_scale, labels)
    return info_nce(*inputs, labels, chunk_size)
