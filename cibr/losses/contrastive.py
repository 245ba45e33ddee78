"""The symmetric contrastive loss of CLIP, exact and in bounded memory.

    L = -1/(2n) sum_i [ log softmax_j(s <x_i, t_j>)_i + log softmax_j(s <x_j, t_i>)_i ]

Features are unit vectors, which is the caller's duty: other lengths are not refused,
they change the temperature of their row. Value and gradient are those of the whole
n x n matrix of similarities, of which only blocks of rows are ever held.

Source: Radford et al. (2021, arXiv 2103.00020), figure 3.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

# Up to here one block of similarities is kept for the backward pass (16 MiB in
# float32); beyond, blocks are computed again, which costs one product in four.
LARGEST_DIRECT = 2048
AUTOMATIC_CHUNK = 512

Number = float | int


class _SymmetricInfoNCE(torch.autograd.Function):
    """Mean of both cross-entropies, from blocks of rows of the similarity matrix.

    Each block serves both directions: rows are finished at once, columns keep a
    running maximum and sum. Maxima and sums are kept apart because their merged
    logarithm would cost the digits of a loss near zero.
    """

    @staticmethod
    def forward(ctx, image, text, scale, image_means, text_means, chunk):
        n = len(image)
        row_max, row_sum, positive = image.new_empty(3, n)
        column_max, column_sum = image.new_full((n,), -math.inf), image.new_zeros(n)
        for start in range(0, n, chunk):
            rows = slice(start, min(start + chunk, n))
            logits = (scale * image[rows]) @ text.T  # [chunk, n]
            row_max[rows] = logits.amax(1)
            row_sum[rows] = (logits - row_max[rows, None]).exp_().sum(1)
            highest = torch.maximum(column_max, logits.amax(0))
            column_sum *= (column_max - highest).exp_()
            column_sum += (logits - highest).exp_().sum(0)
            column_max = highest
            positive[rows] = logits[:, rows].diagonal()
        if text_means is not None:
            positive = scale * (image * text_means).sum(1)
        kept = logits if chunk >= n else None
        ctx.chunk = chunk
        ctx.save_for_backward(
            image, text, scale, image_means, text_means, kept,
            row_max, row_sum, column_max, column_sum,
        )  # fmt: skip
        above = (row_max - positive) + (column_max - positive)
        return (above + row_sum.log() + column_sum.log()).mean() / 2

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        image, text, scale, image_means, text_means, kept, *statistics = ctx.saved_tensors
        row_max, row_sum, column_max, column_sum = statistics
        n, (need_image, need_text, need_scale) = len(image), ctx.needs_input_grad[:3]
        need_image = need_image or not need_text  # the scale's gradient needs either
        grad_image = torch.empty_like(image) if need_image else None
        grad_text = torch.zeros_like(text) if need_text else None
        with torch.autocast(image.device.type, enabled=False):
            for start in range(0, n, ctx.chunk):
                rows = slice(start, min(start + ctx.chunk, n))
                logits = (scale * image[rows]) @ text.T if kept is None else kept
                slope = (logits - row_max[rows, None]).exp_().div_(row_sum[rows, None])
                slope.addcdiv_((logits - column_max).exp_(), column_sum)
                if text_means is None:
                    slope[:, rows].diagonal().sub_(2)
                if need_image:
                    torch.mm(slope, text, out=grad_image[rows])
                if need_text:
                    grad_text.addmm_(slope.T, image[rows])
        for gradient, means in ((grad_image, text_means), (grad_text, image_means)):
            if gradient is not None:
                if means is not None:
                    gradient.sub_(means, alpha=2)
                gradient *= grad * scale / (2 * n)
        pair = (image, grad_image) if need_image else (text, grad_text)
        grad_scale = (pair[0] * pair[1]).sum() / scale if need_scale else None
        return grad_image, grad_text, grad_scale, None, None, None


def check_shapes(image: Tensor, text: Tensor, labels: Tensor | None, chunk: int | None) -> None:
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            "image_features and text_features must both be [n, d] with row i of one "
            f"paired with row i of the other, got {list(image.shape)} and "
            f"{list(text.shape)}: project both towers to one width"
        )
    if len(image) < 2:
        raise ValueError(
            f"image_features holds {len(image)} pair(s), and a contrastive loss needs at "
            "least 2, having no negatives otherwise: raise the batch size, or pass "
            "drop_last=True to the loader"
        )
    if labels is not None and labels.shape != image.shape[:1]:
        raise ValueError(
            f"labels must have one entry a pair, [{len(image)}], got "
            f"{list(labels.shape)}: pass one integer for each row of the features"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(
            f"chunk_size must be at least 1, got {chunk}: pass rows per block, or None to have it chosen"
        )


def check_finite(**tensors: Tensor) -> None:
    """Refuse NaN and infinity in any of the tensors, named by their keywords."""
    # One transfer; a sum is finite unless an entry is not (or the sum overflows).
    sums = torch.stack([value.detach().sum() for value in tensors.values()]).tolist()
    for (name, value), total in zip(tensors.items(), sums, strict=True):
        if not math.isfinite(total) and not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"{name} must be finite, and some entries are NaN or infinite: look for "
                "a zero vector that was divided by its length, or training that diverged"
            )


def _check_scale(scale: Tensor) -> None:
    if scale.ndim:
        raise ValueError(
            f"logit_scale must be one number, got the shape {list(scale.shape)}: pass logit_scale.squeeze()"
        )
    if not 0 < scale.item() < math.inf:
        raise ValueError(
            f"logit_scale must be positive and finite, got {scale.item()}: pass the "
            "multiplier itself, exp() of the logarithm that CLIP learns"
        )


def _class_means(image: Tensor, text: Tensor, labels: Tensor | None):
    """For each row the mean image and text of its label, [n, d]; None if all differ."""
    if labels is None:
        return None, None
    _, index, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    if len(counts) == len(labels):
        return None, None
    means = []
    for features in (image.detach(), text.detach()):
        sums = features.new_zeros(len(counts), features.shape[1])
        sums.index_add_(0, index, features).div_(counts[:, None])
        means.append(sums[index])
    return means


def full_precision(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))


def clip_loss(
    image_features: Float[Tensor, "n d"],
    text_features: Float[Tensor, "n d"],
    logit_scale: Float[Tensor, ""] | Number,
    labels: Int[Tensor, " n"] | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE: the mean of image-to-text and text-to-image cross-entropy.

    Source: Radford et al. (2021, arXiv 2103.00020), figure 3, whose mean over both
    directions this is; labels as in supervised contrastive learning (Khosla et al.
    2020, arXiv 2004.11362, L_out). Value and gradient are exact for every chunk_size;
    the gradient cannot be differentiated again. Under autocast, and for features in
    half precision, everything is float32.

    Args:
        image_features: unit vectors, [n, d]; lengths are not checked.
        text_features: unit vectors, [n, d]; row i belongs to image i.
        logit_scale: multiplier of the cosines, 1 / temperature, not its logarithm.
        labels: pairs with equal labels share the target mass, 1 / m for each of the m,
            instead of being negatives of each other, [n].
        chunk_size: rows of the similarity matrix held at a time; None keeps the whole
            up to n = 2,048 and takes 512 beyond.

    Returns:
        Nats, a scalar in the precision of the features, float32 at least.

    Raises:
        ValueError: fewer than two pairs, shapes that differ, entries that are not
            finite, a logit_scale that is not positive, or chunk_size < 1.
    """
    check_shapes(image_features, text_features, labels, chunk_size)
    dtype = torch.promote_types(image_features.dtype, text_features.dtype)
    image = full_precision(image_features.to(dtype))
    text = full_precision(text_features.to(dtype))
    scale = torch.as_tensor(logit_scale, dtype=image.dtype, device=image.device)
    check_finite(image_features=image, text_features=text)
    _check_scale(scale)
    n = len(image)
    automatic = n if n <= LARGEST_DIRECT else AUTOMATIC_CHUNK
    chunk = automatic if chunk_size is None else min(chunk_size, n)
    with torch.autocast(image.device.type, enabled=False):
        means = _class_means(image, text, labels)
        return _SymmetricInfoNCE.apply(image, text, scale, *means, chunk)
