"""The drawing page: the two shipped models, run in the reader's browser.

The page loads the weights of `clip-tiny` and `cibr-tiny`, rounded, their tokenizer, the images of
the characters it knows with both models' embeddings, and some characters in every typeface. They
come as scripts, which a page that was opened from a disk may load too. book/_static/draw_model.js
has the forward passes, book/_static/draw.js the page.
"""

import base64
import hashlib
import json
import math
import struct
import unicodedata
import zlib
from collections.abc import Sequence
from functools import cache
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from cibr.data import Pairs, glyphs, load_pairs
from cibr.models import DualEncoder
from cibr.utils import shipped
from cibr_book.pages.html import filled

MODELS = {"CLIP": "clip-tiny", "CIBR": "cibr-tiny"}
FILES = [shipped(f"checkpoints/{name}/cibr.safetensors") for name in MODELS.values()]
STYLED = "DFGQRbdfgkt2358&?@%ßéñλЖ€"  # in all faces, and with one name each
TYPEFACES = ("sans", "mono", "serif", "stix")
N_SEEN = 2  # of them in the training set, the first
WEIGHTS = ("regular", "bold")
SLANTS = ("upright", "oblique")
SIZES = (18, 24, 27)  # px: the smallest, that of the test images, the largest
_GUIDES = (7, 12, 25)  # rows of 32: the tops of H and x, and the line on which both stand
SHIFT = 2  # px: how far a character is moved at most, either way
# Common Latin, Greek and Cyrillic letters, and symbols but for boxes and braille.
_RANGES = ((0x0, 0x17F), (0x370, 0x45F), (0x2000, 0x24FF), (0x25A0, 0x27FF))
# Bits of a number: the large matrices, four fifths of a model, bear the coarser rounding.
_BITS = {
    "images": 10,
    "image_head.2.weight": 11,
    "image_tower.6.conv1.weight": 11,
    "image_tower.6.conv2.weight": 11,
    "text_tower.tokens.weight": 12,
}
_OTHER_BITS = 14
_PART_BYTES = 240_000  # of a script, so that the progress bar moves
FACTORS = {
    "typeface": TYPEFACES,
    "weight": WEIGHTS,
    "slant": SLANTS,
    "size": ("small", "medium", "large"),
    "ink": ("black", "white"),
}
_STATIC = Path(__file__).resolve().parents[2] / "_static"

_Rows = Float[np.ndarray, "r c"]


def pack_rows(rows: _Rows, bits: int) -> bytes:
    """Rows of numbers rounded to `bits` bits: a float32 scale a row, then all low bytes of the
    16-bit levels and all high bytes, which compress better apart.

    Args:
        rows: a matrix.
        bits: at most 16; the error is at most a row's largest magnitude / (2^bits - 2).
    """
    largest = np.abs(rows).max(1, keepdims=True).clip(1e-30)
    scales = (largest / (2 ** (bits - 1) - 1)).astype("<f4")
    levels = np.rint(rows / scales).astype("<i2")
    planes = levels.view(np.uint8).reshape(-1, 2).T
    return scales.tobytes() + planes.tobytes()


def model_arrays(model: DualEncoder) -> dict[str, _Rows]:
    """The weights by their names in the backbone, as matrices for feature maps whose channels are
    last: a row for each output, its inputs by row, column and channel of the kernel.

    The three channels of grey images are equal, so the first convolution is summed over them.
    """
    arrays = {}
    for name, tensor in model.own_state().items():
        if tensor.ndim == 4:
            kernel = tensor.sum(1, keepdim=True) if tensor.shape[1] == 3 else tensor
            tensor = kernel.permute(0, 2, 3, 1).flatten(1)
        elif name.startswith("backbone.image_head"):  # from [channel, place] to [place, channel]
            tensor = tensor.unflatten(-1, (-1, 16)).transpose(-1, -2).flatten(-2)
        arrays[name.removeprefix("backbone.")] = torch.atleast_2d(tensor).numpy()
    return arrays


def styled_masks() -> UInt8[np.ndarray, "n side side"]:
    """The ink of every character of `STYLED` in every typeface, weight, slant and size, in that
    order, on squares wider by `SHIFT` on each side, so that a moved character is cut from them.
    """
    styles = product(STYLED, TYPEFACES, WEIGHTS, SLANTS, SIZES)
    columns = ["character", "typeface", "weight", "slant", "size"]
    factors = pd.DataFrame(styles, columns=columns).assign(ink=255, paper=0)
    side = glyphs.IMAGE_SIZE
    masks = np.zeros((len(factors), side + 2 * SHIFT, side + 2 * SHIFT), np.uint8)
    for x, y in product((-SHIFT, SHIFT), repeat=2):
        top = SHIFT - y
        left = SHIFT - x
        drawn = glyphs.draw_all(factors.assign(x=x, y=y))
        masks[:, top : top + side, left : left + side] = drawn
    return masks


@cache
def models() -> dict[str, DualEncoder]:
    """The two models by the names that the page shows."""
    return {name: DualEncoder.from_pretrained(folder) for name, folder in MODELS.items()}


def known_pairs() -> Pairs:
    """The test images of the characters that the page knows, with their names."""
    pairs = load_pairs("glyphs", "test")
    codes = pairs.labels.tolist()
    known = [any(first <= code <= last for first, last in _RANGES) for code in codes]
    return pairs.subset([i for i, is_known in enumerate(known) if is_known])


