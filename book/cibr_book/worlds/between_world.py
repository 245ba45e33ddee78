"""A world between the exact ones and photos: a finite number of Gaussian pairs, of which linear
encoders still have exact information.

Image and text share 8 factors with correlation 0.95 and have 56 factors of their own, whose
standard deviation is the nuisance scale; rotations mix them. Recall is measured among 1,000 pairs.

The exact information is that of the linear code W x before normalisation, scaled to mean squared
length 1, plus Gaussian noise of a stated variance in each coordinate: 1 / variance corresponds to
the concentration of a von Mises-Fisher encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cibr.losses.cca import canonical_maps, centred_moments
from cibr_book.worlds.exact import (
    GaussianWorld,
    gaussian_information_nats,
    gaussian_world,
    linear_encoder_nats,
)

N_SHARED = 8
N_OWN = 56
CORRELATION = 0.95
N_GALLERY = 1000  # pairs that a recall is measured among
_N_TEST = 4 * N_GALLERY  # four galleries
_N_VALIDATION = N_GALLERY

Settings = Mapping[str, float | int]
Pairs = Float[Tensor, "2 n p"]  # images, then the texts that belong to them


@dataclass(frozen=True)
class Sample:
    """One draw of the world and of its pairs; make one with `draw_sample`.

    Args:
        world: with factors of unit variance.
        stretch: what scales its nuisance, x = stretch @ x', for images and for texts, [2, p, p].
        train: training pairs, [2, n, p].
        validation: 1,000 pairs for every choice.
        test: 4,000 pairs for the reported scores.
        seed: of the world and the pairs; also of the weights, batches and noise of training.
    """

    world: GaussianWorld
    stretch: Float64[Tensor, "2 p p"]
    train: Pairs
    validation: Float[Tensor, "2 n_validation p"]
    test: Float[Tensor, "2 n_test p"]
    seed: int


@lru_cache(maxsize=16)
def draw_sample(n_pairs: int, nuisance: float, seed: int) -> Sample:
    """A world with its own rotations, and pairs from it, scaled to a mean squared entry of 1.

    Smaller training sets of a seed are parts of larger ones; validation and test pairs are the
    same.

    Args:
        n_pairs: number of training pairs.
        nuisance: standard deviation of a modality's own factors; shared ones have 1.
        seed: of the rotations and pairs.

    Returns:
        The sample.

    Raises:
        ValueError: fewer than two pairs, or a nuisance scale that is not positive.
    """
    if n_pairs < 2 or not nuisance > 0:
        got = f"{n_pairs} pairs and nuisance scale {nuisance}"
        raise ValueError(f"a sample takes two pairs or more and a positive scale, got {got}")
    world = gaussian_world([CORRELATION] * N_SHARED, N_OWN, N_OWN, seed)
    scales = torch.cat([torch.ones(N_SHARED), torch.full((N_OWN,), nuisance)]).double()
    scales = scales / scales.square().mean().sqrt()
    rotations = torch.stack([world.mix_image, world.mix_text])
    stretch = rotations * scales @ rotations.mT
    generator = torch.Generator().manual_seed(seed)
    sizes = [_N_VALIDATION, _N_TEST, n_pairs]
    normal = torch.randn(sum(sizes), 2 * len(scales), generator=generator, dtype=torch.float64)
    sides = (normal @ torch.linalg.cholesky(world.covariance).T).split(len(scales), 1)
    pairs = (torch.stack(sides) @ stretch).float()
    validation, test, train = pairs.split(sizes, 1)
    return Sample(world, stretch, train, validation, test, seed)


def exact_nats(
    sample: Sample, maps: Float[Tensor, "2 p d"], noise_variance: float
) -> dict[str, float]:
    """Exact information of two linear codes, scaled to mean squared length 1, in Gaussian noise.

    Args:
        sample: whose world it is.
        maps: of images and texts, z = x @ map; normalisation of z is left out.
        noise_variance: in each coordinate of both codes.

    Returns:
        Nats: `shared_nats` I(Z_v;Z_t), and means over both sides of `residual_nats`
        I(Z_v;X_v|X_t) and `nuisance_nats`, the part of it about a modality's own factors.
    """
    world = sample.world
    codes = sample.stretch @ maps.double()  # of the unit factors, [2, p, d]
    image, text = (code / code.norm() for code in codes)
    turned = replace(
        world,
        covariance=world.covariance[world.text + world.image][:, world.text + world.image],
        mix_image=world.mix_text,
        mix_text=world.mix_image,
    )
    sides = [
        linear_encoder_nats(world, image.T, noise_variance),
        linear_encoder_nats(turned, text.T, noise_variance),
    ]
    both = torch.block_diag(image, text)
    noise = noise_variance * torch.eye(both.shape[1], dtype=torch.float64)
    covariance = both.T @ world.covariance @ both + noise
    dim = image.shape[1]
    shared = gaussian_information_nats(covariance, range(dim), range(dim, 2 * dim))
    residual = sum(side["residual_image_nats"] for side in sides) / 2
    nuisance = sum(side["nuisance_image_nats"] for side in sides) / 2
    nats = {"shared_nats": shared, "residual_nats": residual, "nuisance_nats": nuisance}
    return {name: value.item() for name, value in nats.items()}


def recall(embeddings: Float[Tensor, "2 n d"]) -> float:
    """Recall at 1 in both directions, the mean over galleries of 1,000 pairs; ties are misses."""
    hits = []
    for images, texts in zip(*(side.split(N_GALLERY) for side in embeddings), strict=True):
        similarity = images @ texts.T
        own = similarity.diagonal().clone()
        similarity.fill_diagonal_(-2.0)
        hits += [own > similarity.amax(dim) for dim in (0, 1)]
    return torch.cat(hits).float().mean().item()


def closed_form(sample: Sample, settings: Settings) -> Float[Tensor, "2 p d"]:
    """The maps of ridge CCA of the training pairs, z = x @ map.

    Args:
        sample: whose training pairs, which have mean zero in the world, are centred anyway.
        settings: `ridge`, of both sides, in units of the mean variance; `power` of the correlation
            that weighs a direction; `dim`, the number of directions.
    """
    _, moments = centred_moments(*sample.train)
    ridge = float(settings["ridge"])
    maps = canonical_maps(moments, int(settings["dim"]), ridge, ridge)
    # The library's maps have power 1/2, so that between them C_vt is the squared correlations.
    squared = (maps[0] @ moments[2] * maps[1]).sum(1).clamp(min=1e-12)
    weights = squared ** (settings["power"] / 2 - 0.25)
    return torch.stack([weights * side.T for side in maps]).float()
