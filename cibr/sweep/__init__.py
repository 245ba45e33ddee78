"""Many runs, one row of results each: what is missing is done, side by side, by any number of commands at once.

A run is a dictionary of settings; `work`, a module-level function, turns it into a dictionary of metrics.
`python -m cibr.sweep SWEEP.yaml` does what a file describes. What an ablation found is told by `read_arms`,
`arm_differences`, `measure_differences` and `training_plane`.
"""

from cibr.sweep.arms import read_arms, trials
from cibr.sweep.comparison import arm_differences, measure_differences
from cibr.sweep.engine import run_sweep
from cibr.sweep.learning import training_plane
from cibr.sweep.plan import Plan, read_plan, sweeps_in
from cibr.sweep.runs import grid, missing, run_id
from cibr.sweep.work import run_folder, train_and_evaluate

__all__ = [
    "Plan",
    "arm_differences",
    "grid",
    "measure_differences",
    "missing",
    "read_arms",
    "read_plan",
    "run_folder",
    "run_id",
    "run_sweep",
    "sweeps_in",
    "train_and_evaluate",
    "training_plane",
    "trials",
]
