"""Information bottleneck attribution of image-text similarity, and sanity checks of attribution
maps.

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
from collections.abc import Callable, Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cibr.models import DualEncoder

Maps = Float[Tensor, "n h w"]
Features = Float[Tensor, "n c h w"]
Score = Callable[[Features], Float[Tensor, " n"]]


def split_image_tower(model: DualEncoder) -> tuple[Callable, Callable]:
    """The image encoder in two halves: images to feature maps, and feature maps to unit vectors.

    Args:
        model: `tiny`, or `frozen` with an EfficientNet of timm.

    Returns:
        `lower`, normalised images [n, 3, h, w] to maps [n, c, h', w'], and `upper`, maps to unit
        vectors [n, d]; together they are `encode_images`. Both pass gradients.

    Raises:
        ValueError: a tower of another architecture.
    """
    tower = getattr(model.backbone, "image_tower", None)
    net = getattr(tower, "timm_model", None)
    if model.kind == "tiny":
        layers = list(tower)
        n_lower = 3  # up to 16 x 16 positions with a receptive field of 5 px
    elif type(net).__name__ == "EfficientNet":
        layers = [net.conv_stem, net.bn1, *net.blocks, net.conv_head, net.bn2, net.global_pool]
        n_lower = 7  # the stem and five blocks: a stride of 16
    else:
        what = f"no feature map is known of a {model.kind} model with {type(net or tower).__name__}"
        raise ValueError(f"{what}: pass a tiny model, or a frozen EfficientNet of timm")
    lower = nn.Sequential(*layers[:n_lower])
    pool = nn.Sequential(*layers[n_lower:])
    return lower, lambda maps: model.encode_images(pool(maps).flatten(1)).features


def cosine_score(model: DualEncoder) -> Callable[[Tensor, Tensor], Float[Tensor, " n"]]:
    """A function from normalised images and text vectors [n, d] to their cosines, for captum to
    explain.
    """
    lower, upper = split_image_tower(model)
    return lambda pixels, texts: (upper(lower(pixels)) * texts).sum(1)


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

    Raises:
        ValueError: shapes that do not fit, or a weight that is not positive.
    """
    if noise_like.shape[1:] != maps.shape[1:] or len(texts) != len(maps):
        what = f"{len(maps)} maps {list(maps.shape[1:])}, {len(texts)} texts and noise_like of size"
        raise ValueError(f"{what} {list(noise_like.shape[1:])}: pass one text per map, one size")
    if not 0 < weight < float("inf"):
        raise ValueError(f"weight is {weight}: pass a positive price of a nat, such as 3e-4")
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


def enlarge(maps: Maps, side: int) -> Float[Tensor, "n side side"]:
    """Maps at the size of their images, by bilinear interpolation."""
    return F.interpolate(maps[:, None], (side, side), mode="bilinear")[:, 0]


def share_inside(maps: Maps, region: Bool[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """Share of each map's positive mass inside a region; the region's area if the map is nowhere
    positive.
    """
    positive = maps.clamp(min=0)
    total = positive.sum((1, 2))
    inside = (positive * region).sum((1, 2)) / total.clamp(min=1e-30)
    return torch.where(total > 0, inside, region.float().mean((1, 2)))


def deletion_curve(
    pixels: Features, maps: Maps, score: Score, fill: float, fractions: Sequence[float | int]
) -> Float[Tensor, "n k"]:
    """Scores as pixels are deleted, those with the highest attribution first.

    Source: Samek et al. (2017, arXiv 1509.06321), section III, pixel by pixel.

    Args:
        pixels: normalised images [n, c, h, w].
        maps: attribution at the size of the images [n, h, w].
        score: images to one number each, such as the cosine with their text.
        fill: the value of deleted pixels.
        fractions: shares of the pixels to delete, in [0, 1].

    Returns:
        The score at each of k fractions [n, k].

    Raises:
        ValueError: maps of another size than the images, or fractions outside [0, 1].
    """
    n, _, h, w = pixels.shape
    if maps.shape != (n, h, w) or not all(0 <= f <= 1 for f in fractions):
        got = f"images {list(pixels.shape)}, maps {list(maps.shape)}, fractions {list(fractions)}"
        raise ValueError(f"{got}: enlarge the maps to the images, pass shares between 0 and 1")
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1, stable=True).view(n, 1, h, w)
    with torch.no_grad():
        curves = [score(torch.where(rank < round(f * h * w), fill, pixels)) for f in fractions]
    return torch.stack(curves, 1)


def randomised_weights(model: DualEncoder, seed: int = 0) -> DualEncoder:
    """A copy of the model with a randomised image encoder: the entries of each weight tensor are
    shuffled.

    Source: Adebayo et al. (2018, arXiv 1810.03292), section 3; shuffled, not redrawn, to keep their
    distribution.
    """
    shuffled = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(seed)
    encoder = shuffled.backbone.image_tower, shuffled.backbone.image_head
    with torch.no_grad():
        for weight in nn.ModuleList(encoder).parameters():
            order = torch.randperm(weight.numel(), generator=generator)
            weight.copy_(weight.flatten()[order].view_as(weight))
    return shuffled


def map_agreement(a: Maps, b: Maps) -> Float[Tensor, " n"]:
    """Spearman's rank correlation of two maps of each image; 0 if a map is constant."""
    ranks_a, ranks_b = (pd.DataFrame(side.flatten(1).T.numpy()).rank() for side in (a, b))
    return torch.tensor(ranks_a.corrwith(ranks_b).fillna(0).to_numpy()).float()
