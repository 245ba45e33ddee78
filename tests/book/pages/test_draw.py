"""The drawing page: what it loads is the shipped models, their images and styles, packed."""

import base64
import json
import re
import struct
import unicodedata
import zlib
from itertools import product

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cibr.data import glyphs, load_pairs
from cibr.models import DualEncoder
from cibr_book.pages import draw


@pytest.fixture(scope="module")
def unpacked():
    """The header and the arrays, read as the page's script reads them."""
    content = zlib.decompress(draw.payload())
    (length,) = struct.unpack_from("<I", content)
    header = json.loads(content[4 : 4 + length])
    at = 4 + length
    arrays = {}
    for name, kind, rows, columns in header["arrays"]:
        n_bytes = rows * columns if kind == "bytes" else rows * (4 + 2 * columns)
        part = content[at : at + n_bytes]
        at += n_bytes
        if kind == "bytes":
            arrays[name] = np.frombuffer(part, np.uint8).reshape(rows, columns)
        else:
            arrays[name] = read_rows(part, rows, columns)
    assert at == len(content)
    return header, arrays


def read_rows(part, n_rows, n_columns):
    scales = np.frombuffer(part, "<f4", n_rows)
    low, high = np.frombuffer(part, np.uint8, offset=4 * n_rows).reshape(2, n_rows, n_columns)
    return scales[:, None] * (256.0 * high.astype(np.int8) + low)


def test_rows_come_back_to_the_bits_that_were_asked_for():
    rows = np.random.default_rng(0).normal(size=(5, 300)) * [[1], [1e-4], [30], [0], [1e4]]
    for bits in (8, 11, 16):
        packed = draw.pack_rows(rows, bits)
        assert len(packed) == 5 * (4 + 2 * 300)
        error = np.abs(read_rows(packed, 5, 300) - rows).max(1)
        bound = np.abs(rows).max(1) / (2**bits - 2)
        assert (error <= bound * 1.001).all() and (error >= bound * 0.5)[:3].all()


def test_characters_cut_from_the_masks_are_those_that_the_glyph_world_draws(unpacked):
    header, arrays = unpacked
    side = glyphs.IMAGE_SIZE
    wide = side + 2 * draw.SHIFT
    masks = arrays["masks"].reshape(-1, wide, wide)
    order = [header[key] for key in ("styled", "typefaces", "weights", "slants", "sizes")]
    styles = [*product(*order)]
    assert len(masks) == len(styles)
    columns = ["character", "typeface", "weight", "slant", "size"]
    factors = pd.DataFrame(styles, columns=columns)
    rng = np.random.default_rng(0)
    factors[["x", "y"]] = rng.integers(-draw.SHIFT, draw.SHIFT + 1, (len(factors), 2))
    factors["ink"] = rng.integers(0, 2, len(factors)) * 255
    factors["paper"] = 255 - factors["ink"]
    drawn = glyphs.draw_all(factors)
    for mask, row, image in zip(masks, factors.itertuples(), drawn, strict=True):
        top = draw.SHIFT - row.y
        left = draw.SHIFT - row.x
        cut = mask[top : top + side, left : left + side]
        assert (image == (cut if row.ink else 255 - cut)).all()


def test_the_page_knows_test_images_with_their_names_and_embeddings(unpacked):
    header, arrays = unpacked
    pairs = load_pairs("glyphs", "test")
    rows = {character: i for i, character in enumerate(pairs.factors["character"])}
    kept = [rows[character] for character in header["characters"]]
    assert len(set(kept)) == len(kept) > 1000 and set(header["styled"]) <= set(rows)
    named = [unicodedata.name(character).lower() for character in header["characters"]]
    assert header["names"] == named
    images = [pairs.image(i) for i in kept]
    grey = np.stack([np.asarray(image.convert("L")).ravel() for image in images])
    assert (arrays["pixels"] == grey).all()
    texts = named[::40]
    for name, folder in draw.MODELS.items():
        model = DualEncoder.from_pretrained(folder)
        ends = model.embed_texts(texts).numpy().T
        exact = model.embed_images(images).numpy() @ ends
        assert np.abs(arrays[f"{name}/images"] @ ends - exact).max() < 1e-3


