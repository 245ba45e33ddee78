"""The rendered book as readers meet it: in Chromium without a network, on phone and desk."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pytest
import yaml

from cibr.models import DualEncoder
from cibr_book.embeddings.stimuli import varied_glyphs
from cibr_book.pages import draw

filelock = pytest.importorskip("filelock")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.extra
ROOT = Path(__file__).resolve().parents[3]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
KINDS = ["book/intro", "book/train", "book/between", "book/ablation", "book/glossary", "search"]
KINDS += ["book/api/losses", "book/references"]
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 800}
# Names of hosts lead nowhere. Without its own sandbox, since that refuses to run as root; the pages
# are ours.
ARGUMENTS = ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--no-sandbox"]
# Colours are read as they end up, not halfway from one theme to the other.
STILL = "*, ::before, ::after { transition: none !important; }"
READY = "async () => { await window.MathJax?.startup?.promise; await document.fonts.ready; }"
SHOW = """theme => new Promise(done => {
    document.documentElement.dataset.theme = theme;
    requestAnimationFrame(() => requestAnimationFrame(done));
})"""
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
# What is wider than the window, and nothing around it scrolls.
WIDE = """() => {
    const style = e => getComputedStyle(e).overflowX;
    const scrolls = e => e && (/auto|scroll/.test(style(e)) || scrolls(e.parentElement));
    return [...document.querySelectorAll("article *")]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement))
        .filter(e => !e.closest("mjx-assistive-mml, .visually-hidden"))
        .map(e => e.outerHTML.slice(0, 120))
        .concat(document.scrollingElement.scrollWidth > innerWidth ? ["the page itself"] : []);
}"""
COSINES = """async (images) => {
    const script = await fetch(document.querySelector("script[src*='draw/weights']").src);
    const text = atob((await script.text()).split('"')[1]);
    const bytes = Uint8Array.from(text, c => c.charCodeAt(0));
    const { models, names, weights } = await cibrModel.unpack(bytes);
    return models.map(m => images.map(i => cibrModel.cosines(weights[m], i, names.length)));
}"""


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the rendered book, built once for all workers."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid())
    folder = tmp_path_factory.getbasetemp().parent / f"book-{run}"
    folder.mkdir(exist_ok=True)
    program = Path(sys.executable).with_name("jupyter-book")
    options = ["--path-output", str(folder), "-W", "-n", "--keep-going", "--quiet"]
    log = folder / "log.txt"
    with filelock.FileLock(folder / "lock"):
        if not log.exists():
            call = [program, "build", str(ROOT), *options]
            done = subprocess.run(call, capture_output=True, text=True)
            log.write_text(f"{done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    assert log.read_text().startswith("0\n"), log.read_text()
    return folder / "_build" / "html"


@pytest.fixture(scope="module")
def page(site):
    """A tab at a server of the pages, with its messages and the addresses that it asked for."""
    programs = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    program = next(filter(None, programs), None)
    if program is None:
        pytest.skip("there is no Chromium on this machine: install it to test the book's pages")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    with server, playwright.sync_playwright() as programs:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = programs.chromium.launch(executable_path=program, args=ARGUMENTS)
        page = browser.new_page(base_url=f"http://127.0.0.1:{server.server_port}", viewport=DESK)
        page.set_default_navigation_timeout(120_000)  # half a minute is too short beside a sweep
        page.messages, page.requests = [], []
        page.on("console", lambda message: page.messages.append(message))
        page.on("pageerror", lambda error: page.messages.append(error))
        page.on("request", lambda request: page.requests.append(request.url))
        yield page
        browser.close()
        server.shutdown()


def visit(page, name):
    """Opens a page of the book, until its equations are typeset."""
    page.messages.clear()
    page.requests.clear()
    page.goto(f"/{name}.html")
    page.add_style_tag(content=STILL)
    page.evaluate(READY)


def errors(page):
    """What a page reported as an error or a warning, and what it asked of other hosts."""
    loud = [m for m in page.messages if getattr(m, "type", "error") in ("error", "warning")]
    # That a preloaded font was not used in time is said of a machine that is slow, not of the page.
    told = [text for text in map(str, loud) if "was preloaded using link preload" not in text]
    return told + [u for u in page.requests if not re.match(r"http://127\.0\.0\.1|data:|blob:", u)]


def test_links_within_the_book_lead_somewhere(site):
    for name in PAGES:
        text = (site / f"{name}.html").read_text("utf-8")
        for href in set(re.findall(r'href="([^"]+)"', text)):
            link = urlsplit(urljoin(f"{name}.html", href))
            if not link.scheme and not link.netloc:
                file = site / unquote(link.path)
                assert file.is_file(), (name, href)
                anchor = f'id="{unquote(link.fragment)}"'
                assert not link.fragment or anchor in file.read_text("utf-8"), (name, href)


def test_old_addresses_lead_on_and_the_site_is_small(site):
    assert "url=evidence.html#evidence-recipes" in (site / "book/recipes.html").read_text()
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
    assert size < 43e6  # 16 of them the project itself, with the shipped models and hits
    assert '"image/png"' not in (site / "_sources/book/train.ipynb").read_text("utf-8")


def test_no_page_has_errors_or_scrolls_sideways_on_a_phone(page):
    page.set_viewport_size(PHONE)
    found = {}
    for name in [*PAGES, "search"]:
        visit(page, name)
        found[name] = page.evaluate(WIDE) + page.evaluate(BROKEN) + errors(page)
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_of_each_kind_have_no_barriers(page, theme):
    page.set_viewport_size(DESK)
    found = {}
    for name in KINDS:
        visit(page, name)
        page.evaluate(SHOW, theme)
        # An equation has hundreds of nodes and no text of its own for these rules.
        options = {"resultTypes": ["violations"], "preload": False}
        ran = axe.Axe().run(page, context={"exclude": [["mjx-container"]]}, options=options)
        wrong = [v for v in ran.response["violations"] if v["impact"] in ("serious", "critical")]
        found[name] = [(v["id"], v["nodes"][0]["failureSummary"]) for v in wrong]
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def first_names(page):
    """The name that each model ranks first, once the page has answered."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    return page.locator("#draw-names li:first-child span").all_inner_texts()


