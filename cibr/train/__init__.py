"""Training: `configure`, `load_splits` and `build_model` set up a run, `fit` trains it.

Names that need transformers.Trainer load on first use: it takes seconds to import.
"""

from importlib import import_module

from cibr.train.config import RunConfig, build_model, configure, load_splits

_OF_TRAINER = ["CIBRTrainer", "fit"]
__all__ = ["RunConfig", "build_model", "configure", "load_splits", *_OF_TRAINER]


def __getattr__(name: str):
    if name not in _OF_TRAINER:
        raise AttributeError(f"module 'cibr.train' has no attribute {name!r}")
    return getattr(import_module("cibr.train.trainer"), name)
