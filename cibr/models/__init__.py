"""Dual encoders: small ones from scratch, a start that knows names, heads over frozen towers, and
models of transformers.
"""

from cibr.models.cca import RegularisedCCA
from cibr.models.dual_encoder import DualEncoder, Encoded
from cibr.models.heads import Head, SummedHead
from cibr.models.loading import check_model
from cibr.models.named_towers import FrozenTowers, StagedTowers
from cibr.models.names import NamesHead
from cibr.models.parts import HEADS, TOWERS
from cibr.models.towers import Towers

__all__ = [
    "HEADS",
    "TOWERS",
    "DualEncoder",
    "Encoded",
    "FrozenTowers",
    "Head",
    "NamesHead",
    "RegularisedCCA",
    "StagedTowers",
    "SummedHead",
    "Towers",
    "check_model",
]
