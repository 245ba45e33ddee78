"""Glyph benchmarks: every label is true by an independent reference, and training saw none of it."""

import hashlib
import json
import unicodedata

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from cibr.data import load_pairs
from cibr.data.glyphs import glyph_characters
from cibr_book.glyph_benchmarks import GLYPH_BENCHMARKS, MAX_PER_CLASS, SPLITS, load_glyph_benchmark

NAMES = ["glyph_digits", *GLYPH_BENCHMARKS]
# By set, for validation and test: STIX has no Armenian and no Georgian.
N_CLASSES = dict(
    zip(NAMES, [(10, 10), (52, 52), (3, 5), (10, 10), (9, 9), (10, 10), (13, 13)], strict=True)
)

# Of everything that is not pixels. After a wanted change, put the digest that the failure prints
# here.
DIGEST = "b129b21ba79c3c5587da2671a2c9dc97081947c234bfb979a3e75edf0835fc66"


@pytest.fixture(scope="module")
def drawn():
    """All sets in both splits."""
    return {(name, split): load_glyph_benchmark(name, split) for name in NAMES for split in SPLITS}


def of_characters(drawn, name):
    """(class name, character) of every image of a set."""
    for split in SPLITS:
        pairs = drawn[name, split]
        yield from zip(pairs.texts(), pairs.factors["character"], strict=True)


def test_keys_classes_and_factors_are_the_same_everywhere(drawn):
    digest = hashlib.sha256()
    for name in NAMES:
        for split in SPLITS:
            pairs = drawn[name, split]
            rows = [] if pairs.factors is None else pairs.factors.astype(str).values.tolist()
            content = [
                name,
                split,
                pairs.keys,
                pairs.labels.tolist(),
                pairs.classnames,
                pairs.templates,
                rows,
            ]
            digest.update(json.dumps(content).encode())
    found = digest.hexdigest()
    assert found == DIGEST, (
        f"keys, classes or factors changed; if that is wanted: DIGEST = {found!r}"
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_class_has_an_image_and_every_image_the_name_of_its_class(drawn, name):
    for split, n_classes in zip(SPLITS, N_CLASSES[name], strict=True):
        pairs = load_pairs(name, split)
        assert pairs.keys == drawn[name, split].keys
        assert len(pairs.classnames) == len(set(pairs.classnames)) == n_classes
        counts = np.bincount(pairs.labels, minlength=n_classes)
        assert counts.min() > 0 and (name == "glyph_digits" or counts.max() <= MAX_PER_CLASS)
        assert pairs.captions == [[pairs.classnames[label]] for label in pairs.labels]
        assert all(kind == kind.lower() for kind in pairs.classnames)
        assert len(pairs) >= 200 and len(set(pairs.keys)) == len(pairs)


@pytest.mark.parametrize("name", GLYPH_BENCHMARKS)
def test_typefaces_and_characters_are_those_that_the_split_may_show(drawn, name):
    seen = set(glyph_characters().query("group == 'seen'")["character"])
    for split in SPLITS:
        assert set(drawn[name, split].factors["character"]) <= seen
    assert set(drawn[name, "validation"].factors["typeface"]) == {"stix"}
    faces = set(drawn[name, "test"].factors["typeface"])
    modern = {f"computer modern {kind}" for kind in ("roman", "sans", "typewriter")}
    assert faces == ({"serif"} | modern if name == "glyph_letters" else {"serif"})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_no_image_comes_under_two_classes_and_all_have_ink(drawn, name, split):
    pairs = drawn[name, split]
    kind_of = {}
    for image, kind in zip(pairs.images(), pairs.texts(), strict=True):
        assert kind_of.setdefault(image.tobytes(), kind) == kind
        low, high = image.getextrema()[0]
        assert high - low > 32 and image.size == (32, 32) and image.mode == "RGB"


def test_a_letter_is_the_character_of_its_class_name(drawn):
    assert all(
        unicodedata.lookup(kind) == character
        for kind, character in of_characters(drawn, "glyph_letters")
    )


def test_a_mark_is_the_one_that_unicode_takes_off_the_letter(drawn):
    accents = {"acute", "grave", "circumflex", "double acute"}
    checked = total = 0
    for kind, character in of_characters(drawn, "glyph_diacritics"):
        mark = kind.removeprefix("letter with ")
        parts = [unicodedata.name(part).lower() for part in unicodedata.normalize("NFD", character)]
        total += 1
        if len(parts) > 1:
            checked += 1
            assert parts[-1] == f"combining {mark}" + (" accent" if mark in accents else "")
    assert checked > 0.98 * total


def test_kinds_of_characters_are_as_python_has_them(drawn):
    holds = {
        "capital letter": str.isupper,
        "small letter": str.islower,
        "digit": str.isdecimal,
        "vulgar fraction": lambda c: (
            "FRACTION SLASH" in map(unicodedata.name, unicodedata.normalize("NFKC", c))
        ),
        "modifier letter": lambda c: c.isalpha() and not c.isupper(),
        "currency sign": lambda c: unicodedata.category(c) == "Sc",
        "box drawings": lambda c: 0x2500 <= ord(c) <= 0x257F,
        "mathematical sign": lambda c: not c.isalnum() and not 0x2190 <= ord(c) <= 0x21FF,
        "punctuation mark": lambda c: not c.isalnum() and not c.isspace(),
        "arrow": lambda c: not c.isalnum() and 0x2190 <= ord(c) <= 0x2BFF,
    }
    wrong = [
        pair for pair in of_characters(drawn, "glyph_categories") if not holds[pair[0]](pair[1])
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "character", "kind"),
    [
        ("glyph_arrows", "long left right double arrow", "left right arrow"),
        ("glyph_arrows", "north east white arrow", "north east arrow"),
        ("glyph_arrows", "leftwards arrow over rightwards arrow", None),
        ("glyph_arrows", "clockwise open circle arrow", None),
        ("glyph_shapes", "white square with upper left quadrant", "square"),
        ("glyph_shapes", "white diamond suit", None),
        ("glyph_shapes", "square lozenge", "square"),
    ],
)
def test_arrows_and_shapes_have_the_class_that_their_name_says_alone(name, character, kind):
    assert GLYPH_BENCHMARKS[name].classify(character, "So") == kind


def test_handwritten_digits_are_scikit_learns_dark_on_light_each_in_one_split(drawn):
    digits = load_digits()
    n_validation = len(drawn["glyph_digits", "validation"])
    numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for split, first in (("validation", 0), ("test", n_validation)):
        pairs = drawn["glyph_digits", split]
        for i, image in enumerate(pairs.images()):
            assert pairs.captions[i] == [f"digit {numbers[digits.target[first + i]]}"]
            small = image.convert("L").crop((6, 6, 26, 26)).resize((8, 8), Image.Resampling.BOX)
            ink = 255 - np.asarray(small, dtype=float)
            assert np.corrcoef(ink.ravel(), digits.images[first + i].ravel())[0, 1] > 0.9
    assert n_validation + len(drawn["glyph_digits", "test"]) == len(digits.target)
