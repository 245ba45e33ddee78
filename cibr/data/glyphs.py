"""Glyph pairs: printed characters and their Unicode names, rendered from the fonts in matplotlib.

A sample is one character in one face, drawn with Pillow on a 32 px square, with the character's
Unicode name in lower case as its caption. Image and text share the character. Specific to the image
are typeface, weight, slant, size, position, ink and paper; specific to the text is the template
around the name. Every choice is a hash of the character and the face, so characters, captions,
factors and splits are the same on every machine; pixels can differ by a few grey levels with the
FreeType version. Real ambiguity remains: Latin A and Greek Alpha are the same drawing with two
names.
"""

import hashlib
import unicodedata
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from cibr.data.pairs import Pairs
from cibr.utils import check_known

IMAGE_SIZE = 32
TEST_FONT_SIZE = 24
MIN_CONTRAST = 96
_BLANK = ("braille pattern blank", "object replacement character")  # without ink
_BLANK_IN = {
    ("modifier letter capital ou", "DejaVuSansMono-Oblique.ttf")
}  # this face alone has no outline
TEMPLATES = (
    "{}",
    "the character {}",
    "{} in print",
    "a drawing of {}",
    "this sign is called {}",
    "{} on paper",
)
FACTORS = ["character", "name", "category", "typeface", "weight", "slant"]
FACTORS += ["size", "x", "y", "ink", "paper", "template"]
PLAIN = (
    TEST_FONT_SIZE,
    0,
    0,
    0,
    255,
    0,
)  # the nuisance factors, from size to template, of the plain splits


class Face(NamedTuple):
    """One font file: `typeface` is the design, `weight` and `slant` its variant."""

    typeface: str
    weight: str
    slant: str
    file: str


def _family(typeface: str, stem: str, suffixes: tuple[str, str, str, str]) -> tuple[Face, ...]:
    variants = (
        ("regular", "upright"),
        ("bold", "upright"),
        ("regular", "oblique"),
        ("bold", "oblique"),
    )
    return tuple(
        Face(typeface, *v, f"{stem}{s}.ttf") for v, s in zip(variants, suffixes, strict=True)
    )


_DEJAVU = ("", "-Bold", "-Oblique", "-BoldOblique")
SANS = _family("sans", "DejaVuSans", _DEJAVU)
MONO = _family("mono", "DejaVuSansMono", _DEJAVU)
SERIF = _family("serif", "DejaVuSerif", ("", "-Bold", "-Italic", "-BoldItalic"))
STIX = _family("stix", "STIXGeneral", ("", "Bol", "Italic", "BolIta"))
COMPUTER_MODERN = (  # for Latin letters only: other code points follow TeX's encodings
    Face("computer modern roman", "regular", "upright", "cmr10.ttf"),
    Face("computer modern roman", "bold", "upright", "cmb10.ttf"),
    Face("computer modern sans", "regular", "upright", "cmss10.ttf"),
    Face("computer modern typewriter", "regular", "upright", "cmtt10.ttf"),
)

# Faces and group of characters of each split, and whether nuisance factors vary.
SPLITS = {
    "train": (SANS + MONO, "seen", True),
    "validation": (STIX[:1], "seen", False),
    "test": (SERIF[:1], "seen", False),
    "validation_characters": (SANS + MONO, "held-out-validation", False),
    "test_characters": (SANS + MONO, "held-out-test", False),
}


def load_glyphs(split: str = "train") -> Pairs:
    """The glyph pairs of one split, rendered once per process.

    `train` has the seen characters in eight faces (DejaVu Sans and Mono) with all nuisance factors
    varying. `validation` (STIX) and `test` (DejaVu Serif) show the same characters in typefaces
    that training never sees, black on white, 24 px, centred, with the bare name as caption.
    `validation_characters` and `test_characters` show held-out characters, rendered as plainly in
    the training faces.

    Args:
        split: one of `SPLITS`.

    Returns:
        Pairs with `labels` (the character's code point) and `factors`, one row per image:
        `character, name, category, typeface, weight, slant, size` (font size in px), `x, y` (offset
        from the centre in px), `ink, paper` (grey levels, 0 to 255), `template` (index into
        `TEMPLATES`).

    Raises:
        ValueError: an unknown split.
    """
    check_known("split of glyphs", split, SPLITS)
    return glyph_pairs(split, *_drawn(split))


