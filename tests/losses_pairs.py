"""Small batches and losses of every penalty, which the tests of the losses share."""

import torch
from torch.nn import functional as F

from cibr.losses import PENALTIES, CIBRLoss, RegularisedCCA
from cibr.losses.cibr import arguments_of

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


def optional_inputs(penalty, image, text):
    """Pooled features, and what else a penalty needs: embeddings of twice their length, and those
    of another model.
    """
    others = {"image_projected": 2 * image, "text_projected": 2 * text}
    taught = pair(*image.shape, image.dtype, seed=5)
    others |= {"teacher_image": taught[0].detach(), "teacher_text": taught[1].detach()}
    needed = {name: x for name, x in others.items() if name in PENALTIES[penalty].needs}
    return pooled_features(len(image)) | needed


def build(beta, penalty="vmf", d=6, **options):
    """A loss of any penalty, also of the study's `anchor`."""
    torch.manual_seed(0)
    cca = RegularisedCCA.fit(*pooled_features().values(), dim=d)
    arguments = {"dims": (d, 5, 4), "statistic": cca}
    needed = {name: x for name, x in arguments.items() if name in arguments_of(penalty)}
    return CIBRLoss(beta, penalty, **needed, **options)


def value_and_gradients(function, leaves):
    value = function(*leaves)
    return value, torch.autograd.grad(value, leaves, retain_graph=True)
