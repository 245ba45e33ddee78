"""Glyphs: the same characters, captions, factors and splits on every machine, and nearly the same
pixels.
"""

import hashlib
import json

import numpy as np
import pytest
import torch

from cibr.data import glyphs
from cibr.data.glyphs import SPLITS, TEMPLATES, glyph_characters, load_glyphs

# Of everything that is not pixels. After a wanted change, put the digest that the failure prints
# here.
DIGEST = "da4019dce2c26b14a082d447ee41004622395d5b6baea49339eb840b79a33efe"

# Mean grey of 8 x 8 blocks of 4 x 4 pixels of "A" in DejaVu Serif, as the plain splits draw it.
POOLED = [
    [255, 255, 255, 255, 255, 255, 255, 255],
    [255, 255, 255, 230, 243, 255, 255, 255],
    [255, 255, 255, 119, 147, 255, 255, 255],
    [255, 255, 245, 165, 83, 255, 255, 255],
    [255, 255, 166, 174, 81, 214, 255, 255],
    [255, 255, 161, 255, 217, 121, 255, 255],
    [255, 237, 195, 255, 226, 191, 246, 255],
    [255, 255, 255, 255, 255, 255, 255, 255],
]


@pytest.fixture(scope="module")
def drawn():
    """All splits."""
    return {split: load_glyphs(split) for split in SPLITS}


def canonical_text(drawn):
    """Everything that decides characters, captions, factors and splits, one JSON line a sample."""
    for split in SPLITS:
        pairs = drawn[split]
        rows = pairs.factors.itertuples(index=False)
        for key, captions, label, row in zip(
            pairs.keys, pairs.captions, pairs.labels, rows, strict=True
        ):
            yield json.dumps([split, key, captions, int(label), *map(str, row)]) + "\n"


def test_characters_captions_factors_and_splits_are_the_same_everywhere(drawn):
    found = hashlib.sha256("".join(canonical_text(drawn)).encode()).hexdigest()
    assert found == DIGEST, (
        f"captions, factors or splits changed; if that is wanted: DIGEST = {found!r}"
    )


def test_pixels_differ_little_between_freetype_versions():
    pixels = np.asarray(glyphs.draw_glyph("A", "DejaVuSerif.ttf"), dtype=float)
    pooled = pixels.reshape(8, 4, 8, 4).mean((1, 3)).round().astype(int)
    # Half a pixel of hinting along an edge moves the mean of a 4 x 4 block by 255 / 8.
    assert np.abs(pooled - np.array(POOLED)).max() <= 32, pooled.tolist()


def test_train_varies_every_factor(drawn):
    varied = drawn["train"].factors.nunique()
    assert (varied > 1).all() and varied["template"] == len(TEMPLATES)


def test_captions_are_the_names_in_their_templates(drawn):
    pairs = drawn["train"]
    rows = pairs.factors[["name", "template"]].itertuples(index=False)
    for caption, (name, template) in zip(pairs.texts(), rows, strict=True):
        assert caption == TEMPLATES[template].format(name) and name == name.lower()
    assert {texts[0] for texts in drawn["test"].captions} <= set(glyph_characters()["name"])


def test_held_out_characters_and_unseen_faces_stay_out_of_training(drawn):
    characters = {split: set(drawn[split].factors["character"]) for split in SPLITS}
    seen = characters["train"] | characters["validation"] | characters["test"]
    held_out = characters["validation_characters"], characters["test_characters"]
    assert not seen & (held_out[0] | held_out[1]) and not held_out[0] & held_out[1]
    assert min(map(len, held_out)) > 40
    assert characters["validation"] | characters["test"] <= characters["train"]
    faces = {split: set(drawn[split].factors["typeface"]) for split in SPLITS}
    assert faces["train"] == {"sans", "mono"}
    assert (faces["validation"], faces["test"]) == ({"stix"}, {"serif"})


def test_labels_are_equal_exactly_for_the_same_character(drawn):
    for split in SPLITS:
        assert [chr(label) for label in drawn[split].labels] == drawn[split].factors[
            "character"
        ].tolist()
    assert len(set(drawn["train"].keys)) == len(drawn["train"])


def test_there_is_ink_on_the_paper_of_every_image(drawn):
    for split in SPLITS:
        pairs = drawn[split]
        paper = pairs.factors["paper"].to_numpy()[:, None, None]
        faint = np.abs(pairs.load.args[0].astype(int) - paper).max((1, 2)) < glyphs.MIN_CONTRAST / 3
        assert [pairs.keys[i] for i in faint.nonzero()[0]] == []


def test_an_image_is_rgb_and_is_drawn_as_its_factors_say(drawn):
    pairs = drawn["train"]
    files = {face[:3]: face.file for face in glyphs.SANS + glyphs.MONO}
    for i in (0, 5000, len(pairs) - 1):
        character, _, _, *face_and_numbers = pairs.factors.iloc[i]
        face, numbers = tuple(face_and_numbers[:3]), map(int, face_and_numbers[3:-1])
        expected = glyphs.draw_glyph(character, files[face], *numbers).convert("RGB")
        assert pairs.image(i).mode == "RGB" and pairs.image(i).size == (32, 32)
        assert pairs.image(i).tobytes() == expected.tobytes()


def test_homoglyphs_are_there_as_real_ambiguity():
    assert torch.equal(
        *(torch.tensor(np.array(glyphs.draw_glyph(c, "DejaVuSans.ttf"))) for c in "AΑ")
    )
