"""Zero-shot benchmarks for glyphs: letters, scripts, categories, shapes, arrows, diacritics,
handwritten digits.

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

SPLITS = ("validation", "test")
DIGIT_SIZE = 20  # px, about the height of a printed digit at 27 px
MAX_PER_CLASS = 100

_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_SCRIPTS = ["latin", "greek", "cyrillic", "armenian", "georgian"]
_DIRECTIONS = "leftwards|rightwards|upwards|downwards|left right|up down|north east|north west|south east|south west"
_SHAPES = [
    "square",
    "rectangle",
    "parallelogram",
    "triangle",
    "circle",
    "diamond",
    "suit",
    "note",
    "face",
]
_MARKS = "acute|grave|circumflex|diaeresis|tilde|caron|breve|macron|cedilla|ogonek|dot above|ring above|double acute"


def _letter(name: str, category: str) -> str | None:
    return name if re.fullmatch("latin (capital|small) letter [a-z]", name) else None


def _script(name: str, category: str) -> str | None:
    script = name.split()[0]
    return f"{script} letter" if script in _SCRIPTS and category in ("Lu", "Ll", "Lo") else None


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
    return next((kind for kind, holds in rules.items() if holds), None)


def _shape(name: str, category: str) -> str | None:
    words = name.split()
    shapes = [
        shape for shape in _SHAPES if category == "So" and shape in words and "arrow" not in words
    ]
    return shapes[0] if len(shapes) == 1 else None


def _arrow(name: str, category: str) -> str | None:
    directions = re.findall(rf"\b(?:{_DIRECTIONS})\b", name)
    found = re.fullmatch(rf"(?:long )?({_DIRECTIONS})(?: [a-z-]+)* arrow\b.*", name)
    return f"{found[1]} arrow" if found and len(directions) == 1 else None


def _diacritic(name: str, category: str) -> str | None:
    found = re.fullmatch(rf".* letter .* with ({_MARKS})", name)
    return f"letter with {found[1]}" if found and category in ("Lu", "Ll") else None


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


GLYPH_BENCHMARKS = {
    "glyph_letters": GlyphBenchmark(_letter, test_faces=SERIF + COMPUTER_MODERN),
    "glyph_scripts": GlyphBenchmark(_script),
    "glyph_categories": GlyphBenchmark(_category),
    "glyph_shapes": GlyphBenchmark(_shape, n_draws=4),
    "glyph_arrows": GlyphBenchmark(_arrow, n_draws=4),
    "glyph_diacritics": GlyphBenchmark(_diacritic),
}


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
    check_known(f"split of {name}", split, SPLITS)
    keys, classes, pixels, factors = (
        _digits(split) if name == "glyph_digits" else _characters(name, split)
    )
    classnames = sorted(set(classes))
    labels = torch.tensor([classnames.index(kind) for kind in classes])
    captions = [[kind] for kind in classes]
    templates = [template.format("{c}") for template in TEMPLATES]
    about = dict(labels=labels, factors=factors, classnames=classnames, templates=templates)
    return Pairs(name, split, captions, keys, partial(pixel_image, pixels), **about)


def _digits(split: str) -> tuple[list[str], list[str], np.ndarray, None]:
    """Keys, class names and pixels of the handwritten digits, dark on light."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    half = len(digits.target) // 2
    chosen = range(half) if split == "validation" else range(half, len(digits.target))
    pixels = np.full((len(chosen), IMAGE_SIZE, IMAGE_SIZE), 255, np.uint8)
    margin = (IMAGE_SIZE - DIGIT_SIZE) // 2
    for place, i in zip(pixels, chosen, strict=True):
        grey = Image.fromarray((255 - digits.images[i] * (255 / 16)).round().astype(np.uint8))
        resized = grey.resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BILINEAR)
        place[margin:-margin, margin:-margin] = np.asarray(resized)
    classes = [f"digit {_NUMBERS[digits.target[i]]}" for i in chosen]
    return [f"handwritten/{i:04d}" for i in chosen], classes, pixels, None


@cache
def _characters(name: str, split: str) -> tuple[list[str], list[str], np.ndarray, pd.DataFrame]:
    """Keys, class names, pixels and factors of a set of printed characters, rendered once per
    process.
    """
    benchmark = GLYPH_BENCHMARKS[name]
    characters = glyphs.glyph_characters().query("group == 'seen'")
    kinds = map(benchmark.classify, characters["name"], characters["category"])
    characters = characters.assign(kind=list(kinds)).dropna(subset="kind")
    faces = STIX if split == "validation" else benchmark.test_faces
    factors = glyphs.sample_factors(characters, faces, benchmark.n_draws)
    pixels = glyphs.draw_all(factors)
    kinds = factors["character"].map(characters.set_index("character")["kind"])
    keys = pd.Series(glyphs.sample_keys(factors))
    keys = keys + "/" + keys.groupby(keys).cumcount().astype(str)
    # Characters that one face renders identically to one of another class are dropped from all
    # faces.
    drawings = pd.Series([image.tobytes() for image in pixels])
    twins = factors["character"][kinds.groupby(drawings).transform("nunique") > 1]
    # The images of a class that are kept are chosen by the hash of their keys.
    hashes = keys.map(glyphs.hash_numbers)[~factors["character"].isin(twins)].sort_values()
    chosen = sorted(hashes.groupby(kinds).head(MAX_PER_CLASS).index)
    factors = factors.iloc[chosen].reset_index(drop=True)
    return keys[chosen].tolist(), kinds[chosen].tolist(), pixels[chosen], factors


for _name in ("glyph_digits", *GLYPH_BENCHMARKS):
    DATASETS[_name] = Dataset(partial(load_glyph_benchmark, _name), SPLITS)