@cache
def payload() -> bytes:
    """What the page loads, compressed: the header's length, the header in JSON, and arrays in the
    order in which the header lists them as `name, kind, rows, columns`.
    """
    pairs = known_pairs()
    images = [*pairs.images()]
    masks = styled_masks()
    pixels = np.stack([np.asarray(image.convert("L")) for image in images])
    arrays = [["pixels", "bytes", *pixels.reshape(len(pairs), -1).shape]]
    arrays.append(["masks", "bytes", *masks.reshape(len(masks), -1).shape])
    content = [pixels.tobytes(), masks.tobytes()]
    for name, model in models().items():
        matrices = model_arrays(model)
        matrices["images"] = model.embed_images(images).numpy()
        for key, rows in matrices.items():
            content.append(pack_rows(rows, _BITS.get(key, _OTHER_BITS)))
            arrays.append([f"{name}/{key}", "rows", *rows.shape])
    header = _header(pairs.factors, model) | {"arrays": arrays}
    text = json.dumps(header, separators=(",", ":")).encode()
    return zlib.compress(struct.pack("<I", len(text)) + text + b"".join(content), 9)


def right_first() -> dict[str, tuple[int, int]]:
    """How often each model ranks the right name first among all names that the page knows, over all
    characters of `STYLED` in all styles, centred: in the typefaces of the training set, and in the
    two others.
    """
    names = known_pairs().factors["name"].tolist()
    own = [names.index(unicodedata.name(character).lower()) for character in STYLED]
    masks = styled_masks()[:, SHIFT:-SHIFT, SHIFT:-SHIFT]
    images = [Image.fromarray(image) for mask in masks for image in (255 - mask, mask)]
    right = torch.tensor(own).view(-1, 1, 1)
    counts = {}
    for name, model in models().items():
        cosines = model.embed_images(images) @ model.embed_texts(names).T
        found = cosines.argmax(1).view(len(STYLED), len(TYPEFACES), -1)
        is_first = (found == right).sum((0, 2)).tolist()
        counts[name] = sum(is_first[:N_SEEN]), sum(is_first[N_SEEN:])
    return counts


def _scores() -> str:
    n_styles = math.prod(map(len, FACTORS.values()))
    half = len(STYLED) * n_styles / 2
    first = right_first()
    seen, unseen = (
        " and ".join(f"{counts[k] / half:.0%} with {name}" for name, counts in first.items())
        for k in range(2)
    )
    return (
        f"Over all {len(STYLED)} printed characters in {n_styles} styles, the right name comes "
        f"first in {seen} in the typefaces of the training set, sans and mono, and in {unseen} in "
        "the two others."
    ).replace("%", " %")


def _header(factors: pd.DataFrame, model: DualEncoder) -> dict[str, Any]:
    backend = json.loads(model.tokenizer.backend_tokenizer.to_str())["model"]
    tokenizer = {
        "vocabulary": sorted(backend["vocab"], key=backend["vocab"].get),
        "merges": [" ".join(pair) for pair in backend["merges"]],
        "end": model.tokenizer.eos_token_id,
    }
    styles = dict(styled=STYLED, typefaces=TYPEFACES, weights=WEIGHTS, slants=SLANTS, sizes=SIZES)
    return {
        "models": [*MODELS],
        "characters": factors["character"].tolist(),
        "names": factors["name"].tolist(),
        "tokenizer": tokenizer,
    } | styles


def scripts() -> dict[str, str]:
    """The payload as scripts by file name; each hands its number and its bytes in base64 on."""
    content = payload()
    parts = [content[i : i + _PART_BYTES] for i in range(0, len(content), _PART_BYTES)]
    return {
        f"{i}.js": f'cibrPart({i},"{base64.b64encode(part).decode()}")\n'
        for i, part in enumerate(parts)
    }


def write_scripts(folder: Path) -> None:
    """Writes the scripts to a folder, which is made, for a page of a built book to load."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, script in scripts().items():
        (folder / name).write_text(script, encoding="ascii")


def as_page() -> str:
    """The piece of HTML: canvas, controls and places that the script fills, and the addresses of
    what it loads, with a digest each, so that no browser keeps an older part.
    """
    model = (_STATIC / "draw_model.js").read_bytes()
    files = {"draw_model.js": model} | {f"draw/{k}": v.encode() for k, v in scripts().items()}
    addresses = [
        f"../_static/{name}?v={hashlib.sha256(content).hexdigest()[:8]}"
        for name, content in files.items()
    ]
    options = [
        f'<option value="{i}">{escape(character)} {unicodedata.name(character).lower()}</option>'
        for i, character in enumerate(STYLED)
    ]
    return filled(
        __file__,
        {"scripts": addresses, "guides": _GUIDES},
        styled="".join(options),
        factors="".join(_factor(name, levels) for name, levels in FACTORS.items()),
        n_styles=math.prod(map(len, FACTORS.values())),
        scores=_scores(),
        megabytes=f"{len(payload()) / 1e6:.1f}",
    )


def _factor(name: str, levels: Sequence[str]) -> str:
    """Radio buttons for the levels of a factor."""
    choices = "".join(
        f'<label><input type="radio" name="draw-{name}" value="{i}"><span>{level}</span></label>'
        for i, level in enumerate(levels)
    )
    return f'<fieldset data-factor="{name}"><legend>{name}</legend>{choices}</fieldset>'
