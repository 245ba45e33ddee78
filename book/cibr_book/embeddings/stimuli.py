"""Glyph stimuli to probe a model: all image-only factors varied in unseen typefaces, and letters
with a mark.

A letter with and without an accent differs only in the mark, in both image and name, so the region
that the words "with acute" refer to is known to the pixel.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from cibr.data import Pairs, glyphs

_MARK_CONTRAST = 64  # grey levels between a pixel of the mark and the plain letter


class _MarkedLetters(NamedTuple):
    """Letters with a mark, and the names of the same letters without it.

    Args:
        marked: the images with the mark, with their full names.
        plain: the names without the mark, such as `latin small letter a`, one per image.
        mark: masks of the marks, [n, 32, 32].
    """

    marked: Pairs
    plain: list[str]
    mark: Bool[Tensor, "n 32 32"]


def varied_glyphs(n: int, seed: int = 0) -> Pairs:
    """Characters of the training set in unseen typefaces, Serif and STIX, with all factors varied.

    Args:
        n: number of images, drawn at random from all characters and faces.
        seed: of the sample.

    Returns:
        Pairs with `factors`; the texts have their templates.
    """
    characters = glyphs.glyph_characters().query("group == 'seen'")
    factors = glyphs.sample_factors(characters, glyphs.SERIF + glyphs.STIX, n_draws=1)
    factors = factors.sample(n, random_state=seed).reset_index(drop=True)
    return glyphs.glyph_pairs("varied", factors, glyphs.draw_all(factors))


def marked_letters() -> _MarkedLetters:
    """All letters of DejaVu Serif that are rendered, and named, as a plain letter plus a mark.

    Letters whose mark changes the base are excluded, such as those with a joined cedilla or an i
    without its dot.
    """
    known = glyphs.glyph_characters().set_index("name", drop=False)
    bases = {}
    for name in known.index:
        base, _, mark = name.partition(" with ")
        if mark and " and " not in mark and base in known.index:
            bases[name] = base
    table = glyphs.sample_factors(known.loc[list(bases)], glyphs.SERIF[:1])
    plain_table = table.assign(character=table["name"].map(bases).map(known["character"]))
    pixels, plain = (glyphs.draw_all(t).astype(int) for t in (table, plain_table))
    mark = plain - pixels > _MARK_CONTRAST
    base_unchanged = (pixels - plain).max(axis=(1, 2)) <= _MARK_CONTRAST
    kept = np.flatnonzero(base_unchanged & (mark.sum(axis=(1, 2)) >= 4))
    names = table["name"].iloc[kept].tolist()
    images = partial(glyphs.pixel_image, pixels[kept].astype(np.uint8))
    pairs = Pairs("glyphs", "marked letters", [[name] for name in names], names, images)
    return _MarkedLetters(pairs, [bases[name] for name in names], torch.from_numpy(mark[kept]))
