"""CLIP's loss with a backward pass of its own: faster, and in blocks of rows where n is large.

Value and gradients are those of `cibr.losses.clip.plain_clip_loss`, which is the definition. The
slope of the loss by the logits is ((row softmax) + (column softmax) - 2 targets) / 2n. Up to 2,048
pairs the forward pass computes the numerator and keeps it: one n x n matrix, where autograd keeps
several. Above, no such matrix exists at any time: the forward pass keeps the maximum and the sum of
every row and column, from which the backward pass computes the slopes again, block by block, at the
cost of one matrix product in four.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LARGEST_WHOLE = 2048  # pairs; 16 MiB in float32
_CHUNK_SIZE = 512  # rows of a block above it


def blocked_clip_loss(
    image: Tensor, text: Tensor, scale: Tensor, labels: Tensor | None, chunk_size: int | None = None
) -> Tensor:
    """`clip_loss` without its checks.

    Args:
        image: features, [n, d], from `checked_features`, as are those that follow.
        text: features, [n, d].
        scale: multiplier of the cosines, a scalar.
        labels: as in `clip_loss`, [n].
        chunk_size: as in `clip_loss`.
    """
    n = len(image)
    if chunk_size is None:
        chunk_size = n if n <= _LARGEST_WHOLE else _CHUNK_SIZE
    with torch.autocast(image.device.type, enabled=False):
        if chunk_size >= n:
            return _WholeLoss.apply(image, text, scale, labels)
        return _BlockedLoss.apply(image, text, scale, labels, chunk_size)


class _WholeLoss(torch.autograd.Function):
    """The loss from the whole matrix of logits."""

    @staticmethod
    def forward(ctx, image, text, scale, labels):
        logits = (scale * image) @ text.T
        targets = _Targets(labels, slice(len(image)), logits)
        row_logs, column_logs = logits.log_softmax(1), logits.log_softmax(0)
        loss = -(targets.mean_of(row_logs) + targets.mean_of(column_logs)).mean() / 2
        slopes = targets.taken_from(row_logs.exp_().add_(column_logs.exp_()))
        ctx.save_for_backward(image, text, scale, slopes)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        image, text, scale, slopes = ctx.saved_tensors
        with torch.autocast(image.device.type, enabled=False):
            products = slopes @ text, slopes.T @ image
        return *_gradients(image, scale, grad, *products), None


class _BlockedLoss(torch.autograd.Function):
    """The loss from blocks of rows. Each serves both directions: its rows are complete, and of the
    columns a maximum and a sum are kept up to date.
    """

    @staticmethod
    def forward(ctx, image, text, scale, labels, chunk_size):
        n = len(image)
        # Maximum and sum are kept apart: as one log-sum, a loss near zero would lose its digits.
        row_max, row_sum, positive = image.new_empty(3, n)
        column_max, column_sum = image.new_full((n,), -math.inf), image.new_zeros(n)
        for rows in _blocks(n, chunk_size):
            logits = (scale * image[rows]) @ text.T  # [chunk_size, n]
            row_max[rows] = logits.amax(1)
            row_sum[rows] = (logits - row_max[rows, None]).exp_().sum(1)
            highest = torch.maximum(column_max, logits.amax(0))
            column_sum *= (column_max - highest).exp_()
            column_sum += (logits - highest).exp_().sum(0)
            column_max = highest
            positive[rows] = _Targets(labels, rows, logits).mean_of(logits)
        ctx.chunk_size = chunk_size
        ctx.save_for_backward(image, text, scale, labels, row_max, row_sum, column_max, column_sum)
        above = (row_max - positive) + (column_max - positive)
        return (above + row_sum.log() + column_sum.log()).mean() / 2

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        image, text, scale, labels, row_max, row_sum, column_max, column_sum = ctx.saved_tensors
        product_image, product_text = torch.empty_like(image), torch.zeros_like(text)
        with torch.autocast(image.device.type, enabled=False):
            for rows in _blocks(len(image), ctx.chunk_size):
                logits = (scale * image[rows]) @ text.T
                slopes = (logits - row_max[rows, None]).exp_().div_(row_sum[rows, None])
                slopes.addcdiv_(logits.sub_(column_max).exp_(), column_sum)
                slopes = _Targets(labels, rows, logits).taken_from(slopes)
                torch.mm(slopes, text, out=product_image[rows])
                product_text.addmm_(slopes.T, image[rows])
        return *_gradients(image, scale, grad, product_image, product_text), None, None


class _Targets:
    """The target distributions of some rows: 1 / m for each of the m columns with the row's label,
    or all mass on the pair itself if there are no labels, which needs no matrix.
    """

    def __init__(self, labels: Tensor | None, rows: slice, logits: Tensor):
        self.rows, self.shares = rows, None
        if labels is not None:
            is_positive = (labels[rows, None] == labels).to(logits)
            self.shares = is_positive.div_(is_positive.sum(1, keepdim=True))

    def mean_of(self, values: Tensor) -> Tensor:
        """Means of the rows of a matrix, [rows, n], over their targets, [rows]."""
        if self.shares is None:
            return values[:, self.rows].diagonal()
        return (values * self.shares).sum(1)

    def taken_from(self, softmaxes: Tensor) -> Tensor:
        """The sum of both softmaxes, [rows, n], minus the targets of both directions, in place."""
        if self.shares is None:
            softmaxes[:, self.rows].diagonal().sub_(2)
            return softmaxes
        return softmaxes.sub_(self.shares, alpha=2)


def _blocks(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _gradients(
    image: Tensor, scale: Tensor, grad: Tensor, product_image: Tensor, product_text: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of features and scale from the products of the slopes with texts and images."""
    weight = grad * scale / (2 * len(image))
    grad_image = product_image.mul_(weight)
    grad_scale = torch.dot(image.flatten(), grad_image.flatten()) / scale
    return grad_image, product_text.mul_(weight), grad_scale
