"""The book as a reader meets it: each page in Chromium without a network, on phone and desk, light and dark."""

import ast
import functools
import gzip
import http.server
import os
import posixpath
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from sphinx.util.inventory import InventoryFile

ROOT = Path(__file__).resolve().parents[2]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
PHONE, DESK = 390, 1280
MEGABYTE = 1_000_000
# Names of hosts lead nowhere. Without its own sandbox, since that refuses to run as root; the pages are ours.
ARGUMENTS = ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--no-sandbox"]

# What a reader sees wrong with equations, images and widths, and one piece of text for each way that text is set.
EQUATIONS = """() => [...document.querySelectorAll("article .math")].filter(e => !e.querySelector("mjx-container"))
    .concat([...document.querySelectorAll("mjx-merror")]).map(e => e.textContent)"""
IMAGES = """async () => {
    const images = [...document.querySelectorAll("article img")];
    images.forEach(i => { i.loading = "eager"; });
    await Promise.all(images.map(i => i.decode().catch(() => {})));
    return images.filter(i => !i.naturalWidth || !/^[A-Z].{30,}\\.$/.test(i.alt)) // a sentence
        .map(i => i.outerHTML.slice(0, 150));
}"""
WIDE = """() => {
    const scrolls = e => e && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
    return [...document.querySelectorAll("article *")]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement))
        .filter(e => !e.closest("mjx-assistive-mml, .visually-hidden")).map(e => e.outerHTML.slice(0, 120))
        .concat(document.scrollingElement.scrollWidth > innerWidth ? ["the page itself"] : []);
}"""
CLIPPED = """() => [...document.querySelectorAll("article div.math mjx-container")]
    .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 60))"""