@cache
def _drawn(split: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Factors and pixels of a split, rendered once per process."""
    faces, group, varied = SPLITS[split]
    characters = glyph_characters()
    factors = sample_factors(characters[characters["group"] == group], faces, n_draws=int(varied))
    return factors, draw_all(factors)


def glyph_pairs(split: str, factors: pd.DataFrame, pixels: np.ndarray) -> Pairs:
    """Pairs of samples with the given factors and pixels [n, 32, 32], labelled by their characters."""
    captions = [
        [TEMPLATES[t].format(name)]
        for t, name in zip(factors["template"], factors["name"], strict=True)
    ]
    labels, load = (
        torch.tensor([ord(c) for c in factors["character"]]),
        partial(pixel_image, pixels),
    )
    return Pairs(
        "glyphs", split, captions, sample_keys(factors), load, labels=labels, factors=factors
    )


def pixel_image(pixels: np.ndarray, i: int) -> Image.Image:
    """Image i of grey images [n, 32, 32] in memory, as RGB."""
    return Image.fromarray(pixels[i]).convert("RGB")


@cache
def glyph_characters() -> pd.DataFrame:
    """All characters: `character, name, category, group`, in the order of their code points.

    A character is included if DejaVu Sans and DejaVu Serif both have it, Unicode names it, and it
    is a letter, number, punctuation mark or symbol that is not blank. One in forty is held out for
    testing on unseen characters and one in forty for validation, by a hash of the name.
    """
    rows = []
    for code in sorted(charmap(SANS[0].file) & charmap(SERIF[0].file)):
        character = chr(code)
        name, category = unicodedata.name(character, "").lower(), unicodedata.category(character)
        if name and category[0] in "LNPS" and name not in _BLANK:
            place = hash_numbers(name)[0] % 40
            group = {0: "held-out-test", 1: "held-out-validation"}.get(place, "seen")
            rows.append((character, name, category, group))
    return pd.DataFrame(rows, columns=["character", "name", "category", "group"])


def sample_factors(
    characters: pd.DataFrame, faces: tuple[Face, ...], n_draws: int = 0
) -> pd.DataFrame:
    """The factors of characters in every face that has them, in the order of the characters.

    Args:
        characters: rows of `glyph_characters`.
        faces: the faces to draw them in.
        n_draws: samples per character and face, each with its own nuisance factors; 0 for one plain
            sample.

    Returns:
        One row per sample, with the columns `FACTORS`.
    """
    rows = []
    for character, name, category in characters[["character", "name", "category"]].itertuples(
        index=False
    ):
        for face in faces:
            if ord(character) in charmap(face.file) and (name, face.file) not in _BLANK_IN:
                keys = [
                    f"{name}/{face.file}" + (f"/{draw}" if draw else "") for draw in range(n_draws)
                ]
                for nuisance in map(nuisance_factors, keys) if keys else [PLAIN]:
                    rows.append((character, name, category, *face[:3], *nuisance))
    return pd.DataFrame(rows, columns=FACTORS)


def sample_keys(factors: pd.DataFrame) -> list[str]:
    """The keys of samples: code point and face, not unique if both repeat."""
    columns = (factors[column] for column in ("character", "typeface", "weight", "slant"))
    return [f"U+{ord(c):04X}/{t}-{w}-{s}" for c, t, w, s in zip(*columns, strict=True)]


def nuisance_factors(key: str) -> tuple[int, int, int, int, int, int]:
    """Size, offsets, ink, paper and template as a hash of the sample's key."""
    draw = hash_numbers(key)
    size, x, y = 18 + draw[0] % 10, draw[1] % 5 - 2, draw[2] % 5 - 2
    contrast = MIN_CONTRAST + draw[3] % (256 - MIN_CONTRAST)
    dark = draw[4] % (256 - contrast)
    ink, paper = (dark, dark + contrast) if draw[5] % 4 else (dark + contrast, dark)
    return size, x, y, ink, paper, draw[6] % len(TEMPLATES)


def hash_numbers(key: str) -> tuple[int, ...]:
    """Eight 32-bit numbers from the SHA-256 hash of a key."""
    digest = hashlib.sha256(key.encode()).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "big") for i in range(0, 32, 4))


def draw_glyph(
    character: str,
    file: str,
    size: int = TEST_FONT_SIZE,
    x: int = 0,
    y: int = 0,
    ink: int = 0,
    paper: int = 255,
) -> Image.Image:
    """One character on a 32 px square, centred on its line box and moved by (x, y) px, in grey
    levels.

    Centring by the line box rather than by the ink keeps a comma low and an apostrophe high.
    """
    image = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), paper)
    centre = IMAGE_SIZE / 2
    ImageDraw.Draw(image).text(
        (centre + x, centre + y), character, fill=ink, font=_font(file, size), anchor="mm"
    )
    return image


def draw_all(factors: pd.DataFrame) -> np.ndarray:
    """Pixels [n, 32, 32] of the samples with the given factors, one row per sample."""
    files = {face[:3]: face.file for face in SANS + MONO + SERIF + STIX + COMPUTER_MODERN}
    columns = ["character", "typeface", "weight", "slant", "size", "x", "y", "ink", "paper"]
    pixels = np.empty((len(factors), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for i, (character, *face, size, x, y, ink, paper) in enumerate(
        factors[columns].itertuples(index=False)
    ):
        pixels[i] = draw_glyph(character, files[tuple(face)], size, x, y, ink, paper)
    return pixels


def _font_path(file: str) -> str:
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file)


@cache
def charmap(file: str) -> frozenset[int]:
    """The code points of a font file."""
    return frozenset(FT2Font(_font_path(file)).get_charmap())


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_path(file), size, layout_engine=ImageFont.Layout.BASIC)
