"""Training: `configure`, `load_splits` and `build_model` set up a run, `fit` trains it.

`fit` and `Training` load on first use: `accelerate` takes a second to import.
"""

from importlib import import_module

from cibr.train.config import RunConfig, configure
from cibr.train.setup import build_model, load_splits

_LAZY = ["Training", "fit"]
__all__ = ["RunConfig", "build_model", "configure", "load_splits", *_LAZY]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'cibr.train' has no attribute {name!r}")
    return getattr(import_module("cibr.train.loop"), name)
