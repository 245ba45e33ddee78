"""Zero-shot benchmarks for glyphs, from letters to handwritten digits.

Seven data sets for models trained on glyphs, without a download. Class names use the words of the
Unicode names. All sets except the digits show typefaces unseen in training: STIX in `validation`,
DejaVu Serif in `test`, plus Computer Modern for letters. Characters held out from training are
excluded, and so are those that a face renders identically to one of another class, such as Latin A
and Greek Alpha among the scripts. The digits are handwritten, from scikit-learn; their first half
is for validation.
"""

import re
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pandas as pd
import torch
from PIL import Image

from cibr.data import DATASETS, Dataset, glyphs
from cibr.data.glyphs import FACES, IMAGE_SIZE, SERIF, STIX, TEMPLATES, Face, pixel_image
from cibr.data.pairs import Pairs

_COMPUTER_MODERN = (  # for Latin letters only: other code points follow TeX's encodings
    Face("computer modern roman", "regular", "upright", "cmr10.ttf"),
    Face("computer modern roman", "bold", "upright", "cmb10.ttf"),
    Face("computer modern sans", "regular", "upright", "cmss10.ttf"),
    Face("computer modern typewriter", "regular", "upright", "cmtt10.ttf"),
)
_DIGIT_SIZE = 20  # px, about the height of a printed digit at 27 px
_MAX_PER_CLASS = 100
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
# Keys, class names, pixels and factors of a set's images.
_Samples = tuple[list[str], list[str], np.ndarray, pd.DataFrame | None]
_WAY = (
    r"\b(?:leftwards|rightwards|upwards|downwards|left right|up down"
    r"|north east|north west|south east|south west)\b"
)
_SHAPE = r"\b(?:square|rectangle|parallelogram|triangle|circle|diamond|suit|note|face)\b"
_MARK = (
    "acute|grave|circumflex|diaeresis|tilde|caron|breve|macron|cedilla|ogonek"
    "|dot above|ring above|double acute"
)
# The classes of each set: a pattern of a character's category and Unicode name in lower case, and
# the class name. The first pattern that matches counts.
GLYPH_BENCHMARKS = {
    "glyph_letters": {r"L. (latin (?:capital|small) letter [a-z])": r"\1"},
    "glyph_scripts": {r"L[ulo] (latin|greek|cyrillic|armenian|georgian) .*": r"\1 letter"},
    "glyph_categories": {
        "Lu .*capital letter.*": "capital letter",
        "Ll .*small letter.*": "small letter",
        "Lm modifier letter.*": "modifier letter",
        r"Nd .*\bdigit\b.*": "digit",
        ".. vulgar fraction.*": "vulgar fraction",
        "P. .*": "punctuation mark",
        "Sc .*": "currency sign",
        r"S[om] .*\barrow\b.*": "arrow",
        "Sm .*": "mathematical sign",
        ".. box drawings.*": "box drawings",
    },
    # A name with two shapes or two directions has no class.
    "glyph_shapes": {rf"So (?!.*\barrow\b|.*({_SHAPE}).*(?!\1){_SHAPE}).*({_SHAPE}).*": r"\2"},
    "glyph_arrows": {
        rf".. (?!.*{_WAY}.*{_WAY})(?:long )?({_WAY}) (?:.* )?arrow\b.*": r"\1 arrow",
    },
    "glyph_diacritics": {rf"L[ul] .* letter .* with ({_MARK})": r"letter with \1"},
}


def _load(name: str, split: str) -> Pairs:
    """Renders one split of a zero-shot set.

    Args:
        name: ``glyph_digits`` or one of `GLYPH_BENCHMARKS`.
        split: ``validation`` or ``test``.

    Returns:
        Pairs with `labels`, `classnames` (those with an image in the split), `templates` and,
        except for the handwritten digits, `factors` as in `load_glyphs`. The caption of an image is
        its class name.
    """
    found = _digits(split) if name == "glyph_digits" else _characters(name, split)
    keys, classes, pixels, factors = found
    classnames = sorted(set(classes))
    pairs = Pairs(name, split, [[each] for each in classes], keys, partial(pixel_image, pixels))
    templates = [template.format("{c}") for template in TEMPLATES]
    labels = torch.tensor([classnames.index(each) for each in classes])
    about = dict(labels=labels, classnames=classnames, templates=templates, factors=factors)
    return replace(pairs, **about)


def _digits(split: str) -> _Samples:
    """The handwritten digits, dark on light."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    half = len(digits.target) // 2
    chosen = range(half) if split == "validation" else range(half, len(digits.target))
    pixels = np.full((len(chosen), IMAGE_SIZE, IMAGE_SIZE), 255, np.uint8)
    margin = (IMAGE_SIZE - _DIGIT_SIZE) // 2
    for place, i in zip(pixels, chosen, strict=True):
        grey = Image.fromarray((255 - digits.images[i] * (255 / 16)).round().astype(np.uint8))
        resized = grey.resize((_DIGIT_SIZE, _DIGIT_SIZE), Image.Resampling.BILINEAR)
        place[margin:-margin, margin:-margin] = np.asarray(resized)
    classes = [f"digit {_NUMBERS[digits.target[i]]}" for i in chosen]
    return [f"handwritten/{i:04d}" for i in chosen], classes, pixels, None


@cache
def _characters(name: str, split: str) -> _Samples:
    """A set of printed characters, rendered once per process."""
    characters = glyphs.glyph_characters().query("group == 'seen'")
    described = characters["category"] + " " + characters["name"]
    classes = described.map(partial(_classname, GLYPH_BENCHMARKS[name]))
    characters = characters.assign(classname=classes).dropna(subset="classname")
    test_faces = SERIF + _COMPUTER_MODERN if name == "glyph_letters" else SERIF
    n_draws = 4 if name in ("glyph_shapes", "glyph_arrows") else 0  # with nuisance factors
    faces = STIX if split == "validation" else test_faces
    factors = glyphs.sample_factors(characters, faces, n_draws)
    pixels = glyphs.draw_all(factors, FACES + _COMPUTER_MODERN)
    classes = factors["character"].map(characters.set_index("character")["classname"])
    keys = pd.Series(glyphs.glyph_pairs(split, factors, pixels).keys)
    keys = keys + "/" + keys.groupby(keys).cumcount().astype(str)
    # Characters that one face renders identically to one of another class are dropped from all
    # faces.
    drawings = pd.Series([image.tobytes() for image in pixels])
    twins = factors["character"][classes.groupby(drawings).transform("nunique") > 1]
    # The images of a class that are kept are chosen by the hash of their keys.
    hashes = keys.map(glyphs.hash_numbers)[~factors["character"].isin(twins)].sort_values()
    chosen = sorted(hashes.groupby(classes).head(_MAX_PER_CLASS).index)
    factors = factors.iloc[chosen].reset_index(drop=True)
    return keys[chosen].tolist(), classes[chosen].tolist(), pixels[chosen], factors


def _classname(rules: dict[str, str], described: str) -> str | None:
    matches = ((re.fullmatch(pattern, described), name) for pattern, name in rules.items())
    return next((match.expand(name) for match, name in matches if match), None)


for _name in ("glyph_digits", *GLYPH_BENCHMARKS):
    DATASETS[_name] = Dataset(partial(_load, _name), ("validation", "test"))
