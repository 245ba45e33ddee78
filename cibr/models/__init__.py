"""Dual encoders: `DualEncoder` with tiny, frozen or CLIP towers, and what they read (`cibr.models.features`)."""

from cibr.models.dual_encoder import DualEncoder, Encoded
from cibr.models.towers import MODELS, model_kind

__all__ = ["MODELS", "DualEncoder", "Encoded", "model_kind"]
