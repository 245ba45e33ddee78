"""Where a text finds its picture: how much each place of a feature map must tell for the cosine to hold.

    minimise over the mask m in (0, 1):   weight * I - E cos(f(m r + (1 - m) e), text),   e ~ N(mean, std^2)
    I = sum of KL( N(m r + (1 - m) mean, (1 - m)^2 std^2) || N(mean, std^2) ) over places and channels

The mask replaces a share of each place by noise that looks like other pictures; I bounds what then passes, in
nats, and is the map. It is the book's objective in small: keep what serves the text, pay for every nat. Schulz et
al. (2020, arXiv 2001.00396) give the mask, Wang, Rudner and Wilson (2023, M2IB, arXiv 2312.17174) put the cosine
with a text in the place of a class.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cibr.models import DualEncoder
from cibr.models.pretrained import STEM, split_tower

OPEN = 5.0  # the mask's logit at the start: 0.7 % noise
TINY_LAYERS = 4  # of the tiny image tower: 16 x 16 places, each of which has seen 13 px
FROZEN_BLOCKS = 5  # of a timm EfficientNet: a stride of 16
Maps = Float[Tensor, "n c h w"]


def split_image_tower(model: DualEncoder) -> tuple[Callable, Callable]:
    """The image encoder in two halves: pictures to a feature map, and the map to unit features.

    Args:
        model: `tiny`, or `frozen` with an EfficientNet of timm.

    Returns:
        `lower`, normalised pictures [n, 3, h, w] to maps [n, c, h', w'], and `upper`, maps to unit vectors
        [n, d]; together they are `encode_images`. Both pass gradients.

    Raises:
        ValueError: a tower without a feature map that is known here.
    """
    tower = model.backbone.image_tower if model.kind != "clip" else None
    if model.kind == "tiny":
        layers = list(tower)
        lower, pool = torch.nn.Sequential(*layers[:TINY_LAYERS]), torch.nn.Sequential(*layers[TINY_LAYERS:])
    elif model.kind == "frozen" and hasattr(getattr(tower, "timm_model", None), "blocks"):
        n_trained = model.backbone.trained_blocks
        base, top = split_tower(tower, n_trained or 1)
        layers, below = [*base, *(model.backbone.image_top if n_trained else top)], len(STEM) + FROZEN_BLOCKS
        lower, pool = torch.nn.Sequential(*layers[:below]), torch.nn.Sequential(*layers[below:])
    else:
        raise ValueError(
            f"a {model.kind} model with {type(tower).__name__} has no feature map that is known here: give a tiny "
            "model, or a frozen EfficientNet of timm"
        )
    return lower, lambda maps: model.project_images(pool(maps).flatten(1)).features


def image_encoder(model: DualEncoder) -> Callable[[Tensor], Float[Tensor, "n d"]]:
    """Both halves of `split_image_tower` in one: normalised pictures to unit features, with gradients."""
    lower, upper = split_image_tower(model)
    return lambda pixels: upper(lower(pixels))


def bottleneck_maps(
    maps: Maps,
    texts: Float[Tensor, "n d"],
    upper: Callable[[Maps], Float[Tensor, "n d"]],
    mean: Float[Tensor, "c h w"],
    std: Float[Tensor, "c h w"],
    weight: float = 3e-4,
    n_steps: int = 40,
    n_noise: int = 4,
    learning_rate: float = 0.5,
    seed: int = 0,
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, " n"]]:
    """The information that each place must pass for a picture to stay near its text.

    Source: Wang, Rudner and Wilson (2023), for the image side, with the mask of Schulz et al. (2020). Theirs has a
    value for each channel; here all channels of a place share one.

    Args:
        maps: feature maps of the pictures [n, c, h, w].
        texts: the unit vector of each picture's text [n, d].
        upper: feature maps to unit vectors, as `split_image_tower` gives it; in eval mode.
        mean: of such maps over other pictures [c, h, w].
        std: their standard deviation [c, h, w].
        weight: what a nat costs in cosine; positive.
        n_steps: of Adam.
        n_noise: draws of the noise a step.
        learning_rate: of Adam, for the logits of the mask.
        seed: of the noise.

    Returns:
        Nats a place [n, h, w]; and the mean cosine with the text of each picture under its final mask [n].

    Raises:
        ValueError: shapes that do not fit, or a weight that is not positive.
    """
    _check(maps, texts, mean, std, weight)
    maps, texts = maps.detach(), texts.detach()
    std = std.clamp(min=1e-3 * std.mean().clamp(min=1e-6))  # a channel that is constant elsewhere has no noise
    centred = (maps - mean) / std
    energy = centred.square().sum(1)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.full_like(energy, OPEN).requires_grad_()
    adam = torch.optim.Adam([logits], lr=learning_rate)
    for step in range(n_steps + 1):
        smooth = _smooth(logits)
        mask = torch.sigmoid(smooth)
        cosines = 0
        for _ in range(n_noise):
            noise = torch.randn(maps.shape, generator=generator)
            m = mask[:, None]
            cosines = cosines + (upper(mean + std * (m * centred + (1 - m) * noise)) * texts).sum(1) / n_noise
        nats = _passed_nats(smooth, energy, maps.shape[1])
        if step == n_steps:
            break
        loss = (weight * nats.flatten(1).sum(1) - cosines).sum()
        (logits.grad,) = torch.autograd.grad(loss, [logits])
        adam.step()
    return nats.detach(), cosines.detach()


def _smooth(logits: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Neighbouring places pass alike, as in Schulz et al.: weights 1, 2, 1 in both directions."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = line[:, None] * line
    padded = F.pad(logits[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel[None, None])[:, 0]


def _passed_nats(logits: Float[Tensor, "n h w"], energy: Float[Tensor, "n h w"], n_channels: int) -> Tensor:
    """KL of the masked features from pure noise, summed over channels; in logits, so that log(1 - m) is exact."""
    mask = torch.sigmoid(logits)
    log_rest = -F.softplus(logits)  # log(1 - mask)
    return 0.5 * (mask.square() * energy + n_channels * ((1 - mask).square() - 1)) - n_channels * log_rest


def occlusion_maps(
    pixels: Float[Tensor, "n c h w"],
    texts: Float[Tensor, "n d"],
    encode: Callable[[Tensor], Float[Tensor, "n d"]],
    fill: float,
    side: int = 4,
    stride: int = 4,
) -> Float[Tensor, "n h w"]:
    """How much the cosine falls when a square around a place is painted over.

    Source: Zeiler and Fergus (2014, arXiv 1311.2901), section 4.2, as `captum.attr.Occlusion`.

    Args:
        pixels: normalised pictures.
        texts: the unit vector of each picture's text [n, d].
        encode: pictures to unit vectors.
        fill: the value that hides, such as that of white paper.
        side: of the square, in pixels.
        stride: between squares, in pixels.

    Returns:
        Fall of the cosine, mean over the squares that hide a pixel [n, h, w].
    """
    from captum.attr import Occlusion

    occlusion = Occlusion(lambda x, t: (encode(x) * t).sum(1))
    channels = pixels.shape[1]
    with torch.no_grad():
        fall = occlusion.attribute(
            pixels,
            sliding_window_shapes=(channels, side, side),
            strides=(channels, stride, stride),
            baselines=fill,
            additional_forward_args=texts,
        )
    return fall[:, 0]


def gradient_maps(
    pixels: Float[Tensor, "n c h w"],
    texts: Float[Tensor, "n d"],
    encode: Callable[[Tensor], Float[Tensor, "n d"]],
    fill: float,
    n_steps: int = 16,
) -> Float[Tensor, "n h w"]:
    """Integrated gradients of the cosine, from an empty picture to this one: their sum is the gain in cosine.

    Source: Sundararajan, Taly and Yan (2017, arXiv 1703.01365), eq. 1, as `captum.attr.IntegratedGradients`.

    Args:
        pixels: normalised pictures.
        texts: the unit vector of each picture's text [n, d].
        encode: pictures to unit vectors.
        fill: the value of the empty picture.
        n_steps: points of the integral.

    Returns:
        Share of each pixel in the gain, summed over channels [n, h, w].
    """
    from captum.attr import IntegratedGradients

    integrated = IntegratedGradients(lambda x, t: (encode(x) * t).sum(1))
    shares = integrated.attribute(pixels, baselines=fill, additional_forward_args=texts, n_steps=n_steps)
    return shares.sum(1).detach()


def enlarge(maps: Float[Tensor, "n h w"], side: int) -> Float[Tensor, "n side side"]:
    """Maps at the size of their pictures, with straight lines between the centres of places."""
    return F.interpolate(maps[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]


def _check(maps: Tensor, texts: Tensor, mean: Tensor, std: Tensor, weight: float) -> None:
    if mean.shape != maps.shape[1:] or std.shape != mean.shape or len(texts) != len(maps):
        raise ValueError(
            f"maps {list(maps.shape)}, mean {list(mean.shape)}, std {list(std.shape)} and texts "
            f"{list(texts.shape)} do not fit: give one text a map, and a mean and a deviation for each entry"
        )
    if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(f"weight is {weight}: a nat costs something, so give a positive number such as 3e-4")
