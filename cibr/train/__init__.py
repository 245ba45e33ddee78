"""Training: `configure` and `build_model` set up a run, `fit` trains it.

`python -m cibr.train config.json` runs what the notebook runs.
"""

from cibr.inputs import embed_pairs, prepare
from cibr.train.config import RunConfig, build_model, check_parameters, configure, load_splits
from cibr.train.loop import fit

__all__ = [
    "RunConfig",
    "build_model",
    "check_parameters",
    "configure",
    "embed_pairs",
    "fit",
    "load_splits",
    "prepare",
]
