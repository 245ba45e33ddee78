"""Small batches and losses of every penalty, which the tests of the losses share."""

import torch
from torch.nn import functional as F

from cibr.losses import CIBRLoss

LABELS = torch.arange(12) % 5 * 3 - 4  # neither sorted nor from zero


def pair(n=12, d=6, dtype=torch.float64, seed=0):
    """Unit features of two related modalities, [n, d] each, and a logit scale, all leaves."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, d, generator=generator, dtype=dtype)
    text = image + torch.randn(n, d, generator=generator, dtype=dtype)
    leaves = [F.normalize(image, dim=1), F.normalize(text, dim=1), torch.tensor(7.0, dtype=dtype)]
    return [leaf.requires_grad_() for leaf in leaves]


def pooled_features(n=12, dtype=torch.float32):
    """Inputs of the image head, [n, 5], and of the text head, [n, 4], by the loss's names."""
    generator = torch.Generator().manual_seed(3)
    image_pooled = 3 + torch.randn(n, 5, generator=generator, dtype=dtype)
    text_pooled = 3 + torch.randn(n, 4, generator=generator, dtype=dtype)
    return {"image_pooled": image_pooled, "text_pooled": text_pooled}


def build(beta, penalty="vmf", d=6, **options):
    """A loss of any penalty, for the features above, always with the same critics."""
    torch.manual_seed(0)
    if penalty == "mine":
        options["dims"] = (d, 5, 4)
    return CIBRLoss(beta, penalty, **options)


def value_and_gradients(function, leaves):
    """A scalar function's value and its gradients with respect to all arguments."""
    value = function(*leaves)
    return value, torch.autograd.grad(value, leaves, retain_graph=True)
