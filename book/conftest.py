"""How `pytest --nbval book/` compares a notebook with its stored outputs.

The bare command works from any folder: each notebook runs in the environment that runs pytest, with
the same variables as when it was executed, and what cannot repeat on another machine is left out of
the comparison. Text is compared as it stands, except that floats with more than four significant
digits are rounded to four, since the last digits change with the processor. Cells that cannot
repeat carry the tag `nbval-ignore-output`.
"""

import re

import pytest
from nbval.plugin import IPyNbFile

from execute import prepare_environment

collect_ignore_glob = ["_build/*", "*/.ipynb_checkpoints/*"]

# nbval leaves PNG and JPEG out; the same images pass through glue under these names. A newer
# library's warnings are no result of the book.
GLUED = "application/papermill.record/image/"
NOT_COMPARED = ("stderr", f"{GLUED}png", f"{GLUED}jpeg")

# A decimal or exponent makes a float; names, versions and dates such as fc1.0, 2.13.0 are none.
FLOAT = r"(?<![\w.])[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?(?!\w|\.\w)"
SIGNIFICANT_DIGITS = 4
ZERO = 1e-12  # below it, a printed difference of equal numbers is rounding error
# nbval's default limit of a cell, and ours, for busy machines.
NBVAL_SECONDS = 2000.0
CELL_SECONDS = 3600.0


def _round_float(match: re.Match[str]) -> str:
    """The matched float with at most four significant digits, or as it stands."""
    text = match.group()
    if abs(float(text)) < ZERO:
        return "0"
    digits = re.sub(r"[eE].*|[^\d]", "", text).lstrip("0")
    is_long = len(digits) > SIGNIFICANT_DIGITS
    return f"{float(text):.{SIGNIFICANT_DIGITS}g}" if is_long else text


def pytest_configure(config: pytest.Config) -> None:
    """Set nbval's options, so that nobody has to type them; a limit on the command line is kept."""
    option = config.option
    if option.nbval or option.nbval_lax:
        option.nbval_current_env = option.nbval_kernel_name is None
        if float(option.nbval_cell_timeout) == NBVAL_SECONDS:
            option.nbval_cell_timeout = CELL_SECONDS
        prepare_environment()


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Put the policy on each notebook as it is collected."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare = (*collector.skip_compare, *NOT_COMPARED)
        collector.sanitize_patterns[FLOAT] = _round_float
        collector.sanitize_patterns[r"<Figure size [^>]*>"] = "<Figure>"
