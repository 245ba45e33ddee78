"""Losses: the exact, memory-bounded `clip_loss`, `CIBRLoss` built on it, and the baselines.

A loss takes tensors, never a model, and returns scalars in nats.
"""

from cibr.losses.baselines import siglip_loss
from cibr.losses.cca import RegularisedCCA
from cibr.losses.cibr import CIBRLoss, beta_at
from cibr.losses.clip import clip_loss
from cibr.losses.penalties import PENALTIES

__all__ = ["PENALTIES", "CIBRLoss", "RegularisedCCA", "beta_at", "clip_loss", "siglip_loss"]
