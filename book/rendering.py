"""What the rendered pages need beyond Jupyter Book, as a small Sphinx extension that _config.yml loads.

Directives put in what is read from the project when the book is built: `answer` and `chapters` for the first page
(book/front.py), `explorer` for the figure that moves (book/explorer.py), `drawing` for an SVG file, which as a part
of the page has the page's colours. Pages drop the scripts of Thebe, which would fetch kernels from the network and
is not used, and mark up the bibliography and the parameters of functions as screen readers expect them. Docstrings,
which hold code in single backticks and equations in indented lines, reach the reference in the markup that Sphinx
reads. Of MathJax and of the theme only those files stay that a page can ask for: the whole site is small enough to
be sent as a file.
"""

import io
import re
import shutil
from pathlib import Path

import yaml
from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

import explorer
import front

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results"

# Folders and files of MathJax that tex-chtml.js loads: fonts, TeX extensions, and its spoken mathematics.
MATHJAX = (
    "tex-chtml.js",
    "output/chtml/fonts",
    "input/tex/extensions",
    "a11y",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
    "sre/mathmaps/nemeth.json",
)
# Maps for debuggers, translations of the theme, fonts whose smaller WOFF2 twin every browser takes, and the script
# that draws the same icons again.
UNUSED = (
    "**/*.map",
    "locales/**/*.*",
    "vendor/fontawesome/**/*.ttf",
    "vendor/fontawesome/**/*.js",
)
NARROW = 680  # px of a figure: 5.6 inches and a margin, at 110 dpi
ICON_SCRIPT = re.compile(r'<script [^>]*src="[^"]*fontawesome[^"]*"[^>]*></script>')

# Parameters one a line: Sphinx writes them as the definitions in a list that defines no term.
SIGNATURE = re.compile(r'<dl>\n(?:<dd><em class="sig-param">.*</dd>\n)+</dl>')


class Made(SphinxDirective):
    """A piece of a page that is made from the project's files: Markdown, or HTML as it stands."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        argument = self.arguments[0] if self.arguments else ""
        for file in (*RESULTS.glob("*.csv"), *Path(ROOT, "book").rglob("*.ipynb")):
            self.env.note_dependency(str(file))
        if self.name == "drawing":
            self.env.note_dependency(str(ROOT / "book" / "_static" / argument))
            return _raw((ROOT / "book" / "_static" / argument).read_text("utf-8"))
        if self.name == "explorer":
            return _raw(explorer.as_page(explorer.curves(RESULTS)))
        toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
        if self.name == "chapters":
            return self.markdown(front.chapter_table(toc, ROOT / "book", argument))
        return self.markdown(front.answer(RESULTS))

    def markdown(self, text: str) -> list[nodes.Node]:
        """The nodes of a text in the markup of the page."""
        box = nodes.container(classes=[self.name])
        self.state.nested_parse(text.split("\n"), self.content_offset, box)
        return [box]


def _raw(html: str) -> list[nodes.Node]:
    return [nodes.raw("", html, format="html")]


def tidy_page(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object
) -> None:
    """Take Thebe's scripts off a page, and give what Sphinx marks up as odd lists a form that is allowed."""
    if 'id="explorer"' in context.get("body", ""):
        app.add_js_file("explorer.js", loading_method="defer")  # on this page alone
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in str(script).lower()
        and "THEBE" not in str(getattr(script, "attributes", ""))
    ]
    if "body" in context:
        if pagename == "book/intro":
            context["body"] = f'<div class="first-page">{context["body"]}</div>'
        body = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')
        context["body"] = SIGNATURE.sub(_as_plain_lines, body)


def _as_plain_lines(signature: re.Match[str]) -> str:
    return re.sub(r"<(/?)d[ld]>", r"<\1div>", signature.group())


def mark_up_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Give single backticks their twin, bars their escape, and make what is indented up front a literal block."""
    if isinstance(obj, tuple | dict):  # a constant has the docstring of its type
        lines[:] = ["Holds " + ", ".join(f"``{key}``" for key in obj) + "."]
    starts = [i for i, line in enumerate(lines) if re.fullmatch(r"[A-Z]\w+:", line)]
    front = "\n".join(lines[: starts[0]] if starts else lines)
    rest = "\n".join(lines[starts[0] :]) if starts else ""
    blocks = re.split(r"((?:^    .*\n?|^\n(?=    ))+)", front, flags=re.MULTILINE)
    for i, block in enumerate(blocks):
        equation = i % 2 and block.strip()
        blocks[i] = f"::\n\n{block.lstrip(chr(10))}" if equation else _inline(block)
    lines[:] = ("".join(blocks) + "\n" + _inline(rest)).split("\n")


def skip_alias(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out the fields of named tuples, which their class describes; None leaves the choice to others."""
    documented = getattr(obj, "__doc__", None) or ""
    return True if documented.startswith("Alias for field number") else None


def _inline(text: str) -> str:
    text = re.sub(
        r"(?<![`:])`([^`]+)`(?![`_])",
        lambda m: f"``{' '.join(m[1].split())}``",
        text,
    )
    parts = re.split(r"(``[^`]+``)", text)
    return "".join(
        part if part.startswith("``") else part.replace("|", "\\|") for part in parts
    )


def remove_unused_files(app: Sphinx, error: Exception | None) -> None:
    """Remove from the built site what no page asks for."""
    static = Path(app.outdir, "_static")
    if error is not None or app.builder.format != "html":
        return
    mathjax = static / "mathjax"
    for file in mathjax.rglob("*"):
        name = file.relative_to(mathjax).as_posix()
        if file.is_file() and not any(
            name == kept or name.startswith(f"{kept}/") for kept in MATHJAX
        ):
            file.unlink()
    for pattern in UNUSED:
        for file in static.glob(pattern):
            file.unlink()
    for folder in sorted(static.rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            shutil.rmtree(folder)


def shrink_pages(app: Sphinx, error: Exception | None) -> None:
    """Store figures with 256 colours, a third of their size; mark narrow ones; draw icons by their font alone.

    A figure that is made narrow is legible on a phone as it is, while a wide one keeps its size there and scrolls.
    """
    if error is not None or app.builder.format != "html":
        return
    narrow = []
    for file in Path(app.outdir, "_images").glob("*.png"):
        with Image.open(file) as picture:
            if picture.width <= NARROW:
                narrow.append(re.escape(file.name))
            if picture.mode == "P":
                continue
            few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        part = io.BytesIO()
        few.save(part, "PNG", optimize=True)
        if part.tell() < file.stat().st_size:
            file.write_bytes(part.getvalue())
    mark = re.compile(rf'<img (?=[^>]*src="[^"]*_images/(?:{"|".join(narrow)})")')
    for page in Path(app.outdir).rglob("*.html"):
        text = ICON_SCRIPT.sub("", page.read_text("utf-8"))
        text = mark.sub("<img data-narrow ", text) if narrow else text
        page.write_text(text, "utf-8")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Connect them: before the docstrings are taken apart, and after others have put things in place."""
    for name in ("answer", "chapters", "drawing", "explorer"):
        app.add_directive(name, Made)
    app.connect("autodoc-process-docstring", mark_up_docstring, priority=400)
    app.connect("autodoc-skip-member", skip_alias)
    app.connect("html-page-context", tidy_page, priority=900)
    app.connect("build-finished", remove_unused_files, priority=900)
    app.connect("build-finished", shrink_pages, priority=901)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}
