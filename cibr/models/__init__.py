"""Dual encoders: small ones from scratch, heads over frozen towers, and models of transformers."""

from cibr.models._io import model_kind
from cibr.models.dual_encoder import DualEncoder, Encoded

__all__ = ["DualEncoder", "Encoded", "model_kind"]
