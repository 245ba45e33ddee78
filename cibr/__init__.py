"""CIBR: the Cross-modal Information Bottleneck for CLIP, as models, losses, metrics and a training
loop.

Names are loaded on first use (PEP 562): importing the losses does not import the libraries of
models and training.
"""

# ruff: noqa: F401 -- the imports below are for type checkers, which do not run `__getattr__`
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cibr.data import Pairs, load_pairs
    from cibr.losses import CIBRLoss, beta_at, clip_loss
    from cibr.metrics import recall_at_k
    from cibr.models import DualEncoder
    from cibr.train import RunConfig, build_model, configure, fit, load_splits

__version__ = "0.5.0"

_MODULE_OF_NAME = {
    "CIBRLoss": "cibr.losses",
    "DualEncoder": "cibr.models",
    "Pairs": "cibr.data",
    "RunConfig": "cibr.train",
    "beta_at": "cibr.losses",
    "build_model": "cibr.train",
    "clip_loss": "cibr.losses",
    "configure": "cibr.train",
    "fit": "cibr.train",
    "load_pairs": "cibr.data",
    "load_splits": "cibr.train",
    "recall_at_k": "cibr.metrics",
}
__all__ = ["__version__", *_MODULE_OF_NAME]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(
            f"module 'cibr' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    value = getattr(import_module(_MODULE_OF_NAME[name]), name)
    globals()[name] = value  # so that this function is not asked again
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
