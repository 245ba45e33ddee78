"""What lets a page be found: descriptions, preview cards, and counts that rank the search."""

import io
import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from cibr_book.pages.discovery import plain, with_plain_equations

ROOT = Path(__file__).resolve().parents[3]
PAGES = {
    "index": r"""
First page
==========

.. note:: This is no prose.

A weight :math:`\beta = 0.1` is large. Nobody "knows" why it works so well. THE_REST

.. image:: figure.png
   :alt: A grey square.

.. glossary::

   :math:`I(A; \beta)`
      A symbol.
""",
    "sub/other": """
Another page
============

Bottle bottles, and one neck.
""",
    "sub/empty": "Empty\n=====\n",
}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    def build(**config):
        folder = tmp_path_factory.mktemp("book")
        for name, text in PAGES.items():
            page = folder / f"{name}.rst"
            page.parent.mkdir(exist_ok=True)
            page.write_text(text.replace("THE_REST", "Further words follow. " * 9))
        Image.new("L", (8, 8), 99).save(folder / "figure.png")
        config |= {"project": "A book", "html_title": "A book", "html_theme": "basic"}
        config["extensions"] = ["sphinx.ext.autodoc", "cibr_book.pages.rendering"]
        places = folder, None, folder / "site", folder / "trees", "html"
        with patch_docutils(), docutils_namespace():
            quiet = dict(status=None, warning=io.StringIO(), freshenv=True)
            Sphinx(*places, confoverrides=config, **quiet).build()
        return folder / "site"

    return build


@pytest.fixture(scope="module")
def site(build):
    return build(search_entries={"glass": "sub/other"})


def tags(site, page):
    html = (site / f"{page}.html").read_text("utf-8")
    found = re.findall(r'<meta (?:name|property)="([\w:]+)" content="([^"]*)" />', html)
    found = [pair for pair in found if pair[0] != "viewport"]  # which docutils writes as well
    assert len(dict(found)) == len(found)
    return dict(found)


def test_a_page_is_described_by_the_whole_sentences_of_its_first_paragraph(site):
    found = tags(site, "index")
    start = "A weight β = 0.1 is large. Nobody “knows” why it works so well. Further words follow."
    assert found["description"] == found["og:description"]
    assert found["description"].startswith(start) and found["description"].endswith("follow.")
    assert 150 < len(found["description"]) <= 200
    assert tags(site, "sub/empty")["description"] == "Empty: A book."


@pytest.mark.parametrize(("page", "up"), [("index", ""), ("sub/other", "../")])
def test_a_page_without_a_figure_of_its_own_shows_that_of_the_first_page(site, page, up):
    found = tags(site, page)
    assert found["og:image"] == f"{up}_images/figure.png"
    assert found["og:image:alt"] == "A grey square."
    assert (site / "_images" / "figure.png").is_file()
    assert found["og:title"] in ("First page", "Another page")
    assert found["og:site_name"] == "A book" and "og:url" not in found


def test_with_an_address_every_page_names_it_as_its_own_and_its_picture_in_full(build):
    site = build(html_baseurl="https://example.org/book/")
    for page in PAGES:
        address = f"https://example.org/book/{page}.html"
        found = tags(site, page)
        assert found["og:url"] == address
        assert found["og:image"] == "https://example.org/book/_images/figure.png"
        html = (site / f"{page}.html").read_text("utf-8")
        assert html.count(f'<link rel="canonical" href="{address}" />') == 1


def test_the_search_knows_how_often_a_page_has_a_word(site):
    text = (site / "_static" / "search_counts.js").read_text("utf-8")
    data = json.loads(text.removeprefix("const searchCounts = ").removesuffix(";\n"))
    at = str(data["pages"].index("sub/other"))
    assert data["words"]["bottl"] == {at: 2} and data["words"]["neck"] == {at: 1}
    assert data["words"]["anoth"] == {at: 4}  # three times more, for a heading
    assert "and" not in data["words"]
    assert data["lengths"][int(at)] == 12 and data["entries"] == {"glass": "sub/other"}


def test_symbols_stand_in_the_index_as_text(site):
    index = (site / "genindex.html").read_text("utf-8")
    assert "I(A, β)" in index and "\\beta" not in index


def test_equations_are_given_as_text_beside_their_markup():
    assert plain(r"I(Z_v; X_v \mid X_t) \le \log N") == "I(Z_v; X_v | X_t) ≤log N"
    body = r'<span class="math notranslate nohighlight">\(a &lt; \beta\)</span>'
    shown = r'nohighlight" data-plain="a &lt; β">\(a &lt; \beta\)</span>'
    assert with_plain_equations(body).endswith(shown)


def test_pages_that_answer_a_query_exist_and_queries_are_as_they_are_compared():
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    for query, page in config["sphinx"]["config"]["search_entries"].items():
        assert query == query.lower().strip()
        assert any((ROOT / page).with_suffix(end).is_file() for end in (".md", ".ipynb")), page
