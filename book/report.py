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
        ValueError: a cell of it failed.
    """
    content = nbformat.read(notebook, as_version=4)
    _drop_log(content, notebook)
    exporter = HTMLExporter(
        template_name="report",
        extra_template_basedirs=[str(BOOK)],
        embed_images=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    hidden = TagRemovePreprocessor(enabled=True, remove_input_tags={"hide-input"})
    exporter.register_preprocessor(hidden, enabled=True)
    script = distribution("sphinx-mathjax-offline").locate_file(_MATHJAX)
    resources = {
        "mathjax": Path(script).read_text("utf-8"),
        "metadata": {"name": _title(content) or notebook.stem},
    }
    html, _ = exporter.from_notebook_node(content, resources)
    report = notebook.with_suffix(".html")
    write_atomically(report, lambda part: part.write_text(html, "utf-8"))
    return report


def _drop_log(content: nbformat.NotebookNode, notebook: Path) -> None:
    """Removes what cells wrote to stderr, such as progress bars."""
    for cell in content.cells:
        outputs = cell.get("outputs", [])
        for output in outputs:
            if output.output_type == "error":
                failed = f"{output.ename}: {output.evalue}"
                raise ValueError(
                    f"a cell of {notebook} failed ({failed}): mend it and run again"
                )
        cell["outputs"] = [each for each in outputs if each.get("name") != "stderr"]


def _title(content: nbformat.NotebookNode) -> str:
    """The first heading of a notebook."""
    lines = (line for cell in content.cells for line in cell.source.splitlines())
    return next((line[2:] for line in lines if line.startswith("# ")), "")


if __name__ == "__main__":
    try:
        for name in sys.argv[1:]:
            print(make_report(Path(name)))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
