"""Dual encoders: small ones from scratch, heads over frozen towers, and models of transformers."""

from cibr.models._io import check_model
from cibr.models.cca import RegularisedCCA
from cibr.models.dual_encoder import DualEncoder, Encoded
from cibr.models.heads import HEADS, Head, SummedHead

__all__ = [
    "HEADS",
    "DualEncoder",
    "Encoded",
    "Head",
    "RegularisedCCA",
    "SummedHead",
    "check_model",
]
