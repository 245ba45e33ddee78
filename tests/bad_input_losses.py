"""What the losses refuse, and in which words."""

import math
from functools import partial

import numpy as np
import torch
from losses_pairs import pair, pooled_features

import cibr_book  # noqa: F401  registers the study's penalties
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


def clip(image=IMAGE, text=TEXT, scale=7.0, labels=None, chunk_size=None):
    return lambda: clip_loss(image, text, scale, labels, chunk_size)


def loss(beta, *penalty, image=IMAGE, text=TEXT, given=None, **options):
    return lambda: CIBRLoss(beta, *penalty, **options)(image, text, 7.0, **(given or {}))


def update(given):
    return lambda: CIBRLoss(0.1, "mine", **DIMS).update(IMAGE, TEXT, **given)


LABELS = r"labels are {}: pass an integer tensor \[12\]"
SCALE = r"logit_scale must be positive and finite.*exp\(\)"
UNIT = "image_features must be unit vectors.*length is off by .*normalize"
BETA = "beta must be a number from 0 .*to 10,000, usually"
KAPPA_E, KAPPA_B = (f"kappa_{side} must be positive, at most 1e6, got" for side in "eb")
BAD_NUMBERS = (-0.1, math.inf, math.nan, 1e300, "1", None)
TEACHER = {"contrastive": "hycd", "given": {"teacher_logits": torch.full((12, 12), math.nan)}}
WIDTHS = r"'mine' was built with dims=\(6, 5, 4\), its inputs need \(6, 5, 3\)"
_CASES = [
    (clip(IMAGE[:1], TEXT[:1]), "at least 2 pairs, got 1.*drop_last=True"),
    (clip(text=TEXT[:-1]), r"\[12, 6\] and text_features \[11, 6\] differ: .* pair.*one width"),
    (clip(IMAGE[0], TEXT[0]), r"image_features is torch.float32 \[6\]: .* \[n, d\]"),
    (clip(np.eye(12), np.eye(12)), "image_features is ndarray: pass a float tensor"),
    (clip(text=TEXT.long()), "text_features is torch.int64 .*: pass a float tensor"),
    (clip(labels=torch.arange(11)), LABELS.format(r"torch.int64 \[11\]")),
    (clip(labels=torch.arange(12.0)), LABELS.format("torch.float32 .*")),
    (clip(labels=list(range(12))), LABELS.format("list")),
    *[(clip(chunk_size=x), "chunk_size must be an integer from 1") for x in (0, 1.5, "2")],
    *[(clip(scale=x), SCALE) for x in (torch.tensor(-2.0), 0.0, math.nan, math.inf)],
    (clip(scale=torch.ones(1)), r"logit_scale has shape \[1\]: .* one number"),
    (clip(BROKEN), "image_features must be finite"),
    (loss(0.1, text=BROKEN), "text_features must be finite"),
    (loss(0.1, text=INFINITE), "text_features must be finite"),
    (loss(0.1, image=1.05 * IMAGE), UNIT),
    (loss(0.1, image=IMAGE * torch.arange(12)[:, None].clamp(max=1)), UNIT),
    *[(loss(x), BETA) for x in BAD_NUMBERS],
    *[(partial(beta_at, 0.5, x), BETA) for x in BAD_NUMBERS],
    *[(partial(beta_at, x, 0.6), r"progress must be in \[0, 1\].*n_steps") for x in (20, "1")],
    *[(loss(0.1, kappa_e=x), KAPPA_E) for x in (*BAD_NUMBERS, 1.1e6)],
    *[(loss(0.1, kappa_b=x), KAPPA_B) for x in (*BAD_NUMBERS, 1.1e6)],
    *[(loss(0.1, text_weight=x), r"text_weight .* in \[0, 1\]; got") for x in BAD_NUMBERS],
    (loss(0.1, sample="yes"), "sample must be True or False, got 'yes'"),
    (loss(0.1, "vfm"), "unknown penalty 'vfm', did you mean 'vmf'.* Known: vmf, "),
    (loss(0.1, contrastive="siglib"), "contrastive loss 'siglib', did you mean 'siglip'"),
    (loss(0.1, ["vmf"]), "penalty is a name or a Term"),
    (loss(0.1, kapa_b=3.0), "unknown option of VMF 'kapa_b', did you mean 'kappa_b'"),
    (loss(0.1, VMF(), kappa_b=3.0), r"options \(kappa_b\) are for a penalty by name"),
    (loss(0.1, given={"labls": 1}), "unknown input of CIBRLoss 'labls'"),
    (loss(0.1, "mine"), r"'mine' .*dims=\(image_features.shape\[1\], image_pooled.shape\[1\]"),
    (loss(0.1, "mine", **DIMS, critic_steps=0), "critic_steps must be an integer from 1, got 0"),
    (loss(0.1, "mine", **DIMS, critic_rate=0), "critic_rate must be positive, got 0"),
    (loss(0.1, "mine", **DIMS), "needs image_pooled, .* got NoneType"),
    (loss(0.1, "mine", **DIMS, given=NARROW), WIDTHS),
    (update(NARROW), WIDTHS),
    (update(POOLED | {"text_pooled": PAIRS[1][:3]}), "needs text_pooled"),
    (update(POOLED | {"text_pooled": PAIRS[1] * math.nan}), "text_pooled must be finite"),
    (loss(0.1, "anchor"), "'anchor' .*statistic=RegularisedCCA.fit"),
    (loss(0.1, "anchor", **CCA), "needs image_pooled"),
    (loss(0.1, "anchor", **CCA, given=NARROW), "CCA was fitted on features of width 4, got 3"),
    (loss(0.1, "anchor", **FLAT, given=POOLED), "statistic has width 2, the embeddings have 6"),
    (loss(0.1, "rafa"), "needs image_projected"),
    (loss(0.1, contrastive="hycd"), "needs teacher_logits"),
    (loss(0.1, **TEACHER), "teacher_logits must be finite"),
    (lambda: CIBRLoss(0.1).reports(), "nothing to report yet: call the loss"),
    (lambda: RegularisedCCA.fit(PAIRS[0][:3], PAIRS[1], 6), "two or more, got 3 .* and 12"),
    (lambda: RegularisedCCA.fit(*PAIRS, 6, 0.0), "ridges must be positive, got 0.0"),
    (lambda: RegularisedCCA.fit(PAIRS[0], PAIRS[1] * math.nan, 6), "text_pooled must be finite"),
    (lambda: vmf.vmf_log_normalizer(-1.0, 8), "kappa must be finite and not negative, got -1"),
    *[(partial(vmf.vmf_mean_cosine, x, 8), "kappa must be finite") for x in (math.nan, math.inf)],
    (lambda: vmf.vmf_mean_cosine(1.0, 1), "dim must be at least 2.*width"),
    *[(partial(vmf.vmf_fit_kappa, x, 8), "must be below 1") for x in (1.0, math.nan)],
    (lambda: vmf.vmf_residual_nats(1.2, 10.0, 10.0, 8), "cosine must lie in .*1.2"),
]
CASES = [(f"losses {m[:30]} {i}", f, ValueError, m) for i, (f, m) in enumerate(_CASES)]
