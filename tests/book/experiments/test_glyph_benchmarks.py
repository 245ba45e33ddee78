"""Glyph benchmarks: labels are true by an independent reference, and training saw none of it."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from cibr.data import load_pairs
from cibr_book.experiments.glyph_benchmarks import GLYPH_BENCHMARKS

SPLITS = ("validation", "test")
NAMES = ("glyph_digits", *GLYPH_BENCHMARKS)
# Of everything that is not pixels. After a wanted change, put the digest of the failure here.
DIGEST = "b129b21ba79c3c5587da2671a2c9dc97081947c234bfb979a3e75edf0835fc66"


@pytest.fixture(scope="module")
def loaded():
    """All sets in both splits."""
    return {(name, split): load_pairs(name, split) for name in NAMES for split in SPLITS}


def test_keys_classes_and_factors_are_the_same_everywhere(loaded):
    digest = hashlib.sha256()
    for (name, split), pairs in loaded.items():
        rows = [] if pairs.factors is None else pairs.factors.astype(str).values.tolist()
        content = [name, split, pairs.keys, pairs.labels.tolist(), pairs.classnames]
        digest.update(json.dumps([*content, pairs.templates, rows]).encode())
    assert digest.hexdigest() == DIGEST


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
