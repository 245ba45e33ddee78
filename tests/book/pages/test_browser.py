"""The book as readers meet it: in Chromium without a network, on phone and desk, light and dark."""

import importlib
import re
import zipfile
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml

pytest.importorskip("axe_playwright_python")
from browser import DESK, PHONE, SHOW, STILL, WIDE, barriers, errors

ROOT = Path(__file__).resolve().parents[3]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
OTHERS = ["search", "genindex"]
PRINT = 9 / 72 * 200  # px of a figure's own: 9 points at its 200 dots an inch

# What a reader sees wrong with equations and images.
BROKEN = """async () => {
    const images = [...document.querySelectorAll("article img")];
    images.forEach(i => { i.loading = "eager"; });
    await Promise.all(images.map(i => i.decode().catch(() => {})));
    return [...document.querySelectorAll("article .math")]
        .filter(e => !e.querySelector("mjx-container"))
        .concat([...document.querySelectorAll("mjx-merror")])
        .concat(images.filter(i => !i.naturalWidth || !i.alt))
        .map(e => e.outerHTML.slice(0, 150));
}"""


@pytest.fixture(scope="module", params=[*PAGES, *OTHERS])
def opened(request, page, home):
    """A page of the book, loaded and its equations typeset."""
    page.messages.clear()
    page.requests.clear()
    page.goto(f"{home}/{request.param}.html")
    page.add_style_tag(content=STILL)
    page.evaluate(
        "async () => { await window.MathJax?.startup?.promise; await document.fonts.ready; }"
    )
    return page


def test_the_book_builds_without_a_warning(built):
    assert built[1].startswith("0\n"), built[1]


def test_the_site_has_fifteen_megabytes_and_four_of_models(built):
    sizes = {file: file.stat().st_size for file in built[0].rglob("*") if file.is_file()}
    assert sizes.pop(built[0] / "cibr.zip", 0) < 8_500_000
    models = sum(size for file, size in sizes.items() if file.parent.name == "draw")
    assert 2_000_000 < models < 4_000_000
    assert sum(sizes.values()) - models < 15_000_000, sorted(sizes, key=sizes.get)[-10:]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is a download of the project")
def test_the_project_can_be_downloaded_from_the_first_page(built):
    first = (built[0] / "book" / "intro.html").read_text("utf-8")
    href = re.search(r'<a href="([^"]+)" download>', first)[1]
    with zipfile.ZipFile(built[0] / "book" / href) as archive:
        names = archive.namelist()
    assert {"cibr/Makefile", "cibr/cibr/losses/__init__.py"} <= set(names)
    assert not any(name.startswith("cibr/.ci") for name in names)


def test_the_reference_documents_all_that_a_package_offers(built):
    pages = "".join(p.read_text("utf-8") for p in (built[0] / "book" / "api").glob("*.html"))
    packages = [f"cibr.{path.parent.name}" for path in ROOT.glob("cibr/*/__init__.py")]
    offered = [f"{name}.{m}" for name in packages for m in importlib.import_module(name).__all__]
    assert len(packages) > 3 and [name for name in offered if f'id="{name}"' not in pages] == []


@pytest.mark.parametrize("name", PAGES)
def test_links_within_the_book_lead_somewhere(built, name):
    text = (built[0] / f"{name}.html").read_text("utf-8")
    links = {
        urlsplit(urljoin(f"{name}.html", href)) for href in re.findall(r'href="([^"]+)"', text)
    }
    for link in (link for link in links if not link.scheme and not link.netloc):
        file = built[0] / unquote(link.path)
        assert file.is_file(), link
        ids = f'id="{unquote(link.fragment)}"'
        assert not link.fragment or ids in file.read_text("utf-8"), link


def test_a_page_works_without_barriers_in_both_colour_modes(opened, home):
    opened.set_viewport_size({"width": DESK, "height": 800})
    for theme, is_right in {"light": (200).__lt__, "dark": (60).__gt__}.items():
        opened.evaluate(SHOW, theme)
        colour = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        assert is_right(int(re.search(r"\d+", colour)[0]))
        rules = {"runOnly": ["color-contrast"]} if theme == "dark" else {}
        # An equation has hundreds of nodes and no text of its own for these rules.
        assert barriers(opened, {"exclude": [["mjx-container"]]}, **rules) == []
    assert opened.evaluate(BROKEN) == []
    assert errors(opened, home) == []


def test_a_page_fits_a_phone_and_print_in_its_figures_has_nine_pixels(opened):
    opened.set_viewport_size({"width": PHONE, "height": 844})
    opened.evaluate(SHOW, "light")
    assert opened.evaluate(WIDE) == []
    shown = "all => all.map(i => i.getBoundingClientRect().width / i.naturalWidth)"
    scales = opened.eval_on_selector_all("article figure img", shown)
    assert all(scale * PRINT >= 9 - 0.01 for scale in scales)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_figure_opens_in_the_page_as_it_looks_there(page, home, theme):
    page.goto(f"{home}/book/beta.html")
    page.evaluate(SHOW, theme)
    link = page.locator("article figure a.image-reference").first
    style = "i => (({ filter, mixBlendMode }) => [filter, mixBlendMode])(getComputedStyle(i))"
    before = link.locator("img").evaluate(style)
    assert (before[0] == "none") == (theme == "light")  # a chart is inverted in the dark
    link.focus()
    page.keyboard.press("Enter")
    image = page.locator("dialog[open] img")
    assert image.evaluate(style) == before
    assert image.get_attribute("alt") == link.locator("img").get_attribute("alt")
    assert barriers(page, {"include": [["dialog"]]}) == []
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert link.evaluate("a => a === document.activeElement")
