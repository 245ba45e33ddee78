"""Glyphs: the same characters, captions, factors and splits on every machine, and nearly the same
pixels.
"""

import hashlib
import json

import numpy as np
import pytest

from cibr.data import DATASETS, load_pairs
from cibr.data.glyphs import STIX, TEMPLATES, draw_all, glyph_characters, sample_factors

# Of everything that is not pixels. After a wanted change, put the digest that the failure prints
# here.
DIGEST = "da4019dce2c26b14a082d447ee41004622395d5b6baea49339eb840b79a33efe"

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


def pixels(pairs, character):
    """The first image of a character, in grey levels."""
    i = pairs.factors["character"].tolist().index(character)
    return np.asarray(pairs.image(i).convert("L"), dtype=float)


def canonical_text(drawn):
    """Everything that decides characters, captions, factors and splits, one JSON line a sample."""
    for split, pairs in drawn.items():
        rows = pairs.factors.itertuples(index=False)
        for sample in zip(pairs.keys, pairs.captions, pairs.labels, rows, strict=True):
            key, captions, label, row = sample
            yield json.dumps([split, key, captions, int(label), *map(str, row)]) + "\n"


def test_characters_captions_factors_and_splits_are_the_same_everywhere(drawn):
    digest = hashlib.sha256("".join(canonical_text(drawn)).encode()).hexdigest()
    assert digest == DIGEST, f"if captions, factors or splits shall change: DIGEST = {digest!r}"


def test_pixels_differ_little_between_freetype_versions(drawn):
    pooled = pixels(drawn["test"], "A").reshape(8, 4, 8, 4).mean((1, 3))
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


def test_train_varies_every_factor_and_the_other_splits_none(drawn):
    varied = drawn["train"].factors.nunique()
    assert (varied > 1).all()
    assert varied["template"] == len(TEMPLATES)
    for split in ("validation", "test", "validation_characters", "test_characters"):
        plain = drawn[split].factors[["size", "x", "y", "ink", "paper", "template"]]
        assert (plain == [24, 0, 0, 0, 255, 0]).all(axis=None)


def test_more_draws_add_samples_and_keep_the_first():
    once, thrice = (sample_factors(glyph_characters()[:5], STIX[:1], n) for n in (1, 3))
    assert len(once) * 3 == len(thrice.drop_duplicates())
    assert thrice[::3].reset_index(drop=True).equals(once)


def test_captions_are_the_names_in_their_templates(drawn):
    pairs = drawn["train"]
    rows = pairs.factors[["name", "template"]].itertuples(index=False)
    for caption, (name, template) in zip(pairs.texts(), rows, strict=True):
        assert caption == TEMPLATES[template].format(name)
    assert set(drawn["test"].texts()) <= set(glyph_characters()["name"])


def test_held_out_characters_and_unseen_faces_stay_out_of_training(drawn):
    characters = {split: set(pairs.factors["character"]) for split, pairs in drawn.items()}
    held_out = [characters["validation_characters"], characters["test_characters"]]
    assert not held_out[0] & held_out[1]
    for part in held_out:
        assert len(part) > 40
        assert not part & characters["train"]
    assert characters["validation"] | characters["test"] <= characters["train"]
    faces = {split: set(pairs.factors["typeface"]) for split, pairs in drawn.items()}
    assert faces["train"] == {"sans", "mono"}
    assert (faces["validation"], faces["test"]) == ({"stix"}, {"serif"})


def test_labels_are_equal_exactly_for_the_same_character(drawn):
    for pairs in drawn.values():
        assert [chr(label) for label in pairs.labels] == pairs.factors["character"].tolist()
    assert len(set(drawn["train"].keys)) == len(drawn["train"])


def test_there_is_ink_on_the_paper_of_every_image(drawn):
    for pairs in drawn.values():
        paper = pairs.factors["paper"].to_numpy()[:, None, None]
        contrast = np.abs(draw_all(pairs.factors) - paper.astype(int)).max((1, 2))
        assert contrast.min() > 32


def test_an_image_is_rgb_and_is_drawn_as_its_factors_say(drawn):
    pairs = drawn["train"]
    for i in (0, 5000, len(pairs) - 1):
        grey = draw_all(pairs.factors.iloc[[i]])[0]
        assert pairs.image(i).mode == "RGB"
        assert np.array_equal(pairs.image(i), np.stack([grey] * 3, axis=-1))


def test_homoglyphs_are_there_as_real_ambiguity(drawn):
    assert np.array_equal(pixels(drawn["test"], "A"), pixels(drawn["test"], "Α"))
