"""Shifts of test photos: retrieval with five kinds of degraded images, at three strengths each."""

import io
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from cibr.data import Pairs
from cibr.metrics.retrieval import retrieval_recalls
from cibr.models import DualEncoder
from cibr.models.features import embed_pairs, prepare

_Shift = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _noise(image: Image.Image, deviation: float, random: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image) + random.normal(0, deviation, np.shape(image))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _blur(image: Image.Image, radius: float, _: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def _contrast(image: Image.Image, factor: float, _: np.random.Generator) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def _jpeg(image: Image.Image, quality: float, _: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(quality))
    return Image.open(file).convert("RGB")


def _occlusion(image: Image.Image, share: float, random: np.random.Generator) -> Image.Image:
    width, height = (round(side * share**0.5) for side in image.size)
    left = int(random.integers(image.width - width, endpoint=True))
    top = int(random.integers(image.height - height, endpoint=True))
    occluded = image.copy()
    occluded.paste((128, 128, 128), (left, top, left + width, top + height))
    return occluded


SHIFTS: dict[str, tuple[_Shift, tuple[float, float, float]]] = {
    "noise": (_noise, (20.0, 40.0, 80.0)),  # standard deviation, of 255
    "blur": (_blur, (1.0, 2.0, 4.0)),  # radius of the Gaussian, px
    "contrast": (_contrast, (0.5, 0.25, 0.1)),  # factor
    "jpeg": (_jpeg, (25.0, 10.0, 5.0)),  # quality
    "occlusion": (_occlusion, (0.1, 0.25, 0.5)),  # share of the area under a grey square
}


def _shifted(pairs: Pairs, shift: str, strength: int) -> Pairs:
    """The same pairs with every image degraded; the same way in every call.

    Args:
        pairs: the photos.
        shift: one of `SHIFTS`.
        strength: 1, 2 or 3.
    """
    degrade, strengths = SHIFTS[shift]
    load = partial(_degraded, pairs.image, pairs.keys, degrade, strengths[strength - 1])
    return replace(pairs, keys=[f"{key}/{shift}-{strength}" for key in pairs.keys], load=load)


def _degraded(load: Callable, keys: list[str], degrade: _Shift, amount: float, i: int):
    """Loads image i, degraded with its key as the random seed."""
    return degrade(load(i), amount, np.random.default_rng(zlib.crc32(keys[i].encode())))


def shifted_recalls(model: DualEncoder, pairs: Pairs) -> dict[str, float]:
    """Mean of recall@1, 5 and 10 in both directions, for each shift and strength of the images.

    Returns:
        `shift/<name>-<strength>/recall`.
    """
    means = {}
    for shift in SHIFTS:
        for strength in (1, 2, 3):
            inputs = prepare(model, _shifted(pairs, shift, strength))
            embedded = embed_pairs(model, inputs)
            recalls = retrieval_recalls(*embedded, *pairs.retrieval_targets(), (1, 5, 10))
            means[f"shift/{shift}-{strength}/recall"] = float(np.mean([*recalls.values()]))
    return means
