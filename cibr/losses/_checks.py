"""Checks of what a caller passes to the losses, made once, at the public functions."""

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

Number = float | int
MAX_SCALE = 1e6  # of the cosines; 100 in CLIP


def described(value: Any) -> str:
    """The dtype and shape of a tensor, or the type of anything else, for error messages."""
    is_tensor = isinstance(value, Tensor)
    return f"{value.dtype} {list(value.shape)}" if is_tensor else type(value).__name__


def check_finite(**tensors: Tensor) -> None:
    """Raises ValueError for NaN or infinity in any of the tensors, named by their keywords."""
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            fix = "look for a zero vector that was divided by its length, or training that diverged"
            raise ValueError(f"{name} must be finite, and some entries are NaN or infinite: {fix}")


def check_number(name: str, value: Any, low: Number, high: Number) -> float:
    """The value as a float, or ValueError unless it is a number in [low, high]."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


def check_count(name: str, value: Any) -> int:
    """The value as an int, or ValueError unless it is a whole number from 1."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < 1:
        raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
    return int(value)


def check_pairs(**sides: Tensor) -> None:
    """Raises ValueError unless both are float matrices with the same two rows or more."""
    for name, value in sides.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim != 2:
            raise ValueError(f"{name} is {described(value)}: pass a float tensor [n, d]")
    (image_name, image), (text_name, text) = sides.items()
    if len(image) != len(text) or len(image) < 2:
        counts = f"{image_name} has {len(image)} rows and {text_name} {len(text)}"
        raise ValueError(f"{counts}: row i of both is a pair, and there must be two pairs at least")


def checked_features(
    image: Tensor, text: Tensor, scale: Any, labels: Tensor | None, tolerance: float = math.inf
) -> tuple[Tensor, Tensor, Tensor]:
    """Features in a common precision, at least float32, and the logit scale as a tensor.

    All values are checked with one device transfer; compiled code asserts them on the device,
    without synchronising.

    Args:
        image: features of the images, [n, d].
        text: features of the texts, [n, d].
        scale: multiplier of the cosines.
        labels: as in `clip_loss`, [n].
        tolerance: lengths of the features must differ from 1 by less.

    Raises:
        ValueError: as `clip_loss`, or lengths beyond the tolerance.
    """
    check_pairs(image_features=image, text_features=text)
    if image.shape != text.shape:
        widths = f"image_features have width {image.shape[1]} and text_features {text.shape[1]}"
        raise ValueError(f"{widths}: project both to one width")
    if labels is not None:
        _check_labels(labels, len(image))
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    image, text = image.to(dtype), text.to(dtype)
    scale = torch.as_tensor(scale, dtype=dtype, device=image.device)
    if scale.ndim:
        raise ValueError(f"logit_scale has shape {list(scale.shape)}: squeeze it to one number")
    image_error, text_error = _length_error(image), _length_error(text)
    if torch.compiler.is_compiling():
        is_unit = (image_error < tolerance) & (text_error < tolerance)
        is_in_range = (scale > 0) & (scale <= MAX_SCALE)
        rule = "features must be finite (CIBRLoss: unit vectors), logit_scale positive"
        torch._assert_async(is_unit & is_in_range, rule)
        return image, text, scale
    image_error, text_error, value = torch.stack([image_error, text_error, scale.detach()]).tolist()
    if not image_error < tolerance:
        _refuse_lengths("image_features", image, image_error)
    if not text_error < tolerance:
        _refuse_lengths("text_features", text, text_error)
    if not 0 < value <= MAX_SCALE:
        fix = "pass the multiplier itself, exp() of the logarithm that CLIP learns"
        raise ValueError(f"logit_scale must be above 0, to {MAX_SCALE:g}, got {value}: {fix}")
    return image, text, scale


def _check_labels(labels: Tensor, n: int) -> None:
    is_integer = isinstance(labels, Tensor) and not labels.is_floating_point()
    if not is_integer or labels.shape != (n,):
        raise ValueError(f"labels are {described(labels)}: pass an integer tensor [{n}]")


def _length_error(features: Tensor) -> Tensor:
    """The largest difference between a row's length and 1; not finite if an entry is not."""
    return (torch.linalg.vector_norm(features.detach(), dim=1) - 1).abs().amax()


def _refuse_lengths(name: str, features: Tensor, error: float) -> None:
    check_finite(**{name: features})
    rule = f"{name} must be unit vectors, and a length differs from 1 by {error:.3g}"
    raise ValueError(f"{rule}: use torch.nn.functional.normalize(x, dim=1)")