SAMPLES = """() => {
    const seen = new Set();
    const behind = e => {
        const colour = getComputedStyle(e).backgroundColor;
        return colour === "rgba(0, 0, 0, 0)" && e.parentElement ? behind(e.parentElement) : colour;
    };
    for (const e of document.querySelectorAll("body *")) {
        const style = getComputedStyle(e);
        const key = [style.color, behind(e), style.fontSize, style.fontWeight].join();
        const text = [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.textContent.trim());
        delete e.dataset.sample;
        if (text && !e.closest("mjx-container, script, style, noscript") && !seen.has(key)) {
            seen.add(key);
            e.dataset.sample = "";
        }
    }
}"""
SHOW = """theme => new Promise(done => {
    document.documentElement.dataset.theme = theme;
    requestAnimationFrame(() => requestAnimationFrame(done));
})"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the rendered book, and how its build ended."""
    folder = tmp_path_factory.mktemp("book")
    program = Path(sys.executable).with_name("jupyter-book")
    options = ["--path-output", str(folder), "-W", "-n", "--keep-going", "--quiet"]
    done = subprocess.run([program, "build", str(ROOT), *options], capture_output=True, text=True)
    return folder / "_build" / "html", done


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def home(built):
    handler = functools.partial(Handler, directory=str(built[0]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def window():
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if program is None:
        give_up = pytest.fail if os.environ.get("CIBR_BROWSER") == "required" else pytest.skip
        give_up(
            "there is no Chromium on this machine: install it, and the pages of the book are looked at too"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser.new_context(viewport={"width": DESK, "height": 800})
        browser.close()


@pytest.fixture(scope="module")
def page(window, home):
    """One tab for all tests, with what went wrong in it: errors, failed requests, requests to other hosts."""
    page = window.new_page()
    page.wrong = []
    page.on(
        "console", lambda m: page.wrong.append(m.text) if m.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    # A request of the last page that ends with it is no failure.
    page.on(
        "requestfailed",
        lambda r: None if "ABORTED" in r.failure else page.wrong.append(f"{r.url}: {r.failure}"),
    )
    ours = (home, "data:", "blob:")
    page.on(
        "request",
        lambda r: None if r.url.startswith(ours) else page.wrong.append(f"stranger {r.url}"),
    )
    page.on(
        "response", lambda r: page.wrong.append(f"{r.url}: {r.status}") if r.status >= 400 else None
    )
    return page


@pytest.fixture(scope="module", params=PAGES)
def opened(request, page, home):
    """A page of the book, loaded and its equations typeset."""
    page.wrong.clear()
    page.set_viewport_size({"width": DESK, "height": 800})
    page.goto(f"{home}/{request.param}.html")
    # Colours are read as they end up, not halfway from one theme to the other.
    page.add_style_tag(content="*, ::before, ::after { transition: none !important; }")
    page.evaluate(
        "async () => { await window.MathJax?.startup?.promise; await document.fonts.ready; }"
    )
    return page


def barriers(page, context, options):
    """The serious and the critical violations that axe finds: rule and first element."""
    found = Axe().run(
        page, context=context, options={"resultTypes": ["violations"], "preload": False, **options}
    )
    serious = [v for v in found.response["violations"] if v["impact"] in ("serious", "critical")]
    return [
        (v["id"], v["nodes"][0]["html"][:200], v["nodes"][0]["failureSummary"][:300])
        for v in serious
    ]


def test_the_book_builds_without_a_warning(built):
    done = built[1]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_built_site_is_below_fifteen_megabytes(built):
    sizes = {
        p.relative_to(built[0]).as_posix(): p.stat().st_size
        for p in built[0].rglob("*")
        if p.is_file()
    }
    assert sum(sizes.values()) < 15 * MEGABYTE, sorted(sizes.items(), key=lambda item: -item[1])[
        :10
    ]


@pytest.mark.parametrize(
    "name", sorted(path.parent.name for path in (ROOT / "cibr").glob("*/__init__.py"))
)
def test_the_reference_documents_all_that_a_package_offers(built, name):
    with open(built[0] / "objects.inv", "rb") as file:
        known = InventoryFile.load(file, "", posixpath.join)
    documented = {entry for kind in known if kind.startswith("py:") for entry in known[kind]}
    source = (ROOT / "cibr" / name / "__init__.py").read_text()
    (written,) = re.findall(r"^__all__ = (\[.*?\])", source, re.M | re.S)
    assert {f"cibr.{name}.{member}" for member in ast.literal_eval(written)} - documented == set()


def test_equations_are_typeset_and_images_loaded_and_described(opened):
    assert opened.evaluate(EQUATIONS) == []
    assert opened.evaluate(IMAGES) == []


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_nothing_is_wider_than_the_window_but_in_a_scroller_of_its_own(opened, width):
    opened.set_viewport_size({"width": width, "height": 800})
    opened.evaluate(SHOW, "light")
    assert opened.evaluate(WIDE) == []
    assert opened.evaluate(CLIPPED) == []


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_without_serious_barriers_and_in_its_colours(opened, theme, width):
    opened.set_viewport_size({"width": width, "height": 800})
    opened.evaluate(SHOW, theme)
    colour = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in colour.strip("rgb()").split(",")) / 3
    assert brightness < 60 if theme == "dark" else brightness > 200
    opened.evaluate(SAMPLES)
    assert barriers(opened, {"include": [["[data-sample]"]]}, {"runOnly": ["color-contrast"]}) == []
    if theme == "light":
        opened.wait_for_timeout(
            400
        )  # the theme makes what scrolls focusable 300 ms after a change of width
        # What MathJax makes of an equation has hundreds of nodes and no text of its own for these rules.
        everything = {"exclude": [["mjx-container"]]}
        assert barriers(opened, everything, {"rules": {"color-contrast": {"enabled": False}}}) == []


def test_the_keyboard_comes_to_the_content_first_and_in_the_order_of_the_page(opened):
    opened.set_viewport_size({"width": DESK, "height": 800})
    opened.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.textContent.trim()") == "Skip to main content"
    opened.keyboard.press("Enter")
    assert opened.evaluate("location.hash") == "#main-content"
    opened.keyboard.press("Tab")
    assert opened.evaluate("!!document.activeElement.closest('main')")
    assert opened.eval_on_selector_all("[tabindex]", "all => all.every(e => e.tabIndex <= 0)")


def test_links_within_the_book_lead_somewhere(opened, home, built):
    links = opened.eval_on_selector_all("a[href]", "all => all.map(a => a.href)")
    broken = []
    for link in (urlsplit(each) for each in links if each.startswith(home)):
        file = built[0] / link.path.lstrip("/")
        found = file.is_file() and (
            not link.fragment or f'id="{link.fragment}"' in file.read_text("utf-8")
        )
        broken += [] if found else [link.geturl()]
    assert links and broken == []


def test_nothing_went_wrong_while_the_page_was_open(opened):
    assert opened.wrong == []


def test_the_first_page_transfers_less_than_a_megabyte(window, home):
    page, answers = window.new_page(), []
    page.on("response", lambda answer: answers.append(answer))
    page.goto(f"{home}/{TOC['root']}.html", wait_until="networkidle")
    packed = [
        a.body() if a.url.endswith((".png", ".woff2")) else gzip.compress(a.body()) for a in answers
    ]
    page.close()
    assert 100_000 < sum(map(len, packed)) < MEGABYTE


def test_the_search_finds_a_function(page, home):
    page.goto(f"{home}/search.html?q=clip_loss")
    page.wait_for_selector("ul.search li")
    assert any(
        "losses" in link
        for link in page.eval_on_selector_all("ul.search a", "all => all.map(a => a.href)")
    )


def test_the_explorer_opens_on_a_point_and_answers_its_controls_by_keyboard(page, home):
    page.goto(f"{home}/book/explore.html")
    page.wait_for_selector("#explorer svg .chosen")
    assert page.inner_text("#explorer-summary").startswith("CIBR vMF at β = 0.1 against tuned CLIP")
    page.focus("#explorer-condition")
    seen = [page.inner_html("#explorer-drawings")]
    for keys in (["ArrowDown"], ["Tab", "ArrowRight"], ["Tab", "ArrowDown"]):
        for key in keys:
            page.keyboard.press(key)
        seen.append(page.inner_html("#explorer-drawings"))
    assert len(set(seen)) == 4
    assert page.locator("#explorer svg .chosen").count() == 3


def test_the_search_page_answers_typing_and_marks_right_images(page, home):
    page.goto(f"{home}/book/search.html")
    page.wait_for_selector("#search-page li.right")
    page.focus("#search-collection")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.type("SMILING")
    page.keyboard.press("Enter")
    assert page.inner_text("#search-summary").startswith("“smiling face” is no text of the set")
    assert (
        page.locator("#search-page ol").count() == 2
        and page.locator("#search-page li").count() == 12
    )
    labels = page.eval_on_selector_all(
        "#search-page [role=img]", "all => all.map(a => a.ariaLabel)"
    )
    assert any("smiling face" in label for label in labels)
    page.focus("#search-query")
    page.keyboard.type("no such thing")
    page.keyboard.press("Enter")
    assert "choose one from the list" in page.inner_text("#search-summary")


def test_the_information_curve_moves_with_beta_and_with_the_ambiguity(page, home):
    page.goto(f"{home}/book/theory.html")
    page.wait_for_selector("#curve svg .chosen")
    seen = [page.inner_text("#curve-summary")]
    for slider in ("#curve-beta", "#curve-ambiguity"):
        page.focus(slider)
        page.keyboard.press("End")
        seen.append(page.inner_text("#curve-summary"))
    assert "is distinguished" in seen[0] and "has one code" in seen[1] and len(set(seen)) == 3


def test_a_term_of_the_glossary_shows_its_meaning_in_plain_words_on_hover(built):
    pages = [
        (built[0] / f"{name}.html").read_text("utf-8") for name in PAGES if name != "book/glossary"
    ]
    links = [link for text in pages for link in re.findall(r"<a [^>]*#term-[^>]*>", text)]
    titles = {title for link in links for title in re.findall(r'title="([^"]*)"', link)}
    assert len(titles) > 5 and all(re.fullmatch(r"[^\\{}\d]{15,}\.", title) for title in titles), (
        titles
    )
