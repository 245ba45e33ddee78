"""The book as a reader meets it: each page in Chromium, without a network, on phone and desk, by day and night."""

import ast
import posixpath
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browsing import (
    ARGUMENTS,
    MARK_SAMPLES,
    Visit,
    axe_barriers,
    book_pages,
    broken_links,
    browser_is_required,
    chromium,
    served,
)
from sphinx.util.inventory import InventoryFile

ROOT = Path(__file__).resolve().parents[1]
PAGES = book_pages()
PACKAGES = sorted(path.parent.name for path in (ROOT / "cibr").glob("*/__init__.py"))
PHONE, DESK = 390, 1280
THEMES = ("light", "dark")
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """The folder of the rendered book, and how its build ended."""
    folder = tmp_path_factory.mktemp("book")
    program = Path(sys.executable).with_name("jupyter-book")
    options = ["--path-output", str(folder), "-W", "-n", "--keep-going", "--quiet"]
    done = subprocess.run([program, "build", str(ROOT), *options], capture_output=True, text=True)
    return folder / "_build" / "html", done


@pytest.fixture(scope="module")
def browser():
    program = chromium()
    if program is None:
        give_up = pytest.fail if browser_is_required() else pytest.skip
        give_up("there is no Chromium on this machine: install it, and the pages of the book are looked at too")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def home(built):
    with served(built[0]) as address:
        yield address


@pytest.fixture(scope="module")
def visit(browser, home):
    """Opens a page of the book in a tab of one window, which keeps what it has loaded."""
    window = browser.new_context(viewport={"width": DESK, "height": 800})

    def visit(path: str) -> Visit:
        visited = Visit(window.new_page())
        visited.watch(home)
        visited.open(f"{home}/{path}")
        return visited

    yield visit
    window.close()


@pytest.fixture(scope="module", params=PAGES)
def opened(request, visit):
    visited = visit(f"{request.param}.html")
    yield visited
    visited.page.close()


def test_the_book_builds_without_a_warning(built):
    done = built[1]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_built_site_is_below_fifteen_megabytes(built):
    sizes = {p.relative_to(built[0]).as_posix(): p.stat().st_size for p in built[0].rglob("*") if p.is_file()}
    assert sum(sizes.values()) < 15 * MEGABYTE, sorted(sizes.items(), key=lambda item: -item[1])[:10]


@pytest.mark.parametrize("name", PACKAGES)
def test_the_reference_documents_all_that_a_package_offers(built, name):
    with open(built[0] / "objects.inv", "rb") as file:
        known = InventoryFile.load(file, "", posixpath.join)
    documented = {entry for kind in known if kind.startswith("py:") for entry in known[kind]}
    source = (ROOT / "cibr" / name / "__init__.py").read_text()
    (written,) = re.findall(r"^__all__ = (\[.*?\])", source, re.M | re.S)
    offered = {f"cibr.{name}.{member}" for member in ast.literal_eval(written)}
    assert offered - documented == set()


def test_the_first_page_is_below_one_and_a_half_megabytes_as_sent(visit):
    # The first test that opens a page: nothing is cached yet.
    assert 0 < visit(f"{PAGES[0]}.html").n_bytes < 1.5 * MEGABYTE


def test_every_equation_is_typeset(opened):
    counts = opened.page.evaluate(
        """() => ({
            written: document.querySelectorAll("article .math").length,
            bare: [...document.querySelectorAll("article .math")]
                .filter(e => !e.querySelector("mjx-container")).map(e => e.textContent),
            wrong: [...document.querySelectorAll("mjx-merror")].map(e => e.textContent),
            left: [...document.querySelectorAll("article p, article li, article td, figcaption")]
                .map(e => { const copy = e.cloneNode(true);
                            copy.querySelectorAll("code, mjx-container, pre").forEach(c => c.remove());
                            return copy.textContent; })
                .filter(text => /\\\\[()\\[\\]]|\\$\\$|\\\\(?:frac|mathcal|mid)/.test(text)),
        })"""
    )
    assert counts["bare"] == counts["wrong"] == counts["left"] == []


def test_every_picture_is_loaded_opaque_and_described(opened):
    # Opaque: a figure with a background of its own reads the same on a dark page.
    opened.page.evaluate("document.querySelectorAll('img').forEach(i => { i.loading = 'eager'; })")
    opened.page.wait_for_function("[...document.images].every(i => i.complete)")
    pictures = opened.page.evaluate(
        """() => [...document.querySelectorAll("article img")].map(image => {
            const canvas = document.createElement("canvas").getContext("2d");
            canvas.drawImage(image, 0, 0, 1, 1, 0, 0, 1, 1);
            return [image.getAttribute("src"), image.naturalWidth > 0, (image.alt || "").trim(),
                    canvas.getImageData(0, 0, 1, 1).data[3]];
        })"""
    )
    assert [src for src, loaded, _, _ in pictures if not loaded] == []
    assert [src for src, _, alt, _ in pictures if len(alt) < 12 or alt.startswith("_images")] == []
    assert [src for src, _, _, alpha in pictures if alpha < 255] == []


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_nothing_is_wider_than_the_window_but_in_a_scroller_of_its_own(opened, width):
    opened.show(width, "light")
    wide = opened.page.evaluate(
        """() => {
            const scrolls = e =>
                e && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
            const outer = document.scrollingElement;
            return [...document.querySelectorAll("article *")]
                .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement))
                .filter(e => !e.closest("mjx-assistive-mml, .visually-hidden"))
                .map(e => e.outerHTML.slice(0, 120))
                .concat(outer.scrollWidth > innerWidth ? ["the page itself"] : []);
        }"""
    )
    assert wide == []


