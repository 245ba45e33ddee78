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

ROOT = Path(__file__).resolve().parents[3]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 800}
PRINT = 9 / 72 * 200  # px of a figure's own: 9 points at its 200 dots an inch
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
        give_up = pytest.fail if os.environ.get("CIBR_BROWSER") == "required" else pytest.skip
        give_up("there is no Chromium on this machine: install it to test the pages of the book")
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


def barriers(page, context, **options):
    """The serious and the critical violations that axe finds: rule, first element and why."""
    options |= {"resultTypes": ["violations"], "preload": False}
    violations = axe.Axe().run(page, context=context, options=options).response["violations"]
    serious = [v for v in violations if v["impact"] in ("serious", "critical")]
    return [(v["id"], v["nodes"][0]["html"], v["nodes"][0]["failureSummary"]) for v in serious]


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


def test_all_pages_work_without_barriers_in_both_colour_modes(page):
    page.set_viewport_size(DESK)
    found = {}
    for name in [*PAGES, "search", "genindex"]:
        visit(page, name)
        for theme, rules in {"light": {}, "dark": {"runOnly": ["color-contrast"]}}.items():
            page.evaluate(SHOW, theme)
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (int(re.search(r"\d+", colour)[0]) < 128) == (theme == "dark")
            # An equation has hundreds of nodes and no text of its own for these rules.
            found[name, theme] = barriers(page, {"exclude": [["mjx-container"]]}, **rules)
        found[name, "content"] = page.evaluate(BROKEN) + errors(page)
    assert {place: wrong for place, wrong in found.items() if wrong} == {}


def test_all_pages_fit_a_phone_and_print_in_figures_has_nine_pixels(page):
    page.set_viewport_size(PHONE)
    shown = "all => all.map(i => i.getBoundingClientRect().width / i.naturalWidth)"
    found = {}
    for name in PAGES:
        visit(page, name)
        found[name] = page.evaluate(WIDE)
        scales = page.eval_on_selector_all("article figure img", shown)
        found[name] += [scale for scale in scales if scale * PRINT < 9 - 0.01]
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.fixture(scope="module")
def drawing(page):
    """The page with both models, asked for by keyboard and nothing of them before."""
    page.set_viewport_size(DESK)
    visit(page, "book/train")
    assert not [url for url in page.requests if "/draw/" in url]
    page.focus("#draw-load")
    page.keyboard.press("Enter")
    page.wait_for_selector("#draw-names output:not(:empty)", timeout=180_000)
    assert page.evaluate("document.activeElement.id") == "draw-canvas"
    yield page
    assert errors(page) == []


def first_names(page):
    """The name that each model ranks first, once the page has answered."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    return page.locator("#draw-names li:first-child span").all_inner_texts()


def test_the_models_in_the_page_are_those_of_python(drawing):
    images = list(varied_glyphs(60).images())
    grey = [np.asarray(image.convert("L")).ravel().tolist() for image in images]
    found = drawing.evaluate(COSINES, grey)
    names = draw._known_pairs().factors["name"].tolist()
    for folder, cosines in zip(draw.MODELS.values(), found, strict=True):
        model = DualEncoder.from_pretrained(folder)
        exact = model.embed_images(images) @ model.embed_texts(names).T
        assert np.abs(np.array(cosines) - exact.numpy()).max() < 1e-3


def test_names_follow_a_drawing_by_mouse_and_by_keyboard(drawing):
    drawing.select_option("#draw-pick", label="Q latin capital letter q")
    assert first_names(drawing) == ["latin capital letter q"] * 2
    drawing.click("#draw-clear")
    drawing.locator("#draw-canvas").scroll_into_view_if_needed()
    box = drawing.locator("#draw-canvas").bounding_box()
    drawing.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 4)
    drawing.mouse.down()
    drawing.mouse.move(box["x"] + box["width"] / 2, box["y"] + 3 / 4 * box["height"])
    drawing.mouse.up()
    one = first_names(drawing)
    assert len(one) == 2
    drawing.focus("#draw-canvas")  # the pen is in the middle
    for key in (" ", *["ArrowRight"] * 10, " "):
        drawing.keyboard.press(key)
    assert first_names(drawing) != one
    assert drawing.inner_text("#draw-pen") == "Pen up, 26 across, 16 down"
    drawing.click("#draw-undo")
    assert first_names(drawing) == one
    drawing.check("#draw-white")
    assert first_names(drawing) != one


def test_the_drawing_has_no_barriers_on_a_dark_phone(drawing):
    drawing.set_viewport_size(PHONE)
    drawing.evaluate(SHOW, "dark")
    assert drawing.evaluate(WIDE) == []
    assert barriers(drawing, {"include": [["#draw-page"]]}) == []
