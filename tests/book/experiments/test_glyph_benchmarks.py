"""Glyph benchmarks: labels are true by an independent reference, and training saw none of it."""

import hashlib
import json
import unicodedata

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from cibr.data import load_pairs
from cibr.data.glyphs import glyph_characters
from cibr_book.experiments.glyph_benchmarks import GLYPH_BENCHMARKS, load_glyph_benchmark

SPLITS = ("validation", "test")
NAMES = ("glyph_digits", *GLYPH_BENCHMARKS)
# Of everything that is not pixels. After a wanted change, put the digest of the failure here.
DIGEST = "b129b21ba79c3c5587da2671a2c9dc97081947c234bfb979a3e75edf0835fc66"


@pytest.fixture(scope="module")
def loaded():
    """All sets in both splits."""
    return {(name, split): load_glyph_benchmark(name, split) for name in NAMES for split in SPLITS}


def of_characters(loaded, name):
    """(class name, character) of every image of a set."""
    for split in SPLITS:
        pairs = loaded[name, split]
        yield from zip(pairs.texts(), pairs.factors["character"], strict=True)


def test_keys_classes_and_factors_are_the_same_everywhere(loaded):
    digest = hashlib.sha256()
    for (name, split), pairs in loaded.items():
        rows = [] if pairs.factors is None else pairs.factors.astype(str).values.tolist()
        content = [name, split, pairs.keys, pairs.labels.tolist(), pairs.classnames]
        digest.update(json.dumps([*content, pairs.templates, rows]).encode())
    assert digest.hexdigest() == DIGEST


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_every_class_has_an_image_and_every_image_the_name_of_its_class(loaded, name, split):
    pairs = load_pairs(name, split)
    assert pairs.keys == loaded[name, split].keys and len(set(pairs.keys)) == len(pairs) >= 200
    counts = np.bincount(pairs.labels, minlength=len(set(pairs.classnames)))
    assert counts.min() > 0 and (name == "glyph_digits" or counts.max() <= 100)
    assert pairs.captions == [[pairs.classnames[label].lower()] for label in pairs.labels]


@pytest.mark.parametrize("name", GLYPH_BENCHMARKS)
def test_characters_are_seen_in_training_and_typefaces_are_not(loaded, name):
    seen = set(glyph_characters().query("group == 'seen'")["character"])
    assert {character for _, character in of_characters(loaded, name)} <= seen
    trained = set(load_pairs("glyphs").factors["typeface"])
    assert all(trained.isdisjoint(loaded[name, s].factors["typeface"]) for s in SPLITS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_no_image_comes_under_two_classes_and_all_have_ink(loaded, name, split):
    pairs = loaded[name, split]
    class_of = {}
    for image, classname in zip(pairs.images(), pairs.texts(), strict=True):
        assert class_of.setdefault(image.tobytes(), classname) == classname
        low, high = image.getextrema()[0]
        assert high - low > 30 and image.size == (32, 32) and image.mode == "RGB"


def test_a_letter_is_the_character_of_its_class_name(loaded):
    for classname, character in of_characters(loaded, "glyph_letters"):
        assert unicodedata.lookup(classname) == character


def test_handwritten_digits_are_scikit_learns_dark_on_light_each_in_one_split(loaded):
    digits = load_digits()
    numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    parts = [loaded["glyph_digits", split] for split in SPLITS]
    shown = [image for pairs in parts for image in pairs.images()]
    assert parts[0].texts() + parts[1].texts() == [f"digit {numbers[i]}" for i in digits.target]
    for image, original in zip(shown, digits.images, strict=True):
        small = image.convert("L").crop((6, 6, 26, 26)).resize((8, 8), Image.Resampling.BOX)
        ink = 255 - np.asarray(small, dtype=float)
        assert np.corrcoef(ink.ravel(), original.ravel())[0, 1] > 0.9
