"""Training: `configure`, `load_splits` and `build_model` set up a run, `fit` trains it.

`fit` loads on first use: `accelerate` takes a second to import.
"""

from importlib import import_module

from cibr.train.config import RunConfig, build_model, configure, load_splits

_OF_LOOP = ["Training", "fit"]
__all__ = ["RunConfig", "build_model", "configure", "load_splits", *_OF_LOOP]


def __getattr__(name: str):
    if name not in _OF_LOOP:
        raise AttributeError(f"module 'cibr.train' has no attribute {name!r}")
    return getattr(import_module("cibr.train.loop"), name)
