"""The book as readers meet it: in Chromium without a network, on phone and desk, light and dark."""

import functools
import gzip
import http.server
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import numpy as np
import pytest
import yaml
from filelock import FileLock

from cibr.models import DualEncoder
from cibr_book.embeddings.stimuli import varied_glyphs
from cibr_book.pages import draw

Axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe
ROOT = Path(__file__).resolve().parents[3]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
PHONE, DESK = 390, 1280
PRINT = 9 / 72 * 200  # px of a figure's own: 9 points at its 200 dots an inch
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
    """The folder of the rendered book, and what two builds printed; all workers share them."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid())
    folder = tmp_path_factory.getbasetemp().parent / f"book-{run}"
    folder.mkdir(exist_ok=True)
    program = Path(sys.executable).with_name("jupyter-book")
    options = ["--path-output", str(folder), "-W", "-n", "--keep-going", "--quiet"]
    log = folder / "log.txt"
    with FileLock(folder / "lock"):
        if not log.exists():
            call = [program, "build", str(ROOT), *options]
            builds = [subprocess.run(call, capture_output=True, text=True) for _ in range(2)]
            printed = "".join(done.stdout[-3000:] + done.stderr[-3000:] for done in builds)
            log.write_text(f"{[done.returncode for done in builds]}\n{printed}")
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
        page.set_default_navigation_timeout(120_000)  # half a minute is too short beside a sweep
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


def test_the_book_builds_twice_without_a_warning(built):
    assert built[1].startswith("[0, 0]\n"), built[1]


def test_the_site_has_fifteen_megabytes_and_five_of_models(built):
    site, _ = built
    sizes = {file: file.stat().st_size for file in site.rglob("*") if file.is_file()}
    assert sizes.pop(site / "cibr.zip", 0) < 8_500_000
    models = {file: size for file, size in sizes.items() if file.parent.name == "draw"}
    largest = sorted(sizes.keys() - models.keys(), key=sizes.get)[-10:]
    assert sum(sizes.values()) - sum(models.values()) < 15_000_000, largest
    assert 3_000_000 < sum(models.values()) < 5_000_000


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is a download of the project")
def test_the_project_can_be_downloaded_from_the_first_page_or_cloned(built):
    first = (built[0] / "book" / "intro.html").read_text("utf-8")
    href = re.search(r'<a href="([^"]+)" download>Download the project', first)[1]
    with zipfile.ZipFile(built[0] / "book" / href) as archive:
        names = archive.namelist()
    wanted = ["README.md", "Makefile", "pyproject.toml", "cibr/losses/__init__.py"]
    assert {f"cibr/{name}" for name in wanted} <= set(names)
    assert not any(name.startswith("cibr/.ci") for name in names)


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


def test_print_in_figures_has_at_least_nine_pixels_on_a_phone(opened):
    opened.set_viewport_size({"width": PHONE, "height": 844})
    shown = "all => all.map(i => i.getBoundingClientRect().width / i.naturalWidth)"
    scales = opened.eval_on_selector_all("article figure img", shown)
    assert all(scale * PRINT >= 9 - 0.01 for scale in scales)


def test_a_page_says_what_it_is_to_those_who_list_it(opened):
    said = "n => document.head.querySelector(`meta[name='${n}'], meta[property='${n}']`).content"
    description = opened.evaluate(said, "description")
    assert re.fullmatch(r"[^\\{}$]{30,200}[.?!…]|[^\\]{15,}: The Cross-modal.*", description)
    assert opened.evaluate(said, "og:description") == description
    assert opened.evaluate(said, "og:title") in opened.title()
    image = urljoin(opened.url, opened.evaluate(said, "og:image"))
    assert opened.request.get(image).headers["content-type"] == "image/png"
    assert len(opened.evaluate(said, "og:image:alt")) > 30


def test_links_within_the_book_lead_somewhere(opened, home, built):
    links = opened.eval_on_selector_all("a[href]", "all => all.map(a => a.href)")
    assert links
    for link in (urlsplit(link) for link in links if link.startswith(home)):
        file = built[0] / link.path.lstrip("/")
        assert file.is_file(), link
        assert not link.fragment or f'id="{link.fragment}"' in file.read_text("utf-8"), link


def test_nothing_went_wrong_while_the_page_was_open_and_nothing_foreign_was_asked_for(opened, home):
    messages = [m for m in opened.messages if getattr(m, "type", "error") in ("error", "warning")]
    # That a preloaded font was not used in time is said of a machine that is slow, not of the page.
    told = [text for text in map(str, messages) if "was preloaded using link preload" not in text]
    assert told == []  # failed requests among them
    assert [url for url in opened.requests if not url.startswith((home, "data:", "blob:"))] == []


def test_the_first_page_transfers_less_than_a_megabyte(page, home):
    answers = []
    page = page.context.new_page()
    page.on("response", lambda answer: answers.append(answer))
    page.goto(f"{home}/{TOC['root']}.html", wait_until="networkidle")
    bodies = [(answer.url, answer.body()) for answer in list(answers)]  # some may still come
    page.close()
    is_packed = (".png", ".woff2")
    n_bytes = sum(len(x if url.endswith(is_packed) else gzip.compress(x)) for url, x in bodies)
    assert 100_000 < n_bytes < 1_000_000


def test_the_curves_control_has_as_many_positions_as_its_figure(page, home):
    page.goto(f"{home}/book/theory.html")
    page.wait_for_selector("#curve svg .chosen")
    seen = page.evaluate("""() => {
        const at = (name) => document.getElementById(`curve-${name}`);
        const move = (slider, value) => {
            slider.value = value;
            slider.dispatchEvent(new Event("input"));
        };
        return Array.from({ length: Number(at("ambiguity").max) + 1 }, (_, a) => {
            move(at("ambiguity"), a);
            const n = Number(at("beta").max) + 1, ring = (b) => {
                move(at("beta"), b);
                const { cx, cy } = at("drawing").querySelector(".chosen").attributes;
                return [`${cx.value} ${cy.value}`, at("beta-value").textContent];
            };
            return Array.from({ length: n }, (_, b) => ring(b));
        });
    }""")
    assert [len(steps) for steps in seen] == [len({place for place, _ in s}) for s in seen]
    assert min(map(len, seen)) >= 4
    for steps in seen:  # the weights of the positions, from the smallest to the largest
        ends = [float(end) for _, betas in steps for end in betas.split(" to ")]
        assert ends == sorted(ends) and (ends[0], ends[-1]) == (0.02, 6)


def test_another_curve_keeps_the_weight(page, home):
    page.goto(f"{home}/book/theory.html")
    page.wait_for_selector("#curve svg .chosen")
    assert page.inner_text("#curve-beta-value") == "0.2 to 1.2"
    page.focus("#curve-ambiguity")
    page.keyboard.press("Home")
    assert page.inner_text("#curve-beta-value") == "0.02 to 0.8"
    page.keyboard.press("End")
    assert page.inner_text("#curve-beta-value") == "0.05 to 1.2"


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("chapter", "figure"), [("beta", 0), ("train", "gallery")])
def test_a_figure_opens_in_the_page_as_it_looks_there(page, home, chapter, figure, theme, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"{home}/book/{chapter}.html")
    page.evaluate(SHOW, theme)
    links = page.locator("article figure a.image-reference")
    link = page.locator(".tag_gallery figure a").first if figure == "gallery" else links.nth(figure)
    look = "(({ filter, mixBlendMode, backgroundColor: c }) => [filter, mixBlendMode, c])"
    style = f"image => {look}(getComputedStyle(image))"
    before, alt = link.locator("img").evaluate(style), link.locator("img").get_attribute("alt")
    small = link.locator("img").bounding_box()["width"]
    assert (before[0] != "none") == (theme == "dark" and figure != "gallery")
    link.focus()
    page.keyboard.press("Enter")
    image = page.locator("dialog[open] img")
    assert image.evaluate(style) == before and image.get_attribute("alt") == alt
    assert image.bounding_box()["width"] > small
    assert page.url.endswith(f"{chapter}.html")
    assert page.evaluate("document.activeElement.textContent") == "Close"
    assert barriers(page, {"include": [["dialog"]]}) == []
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert link.evaluate("a => a === document.activeElement")
    link.click()
    page.click("dialog[open] button")
    link.click()
    page.mouse.click(2, 2)  # beside it
    assert page.locator("dialog[open]").count() == 0


def found(page, home, query):
    """Addresses and quotations of what the site's search lists, once it has listed all."""
    page.goto(f"{home}/search.html?q={quote(query)}")
    page.wait_for_function("/^Search finished/.test(Search.status?.innerText)")
    page.wait_for_load_state("networkidle")
    links = page.locator("#search-results li > a")
    places = [urlsplit(link.get_attribute("href")).path for link in links.all()]
    return places, page.locator("#search-results p.context").all_inner_texts()


