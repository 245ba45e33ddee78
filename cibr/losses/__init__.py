"""Losses: `clip_loss`, exact and in bounded memory, and `CIBRLoss` on top of it.

A loss takes tensors, never a model, and returns scalars in nats.
"""

from cibr.losses.cibr import ESTIMATORS, CIBRLoss, beta_at
from cibr.losses.contrastive import clip_loss

__all__ = ["ESTIMATORS", "CIBRLoss", "beta_at", "clip_loss"]
