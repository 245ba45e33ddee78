"""The page on which readers draw characters, in Chromium: two models in the page name them."""

import gzip
import re

import numpy as np
import pytest
from browser import DESK, PHONE, SHOW, STILL, WIDE, barriers

from cibr.models import DualEncoder
from cibr_book.embeddings.stimuli import varied_glyphs
from cibr_book.pages import draw


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
