"""CIBR: the Cross-modal Information Bottleneck for CLIP, as models, losses, metrics and a training
loop.

Names are loaded on first use (PEP 562): importing the losses does not import the libraries of
models and training.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("cibr")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0+unknown"

_HOME = {
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
__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(
            f"module 'cibr' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