def test_the_drawing_has_the_models_of_python_and_follows_mouse_and_keyboard(page):
    page.set_viewport_size(DESK)
    visit(page, "book/interpretability")
    assert not [url for url in page.requests if "/draw/" in url]
    page.locator("#draw-canvas").scroll_into_view_if_needed()
    page.wait_for_selector("#draw-names output:not(:empty)", timeout=180_000)
    images = list(varied_glyphs(60).images())
    grey = [np.asarray(image.convert("L")).ravel().tolist() for image in images]
    found = page.evaluate(COSINES, grey)
    names = draw._known_pairs().factors["name"].tolist()
    for folder, cosines in zip(draw.MODELS.values(), found, strict=True):
        model = DualEncoder.from_pretrained(folder)
        exact = model.embed_images(images) @ model.embed_texts(names).T
        assert np.abs(np.array(cosines) - exact.numpy()).max() < 1e-2
    page.select_option("#draw-pick", label="Q latin capital letter q")
    assert first_names(page) == ["latin capital letter q"] * 2
    page.click("#draw-clear")
    page.locator("#draw-canvas").scroll_into_view_if_needed()
    box = page.locator("#draw-canvas").bounding_box()
    middle = box["x"] + box["width"] / 2
    page.mouse.move(middle, box["y"] + box["height"] / 4)
    page.mouse.down()
    page.mouse.move(middle, box["y"] + 3 / 4 * box["height"])
    page.mouse.up()
    one = first_names(page)
    page.focus("#draw-canvas")  # the pen is in the middle
    for key in (" ", *["ArrowRight"] * 10, " "):
        page.keyboard.press(key)
    assert len(one) == 2 and first_names(page) != one
    page.click("#draw-undo")
    assert first_names(page) == one and errors(page) == []
