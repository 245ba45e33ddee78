"""What the rendered pages need beyond Jupyter Book: an extension of Sphinx, for _config.yml.

Two directives insert HTML when the book is built: `draw`, two models in the page, and
`get-project`, where the project is. Docstrings, with code in single backticks and equations in
indented lines, are turned into the markup that Sphinx reads. Pages drop the scripts of Thebe, which
would fetch kernels from the network, and those that would draw icons a second time. Addresses of
earlier versions lead to where their content is.
"""

import re
import subprocess
from pathlib import Path

import nbformat
from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from cibr.utils import project_root
from cibr_book.pages import draw

_ARCHIVE = "cibr.zip"
_MOVED = {
    "book/beta.html": "ablation.html",
    "book/recipes.html": "evidence.html#evidence-recipes",
}
# What no page loads of what Sphinx and MathJax bring, two thirds of the site.
_UNUSED = re.compile(
    r"mathjax/(?!tex-chtml\.js|output/chtml/)|locales/|/fontawesome/.*/js/"
    r"|\.(?:map|ttf)$"
)
_FIGURE_SCALE = 2  # a figure's pixels for one of the page: figures have 200 dpi, pages show 100
# The script that draws icons a second time, and fonts loaded before any icon asks for them.
_ICONS = re.compile(
    r'<script [^>]*src="[^"]*fontawesome[^"]*"[^>]*></script>'
    r'|<link rel="preload" [^>]*fa-(?:brands|regular)[^>]*>'
)
# One parameter per line: Sphinx writes them as definitions in a list without terms.
_SIGNATURE = re.compile(r'<dl>\n(?:<dd><em class="sig-param">.*</dd>\n)+</dl>')
# The width at which a figure has its type's size, for the style of narrow screens.
_FIGURE_WIDTH = re.compile(r'(?<= style=")width: (\d+px)')
_SCROLLER = '<div class="pst-scrollable-table-container"'


def _in_repository() -> bool:
    """Whether the book is not built from its own archive."""
    return (project_root() / ".git").exists()


class _Drawing(SphinxDirective):
    """The drawing, made from the shipped models."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # the files may change where the page does not
        return [nodes.raw("", draw.as_page(), format="html")]


class _GetProject(SphinxDirective):
    """How a reader gets the project: as an archive beside the pages."""

    def run(self) -> list[nodes.Node]:
        if not _in_repository():
            return []
        link = f'<a href="../{_ARCHIVE}" download>Download the project</a>'
        lacks = "the features of photos, without which pages on photos stop, are in the repository"
        text = f"<p>{link} (a zip) and unpack it; {lacks}.</p>"
        return [nodes.raw("", text, format="html")]


def _size_figures(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Gives every figure the width at which its text has one size on all pages."""
    for node in doctree.findall(nodes.image):
        file = Path(app.srcdir, node["uri"])
        if file.suffix in (".png", ".jpg") and file.is_file() and "width" not in node:
            with Image.open(file) as image:
                node["width"] = f"{image.width // _FIGURE_SCALE}px"


def _tidy_page(app: Sphinx, pagename: str, templatename: str, context: dict, *_: object) -> None:
    """Gives a page its scripts and makes odd lists of Sphinx accessible."""
    body = _FIGURE_WIDTH.sub(r"--width: \1; width: \1", context.get("body", ""))
    for name, sign in (("draw.js", 'id="draw-data"'), ("figures.js", "image-reference")):
        if sign in body:
            app.add_js_file(name, loading_method="defer")  # on this page alone
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in f"{script} {getattr(script, 'attributes', '')}".lower()
    ]
    body = body.replace('role="doc-biblioentry"', 'role="listitem"')
    body = body.replace(_SCROLLER, f'{_SCROLLER} tabindex="0"')  # scrolled by keyboard on a phone
    body = _SIGNATURE.sub(lambda match: re.sub(r"<(/?)d[ld]>", r"<\1div>", match.group()), body)
    context["body"] = f'<div class="first-page">{body}</div>' if pagename == "book/intro" else body


def _mark_up_docstring(
    app: Sphinx | None, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Doubles single backticks, escapes bars, and makes indented lines up front a literal block."""
    if isinstance(obj, tuple | dict):  # a constant has the docstring of its type
        lines.clear()
    starts = [i for i, line in enumerate(lines) if re.fullmatch(r"[A-Z]\w+:", line)]
    n_front = starts[0] if starts else len(lines)
    indented = re.compile(r"((?:^    .*\n?|^\n(?=    ))+)", re.MULTILINE)
    blocks = indented.split("\n".join(lines[:n_front]))
    for i, block in enumerate(blocks):
        is_indented = i % 2 and block.strip()
        blocks[i] = f"::\n\n{block.lstrip(chr(10))}" if is_indented else _inline(block)
    lines[:] = ("".join(blocks) + "\n" + _inline("\n".join(lines[n_front:]))).split("\n")


def _inline(text: str) -> str:
    text = re.sub(r"(?<![`:])`([^`]+)`(?![`_])", lambda m: f"``{' '.join(m[1].split())}``", text)
    parts = re.split(r"(``[^`]+``)", text)
    return "".join(part if part.startswith("``") else part.replace("|", "\\|") for part in parts)


def _skip_alias(app: Sphinx, what: str, name: str, obj: object, *_: object) -> bool | None:
    """Leaves out the fields of named tuples, which their class describes; None for all others."""
    return True if (obj.__doc__ or "").startswith("Alias for field number") else None


def _complete_site(app: Sphinx, error: Exception | None) -> None:
    """Adds the drawing's models, the project as an archive and old addresses; drops what no page
    uses, and the outputs of notebooks that are downloaded.
    """
    if error is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    static = site / "_static"
    draw.write_script(static)
    for file in static.rglob("*.*"):
        if file.is_file() and _UNUSED.search(file.relative_to(static).as_posix()):
            file.unlink()
    if _in_repository():
        call = ["git", "archive", "-9", "--prefix=cibr/", "-o", site / _ARCHIVE, "HEAD", "."]
        call += [":!.ci", ":!data/photos"]  # a visitor need not fetch 20 MB of features
        subprocess.run(call, cwd=project_root(), check=True)
    for notebook in site.glob("_sources/**/*.ipynb"):
        content = nbformat.read(notebook, as_version=4)
        for cell in content.cells:
            if cell.cell_type == "code":
                cell.outputs = []
        nbformat.write(content, notebook)
    for page in site.rglob("*.html"):
        page.write_text(_ICONS.sub("", page.read_text("utf-8")), "utf-8")
    for old, new in _MOVED.items():
        text = f'<meta http-equiv="refresh" content="0; url={new}"><a href="{new}">Moved</a>'
        (site / old).write_text(f"<!doctype html><title>Moved</title>{text}\n", "utf-8")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Connects the directives and the steps: docstrings first, pages after other extensions."""
    app.add_directive("draw", _Drawing)
    app.add_directive("get-project", _GetProject)
    app.connect("autodoc-process-docstring", _mark_up_docstring, priority=400)
    app.connect("autodoc-skip-member", _skip_alias)
    app.connect("doctree-resolved", _size_figures)
    app.connect("html-page-context", _tidy_page, priority=900)
    app.connect("build-finished", _complete_site, priority=900)
    return {"version": "4", "parallel_read_safe": True, "parallel_write_safe": True}
