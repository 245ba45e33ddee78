"""Evaluation: `evaluate` measures a model on a suite of benchmarks, `compare` two models on the same pictures.

`python -m cibr.evaluate MODEL --suite mini` prints the tables.
"""

from cibr.evaluate.engine import evaluate, load_task
from cibr.evaluate.outcomes import Outcome
from cibr.evaluate.suites import SUITES, Task, suite_tasks
from cibr.evaluate.tables import Evaluation, compare, format_table, read_evaluation, short_names

__all__ = [
    "SUITES",
    "Evaluation",
    "Outcome",
    "Task",
    "compare",
    "evaluate",
    "format_table",
    "load_task",
    "read_evaluation",
    "short_names",
    "suite_tasks",
]
