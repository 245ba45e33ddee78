"""Dual encoders: `DualEncoder` with a tiny, a frozen or a CLIP backbone."""

from cibr.models.dual_encoder import DualEncoder, Encoded
from cibr.models.pretrained import MODELS, model_kind

__all__ = ["MODELS", "DualEncoder", "Encoded", "model_kind"]