@pytest.mark.parametrize(
    ("query", "right"),
    [
        ("own data", "howto/own_pairs"),
        ("CCA", "gaussian"),
        ("temperature", "theory gaussian train"),
        ("install", "intro"),
        ("beta", "intro beta train"),
        ("beta_at", "api/losses"),
        ("typeface", "data"),
        ("residual information", "glossary"),
        ("several gpus", "scaling"),
    ],
)
def test_the_search_lists_the_right_page_among_its_first_three(page, home, query, right):
    places, quotations = found(page, home, query)
    assert {f"book/{name}.html" for name in right.split()} & set(places[:3]), places[:5]
    assert quotations and not re.search(r"\\[(\[a-zA-Z]", "".join(quotations))


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("address", ["search.html?q=beta", "genindex.html", "py-modindex.html"])
def test_search_and_index_fit_the_window_without_barriers(page, home, address, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"{home}/{address}")
    if "search" in address:
        page.wait_for_function("/^Search finished/.test(Search.status?.innerText)")
        icon = page.locator(".bd-search-container .fa-magnifying-glass").bounding_box()
        text = "e => e.getBoundingClientRect().x + parseFloat(getComputedStyle(e).paddingLeft)"
        start = page.locator(".bd-search-container input").evaluate(text)
        assert icon["x"] + icon["width"] <= start
    assert page.evaluate(WIDE) == []
    assert barriers(page, {"include": [["main"]]}) == []


