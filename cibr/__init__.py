"""CIBR: the Cross-modal Information Bottleneck for CLIP, as models, losses, metrics and a training
loop.

Names are loaded on first use (PEP 562): importing the losses does not import the libraries of
models and training.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers
    from cibr.data import Pairs, load_pairs
    from cibr.losses import CIBRLoss, beta_at, clip_loss
    from cibr.metrics import recall_at_k
    from cibr.models import DualEncoder
    from cibr.train import RunConfig, build_model, configure, fit, load_splits

__version__ = "0.5.0"
__all__ = ["CIBRLoss", "DualEncoder", "Pairs", "RunConfig", "__version__"]
__all__ += ["beta_at", "build_model", "clip_loss", "configure", "fit", "load_pairs", "load_splits"]
__all__ += ["recall_at_k"]
_ROOMS = ("losses", "metrics", "data", "models", "train")  # the quickest to import first


def __getattr__(name: str) -> Any:
    if name in __all__:
        for room in _ROOMS:
            module = import_module(f"cibr.{room}")
            if name in module.__all__:
                value = globals()[name] = getattr(module, name)
                return value
    raise AttributeError(f"module 'cibr' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
