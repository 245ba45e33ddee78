"""Dual encoders: `DualEncoder`, tiny, over frozen towers or from transformers, and its inputs
(`features`).
"""

from cibr.models.dual_encoder import DualEncoder, Encoded
from cibr.models.io import model_kind

__all__ = ["DualEncoder", "Encoded", "model_kind"]