def test_the_map_shows_the_cell_that_its_controls_and_its_address_name(page, home):
    page.goto(f"{home}/book/between.html")
    page.wait_for_selector("#between svg .chosen")
    data = json.loads(page.inner_text("#between-data"))
    told = set()
    for key in ("Home", "ArrowRight", "End"):
        for control in ("pairs", "nuisance"):
            page.focus(f"#between-{control}")
            page.keyboard.press(key)
            axes = zip((data["pairs"], data["nuisances"]), ("pairs", "nuisance"), strict=True)
            place = [axis[int(page.input_value(f"#between-{name}"))] for axis, name in axes]
            (cell,) = (c for c in data["cells"] if [c["pairs"], c["nuisance"]] == place)
            summary = page.inner_text("#between-summary")
            assert f"{place[0]:,} pairs, nuisance scale {place[1]:g}" in summary
            assert (f"{cell['best']} is best" in summary) == (cell["best"] != "CLIP")
            told.add(summary)
    assert len(told) == 6
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector("#between svg .chosen")
    assert page.inner_text("#between-summary") == summary


@pytest.fixture(scope="module")
def drawing(page, home):
    """The page with models in it, which were asked for by keyboard, and all that it transferred."""
    context = page.context.browser.new_context(viewport={"width": DESK, "height": 800})
    page = context.new_page()
    page.messages, answers = [], []
    page.on("console", lambda message: page.messages.append(message))
    page.on("pageerror", lambda error: page.messages.append(error))
    page.on("response", lambda answer: answers.append(answer))
    page.goto(f"{home}/book/draw.html")
    page.add_style_tag(content=STILL)
    assert not [a.url for a in answers if "/draw/" in a.url]  # nothing before it is asked for
    page.focus("#draw-load")
    page.keyboard.press("Enter")
    page.wait_for_selector("#draw-progress:visible")
    page.wait_for_selector("#draw-names output:not(:empty)", timeout=180_000)
    page.transferred = {answer.url: answer.body() for answer in answers}
    yield page
    context.close()


