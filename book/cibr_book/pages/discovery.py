"""How a page is found: its description and preview card, and counts that rank the site's search.

Sphinx's index knows which pages have a word, not how often, and lists all of them as equal. Here
the counts of every word are written beside the index; book/_static/site_search.js ranks pages by
them with BM25 (Robertson and Zaragoza 2009, The probabilistic relevance framework). Equations
become plain text in descriptions, in the index and in what the search quotes.
"""

import html
import json
import re
from collections import Counter
from pathlib import Path
from urllib.parse import urljoin

from docutils import nodes
from pylatexenc.latex2text import LatexNodes2Text
from sphinx.application import Sphinx
from sphinx.search import WordCollector

COUNTS = "search_counts.js"
_LONGEST = 200  # characters of a description: search engines and cards show no more
_SHORTEST = 80  # below it the next sentence is begun
_TEX = LatexNodes2Text(math_mode="text", strict_latex_spaces="based-on-source")
_INLINE = re.compile(r'(<span class="math notranslate nohighlight")>\\\((.*?)\\\)', re.DOTALL)
_CITATION = re.compile(r" \([^()]*\b(?:19|20)\d\d[a-z]?\)")


def plain(tex: str) -> str:
    r"""An equation as text: `\beta = 0.1` is β = 0.1."""
    return " ".join(_TEX.latex_to_text(tex).split())


def with_plain_equations(body: str) -> str:
    """A page on which every inline equation has its plain text as an attribute."""
    return _INLINE.sub(lambda m: f'{m[1]} data-plain="{_text_of(m[2])}">\\({m[2]}\\)', body)


def _text_of(markup: str) -> str:
    return html.escape(plain(html.unescape(markup)))


def name_symbols(app: Sphinx, doctree: nodes.document) -> None:
    """Lists the glossary's symbols in the index as they are read, not as TeX."""
    terms = [term for term in doctree.findall(nodes.term) if any(term.findall(nodes.math))]
    symbols = {place for term in terms for place in term["ids"]}
    entries = app.env.get_domain("index").entries.get(app.env.docname, [])
    for i, (kind, text, target, *others) in enumerate(entries):
        if target in symbols:  # a semicolon would make the rest an entry below the first half
            entries[i] = (kind, plain(text).replace(";", ","), target, *others)


def describe(doctree: nodes.document, otherwise: str) -> str:
    """The sentences of a page's first paragraph that fit a description."""
    paragraphs = [p for p in doctree.findall(nodes.paragraph) if _is_prose(p)]
    text = _as_text(paragraphs[0]) if paragraphs else otherwise
    ends = [m.end() for m in re.finditer(r"[.?!](?=\s+[A-Z]|$)", text) if m.end() <= _LONGEST]
    if ends and ends[-1] >= min(_SHORTEST, len(text)):
        return text[: ends[-1]]
    return text if len(text) < _LONGEST else f"{text[:_LONGEST].rpartition(' ')[0].rstrip(',;:')} …"


def _is_prose(paragraph: nodes.paragraph) -> bool:
    parents = []
    while paragraph.parent is not None:
        paragraph = paragraph.parent
        parents.append(paragraph)
    other = nodes.Admonition | nodes.list_item | nodes.entry | nodes.citation
    return not any(isinstance(parent, other) for parent in parents)


def _as_text(paragraph: nodes.paragraph) -> str:
    paragraph = paragraph.deepcopy()
    for node in list(paragraph.findall(nodes.math)):
        node.replace_self(nodes.Text(plain(node.astext())))
    return _CITATION.sub("", " ".join(paragraph.astext().split()))


def meta_tags(app: Sphinx, pagename: str, doctree: nodes.document) -> str:
    """Description and preview card of a page.

    With `html_baseurl` addresses are whole; without it the image's is relative to the page, and the
    page has no address to name.
    """
    title = app.env.titles[pagename].astext()
    book = app.config.html_title or app.config.project
    description = describe(doctree, f"{title}: {book}.")
    properties = {"og:type": "article", "og:site_name": book, "og:title": title}
    properties["og:description"] = description
    base = app.config.html_baseurl
    here = app.builder.get_target_uri(pagename)
    if base:
        properties["og:url"] = urljoin(base, here)
    image, alt = _picture(app, doctree)
    if image:
        up = "../" * here.count("/")
        properties["og:image"] = urljoin(base, image) if base else up + image
        properties["og:image:alt"] = alt
    names = {"description": description, "twitter:card": "summary_large_image"}
    tags = [f'<meta property="{k}" content="{html.escape(v)}" />' for k, v in properties.items()]
    tags += [f'<meta name="{k}" content="{html.escape(v)}" />' for k, v in names.items()]
    return "\n".join(["", *tags, ""])


def _picture(app: Sphinx, doctree: nodes.document) -> tuple[str, str]:
    """Place and alternative text of the first figure of a page, or else of the first page."""
    for tree in (doctree, app.env.get_doctree(app.config.root_doc)):
        for node in tree.findall(nodes.image):
            _, name = app.env.images.get(node["uri"], (None, ""))
            name = name or Path(node["uri"]).name
            if name.endswith((".png", ".jpg")):
                return f"{app.builder.imagedir}/{name}", node.get("alt", "")
    return "", ""


def write_counts(app: Sphinx) -> None:
    """Writes what the search page loads: `pages` by number, `lengths`, the number of words of each,
    `words`, for each stem its count on each page that has it, and `search_entries`.
    """
    language = app.builder.indexer.lang
    pages = sorted(app.env.found_docs)
    lengths = []
    words: dict[str, dict[int, int]] = {}
    for number, page in enumerate(pages):
        collector = WordCollector(app.env.get_doctree(page), language)
        collector.document.walk(collector)
        found = [w.lower() for w in collector.found_words + 3 * collector.found_title_words]
        stems = Counter(language.stem(w) for w in found if language.word_filter(w))
        lengths.append(stems.total())
        for stem, count in stems.items():
            words.setdefault(stem, {})[number] = count
    data = {"pages": pages, "lengths": lengths, "words": words}
    data["entries"] = app.config.search_entries
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    file = Path(app.outdir) / "_static" / COUNTS
    file.write_text(f"const searchCounts = {text};\n", encoding="utf-8")
