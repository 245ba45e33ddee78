"""Many runs, one row of results each: what is missing is done, side by side, by any number of commands at once.

A run is a dictionary of settings; `work`, a module-level function, turns it into a dictionary of metrics.
`python -m cibr.sweep SWEEP.yaml` does what a file describes.
"""

from cibr.sweep.engine import run_sweep
from cibr.sweep.plan import Plan, read_plan
from cibr.sweep.runs import grid, missing, run_id
from cibr.sweep.work import run_folder, train_and_evaluate

__all__ = ["Plan", "grid", "missing", "read_plan", "run_folder", "run_id", "run_sweep", "train_and_evaluate"]