def first_names(page):
    """The name that each model ranks first, once the page has answered."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    return page.locator("#draw-names li:first-child span:nth-child(2)").all_inner_texts()


def draw_line(page, *points):
    """A stroke with the mouse through points of the 32 by 32 square."""
    page.locator("#draw-canvas").scroll_into_view_if_needed()
    box = page.locator("#draw-canvas").bounding_box()
    places = [
        (box["x"] + x * box["width"] / 32, box["y"] + y * box["height"] / 32) for x, y in points
    ]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=3)
    page.mouse.up()


IN_THE_PAGE = """async ([images, texts]) => {
    const parts = [];
    const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
    window.cibrPart = (i, text) => { parts[i] = bytes(text); };
    const { scripts } = JSON.parse(document.getElementById("draw-data").textContent);
    for (const src of scripts) await new Promise(onload => {
        document.head.append(Object.assign(document.createElement("script"), { src, onload }));
    });
    const { arrays, models, tokenizer } = await cibrModel.unpack(parts);
    const tokenize = cibrModel.tokenizer(tokenizer), times = [], found = {};
    for (const name of models) {
        const own = Object.entries(arrays).filter(([key]) => key.startsWith(`${name}/`));
        const stripped = own.map(([key, values]) => [key.slice(name.length + 1), values]);
        const model = cibrModel.encoder(Object.fromEntries(stripped));
        const vectors = images.map(grey => {
            const start = performance.now(), vector = model.image(grey);
            times.push(performance.now() - start);
            return vector;
        });
        const ends = texts.map(text => model.text(tokenize(text)));
        found[name] = vectors.map(vector => ends.map(end => cibrModel.cosine(vector, end)));
    }
    return { ids: texts.map(tokenize), cosines: found, fastest: Math.min(...times) };
}"""
ODD_TEXTS = ["", "  ", "a", "don't STOP, it's 3rd", "\u0130STANBUL \u03a3\u0391\u03a3"]
ODD_TEXTS += ["a  b\t\nc  ", "caf\u00e9 e\u0301", "x\u0085y \ufeff z", "<end> and <pad>"]
ODD_TEXTS += ["<END>", "\U0001f600 smiling", "word " * 100, "\ufb01 \u00bd \u00b2"]
ODD_TEXTS += ["1234 56.78", "-\u2014\u2026", "\u65e5\u672c", "\u200dzero\u00a0nbsp"]
ODD_TEXTS += ["\u00df \u1e9e \u01c4", "a letter with an accent"]


def test_the_models_in_the_page_are_those_of_python(drawing):
    pairs = varied_glyphs(120)
    texts = [*(texts[0] for texts in pairs.captions), *ODD_TEXTS]
    images = [np.asarray(image.convert("L")).ravel().tolist() for image in pairs.images()]
    found = drawing.evaluate(IN_THE_PAGE, [images, texts])
    for name, folder in draw.MODELS.items():
        model = DualEncoder.from_pretrained(folder)
        ids, mask = model.tokenize(texts, truncate=True)
        n_tokens = mask.sum(1).tolist()
        assert found["ids"] == [row[:n] for row, n in zip(ids.tolist(), n_tokens, strict=True)]
        exact = model.embed_images(pairs.images()) @ model.embed_texts(texts, truncate=True).T
        assert np.abs(np.array(found["cosines"][name]) - exact.numpy()).max() < 1e-3
    assert found["fastest"] < 100  # ms an image


def test_the_models_take_less_than_four_megabytes_from_here_alone(drawing, home):
    bodies = drawing.transferred.values()
    n_bytes = sum(min(len(body), len(gzip.compress(body))) for body in bodies)
    assert 3_000_000 < n_bytes < 4_000_000
    messages = [m for m in drawing.messages if getattr(m, "type", "error") in ("error", "warning")]
    assert [str(m) for m in messages] == []
    assert [u for u in drawing.transferred if not u.startswith((home, "data:", "blob:"))] == []


def test_names_follow_a_drawing_by_mouse_and_by_keyboard(drawing):
    drawing.click("#draw-plain")
    drawing.click("#draw-clear")
    drawing.wait_for_selector("#draw-names", state="hidden")
    draw_line(drawing, (16, 8), (16, 24))
    one = first_names(drawing)
    draw_line(drawing, (8, 16), (24, 16))
    cross = first_names(drawing)
    assert len(one) == len(cross) == 2 and one != cross
    drawing.click("#draw-undo")
    assert first_names(drawing) == one
    drawing.click("#draw-clear")
    drawing.focus("#draw-canvas")  # the pen is in the middle
    for key in ("ArrowUp",) * 8 + (" ",) + ("ArrowDown",) * 16 + (" ",):
        drawing.keyboard.press(key)
    assert first_names(drawing) == one
    assert "Pen up, 16 across, 24 down" in drawing.inner_text("#draw-pen")
    drawing.keyboard.press("Tab")
    assert drawing.evaluate("document.activeElement.id") == "draw-undo"
    drawing.keyboard.press("Shift+Tab")
    assert drawing.evaluate("document.activeElement.id") == "draw-canvas"


def test_a_change_of_style_moves_the_answers_and_the_plain_style_brings_them_back(drawing):
    drawing.select_option("#draw-pick", label="R latin capital letter r")
    drawing.click("#draw-plain")
    first_names(drawing)
    plain = drawing.inner_text("#draw-names")
    drawing.check("[name=draw-typeface][value='0']", force=True)
    assert first_names(drawing) == ["latin capital letter r"] * 2
    for factor, level in dict(typeface=3, weight=1, slant=1, size=2, ink=1).items():
        before = drawing.inner_text("#draw-names")
        drawing.focus(f"[name=draw-{factor}]:checked")
        drawing.check(f"[name=draw-{factor}][value='{level}']", force=True)
        first_names(drawing)
        assert drawing.inner_text("#draw-names") != before
    drawing.focus("#draw-down")
    drawing.keyboard.press("ArrowRight")
    first_names(drawing)
    assert "cosine with the plain image 0." in drawing.inner_text("#draw-names")
    drawing.wait_for_selector("#draw-said:has-text('in this style')", state="attached")
    drawing.click("#draw-plain")
    first_names(drawing)
    assert drawing.inner_text("#draw-names") == plain
    drawing.click("#draw-all")
    drawing.wait_for_selector("#draw-tally:not(:empty)", timeout=120_000)
    assert len(re.findall(r"\d+ of 48 styles", drawing.inner_text("#draw-tally"))) == 4


def test_any_text_finds_characters_and_a_found_one_shows_its_names(drawing):
    drawing.fill("#draw-query", "Black Heart Suit")
    drawing.wait_for_selector("#draw-found li.right")
    assert drawing.locator("#draw-found li").count() == 16
    drawing.wait_for_selector("#draw-found-said:has-text('rank')", state="attached")
    drawing.locator("#draw-found li.right button").first.click()
    assert first_names(drawing) == ["black heart suit"] * 2
    assert drawing.locator("#draw-factors fieldset:disabled").count() == 4
    drawing.fill("#draw-query", "a letter with \U0001f600")
    drawing.wait_for_selector("#draw-found-said:has-text('not a name')", state="attached")
    assert drawing.locator("#draw-found li.right").count() == 0


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_drawing_page_in_use_is_without_barriers_and_no_wider_than_the_window(
    drawing, theme, width
):
    drawing.set_viewport_size({"width": width, "height": 800})
    drawing.evaluate(SHOW, theme)
    drawing.select_option("#draw-pick", label="R latin capital letter r")
    drawing.fill("#draw-query", "arrow")
    drawing.wait_for_selector("#draw-found li")
    assert drawing.evaluate(WIDE) == []
    assert barriers(drawing, {"include": [["#draw-page"]]}) == []
    if width == PHONE:  # canvas and names together, so that both are seen while drawing
        top = drawing.locator("#draw-canvas").bounding_box()["y"]
        end = drawing.locator("#draw-names").bounding_box()
        assert end["y"] + end["height"] - top < 844


def test_the_models_load_from_a_file_too(page, built):
    page.goto(f"file://{built[0]}/book/draw.html")
    page.click("#draw-load")
    page.wait_for_selector("#draw-names output:not(:empty)", timeout=180_000)
    assert len(first_names(page)) == 2


def test_a_term_of_the_glossary_shows_its_meaning_in_plain_words_on_hover(built):
    pages = [built[0] / f"{name}.html" for name in PAGES if name != "book/glossary"]
    links = re.findall(r"<a [^>]*#term-[^>]*>", "".join(p.read_text("utf-8") for p in pages))
    titles = {title for link in links for title in re.findall(r'title="([^"]*)"', link)}
    assert len(titles) > 5
    assert all(re.fullmatch(r"[^\\{}\d]{15,}\.", title) for title in titles), titles
