"""How `pytest --nbval book/` compares a notebook with its stored outputs.

The bare command works from any folder: each notebook runs in the environment that runs pytest, with
the same variables as when it was executed, on all cores if no workers share them, and what cannot
repeat on another machine is left out of the comparison. Text is compared as it stands, except that
floats with more than four significant digits are rounded to four, since the last digits change with
the processor. In cells with the tag `trains`, whose numbers come from training, those with a unit
may differ by its tolerance, see `cibr_book.pages.compare`; a table is compared as HTML. Cells that
cannot repeat carry the tag `nbval-ignore-output`.
"""

import re
from collections import Counter
from typing import Any

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

from cibr_book.pages.compare import is_close, is_close_html
from execute import WIDGET, prepare_environment

collect_ignore_glob = ["_build/*", "*/.ipynb_checkpoints/*"]

# nbval leaves PNG and JPEG out; the same images pass through glue under these names. A newer
# library's warnings are no result of the book.
GLUED = "application/papermill.record/"
NOT_COMPARED = ("stderr", f"{GLUED}image/png", f"{GLUED}image/jpeg")

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


TEXTS = ("text", "text/plain", "text/markdown", f"{GLUED}text/plain")


def _take_close(own: dict, stored: dict) -> None:
    """Replaces texts and tables of an output by the stored ones where these are close."""
    if "text/html" in own and "text/html" in stored:
        if is_close_html(own["text/html"], stored["text/html"]):
            own["text/html"] = stored["text/html"]
        own["text/plain"] = stored.get("text/plain")  # the same table
    for key in TEXTS:
        if key in own and key in stored and is_close(own[key], stored[key]):
            own[key] = stored[key]


def _compare_by_unit(
    cell: IPyNbCell, test: list, ref: list, skip_compare: Any = None
) -> bool:
    """`IPyNbCell.compare_outputs` without progress bars; with tolerances where the cell trains."""
    test = [output for output in test if WIDGET not in output.get("data", {})]
    if "trains" in cell.cell.metadata.get("tags", []):
        printed = [output for output in test if output.get("name") != "stderr"]
        for own, stored in zip(printed, ref, strict=False):
            _take_close(own, stored)
            _take_close(own.get("data", {}), stored.get("data", {}))
    return _compare_exactly(cell, test, ref, skip_compare)


_compare_exactly = IPyNbCell.compare_outputs
IPyNbCell.compare_outputs = _compare_by_unit


def pytest_configure(config: pytest.Config) -> None:
    """Set nbval's options, so that nobody has to type them; a limit on the command line is kept."""
    option = config.option
    if option.nbval or option.nbval_lax:
        option.nbval_current_env = option.nbval_kernel_name is None
        if float(option.nbval_cell_timeout) == NBVAL_SECONDS:
            option.nbval_cell_timeout = CELL_SECONDS
        prepare_environment(is_alone=not hasattr(config, "workerinput"))


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Put the policy on each notebook as it is collected."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare = (*collector.skip_compare, *NOT_COMPARED)
        collector.sanitize_patterns[FLOAT] = _round_float
        collector.sanitize_patterns[r"<Figure size [^>]*>"] = "<Figure>"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the seconds of each notebook, the slowest first."""
    seconds: Counter = Counter()
    for report in [report for of in terminalreporter.stats.values() for report in of]:
        name = getattr(report, "nodeid", "").partition("::")[0]
        if name.endswith(".ipynb"):
            seconds[name] += report.duration
    for name, taken in seconds.most_common():
        terminalreporter.write_line(f"{taken:5.0f} s  {name}")
