"""What the losses refuse, and in which words."""

import math
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from cibr.losses import CIBRLoss, RegularisedCCA, beta_at, clip_loss
from cibr.losses.baselines import alignment_uniformity, cyclip, hycd_loss, siglip_loss, soft_targets
from cibr.losses.vmf import (
    sample_vmf,
    vmf_fit_kappa,
    vmf_log_normalizer,
    vmf_mean_cosine,
    vmf_residual_nats,
)

IMAGE, TEXT = F.normalize(torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(0)), dim=2)
POOLED = dict(image_pooled=torch.randn(12, 5), text_pooled=torch.randn(12, 4))
CCA = RegularisedCCA.fit(*POOLED.values(), dim=6)
BROKEN = IMAGE.index_fill(0, torch.tensor([3]), math.nan)
ENDLESS = IMAGE.index_fill(0, torch.tensor([3]), math.inf)


def clip(image=IMAGE, text=TEXT, scale=7.0, labels=None, chunk_size=None):
    return lambda: clip_loss(image, text, scale, labels, chunk_size)


def loss(*settings, image=IMAGE, text=TEXT, scale=7.0, labels=None, pooled=None, **options):
    return lambda: CIBRLoss(*settings, **options)(image, text, scale, labels, **(pooled or {}))


def mine(pooled):
    return loss(0.1, "mine", dims=(6, 5, 4), pooled=pooled)


LABELS = r"labels must be an integer tensor \[12\]"
SCALE = r"logit_scale must be positive and finite.*exp\(\)"
UNIT = r"image_features must be unit vectors.*length 1.*normalize"
BASELINES = {
    alignment_uniformity: [],
    cyclip: [],
    soft_targets: [7.0, IMAGE[:1], TEXT[:1]],
    siglip_loss: [7.0],
}
BASELINES |= {hycd_loss: [7.0, None, torch.ones(1, 1)]}
_CASES = [
    ("one-pair", clip(IMAGE[:1], TEXT[:1]), "at least 2 pairs, got 1.*drop_last=True"),
    ("shapes", clip(text=TEXT[:-1]), r"\[12, 6\] and text_features \[11, 6\] differ: .* pair.*one width"),
    ("one-axis", clip(IMAGE[0], TEXT[0]), r"image_features must be .* \[n, d\], got torch.float32 \[6\]"),
    ("numpy", clip(np.eye(12), np.eye(12)), "image_features must be a float tensor .* got ndarray.*torch.tensor"),
    ("integers", clip(text=TEXT.long()), "text_features must be a float tensor .* got torch.int64"),
    ("labels-length", clip(labels=torch.arange(11)), LABELS + r".* got torch.int64 \[11\]"),
    ("labels-float", clip(labels=torch.arange(12.0)), LABELS + ".* got torch.float32"),
    ("labels-list", clip(labels=list(range(12))), LABELS + ".* got list"),
    ("chunk", clip(chunk_size=0), "chunk_size must be at least 1, got 0"),
    *[(f"scale-{x}", clip(scale=x), SCALE) for x in (torch.tensor(-2.0), 0.0, math.nan, math.inf)],
    ("scale-vector", clip(scale=torch.ones(1)), r"logit_scale must be one number, got the shape \[1\]"),
    ("nan-image", clip(BROKEN), "image_features must be finite"),
    ("nan-text", loss(0.1, text=BROKEN), "text_features must be finite"),
    ("infinite-text", loss(0.1, text=ENDLESS), "text_features must be finite"),
    ("not-unit", loss(0.1, image=1.05 * IMAGE), UNIT),
    ("zero-row", loss(0.1, image=IMAGE * torch.arange(12)[:, None].clamp(max=1)), UNIT),
    *[(f"beta-{x}", loss(x), "beta must be from 0 .*10,000") for x in (-0.1, math.inf, math.nan, 1e9)],
    ("penalty", loss(0.1, "vfm"), "unknown penalty 'vfm', did you mean 'vmf'.* Known: vmf, "),
    ("contrastive", loss(0.1, contrastive="siglib"), "unknown contrastive loss 'siglib', did you mean 'siglip'"),
    *[(k, loss(0.1, **{k: -3}), f"{k} must be a positive, finite .*, got -3") for k in ("kappa_e", "kappa_b")],
    ("text-weight", loss(0.1, text_weight=2), r"text_weight .* in \[0, 1\]; got 2"),
    ("mine-dims", loss(0.1, "mine"), r"'mine' .*dims=\(image_features.shape\[1\], image_pooled.shape\[1\]"),
    ("anchor-statistic", loss(0.1, "anchor"), "'anchor' .*statistic=RegularisedCCA.fit"),
    ("anchor-no-pooled", loss(0.1, "anchor", statistic=CCA), r"image_pooled must be \[12, p\] for .* 'anchor'"),
    ("soft-targets-no-pooled", loss(0.1, "soft_targets"), r"image_pooled must be .* 'soft_targets', got NoneType"),
    ("rafa-no-projected", loss(0.1, "rafa"), r"image_projected must be \[12, p\] .* 'rafa'.*before normal"),
    ("hycd-no-teacher", loss(0.1, contrastive="hycd"), r"teacher_logits must be \[12, 12\] .*'hycd', .* got None"),
    ("cca-rows", lambda: RegularisedCCA.fit(torch.ones(3, 5), torch.ones(4, 4), 6), "row by row, got 3 .* and 4"),
    ("cca-ridge", lambda: RegularisedCCA.fit(*POOLED.values(), 6, 0.0), "ridges must be positive, got 0.0"),
    ("mine-no-pooled", mine(None), r"image_pooled must be \[12, p\].* got NoneType.*input of the head"),
    ("mine-short", mine(POOLED | {"text_pooled": torch.ones(3, 4)}), r"text_pooled must be \[12, p\].*\[3, 4\]"),
    ("mine-nan", mine(POOLED | {"text_pooled": torch.full((12, 4), math.nan)}), "text_pooled must be finite"),
    *[(f"{f.__name__}-one-pair", partial(f, IMAGE[:1], TEXT[:1], *rest), "at least 2 pairs, got 1")
      for f, rest in BASELINES.items()],
    ("no-critics", lambda: CIBRLoss(0.1).critic_loss(IMAGE, TEXT, **POOLED), "'vmf' has no critics"),
    ("no-labels", loss(0.1, "consistency"), "'consistency' compares rows of equal labels: pass labels"),
    ("progress", lambda: beta_at(20, 0.6), r"progress must be in \[0, 1\].*n_steps"),
    ("vmf-kappa", lambda: vmf_log_normalizer(-1.0, 8), "kappa must be finite and not negative.*-1"),
    ("vmf-sample", lambda: sample_vmf(IMAGE, math.nan), "kappa must be finite"),
    ("vmf-dim", lambda: vmf_mean_cosine(1.0, 1), "dim must be at least 2.*width"),
    *[(f"vmf-fit-{x}", partial(vmf_fit_kappa, x, 8), "mean_cosine must be below 1") for x in (1.0, math.nan)],
    ("vmf-cosine", lambda: vmf_residual_nats(1.2, 10.0, 10.0, 8), "cosine must lie in .*1.2"),
]  # fmt: skip
CASES = [(name, call, ValueError, message) for name, call, message in _CASES]
