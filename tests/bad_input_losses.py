"""What the losses refuse: calls by the argument that the error names."""

import math
from functools import partial

import torch
from losses_pairs import pair, pooled_features

from cibr.losses import CIBRLoss, RegularisedCCA, beta_at, clip_loss, vmf
from cibr.losses.penalties import VMF

IMAGE, TEXT, _ = (leaf.detach().float() for leaf in pair())
POOLED = pooled_features()
PAIRS = tuple(POOLED.values())
NARROW = POOLED | {"text_pooled": PAIRS[1][:, :3]}
CCA = {"statistic": RegularisedCCA.fit(*PAIRS, dim=6)}
FLAT = {"statistic": RegularisedCCA.fit(*PAIRS, dim=2)}
DIMS = {"dims": (6, 5, 4)}
BROKEN, INFINITE = IMAGE.clone(), IMAGE.clone()
BROKEN[3, 1] = math.nan
INFINITE[3, 1] = math.inf
NUMBERS = (-0.1, math.inf, math.nan, 1e300, "1", None, True)
COUNTS = (0, -1, 1.5, "2", True)


def clip(image=IMAGE, text=TEXT, scale=7.0, labels=None, chunk_size=None):
    return partial(clip_loss, image, text, scale, labels, chunk_size)


def loss(beta, *penalty, image=IMAGE, text=TEXT, given=None, **options):
    return lambda: CIBRLoss(beta, *penalty, **options)(image, text, 7.0, **(given or {}))


def update(given):
    return lambda: CIBRLoss(0.1, "mine", **DIMS).update(IMAGE, TEXT, **given)


def fit(image=PAIRS[0], text=PAIRS[1], dim=6, **ridges):
    return lambda: RegularisedCCA.fit(image, text, dim, **ridges)


ZERO_ROW = IMAGE * torch.arange(12)[:, None].clamp(max=1)
SHORT = POOLED | {"text_pooled": PAIRS[1][:3]}
NAN_TEXTS = POOLED | {"text_pooled": PAIRS[1] * math.nan}
BAD = {
    "two pairs": [clip(IMAGE[:1], TEXT[:1]), fit(PAIRS[0][:1], PAIRS[1][:1])],
    "image_features": [clip(x) for x in (IMAGE[0], IMAGE.numpy(), None, BROKEN, TEXT[:, :5])]
    + [loss(0.1, image=x) for x in (BROKEN, INFINITE, 1.05 * IMAGE, ZERO_ROW)],
    "text_features": [clip(text=x) for x in (TEXT[:-1], TEXT.long(), TEXT.tolist())]
    + [loss(0.1, text=x) for x in (BROKEN, INFINITE)],
    "labels": [clip(labels=x) for x in (torch.arange(11), torch.arange(12.0), list(range(12)))],
    "chunk_size": [clip(chunk_size=x) for x in COUNTS],
    "logit_scale": [clip(scale=x) for x in (torch.tensor(-2.0), 0.0, math.nan, math.inf, 1e30)]
    + [clip(scale=torch.ones(1))],
    "beta": [loss(x) for x in NUMBERS],
    "progress": [partial(beta_at, x, 0.6) for x in NUMBERS[:-1]],
    "kappa_e": [loss(0.1, kappa_e=x) for x in (*NUMBERS, 0, 1.1e6)],
    "kappa_b": [loss(0.1, kappa_b=x) for x in (*NUMBERS, 0, 1.1e6)],
    "sample": [loss(0.1, sample="yes")],
    "penalty 'vfm', did you mean 'vmf'": [loss(0.1, "vfm")],
    "penalty is a name or a Term": [loss(0.1, x) for x in (["vmf"], None, VMF)],
    "'kapa_b', did you mean 'kappa_b'": [loss(0.1, kapa_b=3.0)],
    r"options \(kappa_b\)": [loss(0.1, VMF(), kappa_b=3.0)],
    "input of CIBRLoss 'labls'": [loss(0.1, given={"labls": 1})],
    "dims=": [loss(0.1, "mine"), loss(0.1, "mine", dims=(6, 5)), loss(0.1, "mine", dims=6)],
    "dims must be": [loss(0.1, "mine", dims=(6, 5, x)) for x in COUNTS],
    r"built with dims=\(6, 5, 4\)": [loss(0.1, "mine", **DIMS, given=NARROW), update(NARROW)],
    "critic_steps": [loss(0.1, "mine", **DIMS, critic_steps=x) for x in COUNTS],
    "critic_rate": [loss(0.1, "mine", **DIMS, critic_rate=x) for x in (*NUMBERS, 0)],
    "image_pooled": [loss(0.1, "mine", **DIMS), loss(0.1, "anchor", **CCA)]
    + [fit(x) for x in (PAIRS[0].numpy(), PAIRS[0].long(), PAIRS[0] * math.nan, 0 * PAIRS[0])],
    "text_pooled": [update(SHORT), update(NAN_TEXTS), fit(text=PAIRS[1][:3])],
    "statistic": [loss(0.1, "anchor", **x, given=POOLED) for x in ({}, {"statistic": "x"}, FLAT)],
    "features of width 4, got 3": [loss(0.1, "anchor", **CCA, given=NARROW)],
    "call the loss": [lambda: CIBRLoss(0.1).reports()],
    "dim must be": [fit(dim=x) for x in COUNTS] + [partial(vmf.vmf_mean_cosine, 1.0, 1)],
    "ridge_image": [fit(ridge_image=x) for x in (0.0, -1.0, math.nan)],
    "ridge_text": [fit(ridge_text=0.0)],
    "kappa": [partial(vmf.vmf_mean_cosine, x, 8) for x in (-1.0, math.nan, math.inf)]
    + [partial(vmf.vmf_log_normalizer, torch.tensor([1.0, -1.0]), 8)],
    "mean_cosine": [partial(vmf.vmf_fit_kappa, x, 8) for x in (1.0, math.nan)],
    "cosine": [partial(vmf.vmf_residual_nats, x, 10.0, 10.0, 8) for x in (1.2, math.nan)],
}
CASES = [
    (f"losses: {word} {i}", call, ValueError, word)
    for word, calls in BAD.items()
    for i, call in enumerate(calls)
]
