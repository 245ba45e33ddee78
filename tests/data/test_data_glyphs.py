"""Glyphs: the same characters, captions, factors and splits on every machine, and nearly the same
pixels.
"""

import hashlib
import json

import numpy as np
import pytest

from cibr.data import DATASETS, load_pairs
from cibr.data.glyphs import STIX, draw_all, glyph_characters, sample_factors

# Of everything that is not pixels. After a wanted change, put the digest that the failure prints
# here.
DIGEST = "dda9df97cb18eeb2fc1cc896cca3b10fe10ea53e25dec3bec85ce0afa1cfdbec"

# Mean grey of 8 x 8 blocks of 4 x 4 pixels of "A" in DejaVu Serif, as the plain splits draw it.
POOLED = """
255 255 255 255 255 255 255 255
255 255 255 230 243 255 255 255
255 255 255 119 147 255 255 255
255 255 245 165  83 255 255 255
255 255 166 174  81 214 255 255
255 255 161 255 217 121 255 255
255 237 195 255 226 191 246 255
255 255 255 255 255 255 255 255
"""


@pytest.fixture(scope="module")
def drawn():
    """All splits."""
    return {split: load_pairs("glyphs", split) for split in DATASETS["glyphs"].splits}


def test_characters_captions_factors_and_splits_are_the_same_everywhere(drawn):
    digest = hashlib.sha256()
    for split, pairs in drawn.items():
        rows = pairs.factors.astype(str).values.tolist()
        content = [split, pairs.keys, pairs.captions, pairs.labels.tolist(), rows]
        digest.update(json.dumps(content).encode())
    assert digest.hexdigest() == DIGEST


def test_pixels_differ_little_between_freetype_versions(drawn):
    i = drawn["test"].factors["character"].tolist().index("A")
    grey = np.asarray(drawn["test"].image(i).convert("L"), dtype=float)
    pooled = grey.reshape(8, 4, 8, 4).mean((1, 3))
    expected = np.array(POOLED.split(), dtype=float).reshape(8, 8)
    # Half a pixel of hinting along an edge moves the mean of a 4 x 4 block by 255 / 8.
    assert np.abs(pooled - expected).max() <= 32, pooled.round().tolist()


def test_a_character_is_drawn_in_the_size_place_ink_and_paper_of_its_factors():
    plain = sample_factors(glyph_characters().query("character == 'I'"), STIX[:1])
    upright, small, moved, light = (
        draw_all(plain.assign(**changes))[0]
        for changes in ({}, {"size": 18}, {"x": 2, "y": -1}, {"ink": 200, "paper": 40})
    )
    assert np.ptp(np.argwhere(small < 255), axis=0)[0] == 11  # px, 0.66 of the size
    assert ((np.argwhere(moved < 255) - np.argwhere(upright < 255)) == [-1, 2]).all()
    assert (light.min(), light.max(), upright.min()) == (40, 200, 0)
