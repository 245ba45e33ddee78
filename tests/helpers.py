"""Images, captions and pairs that the tests of several rooms share; nothing is slow to import."""

import os
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import numpy as np
import torch
from PIL import Image

from cibr.data import Pairs

COLOURS = ["red", "green", "blue", "grey", "dark", "light", "big", "small"]
THINGS = ["cat", "dog", "bird", "tree", "house", "car", "boat"]
TEXTS = [f"a {COLOURS[i % 8]} {THINGS[i % 7]}" for i in range(56)]


class Crafted:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def picture(i: int) -> Image.Image:
    """Noise that its number decides; module-level, so that loader workers can have it."""
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 36, 3), dtype=np.uint8))


def noise_pairs(n: int = 48, n_captions: int = 1, split: str = "train") -> Pairs:
    """Pairs of noise images with one caption or more; some captions are equal."""
    captions = [
        [TEXTS[(i + 5 * c) % len(TEXTS)] for c in range(1 + i % n_captions)] for i in range(n)
    ]
    return Pairs("noise", split, captions, [f"picture {i}" for i in range(n)], picture)


def write_photos(folder: Path, n: int, rows: str = "") -> Path:
    """A flat folder of different photos with a caption each, and more rows."""
    folder.mkdir(exist_ok=True)
    for i in range(n):
        picture(i).save(folder / f"{i}.png")
    lines = ["file_name,text", *(f"{i}.png,photo {i}" for i in range(n)), rows]
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


def same(a, b) -> bool:
    """Whether two models have the same weights, bit for bit."""
    states = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in states)


@contextmanager
def unchecked():
    """Lets wrong types and shapes reach our own errors when annotations are checked too."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