def test_the_scripts_hand_on_the_whole_payload_in_order_and_the_page_names_them():
    scripts = draw.scripts()
    calls = [re.fullmatch(r'cibrPart\((\d+),"([^"]+)"\)\n', s) for s in scripts.values()]
    assert [int(call[1]) for call in calls] == [*range(len(scripts))]
    assert b"".join(base64.b64decode(call[2]) for call in calls) == draw.payload()
    page = draw.as_page()
    data = json.loads(re.search(r'id="draw-data">(.*?)</script>', page)[1])
    named = [re.sub(r"\?v=[0-9a-f]{8}$", "", address) for address in data["scripts"]]
    files = ["draw_model.js", *(f"draw/{name}" for name in scripts)]
    assert named == [f"../_static/{name}" for name in files]
    assert page.count("<option") == 1 + len(draw.STYLED) and "Try all 96 styles" in page


def first_names(model, names, **style):
    plain = dict(typeface="sans", weight="regular", slant="upright", size=24)
    plain |= dict(ink=0, paper=255, x=0, y=0)
    factors = pd.DataFrame([{"character": character} | plain | style for character in draw.STYLED])
    images = [Image.fromarray(image) for image in glyphs.draw_all(factors)]
    return (model.embed_images(images) @ model.embed_texts(names).T).argmax(1).numpy()


def test_what_training_varied_hardly_moves_the_first_name_and_a_new_typeface_mostly_does():
    names = draw.known_pairs().factors["name"].tolist()
    for model in draw.models().values():
        plain = first_names(model, names)
        varied = [first_names(model, names, ink=255, paper=0), first_names(model, names, x=2, y=-2)]
        assert all((first != plain).mean() < 0.15 for first in varied)
        assert (first_names(model, names, typeface="stix") != plain).mean() > 0.5


def test_the_scores_of_the_page_count_right_names_in_every_style():
    names = draw.known_pairs().factors["name"].tolist()
    own = [names.index(unicodedata.name(character).lower()) for character in draw.STYLED]
    styles = [*product(draw.WEIGHTS, draw.SLANTS, draw.SIZES, (0, 255))]
    counts = [0, 0]
    for which, typeface in enumerate(draw.TYPEFACES):
        for weight, slant, size, ink in styles:
            style = dict(typeface=typeface, weight=weight, slant=slant, size=size)
            found = first_names(draw.models()["CLIP"], names, ink=ink, paper=255 - ink, **style)
            counts[which >= draw.N_SEEN] += int((found == own).sum())
    assert draw.right_first()["CLIP"] == tuple(counts)
    share = counts[0] / (len(draw.STYLED) * draw.N_SEEN * len(styles))
    assert f"right name comes first in {100 * share:.0f} % with CLIP and" in draw.as_page()


def test_every_face_has_every_styled_character():
    masks = draw.styled_masks()[:, draw.SHIFT : -draw.SHIFT, draw.SHIFT : -draw.SHIFT]
    columns = ["character", "typeface", "weight", "slant", "size"]
    styles = product(["\U000e0fff"], draw.TYPEFACES, draw.WEIGHTS, draw.SLANTS, draw.SIZES)
    missing = pd.DataFrame(styles, columns=columns).assign(ink=255, paper=0, x=0, y=0)
    boxes = glyphs.draw_all(missing)  # or nothing, in STIX
    same = (masks.reshape(len(draw.STYLED), *boxes.shape) == boxes).all((2, 3))
    assert not same.any()


def test_guides_are_the_rows_of_a_capital_and_a_small_letter():
    data = json.loads(re.search(r'id="draw-data">(.*?)</script>', draw.as_page())[1])
    top, middle, line = data["guides"]
    letters = glyphs.glyph_characters().query("character in ['E', 'z']")
    plain = glyphs.sample_factors(letters, glyphs.SERIF[:1])
    for image, first in zip(glyphs.draw_all(plain), (top, middle), strict=True):
        rows = np.flatnonzero((image < 128).any(1))
        assert abs(rows[0] - first) <= 1 and abs(rows[-1] + 1 - line) <= 1


def test_writing_makes_the_folder_and_every_script(tmp_path):
    draw.write_scripts(tmp_path / "a" / "draw")
    written = {file.name: file.read_text() for file in (tmp_path / "a" / "draw").iterdir()}
    assert written == draw.scripts()
