"""What the losses refuse: calls by the argument that the error names."""

import math
from functools import partial

import torch
from losses_pairs import pair

from cibr.losses import CIBRLoss, beta_at, clip_loss, vmf
from cibr.losses.penalties import VMF

IMAGE, TEXT, _ = (leaf.detach().float() for leaf in pair())
NOT_FINITE = IMAGE.index_fill(0, torch.tensor(3), math.nan)


def clip(image=IMAGE, text=TEXT, scale=7.0, labels=None, chunk_size=None):
    """A call of `clip_loss`, to be made later."""
    return partial(clip_loss, image, text, scale, labels, chunk_size)


def loss(beta=0.1, penalty="vmf", image=IMAGE, text=TEXT, **options):
    """A call that builds a `CIBRLoss` and computes it, to be made later."""
    return lambda: CIBRLoss(beta, penalty, **options)(image, text, 7.0)


def loss_for_model(penalty, **options):
    """A call that builds a `CIBRLoss` for a model, which is not looked at."""
    return lambda: CIBRLoss.for_model(None, 0.1, penalty, **options)


BAD = {
    "n >= 2": clip(IMAGE[:1], TEXT[:1]),
    "image_features are not finite: look for NaN": clip(NOT_FINITE),
    "image_features must be unit vectors, .* off by 0.05: norm": loss(image=1.05 * IMAGE),
    "labels must": clip(labels=torch.arange(11)),
    "chunk_size": clip(chunk_size=0),
    "logit_scale": clip(scale=-2.0),
    "beta": loss(-0.1),
    "progress": partial(beta_at, 1.1, 0.6),
    "kappa_e": loss(kappa_e=0.0),
    "kappa_b": loss(kappa_b=math.nan),
    "penalty 'vfm', did you mean 'vmf'": loss(penalty="vfm"),
    "penalty 'mime', did you mean 'mine'": loss_for_model("mime"),
    "has its options already": loss(penalty=VMF(), kappa_b=3.0),
    "'kapa_b', did you mean 'kappa_b'": loss(kapa_b=3.0),
    "'critic_step', did you mean 'critic_steps'": loss_for_model("mine", critic_step=3),
    "reports are those of the last batch": CIBRLoss(0.1).reports,
    "needs image_pooled, text_pooled": loss(penalty="mine", dims=(6, 5, 4)),
    "critic_steps is -1": loss(penalty="mine", dims=(6, 5, 4), critic_steps=-1),
    "kappa must": partial(vmf.sample_vmf, IMAGE, -1.0),
}
CASES = [(f"losses: {word}", call, ValueError, word) for word, call in BAD.items()]
