"""Losses: `clip_loss`, exact and in bounded memory, `CIBRLoss` on top of it, and what they are compared with.

A loss takes tensors, never a model, and returns scalars in nats.
"""

from cibr.losses.baselines import (
    BASELINES,
    BaselineLoss,
    alignment_uniformity_penalty,
    cyclip_penalty,
    siglip_loss,
)
from cibr.losses.cibr import ESTIMATORS, CIBRLoss, beta_at
from cibr.losses.contrastive import clip_loss

__all__ = [
    "BASELINES",
    "ESTIMATORS",
    "BaselineLoss",
    "CIBRLoss",
    "alignment_uniformity_penalty",
    "beta_at",
    "clip_loss",
    "cyclip_penalty",
    "siglip_loss",
]