def test_axe_finds_no_serious_barrier(opened):
    opened.show(DESK, "light")
    # What MathJax makes of an equation has hundreds of nodes and no text of its own for these rules.
    context = {"exclude": [["mjx-container"]]}
    assert axe_barriers(opened.page, context, {"rules": {"color-contrast": {"enabled": False}}}) == []


@pytest.mark.parametrize("theme", THEMES)
def test_text_stands_out_from_what_lies_behind_it(opened, theme):
    opened.show(DESK, theme)
    assert opened.page.evaluate(MARK_SAMPLES) > 5
    assert axe_barriers(opened.page, {"include": [["[data-sample]"]]}, {"runOnly": ["color-contrast"]}) == []


def test_links_within_the_book_lead_somewhere(opened, home, built):
    links = opened.page.eval_on_selector_all("a[href]", "all => all.map(a => a.href)")
    assert links
    assert broken_links(links, home, built[0]) == []


def test_the_dark_page_is_dark_and_the_light_one_light(opened):
    brightness = {}
    for theme in THEMES:
        opened.show(DESK, theme)
        colour = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness[theme] = sum(int(part) for part in colour.strip("rgb()").split(",")) / 3
    assert brightness["dark"] < 60 < 200 < brightness["light"]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_figure_of_beta_answers_to_the_keyboard(visit, width, theme):
    visited = visit("book/explore.html")
    visited.show(width, theme)
    page, slider = visited.page, visited.page.locator("#explorer-beta")

    def drawn() -> list[str]:
        shapes = "#explorer rect, #explorer circle"
        return page.eval_on_selector_all(shapes, "all => all.map(e => e.outerHTML)")

    at_clip, said = drawn(), page.text_content("#explorer-said")
    assert page.text_content("#explorer-value") == "0 (CLIP)" and "CLIP at" in said
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert drawn() != at_clip and page.locator("#explorer .chosen").count() == 1
    assert "against CLIP" in page.text_content("#explorer-said")
    assert slider.get_attribute("aria-valuetext") == "beta " + page.text_content("#explorer-value")
    page.keyboard.press("End")
    last = page.text_content("#explorer-said")
    for i in range(1, page.locator("#explorer-arm option").count()):  # as many as the tables have curves
        page.select_option("#explorer-arm", index=i)
        assert page.text_content("#explorer-said") != last
        last = page.text_content("#explorer-said")
    page.keyboard.press("Home")
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert axe_barriers(page, {"include": [["#explorer"]]}, {}) == [] == visited.errors == visited.strangers
    page.close()


def test_without_scripts_the_numbers_of_beta_are_a_table(browser, home):
    window = browser.new_context(java_script_enabled=False)
    page = window.new_page()
    page.goto(f"{home}/book/explore.html")
    assert page.locator(".explorer-table tr").count() > 4 and not page.locator("#explorer").is_visible()
    window.close()


def test_the_first_page_shows_question_drawing_answer_and_ways_in_on_one_screen(visit):
    visited = visit(f"{PAGES[0]}.html")
    visited.show(DESK, "light")
    ends = visited.page.eval_on_selector_all(
        ".first-page h1, .first-page svg.idea, .first-page .answer table, .first-page .sd-card",
        "all => all.map(e => e.getBoundingClientRect().bottom)",
    )
    assert len(ends) == 6 and max(ends) <= 800
    visited.page.close()


def test_every_notebook_can_be_downloaded_from_the_first_page(visit, built, home):
    visited = visit(f"{PAGES[0]}.html")
    links = visited.page.eval_on_selector_all("a[download]", "all => all.map(a => a.href)")
    visited.page.close()
    notebooks = {page for page in PAGES if (ROOT / f"{page}.ipynb").is_file()}
    for page in notebooks:
        assert f"{home}/_sources/{page}.ipynb" in links
        assert (built[0] / "_sources" / f"{page}.ipynb").read_bytes() == (ROOT / f"{page}.ipynb").read_bytes()


def test_search_finds_each_chapter_by_its_title(opened, visit):
    title = opened.page.title().split(" — ")[0]
    here = opened.page.url.split("/")[-1]
    found = visit(f"search.html?q={title}")
    found.page.wait_for_selector("#search-results li")
    links = found.page.eval_on_selector_all("#search-results li a", "all => all.map(a => a.href)")
    found.page.evaluate("localStorage.clear()")  # or the words are marked on the pages that follow
    found.page.close()
    assert any(here in link for link in links)
    assert found.errors == found.strangers == []


def test_a_page_loads_without_an_error_and_asks_no_other_host(opened):
    # The last test of a page, so that whatever the others set off has been seen.
    assert opened.strangers == []
    assert opened.errors == []
