"""Input checks of the losses: inputs that would fail silently are rejected by name."""

import math

import torch
from torch import Tensor

from cibr.utils import check_tensors

Number = float | int
MAX_SCALE = 1e6  # of the cosines; 100 in CLIP


class NotFiniteError(ValueError, FloatingPointError):
    """Features that are not finite: a bad input or, in training, a run that has diverged."""


def checked_features(
    image: Tensor,
    text: Tensor,
    scale: Tensor | Number,
    labels: Tensor | None,
    tolerance: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features in a common precision, at least float32, and the logit scale as a tensor.

    All values are checked with one device transfer.

    Args:
        image: features of the images, [n, d].
        text: features of the texts, [n, d].
        scale: multiplier of the cosines.
        labels: as in `clip_loss`, [n].
        tolerance: lengths of the features must differ from 1 by less.

    Raises:
        ValueError: as `clip_loss`, or lengths beyond the tolerance.
    """
    check_tensors(image_features=image, text_features=text)
    if image.ndim != 2 or image.shape != text.shape or len(image) < 2:
        shapes = f"{list(image.shape)} and {list(text.shape)}"
        raise ValueError(f"image_features and text_features must be [n, d], n >= 2, got {shapes}")
    if labels is not None and (labels.is_floating_point() or labels.shape != image.shape[:1]):
        got = f"{labels.dtype} {list(labels.shape)}"
        raise ValueError(f"labels must be integers, [{len(image)}], got {got}")
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    image, text = image.to(dtype), text.to(dtype)
    scale = torch.as_tensor(scale, dtype=dtype, device=image.device).reshape(())
    lengths = [torch.linalg.vector_norm(side.detach(), dim=1) for side in (image, text)]
    errors = [(length - 1).abs().amax() for length in lengths]  # not finite if an entry is not
    *errors, value = torch.stack([*errors, scale.detach()]).tolist()
    for name, error in zip(("image_features", "text_features"), errors, strict=True):
        if not math.isfinite(error):
            raise NotFiniteError(f"{name} are not finite: look for NaN in weights and inputs")
        if error >= tolerance:
            what = f"{name} must be unit vectors, but a length is off by {error:.3g}"
            raise ValueError(f"{what}: normalise them with torch.nn.functional.normalize(x, dim=1)")
    if not 0 < value <= MAX_SCALE:
        what = f"logit_scale must be above 0 and at most {MAX_SCALE:g}, got {value}"
        raise ValueError(f"{what}: pass the exponential of the logarithm that CLIP learns")
    return image, text, scale
