"""Any picture as 8-bit RGB: the one rule by which files of every kind become pixels.

Photos turn upright by their EXIF orientation, transparent pixels show white paper, and greys of
16 bits and more are scaled to 8 bits. Colour profiles are not applied.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

GREY_RANGES = (255.0, 65535.0)


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns a picture of any Pillow mode as a new 8-bit RGB picture.

    Of a moving picture, the frame that is shown now is taken.

    Args:
        image: a picture of any mode: ``1``, ``L``, ``P``, ``RGBA``, ``CMYK``, ``I;16``, ``F``, ...

    Returns:
        The picture in mode ``RGB``, upright, on white where it was transparent.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _scale_grey(image).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(paper, picture).convert("RGB")
    return image.convert("RGB")


def open_rgb(file: str | Path | bytes, where: str) -> Image.Image:
    """Decodes an image file as RGB.

    Args:
        file: a path, or the bytes of a file.
        where: what to call the picture in an error.

    Returns:
        The picture in mode ``RGB``, see `to_rgb`.

    Raises:
        ValueError: if the file does not decode.
        FileNotFoundError: if there is no such file.
    """
    data = file if isinstance(file, bytes) else Path(file).read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            return to_rgb(image)
    # Broken files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, EOFError.
    except Exception as error:
        raise ValueError(
            f"{where} does not decode as an image ({error}): replace the file, "
            "or leave such samples out with on_error='skip' and a limit max_skipped"
        ) from error


def _scale_grey(image: Image.Image) -> Image.Image:
    """Scales a grey picture of more than 8 bits to 8 bits.

    ``I;16`` has a range of its own. ``I`` and ``F`` do not say theirs: the smallest usual one that
    holds the values is taken (1 for fractions, 255, 65535), else the values' own.
    """
    grey = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    ranges = {"I": GREY_RANGES, "F": (1.0, *GREY_RANGES)}.get(image.mode, GREY_RANGES[-1:])
    low, high = grey.min(), grey.max()
    fitting = [top for top in ranges if low >= 0 and high <= top]
    if fitting:
        low, high = 0.0, fitting[0]
    pixels = np.rint((grey - low) * (255.0 / (high - low or 1.0)))
    return Image.fromarray(pixels.astype(np.uint8))
