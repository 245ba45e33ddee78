"""Make one HTML file of an executed notebook, which opens offline: `python book/report.py out.ipynb`.

The file lies beside the notebook, `out.html`. It holds its pictures and MathJax, and shows the code
that the notebook shows: cells with the tag `hide-input` have only their outputs.
"""

import sys
from importlib.metadata import distribution
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors import TagRemovePreprocessor

from cibr.utils import write_atomically

BOOK = Path(__file__).resolve().parent
_MATHJAX = "sphinx-mathjax-offline/static/mathjax/tex-svg.js"  # draws its letters: needs no fonts


def make_report(notebook: Path) -> Path:
    """Write the HTML file of a notebook, and return its path.

    Raises:
        FileNotFoundError: there is no such notebook.
    """
    exporter = HTMLExporter(
        template_name="report",
        extra_template_basedirs=[str(BOOK)],
        embed_images=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    hidden = TagRemovePreprocessor(enabled=True, remove_input_tags={"hide-input"})
    exporter.register_preprocessor(hidden, enabled=True)
    content = nbformat.read(notebook, as_version=4)
    script = distribution("sphinx-mathjax-offline").locate_file(_MATHJAX)
    resources = {
        "mathjax": Path(script).read_text("utf-8"),
        "metadata": {"name": notebook.stem},
    }
    html, _ = exporter.from_notebook_node(content, resources)
    report = notebook.with_suffix(".html")
    write_atomically(report, lambda part: part.write_text(html, "utf-8"))
    return report


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(make_report(Path(name)))
