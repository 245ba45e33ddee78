"""What the losses refuse: calls by the argument that the error names."""

import math
from functools import partial

import torch
from losses_pairs import pair, pooled_features

from cibr.losses import CIBRLoss, RegularisedCCA, beta_at, clip_loss, vmf
from cibr.losses.penalties import VMF

IMAGE, TEXT, _ = (leaf.detach().float() for leaf in pair())
POOLED = pooled_features()["image_pooled"]
BROKEN = IMAGE.index_fill(0, torch.tensor(3), math.nan)
INFINITE = IMAGE.index_fill(0, torch.tensor(3), math.inf)
LOSS = CIBRLoss(0.1)
NUMBERS = (-0.1, math.inf, math.nan, True, "0.1")


def clip(image=IMAGE, text=TEXT, scale=7.0, labels=None, chunk_size=None):
    return partial(clip_loss, image, text, scale, labels, chunk_size)


def loss(beta=0.1, *penalty, image=IMAGE, text=TEXT, given=None, **options):
    return lambda: CIBRLoss(beta, *penalty, **options)(image, text, 7.0, **(given or {}))


def fit(image, text=None, **ridges):
    text = image if text is None else text
    return partial(RegularisedCCA.fit, image, text, 6, **ridges)


BAD = {
    "n >= 2": [clip(IMAGE[:1], TEXT[:1]), clip(IMAGE[0]), clip(IMAGE[:, :5]), clip(text=TEXT[1:])],
    "image_features are not finite: look for NaN": [clip(BROKEN), loss(image=INFINITE)],
    "text_features are not finite: look for NaN": [clip(text=INFINITE), loss(text=BROKEN)],
    "image_features must be unit vectors, .* off by 0.05: norm": [loss(image=1.05 * IMAGE)],
    "text_features must be unit vectors, .* off by 1: norm": [loss(text=0 * TEXT)],
    "labels must": [clip(labels=x) for x in (torch.arange(11), torch.arange(12.0))],
    "labels is of type list": [clip(labels=[0] * 12)],
    "chunk_size": [clip(chunk_size=x) for x in (0, -1, 4.0)],
    "logit_scale": [clip(scale=x) for x in (torch.tensor(-2.0), 0.0, math.nan, math.inf)],
    r"logit_scale must be one number, got \[2\]": [clip(scale=torch.ones(2))],
    "beta": [loss(x) for x in NUMBERS] + [partial(setattr, LOSS, "beta", x) for x in NUMBERS],
    "the penalty 'mine' needs dims: pass dims=": [loss(0.05, "mine")],
    "progress": [partial(beta_at, x, 0.6) for x in NUMBERS],
    "image_features is of type ndarray: pass a torch.Tensor": [clip(IMAGE.numpy())],
    "text_pooled is of type ndarray": [fit(POOLED, POOLED.numpy())],
    "dim is (0|4.5): give": [partial(RegularisedCCA.fit, POOLED, POOLED, x) for x in (0, 4.5)],
    "kappa_e": [loss(kappa_e=x) for x in NUMBERS],
    "kappa_b": [loss(kappa_b=x) for x in NUMBERS],
    "penalty 'vfm', did you mean 'vmf'": [loss(0.1, "vfm")],
    "a name or a Term": [loss(0.1, x) for x in (None, VMF)] + [loss(0.1, VMF(), kappa_b=3.0)],
    "'kapa_b', did you mean 'kappa_b'": [loss(kapa_b=3.0)],
    "input of CIBRLoss 'labls'": [loss(given={"labls": 1})],
    "critic_steps": [loss(0.1, "mine", dims=(6, 5, 4), critic_steps=x) for x in (0, 1.5)],
    "needs image_pooled, text_pooled": [loss(0.1, "mine", dims=(6, 5, 4))],
    "image_pooled and text_pooled": [fit(x * POOLED) for x in (math.nan, math.inf, 0)]
    + [fit(POOLED, x * POOLED) for x in (math.nan, 0)]
    + [fit(POOLED[:1])],
    "call the loss": [CIBRLoss(0.1).reports],
    "ridge_image": [fit(POOLED, ridge_image=x) for x in (0.0, math.nan)],
    "ridge_text": [fit(POOLED, ridge_text=-1.0)],
    "kappa must": [partial(vmf.sample_vmf, IMAGE, x) for x in (-1.0, math.nan, math.inf)]
    + [partial(vmf.sample_vmf, torch.ones(3, 1), 1.0)],
}
CASES = [
    (f"losses: {word} {i}", call, ValueError, word)
    for word, calls in BAD.items()
    for i, call in enumerate(calls)
]
