"""Dual encoders: small ones from scratch, heads over frozen towers, and models of transformers."""

from cibr.models.dual_encoder import DualEncoder, Encoded
from cibr.models.io import model_kind

__all__ = ["DualEncoder", "Encoded", "model_kind"]
