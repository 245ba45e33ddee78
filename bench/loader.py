"""Throughput of decoding and preprocessing by the loader's workers, compared with a model's forward
pass.

    python bench/loader.py [--save]

Photos of 640 x 480 pixels as JPEG files in memory, loaded as in training (`Inputs.loader`), with
and without random crops, by 0, 1, 2, 4, ... workers, including the start of the workers. The last
row is the image tower of ViT-B/32 alone, without gradients, on a GPU if available; a slower loader
is a bottleneck.
"""

import io
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from _measure import arguments, show
from step import vit_b_32

from cibr.data import Pairs
from cibr.data.pairs import open_rgb
from cibr.models.features import prepare

N_IMAGES, BATCH, N_PHOTOS = 256, 32, 16


@dataclass
class Photos:
    """Loads photo i from a few files, decoding it each time."""

    files: list[bytes]

    def __call__(self, i: int) -> Image.Image:
        return open_rgb(self.files[i % len(self.files)])


def photos() -> Pairs:
    generator, files = np.random.default_rng(0), []
    for _ in range(N_PHOTOS):
        coarse = Image.fromarray(generator.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    keys = [f"photo {i}" for i in range(N_IMAGES)]
    return Pairs("photos", "train", [[key] for key in keys], keys, Photos(files))


def loading(inputs, workers: int) -> float:
    """Images per second."""
    rows = torch.arange(N_IMAGES).split(BATCH)
    start = time.perf_counter()
    for _ in inputs.loader([(part, part, part) for part in rows], workers):
        pass
    return N_IMAGES / (time.perf_counter() - start)


def forward(model) -> float:
    """Images per second, in the second of two passes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, pixels = (
        model.to(device),
        torch.zeros(BATCH, 3, 224, 224, dtype=torch.uint8, device=device),
    )
    with model.evaluating():
        for _ in range(2):
            start = time.perf_counter()
            model.encode_images(pixels).features.sum().item()  # synchronises the device
    return BATCH / (time.perf_counter() - start)


def main() -> None:
    save, model, pairs = arguments(__doc__.splitlines()[0]).save, vit_b_32(), photos()
    rows, counts = [], [0, *(2**i for i in range((os.cpu_count() or 1).bit_length()))]
    inputs = prepare(model, pairs, crop_scale=0.9)  # without crops, so few would be kept in memory
    for name, crop in (("decode, random crop", inputs.crop), ("decode, resize", None)):
        inputs.crop = crop
        rows += [{"what": name, "workers": n, "images/s": loading(inputs, n)} for n in counts]
    show(
        "loading", "loader", [*rows, {"what": "ViT-B/32 forward", "images/s": forward(model)}], save
    )


if __name__ == "__main__":
    main()
