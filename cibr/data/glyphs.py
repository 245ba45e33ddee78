"""Glyph pairs: printed characters and their Unicode names, rendered from the fonts in matplotlib.

A sample is one character in one face, drawn with Pillow on a 32 px square, with the character's
Unicode name in lower case as its caption. Image and text share the character. Typeface, weight,
slant, size, position, ink and paper are specific to the image, the template around the name to the
text. Every choice is a hash of the character and the face, so characters, captions, factors and
splits are the same on every machine; pixels can differ by a few grey levels with the FreeType
version. Some images are ambiguous: Latin A and Greek Alpha look the same.
"""

import itertools
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
from cibr.utils import digest

IMAGE_SIZE = 32
TEMPLATES = (
    "{}",
    "the character {}",
    "{} in print",
    "a drawing of {}",
    "this sign is called {}",
    "{} on paper",
)
_FACTORS = ["character", "name", "category", "typeface", "weight", "slant"]
_FACTORS += ["size", "x", "y", "ink", "paper", "template"]
_PLAIN = (24, 0, 0, 0, 255, 0)  # the nuisance factors, from size to template, of the plain splits
_MIN_CONTRAST = 96
_BLANK = ("braille pattern blank", "object replacement character")  # without ink
_BLANK_IN = ("modifier letter capital ou", "DejaVuSansMono-Oblique.ttf")  # in this face alone
_FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")


class Face(NamedTuple):
    """One font file of matplotlib: `typeface` is the design, `weight` and `slant` its variant."""

    typeface: str
    weight: str
    slant: str
    file: str


_Faces = tuple[Face, ...]


def _family(typeface: str, stem: str, *endings: str) -> _Faces:
    """The regular face, the bold one, the slanted one, and the one that is both."""
    faces = itertools.product(("upright", "oblique"), ("regular", "bold"))
    files = [f"{stem}{ending}.ttf" for ending in ("", *endings)]
    named = zip(faces, files, strict=True)
    return tuple(Face(typeface, weight, slant, file) for (slant, weight), file in named)


_SANS = _family("sans", "DejaVuSans", "-Bold", "-Oblique", "-BoldOblique")
_MONO = _family("mono", "DejaVuSansMono", "-Bold", "-Oblique", "-BoldOblique")
SERIF = _family("serif", "DejaVuSerif", "-Bold", "-Italic", "-BoldItalic")
STIX = _family("stix", "STIXGeneral", "Bol", "Italic", "BolIta")
FACES = _SANS + _MONO + SERIF + STIX
# Faces and group of characters of each split, and the number of draws of the nuisance factors.
_SPLITS = {
    "train": (_SANS + _MONO, "seen", 1),
    "validation": (STIX[:1], "seen", 0),
    "test": (SERIF[:1], "seen", 0),
    "validation_characters": (_SANS + _MONO, "held-out-validation", 0),
    "test_characters": (_SANS + _MONO, "held-out-test", 0),
}


@cache
def load_glyphs(split: str = "train") -> Pairs:
    """Returns the glyph pairs of one split, rendered once per process: always the same object.

    `train` has the seen characters in eight faces (DejaVu Sans and Mono) with all nuisance factors
    varying. `validation` (STIX) and `test` (DejaVu Serif) show the same characters in typefaces
    that training never sees, black on white, 24 px, centred, with the bare name as caption.
    `validation_characters` and `test_characters` show held-out characters, rendered as plainly in
    the training faces.

    Args:
        split: one of these five.

    Returns:
        Pairs with `labels`, the code points, and `factors`, one row per image with the columns
        `character, name, category, typeface, weight, slant, size` (font size in px), `x, y` (offset
        from the centre in px), `ink, paper` (grey levels, 0 to 255), `template` (index into
        `TEMPLATES`).
    """
    faces, group, n_draws = _SPLITS[split]
    characters = glyph_characters()
    factors = sample_factors(characters[characters["group"] == group], faces, n_draws)
    return glyph_pairs(split, factors, draw_all(factors))


def glyph_pairs(split: str, factors: pd.DataFrame, pixels: np.ndarray) -> Pairs:
    """Returns pairs with the given factors and pixels [n, 32, 32], labelled by character.

    A key is code point and face, such as ``U+0041/sans-bold-upright``, not unique if both repeat.
    """
    rows = list(factors.itertuples())
    captions = [[TEMPLATES[row.template].format(row.name)] for row in rows]
    labels = torch.tensor([ord(row.character) for row in rows])
    keys = [f"U+{ord(r.character):04X}/{r.typeface}-{r.weight}-{r.slant}" for r in rows]
    load = partial(pixel_image, pixels)
    return Pairs("glyphs", split, captions, keys, load, labels=labels, factors=factors)


