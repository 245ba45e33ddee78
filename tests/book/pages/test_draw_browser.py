"""The drawing in the chapter on training, in Chromium: two models in the page name characters."""

import numpy as np
import pytest

pytest.importorskip("axe_playwright_python")
from browser import DESK, PHONE, SHOW, STILL, WIDE, barriers, errors

from cibr.models import DualEncoder
from cibr_book.embeddings.stimuli import varied_glyphs
from cibr_book.pages import draw

COSINES = """async (images) => {
    let bytes;
    window.cibrDrawing = (text) => { bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0)); };
    const src = document.querySelector("script[src*='draw/weights']").src;
    const again = Object.assign(document.createElement("script"), { src });
    await new Promise((onload) => document.head.append(Object.assign(again, { onload })));
    const { models, names, weights } = await cibrModel.unpack(bytes);
    return models.map(m => images.map(i => cibrModel.cosines(weights[m], i, names.length)));
}"""


@pytest.fixture(scope="module")
def drawing(page, home):
    """The page with both models, asked for by keyboard and nothing of them before."""
    page.goto(f"{home}/book/train.html")
    page.add_style_tag(content=STILL)
    assert not [url for url in page.requests if "/draw/" in url]
    page.focus("#draw-load")
    page.keyboard.press("Enter")
    page.wait_for_selector("#draw-names output:not(:empty)", timeout=180_000)
    assert page.evaluate("document.activeElement.id") == "draw-canvas"
    yield page
    assert errors(page, home) == []


def first_names(page):
    """The name that each model ranks first, once the page has answered."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    return page.locator("#draw-names li:first-child span").all_inner_texts()


def draw_line(page, start, end):
    """A stroke with the mouse, between points of the 32 by 32 square."""
    page.locator("#draw-canvas").scroll_into_view_if_needed()
    box = page.locator("#draw-canvas").bounding_box()
    (x, y), (to_x, to_y) = np.array([start, end]) * box["width"] / 32 + (box["x"], box["y"])
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(to_x, to_y)
    page.mouse.up()


def test_the_models_in_the_page_are_those_of_python(drawing):
    images = list(varied_glyphs(60).images())
    grey = [np.asarray(image.convert("L")).ravel().tolist() for image in images]
    found = drawing.evaluate(COSINES, grey)
    names = draw.known_pairs().factors["name"].tolist()
    for folder, cosines in zip(draw.MODELS.values(), found, strict=True):
        model = DualEncoder.from_pretrained(folder)
        exact = model.embed_images(images) @ model.embed_texts(names).T
        assert np.abs(np.array(cosines) - exact.numpy()).max() < 1e-3


def test_names_follow_a_drawing_by_mouse_and_by_keyboard(drawing):
    drawing.click("#draw-clear")
    draw_line(drawing, (16, 8), (16, 24))
    one = first_names(drawing)
    draw_line(drawing, (8, 16), (24, 16))
    assert len(one) == 2 and first_names(drawing) != one
    drawing.click("#draw-undo")
    assert first_names(drawing) == one
    drawing.click("#draw-clear")
    drawing.focus("#draw-canvas")  # the pen is in the middle
    for key in ("ArrowUp",) * 8 + (" ",) + ("ArrowDown",) * 16 + (" ",):
        drawing.keyboard.press(key)
    assert first_names(drawing) == one
    assert drawing.inner_text("#draw-pen") == "Pen up, 16 across, 24 down"
    drawing.wait_for_selector(f"#draw-said:has-text('CLIP: {one[0]}')", state="attached")


@pytest.mark.parametrize(("width", "theme"), [(PHONE, "light"), (DESK, "dark")])
def test_a_printed_character_is_named_without_barriers_in_either_polarity(drawing, width, theme):
    drawing.set_viewport_size({"width": width, "height": 844})
    drawing.evaluate(SHOW, theme)
    drawing.select_option("#draw-pick", label="Q latin capital letter q")
    assert first_names(drawing) == ["latin capital letter q"] * 2
    before = drawing.inner_text("#draw-names")
    drawing.check("#draw-white")
    first_names(drawing)
    assert drawing.inner_text("#draw-names") != before
    drawing.uncheck("#draw-white")
    assert drawing.evaluate(WIDE) == []
    assert barriers(drawing, {"include": [["#draw-page"]]}) == []
