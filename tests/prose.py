"""The words of a page, and the numbers that they print."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIFFERENCE = re.compile(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]")
NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?![\w.,]*\w)")


def with_intervals(table, mean="difference"):
    """`+1.23 [+0.98, +1.48]` of each row."""
    numbers = zip(table[mean], table["low"], table["high"], strict=True)
    return {"{:+.2f} [{:+.2f}, {:+.2f}]".format(*of_row) for of_row in numbers}


def prose(page):
    """The text of a page without code and formulas."""
    text = (ROOT / page).read_text("utf-8")
    if page.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    code = re.compile(r"```(?:bash|{math})\n.*?```|`[^`\n]+`", re.DOTALL)
    return code.sub("", text).replace("\u2212", "-")
