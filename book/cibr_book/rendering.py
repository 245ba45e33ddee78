"""What the rendered pages need beyond Jupyter Book: a small Sphinx extension that _config.yml
loads.

Four directives put files of the project into a page when the book is built: `explorer` and `curve`,
figures with sliders, `search`, the search page, and `drawing`, an SVG that takes the page's
colours. Docstrings, with code in single backticks and equations in indented lines, are turned into
the markup that Sphinx reads. Pages drop the scripts of Thebe, which would fetch kernels from the
network. Files that no page asks for are removed and figures stored with 256 colours, so that the
whole site is small enough to be sent as a file.
"""

import json
import re
import shutil
from pathlib import Path

from docutils import nodes
from PIL import Image
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from cibr_book import curve, explorer, search

BOOK = Path(__file__).resolve().parents[1]
RESULTS = BOOK.parent / "data" / "results"
GLOSSARY = "book/glossary"
FIGURE_SCALE = (
    2  # a figure's pixels for one of the page: `cibr.plots` draws at 200 dpi, pages show 100
)

# The parts of MathJax that tex-chtml.js loads: fonts, TeX extensions, and its spoken mathematics.
MATHJAX = (
    "tex-chtml.js",
    "output/chtml/fonts",
    "input/tex/extensions",
    "a11y",
    "sre/mathmaps/base.json",
)
MATHJAX += ("sre/mathmaps/en.json", "sre/mathmaps/nemeth.json")
# Maps for debuggers, translations of the theme, fonts with a smaller WOFF2 twin, a script that
# draws icons again.
UNUSED = (
    "**/*.map",
    "mathjax/**/all-packages.js",
    "locales/**/*.*",
    "vendor/fontawesome/**/*.ttf",
    "vendor/fontawesome/**/*.js",
)
# The script that draws icons a second time, and fonts that would be loaded before any icon asks for
# them.
ICONS = re.compile(
    r'<script [^>]*src="[^"]*fontawesome[^"]*"[^>]*></script>|<link rel="preload" [^>]*fa-(?:brands|regular)[^>]*>'
)
# Parameters one a line: Sphinx writes them as the definitions in a list that defines no term.
SIGNATURE = re.compile(r'<dl>\n(?:<dd><em class="sig-param">.*</dd>\n)+</dl>')


class FromFiles(SphinxDirective):
    """A piece of HTML that is made from the project's files."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        if self.name == "drawing":
            file = BOOK / "_static" / self.arguments[0]
            self.env.note_dependency(str(file))
            return [nodes.raw("", file.read_text("utf-8"), format="html")]
        if self.name in ("search", "curve"):
            page = {"search": search, "curve": curve}[self.name].as_page()
            return [nodes.raw("", page, format="html")]
        for file in RESULTS.glob("*.csv"):
            self.env.note_dependency(str(file))
        return [nodes.raw("", explorer.as_page(explorer.curves(RESULTS)), format="html")]


def add_addresses(app: Sphinx | None, config: Config) -> None:
    """Buttons for the repository, Binder and Colab, and a link to the DOI, once the configuration
    has them.
    """
    options = config.html_theme_options
    if config.repository_address:
        launch = {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
        }
        options["launch_buttons"] = options.get("launch_buttons", {}) | launch
        options |= {"repository_url": config.repository_address, "repository_branch": "main"}
        options["use_repository_button"] = True
    if config.doi:
        link = {
            "name": "DOI",
            "url": f"https://doi.org/{config.doi}",
            "icon": "fa-solid fa-quote-right",
        }
        options["icon_links"] = [*options.get("icon_links", []), link]


def explain_terms(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Show the first sentence of a term's definition where the pointer rests on a reference to it."""
    references = [
        node for node in doctree.findall(nodes.reference) if "#term-" in node.get("refuri", "")
    ]
    if not references or docname == GLOSSARY:
        return
    glossary = app.env.get_doctree(GLOSSARY)
    for reference in glossary.findall(addnodes.pending_xref):
        if reference["refdomain"] == "cite":
            reference.children = []
    meanings = {
        name: re.split(r"(?<=\w)\s?\.\s", " ".join(term.parent[-1].astext().split()) + " ")[0] + "."
        for term in glossary.findall(nodes.term)
        for name in term["ids"]
    }
    for node in references:
        node["reftitle"] = meanings[node["refuri"].partition("#")[2]]


