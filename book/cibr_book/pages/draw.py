"""The drawing in the chapter What an embedding keeps: the two shipped models, run in the browser.

The page loads the image encoders of `clip-tiny` and `cibr-tiny`, rounded, their embeddings of the
names that it knows, and an image of each. They come as a script, which a page that was opened from
a disk may load too. book/_static/draw_model.js has the forward pass, book/_static/draw.js the rest.
"""

import base64
import json
import struct
import zlib
from html import escape
from pathlib import Path
from string import Template

import numpy as np
import torch
from jaxtyping import Float

from cibr.data import Pairs, load_pairs
from cibr.models import DualEncoder

MODELS = {"CLIP": "clip-tiny", "CIBR": "cibr-tiny"}
_PRINTED = "DFGQRbdfgkt2358&?@%ßéñλЖ€"  # with one name each
_GUIDES = (7, 12, 25)  # rows of 32: the tops of H and x, and the line on which both stand
# Common Latin, Greek and Cyrillic letters, and symbols but for boxes and braille.
_RANGES = ((0x0, 0x17F), (0x370, 0x45F), (0x2000, 0x24FF), (0x25A0, 0x27FF))
_BITS = 10  # of a number; a cosine then moves by less than a hundredth
_SCRIPT = "draw/weights.js"


def _pack_rows(rows: Float[np.ndarray, "r c"]) -> bytes:
    """Rows of numbers, rounded: a float32 scale for each row, and then 16-bit levels.

    The error is at most a row's largest magnitude / (2^`_BITS` - 2).
    """
    largest = np.abs(rows).max(1, keepdims=True).clip(1e-30)
    scales = (largest / (2 ** (_BITS - 1) - 1)).astype("<f4")
    return scales.tobytes() + np.rint(rows / scales).astype("<i2").tobytes()


def _image_arrays(model: DualEncoder) -> dict[str, Float[np.ndarray, "r c"]]:
    """The image encoder's weights by name, as matrices for feature maps whose channels are last: a
    row for each output, its inputs by row, column and channel of the kernel.

    The three channels of grey images are equal, so the first convolution is summed over them.
    """
    arrays = {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix("towers.").replace("head.image", "image_head")
        if not name.startswith("image"):
            continue
        if tensor.ndim == 4:
            kernel = tensor.sum(1, keepdim=True) if tensor.shape[1] == 3 else tensor
            tensor = kernel.permute(0, 2, 3, 1).flatten(1)
        elif name.startswith("image_head"):  # from [channel, place] to [place, channel]
            tensor = tensor.unflatten(-1, (-1, 16)).transpose(-1, -2).flatten(-2)
        arrays[name] = torch.atleast_2d(tensor).numpy()
    return arrays


def _known_pairs() -> Pairs:
    """The test images of the characters that the page knows, with their names."""
    pairs = load_pairs("glyphs", "test")
    codes = pairs.labels.tolist()
    known = [any(first <= code <= last for first, last in _RANGES) for code in codes]
    return pairs.subset([i for i, is_known in enumerate(known) if is_known])


def _payload() -> bytes:
    """What the page loads, compressed: the header's length, the header in JSON, and arrays in the
    order in which the header lists them as `name, rows, columns`. The first, `pixels`, has bytes.
    """
    pairs = _known_pairs()
    pixels = np.stack([np.asarray(image.convert("L")).ravel() for image in pairs.images()])
    header = {"names": pairs.factors["name"].tolist(), "models": list(MODELS)}
    header["arrays"] = [["pixels", *pixels.shape]]
    content = [pixels.tobytes()]
    for name, folder in MODELS.items():
        model = DualEncoder.from_pretrained(folder)
        matrices = _image_arrays(model) | {"names": model.embed_texts(header["names"]).numpy()}
        for key, rows in matrices.items():
            header["arrays"].append([f"{name}/{key}", *rows.shape])
            content.append(_pack_rows(rows))
    text = json.dumps(header, separators=(",", ":")).encode()
    return zlib.compress(struct.pack("<I", len(text)) + text + b"".join(content), 9)


def write_script(static: Path) -> None:
    """Writes the payload to a built book's static files, as a script with its bytes in base64."""
    file = static / _SCRIPT
    file.parent.mkdir(exist_ok=True)
    text = base64.b64encode(_payload()).decode()
    file.write_text(f'cibrDrawing("{text}")\n', encoding="ascii")


def as_page() -> str:
    """The piece of HTML: canvas, controls and places that the script fills, and the addresses of
    what it loads.
    """
    addresses = [f"../_static/{name}" for name in ("draw_model.js", _SCRIPT)]
    factors = _known_pairs().factors
    places = {character: i for i, character in enumerate(factors["character"])}
    options = [
        f'<option value="{places[character]}">'
        f"{escape(character)} {factors['name'][places[character]]}</option>"
        for character in _PRINTED
    ]
    data = json.dumps({"scripts": addresses, "guides": _GUIDES})
    piece = Path(__file__).with_suffix(".html").read_text("utf-8")
    return Template(piece).substitute(data=data, printed="".join(options))