def pixel_image(pixels: np.ndarray, i: int) -> Image.Image:
    """Returns image i of grey images [n, 32, 32] in memory, as RGB."""
    return Image.fromarray(pixels[i]).convert("RGB")


@cache
def glyph_characters() -> pd.DataFrame:
    """Returns all characters: `character, name, category, group`, in the order of code points.

    A character is included if DejaVu Sans and DejaVu Serif both have it, Unicode names it, and it
    is a letter, number, punctuation mark or symbol that is not blank. One in forty is held out for
    testing on unseen characters and one in forty for validation, by a hash of the name.
    """
    rows = []
    for code in sorted(_charmap(_SANS[0].file) & _charmap(SERIF[0].file)):
        character = chr(code)
        name = unicodedata.name(character, "").lower()
        category = unicodedata.category(character)
        if name and category[0] in "LNPS" and name not in _BLANK:
            held_out = {0: "held-out-test", 1: "held-out-validation"}
            group = held_out.get(hash_numbers(name)[0] % 40, "seen")
            rows.append((character, name, category, group))
    return pd.DataFrame(rows, columns=["character", "name", "category", "group"])


def sample_factors(characters: pd.DataFrame, faces: _Faces, n_draws: int = 0) -> pd.DataFrame:
    """Returns the factors of characters in every face that has them, in the order of characters.

    Args:
        characters: rows of `glyph_characters`.
        faces: the faces to draw them in.
        n_draws: samples per character and face, each with its own nuisance factors; 0 for one plain
            sample.

    Returns:
        One row per sample, with the columns that `load_glyphs` lists.
    """
    rows = []
    named = characters[["character", "name", "category"]].itertuples(index=False)
    for character, name, category in named:
        for face in faces:
            if ord(character) not in _charmap(face.file) or (name, face.file) == _BLANK_IN:
                continue
            key = f"{name}/{face.file}"
            draws = [f"{key}/{draw}" if draw else key for draw in range(n_draws)]
            for nuisances in map(_nuisance_factors, draws) if draws else [_PLAIN]:
                rows.append((character, name, category, *face[:3], *nuisances))
    return pd.DataFrame(rows, columns=_FACTORS)


def _nuisance_factors(key: str) -> tuple[int, ...]:
    """Size, offsets, ink, paper and template as a hash of the sample's key."""
    draw = hash_numbers(key)
    contrast = _MIN_CONTRAST + draw[3] % (256 - _MIN_CONTRAST)
    dark = draw[4] % (256 - contrast)
    greys = (dark, dark + contrast) if draw[5] % 4 else (dark + contrast, dark)
    return 18 + draw[0] % 10, draw[1] % 5 - 2, draw[2] % 5 - 2, *greys, draw[6] % len(TEMPLATES)


def hash_numbers(key: str) -> tuple[int, ...]:
    """Returns eight 32-bit numbers from the SHA-256 hash of a key."""
    digits = digest(key)
    return tuple(int(digits[i : i + 8], 16) for i in range(0, 64, 8))


def draw_all(factors: pd.DataFrame, faces: _Faces = FACES) -> np.ndarray:
    """Returns grey pixels [n, 32, 32] of the samples with the given factors, one row per sample, in
    these faces.

    A character is centred by its line box rather than by its ink, which keeps a comma low and an
    apostrophe high, and then moved by (x, y) px.
    """
    files = {face[:3]: face.file for face in faces}
    pixels = np.empty((len(factors), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for i, row in enumerate(factors.itertuples(index=False)):
        image = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), row.paper)
        centre = (IMAGE_SIZE / 2 + row.x, IMAGE_SIZE / 2 + row.y)
        font = _font(files[row.typeface, row.weight, row.slant], row.size)
        ImageDraw.Draw(image).text(centre, row.character, fill=row.ink, font=font, anchor="mm")
        pixels[i] = image
    return pixels


@cache
def _charmap(file: str) -> frozenset[int]:
    """The code points of a font file."""
    return frozenset(FT2Font(str(_FONTS / file)).get_charmap())


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_FONTS / file, size, layout_engine=ImageFont.Layout.BASIC)
