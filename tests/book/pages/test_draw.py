"""The drawing: what the page loads is the shipped names and images, packed."""

import base64
import json
import re
import struct
import zlib

import numpy as np

from cibr.data import load_pairs
from cibr_book.pages import draw


def test_rows_come_back_to_twelve_bits():
    rows = np.random.default_rng(0).normal(size=(5, 300)) * [[1], [1e-4], [30], [0], [1e4]]
    packed = draw._pack_rows(rows)
    scales, levels = np.frombuffer(packed[:20], "<f4"), np.frombuffer(packed[20:], "<i2")
    error = np.abs(scales[:, None] * levels.reshape(5, 300) - rows).max(1)
    assert (error <= np.abs(rows).max(1) / (2**12 - 2) * 1.001).all()


def test_the_page_knows_test_images_under_their_names(tmp_path):
    draw.write_script(tmp_path)
    script = (tmp_path / "draw" / "weights.js").read_text()
    content = zlib.decompress(base64.b64decode(re.fullmatch(r'cibrDrawing\("(.*)"\)\n', script)[1]))
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
