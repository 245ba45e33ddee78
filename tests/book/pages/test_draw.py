"""The drawing: what the page loads is the shipped models, names and images, packed."""

import base64
import json
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cibr.data import glyphs, load_pairs
from cibr.models import DualEncoder
from cibr_book.pages import draw


@pytest.fixture(scope="module")
def data():
    """What the page is told beside the weights."""
    return json.loads(re.search(r'id="draw-data">(.*?)</script>', draw.as_page())[1])


def test_rows_come_back_to_twelve_bits():
    rows = np.random.default_rng(0).normal(size=(5, 300)) * [[1], [1e-4], [30], [0], [1e4]]
    packed = draw.pack_rows(rows)
    scales, levels = np.frombuffer(packed[:20], "<f4"), np.frombuffer(packed[20:], "<i2")
    error = np.abs(scales[:, None] * levels.reshape(5, 300) - rows).max(1)
    assert (error <= np.abs(rows).max(1) / (2**12 - 2) * 1.001).all()


def test_the_page_knows_test_images_under_their_names(tmp_path, data):
    draw.write_script(tmp_path)
    script = (tmp_path / "draw" / "weights.js").read_text()
    content = zlib.decompress(base64.b64decode(re.fullmatch(r'cibrDrawing\("(.*)"\)\n', script)[1]))
    assert [re.sub(r"\?v=.*", "", address) for address in data["scripts"]] == [
        "../_static/draw_model.js",
        "../_static/draw/weights.js",
    ]
    (length,) = struct.unpack_from("<I", content)
    names = json.loads(content[4 : 4 + length])["names"]
    pixels = np.frombuffer(content, np.uint8, len(names) * 1024, 4 + length)
    pairs = load_pairs("glyphs", "test")
    images = {texts[0]: image for texts, image in zip(pairs.captions, pairs.images(), strict=True)}
    assert len(set(names)) == len(names) > 1000
    for name, image in zip(names, pixels.reshape(-1, 32, 32), strict=True):
        assert (np.asarray(images[name].convert("L")) == image).all()
    for value, name in re.findall(r'value="(\d+)">\S+ ([^<]*)<', draw.as_page()):
        assert names[int(value)] == name


def test_white_ink_leaves_most_first_names_and_a_capital_h_has_three_names():
    pairs = draw.known_pairs()
    names = pairs.factors["name"].tolist()
    plain = [image.convert("L") for image in pairs.images()]
    inverted = [Image.fromarray(255 - np.asarray(image)) for image in plain]
    for folder in draw.MODELS.values():
        model = DualEncoder.from_pretrained(folder)
        texts = model.embed_texts(names).T
        first, after = ((model.embed_images(x) @ texts).argmax(1) for x in (plain, inverted))
        assert 0.65 < (first == after).float().mean() < 0.8
    same = [np.array_equal(image, plain[names.index("latin capital letter h")]) for image in plain]
    scripts = [name.split()[0] for name, is_same in zip(names, same, strict=True) if is_same]
    assert scripts == ["latin", "greek", "cyrillic"]


def test_guides_are_the_rows_of_a_capital_and_a_small_letter(data):
    top, middle, line = data["guides"]
    letters = glyphs.glyph_characters().query("character in ['E', 'z']")
    plain = glyphs.sample_factors(letters, glyphs.SERIF[:1])
    for image, first in zip(glyphs.draw_all(plain), (top, middle), strict=True):
        rows = np.flatnonzero((image < 128).any(1))
        assert abs(rows[0] - first) <= 1 and abs(rows[-1] + 1 - line) <= 1
