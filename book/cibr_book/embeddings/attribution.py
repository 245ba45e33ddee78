"""Information bottleneck attribution of image-text similarity.

    minimise over the mask m in (0, 1):   weight * I - E cos(f(m r + (1 - m) e), text)
    e ~ N(mean, std^2),   I = sum of KL( N(m r + (1 - m) mean, (1 - m)^2 std^2) || N(mean, std^2) )
    over positions and channels

The mask replaces a share of each position of a feature map r by noise with the statistics of other
images; I bounds the information that is transmitted, in nats, and is the map. It is the book's
objective for a single image: keep what predicts the text, at a price per nat.

Source: Schulz et al. (2020, arXiv 2001.00396) for the mask; Wang, Rudner and Wilson (2023, M2IB,
arXiv 2312.17174) for the cosine with a text in place of a class score.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cibr.models import DualEncoder

Maps = Float[Tensor, "n h w"]
Features = Float[Tensor, "n c h w"]


def split_image_tower(model: DualEncoder) -> tuple[Callable, Callable]:
    """The image encoder of a `tiny` model in two halves.

    Returns:
        `lower`, normalised images [n, 3, h, w] to feature maps [n, c, h', w'], and `upper`, maps to
        unit vectors [n, d]; together they are `encode_images`. Both pass gradients.
    """
    layers = list(model.towers.image_tower)
    lower = nn.Sequential(*layers[:3])  # up to 16 x 16 positions with a receptive field of 5 px
    pool = nn.Sequential(*layers[3:])
    return lower, lambda maps: model.encode_images(pool(maps).flatten(1)).features


def bottleneck_maps(
    maps: Features,
    texts: Float[Tensor, "n d"],
    upper: Callable[[Features], Float[Tensor, "n d"]],
    noise_like: Float[Tensor, "m c h w"],
    weight: float = 3e-4,
    n_steps: int = 40,
    n_noise: int = 4,
    seed: int = 0,
) -> tuple[Maps, Float[Tensor, " n"]]:
    """Information that each position must transmit for an image to stay close to its text.

    Source: Wang, Rudner and Wilson (2023), for the image side, with the mask of Schulz et al.
    (2020). Theirs has one value per channel; here all channels of a position share one.

    Args:
        maps: feature maps of the images [n, c, h, w].
        texts: the unit vector of each image's text [n, d].
        upper: feature maps to unit vectors, as `split_image_tower` returns it; in eval mode.
        noise_like: maps of other images, whose mean and standard deviation per entry the noise has.
        weight: the price of a nat, in cosine; positive.
        n_steps: of Adam.
        n_noise: draws of the noise per step.
        seed: of the noise.

    Returns:
        Nats per position [n, h, w], and the mean cosine of each image with its text under the final
        mask [n].
    """
    maps, texts = maps.detach(), texts.detach()
    mean, std = noise_like.mean(0), noise_like.std(0)
    # A channel that is constant elsewhere has no noise.
    std = std.clamp(min=1e-3 * std.mean().clamp(min=1e-6))
    centred = (maps - mean) / std
    energy = centred.square().sum(1)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.full_like(energy, 5.0).requires_grad_()  # of the mask: 0.7 % noise at first
    adam = torch.optim.Adam([logits], lr=0.5)
    for step in range(n_steps + 1):
        smooth = _smooth(logits)
        m = torch.sigmoid(smooth)[:, None]
        cosines = 0
        for _ in range(n_noise):
            noise = torch.randn(maps.shape, generator=generator)
            features = upper(mean + std * (m * centred + (1 - m) * noise))
            cosines = cosines + (features * texts).sum(1) / n_noise
        nats = _passed_nats(smooth, energy, maps.shape[1])
        if step < n_steps:
            loss = (weight * nats.flatten(1).sum(1) - cosines).sum()
            (logits.grad,) = torch.autograd.grad(loss, [logits])
            adam.step()
    return nats.detach(), cosines.detach()


def _smooth(logits: Maps) -> Maps:
    """The logits smoothed as in Schulz et al., with weights 1, 2, 1 in both directions."""
    line = torch.tensor([0.25, 0.5, 0.25])
    padded = F.pad(logits[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, (line[:, None] * line)[None, None])[:, 0]


def _passed_nats(logits: Maps, energy: Maps, n_channels: int) -> Tensor:
    """KL of the masked features from pure noise, summed over channels."""
    mask = torch.sigmoid(logits)
    log_rest = -F.softplus(logits)  # log(1 - mask), exact
    rest = n_channels * ((1 - mask).square() - 1)
    return 0.5 * (mask.square() * energy + rest) - n_channels * log_rest


def share_inside(maps: Maps, region: Bool[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """Share of each map's positive mass inside a region; the region's area if the map is nowhere
    positive.
    """
    positive = maps.clamp(min=0) + 1e-30
    return (positive * region).sum((1, 2)) / positive.sum((1, 2))


def randomised_weights(model: DualEncoder, seed: int = 0) -> DualEncoder:
    """A copy of the model with a randomised image encoder: the entries of each weight tensor are
    shuffled.

    Source: Adebayo et al. (2018, arXiv 1810.03292), section 3; shuffled, not redrawn, to keep their
    distribution.
    """
    shuffled = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(seed)
    for weight in nn.ModuleList([shuffled.towers.image_tower, shuffled.head.image]).parameters():
        order = torch.randperm(weight.numel(), generator=generator)
        weight.data = weight.data.flatten()[order].view_as(weight)
    return shuffled
