"""Zero-shot benchmarks for glyphs, from letters to handwritten digits.

Seven data sets for models trained on glyphs, without a download. Class names use the words of the
Unicode names. All but the digits show typefaces that training never sees: STIX in `validation`,
DejaVu Serif in `test`, and for letters Computer Modern too. Characters held out from training are
excluded, and so are those that a face renders identically to one of another class, such as Latin A
and Greek Alpha among the scripts. The digits are handwritten, from scikit-learn; their first half
is for validation.
"""

import re
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image

from cibr.data import DATASETS, Dataset, glyphs
from cibr.data.glyphs import COMPUTER_MODERN, IMAGE_SIZE, SERIF, STIX, TEMPLATES, Face, pixel_image
from cibr.data.pairs import Pairs
from cibr.utils import check_known

_SPLITS = ("validation", "test")
_DIGIT_SIZE = 20  # px, about the height of a printed digit at 27 px
_MAX_PER_CLASS = 100
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_DIRECTIONS = (
    "leftwards|rightwards|upwards|downwards|left right|up down"
    "|north east|north west|south east|south west"
)
_SHAPES = {"square", "rectangle", "parallelogram", "triangle", "circle", "diamond"}
_SHAPES |= {"suit", "note", "face"}
_MARKS = (
    "acute|grave|circumflex|diaeresis|tilde|caron|breve|macron|cedilla|ogonek"
    "|dot above|ring above|double acute"
)


def _by_pattern(pattern: str, classname: str, name: str, category: str) -> str | None:
    """The class name with the pattern's group, where category and name match the pattern."""
    match = re.fullmatch(pattern, f"{category} {name}")
    return classname.format(match[1]) if match else None


def _category(name: str, category: str) -> str | None:
    words = name.split()
    rules = {
        "capital letter": category == "Lu" and "capital letter" in name,
        "small letter": category == "Ll" and "small letter" in name,
        "modifier letter": category == "Lm" and name.startswith("modifier letter"),
        "digit": category == "Nd" and "digit" in words,
        "vulgar fraction": name.startswith("vulgar fraction"),
        "punctuation mark": category[0] == "P",
        "currency sign": category == "Sc",
        "arrow": category in ("So", "Sm") and "arrow" in words,
        "mathematical sign": category == "Sm" and "arrow" not in words,
        "box drawings": name.startswith("box drawings"),
    }
    return next((classname for classname, holds in rules.items() if holds), None)


def _shape(name: str, category: str) -> str | None:
    words = set(name.split())
    shapes = words & _SHAPES
    return shapes.pop() if len(shapes) == 1 and category == "So" and "arrow" not in words else None


def _arrow(name: str, category: str) -> str | None:
    directions = re.findall(rf"\b(?:{_DIRECTIONS})\b", name)
    match = re.fullmatch(rf"(?:long )?({_DIRECTIONS})(?: [a-z-]+)* arrow\b.*", name)
    return f"{match[1]} arrow" if match and len(directions) == 1 else None


class GlyphBenchmark(NamedTuple):
    """A classification task over printed characters.

    Args:
        classify: takes a character's Unicode name in lower case and its category, and returns the
            name of its class, or None if the character is not in the set.
        n_draws: samples per character and face, each with its own nuisance factors; 0 for one plain
            sample.
        test_faces: the faces of the `test` split.
    """

    classify: Callable[[str, str], str | None]
    n_draws: int = 0
    test_faces: tuple[Face, ...] = SERIF


_LETTERS = partial(_by_pattern, r"L. (latin (?:capital|small) letter [a-z])", "{}")
_SCRIPTS = partial(_by_pattern, r"L[ulo] (latin|greek|cyrillic|armenian|georgian) .*", "{} letter")
_DIACRITICS = partial(_by_pattern, rf"L[ul] .* letter .* with ({_MARKS})", "letter with {}")
GLYPH_BENCHMARKS = {
    "glyph_letters": GlyphBenchmark(_LETTERS, test_faces=SERIF + COMPUTER_MODERN),
    "glyph_scripts": GlyphBenchmark(_SCRIPTS),
    "glyph_categories": GlyphBenchmark(_category),
    "glyph_shapes": GlyphBenchmark(_shape, n_draws=4),
    "glyph_arrows": GlyphBenchmark(_arrow, n_draws=4),
    "glyph_diacritics": GlyphBenchmark(_DIACRITICS),
}
# Keys, class names, pixels and factors of a set's images.
_Samples = tuple[list[str], list[str], np.ndarray, pd.DataFrame | None]


def load_glyph_benchmark(name: str, split: str = "test") -> Pairs:
    """Renders one split of a zero-shot set.

    Args:
        name: ``glyph_digits`` or one of `GLYPH_BENCHMARKS`.
        split: ``validation`` or ``test``.

    Returns:
        Pairs with `labels`, `classnames` (those with an image in the split), `templates` and,
        except for the handwritten digits, `factors` as in `load_glyphs`. The caption of an image is
        its class name.

    Raises:
        ValueError: an unknown set or split.
    """
    check_known("glyph set", name, ("glyph_digits", *GLYPH_BENCHMARKS))
    check_known(f"split of {name}", split, _SPLITS)
    samples = _digits(split) if name == "glyph_digits" else _characters(name, split)
    keys, classes, pixels, factors = samples
    classnames = sorted(set(classes))
    templates = [template.format("{c}") for template in TEMPLATES]
    options = dict(factors=factors, classnames=classnames, templates=templates)
    options["labels"] = torch.tensor([classnames.index(classname) for classname in classes])
    captions = [[classname] for classname in classes]
    return Pairs(name, split, captions, keys, partial(pixel_image, pixels), **options)


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
    keys = [f"handwritten/{i:04d}" for i in chosen]
    return keys, [f"digit {_NUMBERS[digits.target[i]]}" for i in chosen], pixels, None


@cache
def _characters(name: str, split: str) -> _Samples:
    """A set of printed characters, rendered once per process."""
    benchmark = GLYPH_BENCHMARKS[name]
    characters = glyphs.glyph_characters().query("group == 'seen'")
    classes = map(benchmark.classify, characters["name"], characters["category"])
    characters = characters.assign(classname=list(classes)).dropna(subset="classname")
    faces = STIX if split == "validation" else benchmark.test_faces
    factors = glyphs.sample_factors(characters, faces, benchmark.n_draws)
    pixels = glyphs.draw_all(factors)
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


for _name in ("glyph_digits", *GLYPH_BENCHMARKS):
    DATASETS[_name] = Dataset(partial(load_glyph_benchmark, _name), _SPLITS)