def size_figures(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Give every figure the width at which its text has one size on all pages, and a link to its
    full size.
    """
    for node in doctree.findall(nodes.image):
        file = Path(app.srcdir, node["uri"])
        if file.suffix in (".png", ".jpg") and file.is_file() and "width" not in node:
            with Image.open(file) as image:
                node["width"] = f"{image.width // FIGURE_SCALE}px"


def tidy_page(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object
) -> None:
    """Take Thebe's scripts off a page, and give odd lists of Sphinx a form that accessibility rules
    allow.
    """
    body = context.get("body", "")
    for name, place in (("explorer", "explorer"), ("search", "search-page"), ("curve", "curve")):
        if f'id="{place}"' in body:
            app.add_js_file(f"{name}.js", loading_method="defer")  # on this page alone
    scripts = context.get("script_files", [])
    context["script_files"] = [
        s for s in scripts if "thebe" not in f"{s} {getattr(s, 'attributes', '')}".lower()
    ]
    body = body.replace('role="doc-biblioentry"', 'role="listitem"')
    scroller = (
        '<div class="pst-scrollable-table-container"'  # to be scrolled by keyboard on a phone
    )
    body = body.replace(scroller, f'{scroller} tabindex="0"')
    body = SIGNATURE.sub(lambda found: re.sub(r"<(/?)d[ld]>", r"<\1div>", found.group()), body)
    context["body"] = f'<div class="first-page">{body}</div>' if pagename == "book/intro" else body


def mark_up_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Give single backticks their twin, bars their escape, and make indented lines up front a
    literal block.
    """
    if isinstance(obj, tuple | dict):  # a constant has the docstring of its type
        lines[:] = ["Holds " + ", ".join(f"``{key}``" for key in obj) + "."]
    starts = [i for i, line in enumerate(lines) if re.fullmatch(r"[A-Z]\w+:", line)]
    n_front = starts[0] if starts else len(lines)
    blocks = re.split(
        r"((?:^    .*\n?|^\n(?=    ))+)", "\n".join(lines[:n_front]), flags=re.MULTILINE
    )
    for i, block in enumerate(blocks):
        is_indented = i % 2 and block.strip()
        blocks[i] = f"::\n\n{block.lstrip(chr(10))}" if is_indented else _inline(block)
    lines[:] = ("".join(blocks) + "\n" + _inline("\n".join(lines[n_front:]))).split("\n")


def _inline(text: str) -> str:
    text = re.sub(r"(?<![`:])`([^`]+)`(?![`_])", lambda m: f"``{' '.join(m[1].split())}``", text)
    parts = re.split(r"(``[^`]+``)", text)
    return "".join(part if part.startswith("``") else part.replace("|", "\\|") for part in parts)


def skip_alias(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out the fields of named tuples, which their class describes; None leaves the choice to
    others.
    """
    return (
        True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None
    )


def shrink_site(app: Sphinx, error: Exception | None) -> None:
    """Remove files that no page asks for and figures that are there twice, store figures with 256
    colours, draw icons by their font alone.
    """
    if error is not None or app.builder.format != "html":
        return
    static = Path(app.outdir, "_static")
    mathjax = static / "mathjax"
    for file in [f for f in mathjax.rglob("*") if f.is_file()]:
        if not f"{file.relative_to(mathjax).as_posix()}/".startswith(
            tuple(f"{kept}/" for kept in MATHJAX)
        ):
            file.unlink()
    for file in [f for pattern in UNUSED for f in static.glob(pattern)]:
        file.unlink()
    for folder in sorted(static.rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            shutil.rmtree(folder)
    for file in Path(app.outdir, "_images").glob("*.png"):
        with Image.open(file) as image:
            few = (
                None
                if image.mode == "P"
                else image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            )
        if few:
            few.save(file, "PNG", optimize=True)
    for file in Path(app.outdir, "_sources").rglob(
        "*.ipynb"
    ):  # for download; figures come back when run
        notebook = json.loads(file.read_text("utf-8"))
        for cell in notebook["cells"]:
            kept = [o for o in cell.get("outputs", []) if "image/png" not in o.get("data", {})]
            cell |= {"outputs": kept} if "outputs" in cell else {}
        file.write_text(json.dumps(notebook, ensure_ascii=False), "utf-8")
    for page in Path(app.outdir).rglob("*.html"):
        page.write_text(ICONS.sub("", page.read_text("utf-8")), "utf-8")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Connect the directives and the steps: before docstrings are taken apart, and after other
    extensions.
    """
    for name in ("drawing", "explorer", "search", "curve"):
        app.add_directive(name, FromFiles)
    for name in ("repository_address", "doi"):
        app.add_config_value(name, "", "html")
    app.connect("config-inited", add_addresses)
    app.connect("autodoc-process-docstring", mark_up_docstring, priority=400)
    app.connect("autodoc-skip-member", skip_alias)
    app.connect("doctree-resolved", explain_terms)
    app.connect("doctree-resolved", size_figures)
    app.connect("html-page-context", tidy_page, priority=900)
    app.connect("build-finished", shrink_site, priority=900)
    return {"version": "3", "parallel_read_safe": True, "parallel_write_safe": True}
