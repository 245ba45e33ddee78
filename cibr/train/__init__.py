"""Training: `configure`, `load_splits` and `build_model` set up a run, `fit` trains it.

`CIBRTrainer` and `fit` are loaded on first use: transformers.Trainer takes seconds to import.
"""

from importlib import import_module

from cibr.train.config import RunConfig, build_model, configure, load_splits

__all__ = ["CIBRTrainer", "RunConfig", "build_model", "configure", "fit", "load_splits"]


def __getattr__(name: str):
    if name not in ("CIBRTrainer", "fit"):
        raise AttributeError(f"module 'cibr.train' has no attribute {name!r}")
    return getattr(import_module("cibr.train.trainer"), name)
