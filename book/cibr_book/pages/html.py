"""Pieces of pages: the HTML file beside a module, filled with its numbers."""

import json
from pathlib import Path
from string import Template
from typing import Any


def filled(module: str, data: Any, **parts: Any) -> str:
    """A module's piece of a page.

    Args:
        module: file of the module, beside which the HTML lies, with `$` before names of parts.
        data: put into its part `data` as JSON, which no text within can end.
        parts: the other parts, as they are printed.
    """
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    page = Path(module).with_suffix(".html").read_text("utf-8")
    return Template(page).substitute(data=text, **parts)
