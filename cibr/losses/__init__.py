"""Losses: the exact, memory-bounded `clip_loss`, `CIBRLoss` built on it, and its penalties.

A loss takes tensors, never a model, and returns scalars in nats (`CIBRLoss.for_model` reads only
a model's widths).
"""

from cibr.losses.cibr import CIBRLoss, beta_at
from cibr.losses.clip import clip_loss
from cibr.losses.penalties import PENALTIES, LossInputs, Penalty

__all__ = [
    "PENALTIES",
    "CIBRLoss",
    "LossInputs",
    "Penalty",
    "beta_at",
    "clip_loss",
]
