"""Training: `configure`, `load_splits` and `build_model` set up a run, `fit` trains it."""

from cibr.train.config import RunConfig, build_model, configure, load_splits
from cibr.train.loop import fit

__all__ = ["RunConfig", "build_model", "configure", "fit", "load_splits"]
