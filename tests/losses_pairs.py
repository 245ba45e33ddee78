"""Small batches and losses of every penalty, which the tests of the losses share."""

import torch
from torch.nn import functional as F

from cibr.losses import CIBRLoss

LABELS = torch.arange(12) % 5 * 3 - 4  # neither sorted nor from zero


def pair(n=12, d=6, dtype=torch.float64, seed=0):
    """Unit features of two related modalities, and a multiplier, all leaves."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, d, generator=generator, dtype=dtype)
    text = image + torch.randn(n, d, generator=generator, dtype=dtype)
    leaves = (F.normalize(image, dim=1), F.normalize(text, dim=1), torch.tensor(7.0, dtype=dtype))
    return [leaf.requires_grad_() for leaf in leaves]


def pooled_features(n=12, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    image, text = (3 + torch.randn(n, d, generator=generator, dtype=dtype) for d in (5, 4))
    return {"image_pooled": image, "text_pooled": text}


def build(beta, penalty="vmf", d=6, **options):
    """A loss of any penalty."""
    torch.manual_seed(0)
    dims = {"dims": (d, 5, 4)} if penalty == "mine" else {}
    return CIBRLoss(beta, penalty, **dims, **options)


def value_and_gradients(function, leaves):
    value = function(*leaves)
    return value, torch.autograd.grad(value, leaves, retain_graph=True)
