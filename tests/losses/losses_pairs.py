"""Small batches and slow twins that the tests of the losses share."""

import torch
from torch.nn import functional as F


def pair(n=12, d=6, dtype=torch.float64, seed=0):
    """Unit features of two related modalities, and a multiplier, all leaves."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, d, generator=generator, dtype=dtype)
    text = image + torch.randn(n, d, generator=generator, dtype=dtype)
    leaves = (F.normalize(image, dim=1), F.normalize(text, dim=1), torch.tensor(7.0, dtype=dtype))
    return [leaf.requires_grad_() for leaf in leaves]


def some_labels(n=12):
    return torch.arange(n) % 5 * 3 - 4  # neither sorted nor from zero


def full_matrix_loss(image, text, scale, labels=None):
    """CLIP's loss from the whole matrix and PyTorch's cross-entropy."""
    logits = scale * image @ text.T
    labels = torch.arange(len(image)) if labels is None else labels
    target = (labels[:, None] == labels).to(logits)
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def value_and_gradients(function, leaves):
    value = function(*leaves)
    return value, torch.autograd.grad(value, leaves)


def assert_same(got, expected, **options):
    torch.testing.assert_close(got[0], expected[0], **options)
    for one, other in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, **options)
