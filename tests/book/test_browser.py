"""The book as readers meet it: in Chromium without a network, on phone and desk, light and dark."""

import functools
import gzip
import http.server
import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from filelock import FileLock

Axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe
ROOT = Path(__file__).resolve().parents[2]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
PHONE, DESK = 390, 1280
# Names of hosts lead nowhere. Without its own sandbox, since that refuses to run as root; the pages
# are ours.
ARGUMENTS = ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--no-sandbox"]
# Colours are read as they end up, not halfway from one theme to the other.
STILL = "*, ::before, ::after { transition: none !important; }"

# What a reader sees wrong with equations, images and widths, and one piece of text for each way
# that text is set.
EQUATIONS = """() => [...document.querySelectorAll("article .math")]
    .filter(e => !e.querySelector("mjx-container"))
    .concat([...document.querySelectorAll("mjx-merror")]).map(e => e.textContent)"""
IMAGES = """async () => {
    const images = [...document.querySelectorAll("article img")];
    images.forEach(i => { i.loading = "eager"; });
    await Promise.all(images.map(i => i.decode().catch(() => {})));
    return images.filter(i => !i.naturalWidth || !/^[A-Z].{30,}\\.$/.test(i.alt)) // a sentence
        .map(i => i.outerHTML.slice(0, 150));
}"""
WIDE = """() => {
    const style = e => getComputedStyle(e).overflowX;
    const scrolls = e => e && (/auto|scroll/.test(style(e)) || scrolls(e.parentElement));
    return [...document.querySelectorAll("article *")]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement))
        .filter(e => !e.closest("mjx-assistive-mml, .visually-hidden"))
        .concat([...document.querySelectorAll("article div.math mjx-container")]
            .filter(e => e.scrollWidth > e.clientWidth + 1))
        .map(e => e.outerHTML.slice(0, 120))
        .concat(document.scrollingElement.scrollWidth > innerWidth ? ["the page itself"] : []);
}"""
SAMPLES = """() => {
    const seen = new Set();
    const behind = e => {
        const colour = getComputedStyle(e).backgroundColor;
        return colour === "rgba(0, 0, 0, 0)" && e.parentElement ? behind(e.parentElement) : colour;
    };
    const isText = n => n.nodeType === Node.TEXT_NODE && n.textContent.trim();
    for (const e of document.querySelectorAll("body *")) {
        const style = getComputedStyle(e);
        const key = [style.color, behind(e), style.fontSize, style.fontWeight].join();
        delete e.dataset.sample;
        if (![...e.childNodes].some(isText) || seen.has(key)) continue;
        if (e.closest("mjx-container, script, style, noscript")) continue;
        seen.add(key);
        e.dataset.sample = "";
    }
}"""
SHOW = """theme => new Promise(done => {
    document.documentElement.dataset.theme = theme;
    requestAnimationFrame(() => requestAnimationFrame(done));
})"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the rendered book, and what its build printed; all workers share one build."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid())
    folder = tmp_path_factory.getbasetemp().parent / f"book-{run}"
    folder.mkdir(exist_ok=True)
    program = Path(sys.executable).with_name("jupyter-book")
    options = ["--path-output", str(folder), "-W", "-n", "--keep-going", "--quiet"]
    log = folder / "log.txt"
    with FileLock(folder / "lock"):
        if not log.exists():
            call = [program, "build", str(ROOT), *options]
            done = subprocess.run(call, capture_output=True, text=True)
            log.write_text(f"{done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return folder / "_build" / "html", log.read_text()


@pytest.fixture(scope="module")
def home(built):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(built[0]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def page(home):
    """One tab for all tests, with what went wrong in it: messages and foreign requests."""
    programs = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    program = next(filter(None, programs), None)
    if program is None:
        give_up = pytest.fail if os.environ.get("CIBR_BROWSER") == "required" else pytest.skip
        give_up("there is no Chromium on this machine: install it to test the pages of the book")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        page = browser.new_context(viewport={"width": DESK, "height": 800}).new_page()
        page.messages, page.requests = [], []
        page.on("console", lambda message: page.messages.append(message))
        page.on("pageerror", lambda error: page.messages.append(error))
        page.on("request", lambda request: page.requests.append(request.url))
        yield page
        browser.close()


@pytest.fixture(scope="module", params=PAGES)
def opened(request, page, home):
    """A page of the book, loaded and its equations typeset."""
    page.messages.clear()
    page.requests.clear()
    page.set_viewport_size({"width": DESK, "height": 800})
    page.goto(f"{home}/{request.param}.html")
    page.add_style_tag(content=STILL)
    page.evaluate(
        "async () => { await window.MathJax?.startup?.promise; await document.fonts.ready; }"
    )
    return page


def barriers(page, context, **options):
    """The serious and the critical violations that axe finds: rule and first element."""
    options |= {"resultTypes": ["violations"], "preload": False}
    violations = Axe().run(page, context=context, options=options).response["violations"]
    serious = [v for v in violations if v["impact"] in ("serious", "critical")]
    return [(v["id"], v["nodes"][0]["html"], v["nodes"][0]["failureSummary"]) for v in serious]


def test_the_book_builds_without_a_warning_in_less_than_fifteen_megabytes(built):
    site, log = built
    assert log.startswith("0\n"), log
    sizes = {file: file.stat().st_size for file in site.rglob("*") if file.is_file()}
    largest = sorted(sizes, key=sizes.get)[-10:]
    assert sum(sizes.values()) < 15_000_000, largest


def test_the_reference_documents_all_that_a_package_offers(built):
    pages = "".join(p.read_text("utf-8") for p in (built[0] / "book" / "api").glob("*.html"))
    packages = [f"cibr.{path.parent.name}" for path in ROOT.glob("cibr/*/__init__.py")]
    offered = [f"{name}.{m}" for name in packages for m in importlib.import_module(name).__all__]
    assert len(packages) > 3 and [name for name in offered if f'id="{name}"' not in pages] == []


def test_equations_are_typeset_and_images_loaded_and_described(opened):
    assert opened.evaluate(EQUATIONS) == []
    assert opened.evaluate(IMAGES) == []


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_nothing_is_wider_than_the_window_but_in_a_scroller_of_its_own(opened, width):
    opened.set_viewport_size({"width": width, "height": 800})
    opened.evaluate(SHOW, "light")
    assert opened.evaluate(WIDE) == []


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_without_serious_barriers_and_in_its_colours(opened, theme, width):
    opened.set_viewport_size({"width": width, "height": 800})
    opened.evaluate(SHOW, theme)
    colour = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in colour.strip("rgb()").split(",")) / 3
    assert brightness < 60 if theme == "dark" else brightness > 200
    opened.evaluate(SAMPLES)
    assert barriers(opened, {"include": [["[data-sample]"]]}, runOnly=["color-contrast"]) == []
    if theme == "light":
        opened.wait_for_timeout(400)  # scrollers become focusable 300 ms after a change of width
        # An equation has hundreds of nodes and no text of its own for these rules.
        others = {"color-contrast": {"enabled": False}}
        assert barriers(opened, {"exclude": [["mjx-container"]]}, rules=others) == []


def test_the_keyboard_comes_to_the_content_first_and_in_the_order_of_the_page(opened):
    opened.set_viewport_size({"width": DESK, "height": 800})
    opened.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.textContent.trim()") == "Skip to main content"
    opened.keyboard.press("Enter")
    opened.keyboard.press("Tab")
    assert opened.evaluate("!!document.activeElement.closest('main')")
    assert opened.eval_on_selector_all("[tabindex]", "all => all.every(e => e.tabIndex <= 0)")


def test_links_within_the_book_lead_somewhere(opened, home, built):
    links = opened.eval_on_selector_all("a[href]", "all => all.map(a => a.href)")
    assert links
    for link in (urlsplit(link) for link in links if link.startswith(home)):
        file = built[0] / link.path.lstrip("/")
        assert file.is_file(), link
        assert not link.fragment or f'id="{link.fragment}"' in file.read_text("utf-8"), link


def test_nothing_went_wrong_while_the_page_was_open_and_nothing_foreign_was_asked_for(opened, home):
    messages = [m for m in opened.messages if getattr(m, "type", "error") in ("error", "warning")]
    assert [str(m) for m in messages] == []  # failed requests among them
    assert [url for url in opened.requests if not url.startswith((home, "data:", "blob:"))] == []


def test_the_first_page_transfers_less_than_a_megabyte(page, home):
    answers = []
    page = page.context.new_page()
    page.on("response", lambda answer: answers.append(answer))
    page.goto(f"{home}/{TOC['root']}.html", wait_until="networkidle")
    is_packed = [answer.url.endswith((".png", ".woff2")) for answer in answers]
    bodies = [answer.body() for answer in answers]
    page.close()
    pairs = zip(is_packed, bodies, strict=True)
    n_bytes = sum(len(body if packed else gzip.compress(body)) for packed, body in pairs)
    assert 100_000 < n_bytes < 1_000_000


@pytest.mark.parametrize(
    ("chapter", "box", "presses"),
    [
        ("explore", "explorer", ("condition ArrowDown", "beta ArrowRight", "beta End")),
        ("theory", "curve", ("beta End", "ambiguity End", "ambiguity Home")),
    ],
)
def test_a_figure_with_sliders_answers_every_press_of_a_key(page, home, chapter, box, presses):
    page.goto(f"{home}/book/{chapter}.html")
    page.wait_for_selector(f"#{box} svg .chosen")
    seen = {page.inner_html(f"#{box}")}
    for control, key in (press.split() for press in presses):
        page.focus(f"#{box}-{control}")
        page.keyboard.press(key)
        seen.add(page.inner_html(f"#{box}"))
    assert len(seen) == 4 and page.locator(f"#{box} svg .chosen").count() > 0


def test_the_search_page_answers_typing_and_marks_right_images(page, home):
    page.goto(f"{home}/book/search.html")
    page.wait_for_selector("#search-page li.right")
    page.focus("#search-collection")
    for key in ("ArrowDown", "Tab", *"SMILING", "Enter"):
        page.keyboard.press(key)
    assert "smiling face" in page.inner_text("#search-summary")
    assert [page.locator(f"#search-page {tag}").count() for tag in ("ol", "li")] == [2, 12]
    labels = "all => all.map(a => a.ariaLabel)"
    assert "smiling face" in str(page.eval_on_selector_all("#search-page [role=img]", labels))


def test_a_term_of_the_glossary_shows_its_meaning_in_plain_words_on_hover(built):
    pages = [built[0] / f"{name}.html" for name in PAGES if name != "book/glossary"]
    links = re.findall(r"<a [^>]*#term-[^>]*>", "".join(p.read_text("utf-8") for p in pages))
    titles = {title for link in links for title in re.findall(r'title="([^"]*)"', link)}
    assert len(titles) > 5
    assert all(re.fullmatch(r"[^\\{}\d]{15,}\.", title) for title in titles), titles
