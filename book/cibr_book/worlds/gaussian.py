"""A Gaussian world of images and texts: the information of linear encoders from determinants.

Encoders have noise of unit variance.

Source: Cover & Thomas, Elements of Information Theory (2006), for the identities; Chechik et al.
(2005, JMLR 6) for the optimal linear encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

Nats = Float64[Tensor, ""]
Covariance = Float64[Tensor, "n n"]
Ints = Sequence[int]


def gaussian_information_nats(covariance: Covariance, a: Ints, b: Ints, given: Ints = ()) -> Nats:
    """I(A;B) or I(A;B|C) of jointly Gaussian variables, from determinants of covariance blocks.

    Source: Cover & Thomas (2006), section 8.5.

    Args:
        covariance: of all variables, positive definite.
        a: the indices of A.
        b: the indices of B, disjoint from A's.
        given: the indices of C, disjoint from A's and B's.

    Returns:
        Nats, a scalar, differentiable.
    """

    def log_det(*block: int) -> Tensor:  # 0 for an empty block
        return torch.logdet(covariance[[*block]][:, [*block]])

    separate = log_det(*a, *given) + log_det(*b, *given)
    return (separate - log_det(*a, *b, *given) - log_det(*given)) / 2


@dataclass(frozen=True)
class GaussianWorld:
    """A world of Gaussian images and texts; build one with `gaussian_world`.

    Args:
        covariance: of (x_v, x_t).
        mix_image: rotation of the image's factors, x_v = mix_image @ (shared, image-only).
        mix_text: the same for the text.
        correlations: of the shared factors of image and text.
    """

    covariance: Covariance
    mix_image: Float64[Tensor, "v v"]
    mix_text: Float64[Tensor, "t t"]
    correlations: Float64[Tensor, " s"]

    @property
    def image(self) -> list[int]:
        """The indices of x_v in the covariance."""
        return list(range(len(self.mix_image)))

    @property
    def text(self) -> list[int]:
        """The indices of x_t in the covariance."""
        return list(range(len(self.mix_image), len(self.covariance)))


def gaussian_world(
    correlations: Sequence[float] = (0.95, 0.8, 0.5),
    n_image: int = 5,
    n_text: int = 3,
    seed: int = 0,
) -> GaussianWorld:
    """A world of shared factors with given correlations and image-only and text-only factors, of
    unit variance.

    The factors of each modality are mixed by a random rotation, so that no coordinate is one of
    them.

    Args:
        correlations: between the image's and the text's copy of each shared factor, in (0, 1).
        n_image: number of image-only factors.
        n_text: number of text-only factors.
        seed: of the rotations.

    Returns:
        The world.
    """
    rho = torch.tensor(correlations, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    dim_image, dim_text = len(rho) + n_image, len(rho) + n_text
    square = [
        torch.randn(n, n, generator=generator, dtype=torch.float64) for n in (dim_image, dim_text)
    ]
    mix_image, mix_text = (torch.linalg.qr(each).Q for each in square)
    factors = torch.zeros(dim_image, dim_text, dtype=torch.float64)
    factors[range(len(rho)), range(len(rho))] = rho
    covariance = torch.eye(dim_image + dim_text, dtype=torch.float64)
    covariance[:dim_image, dim_image:] = mix_image @ factors @ mix_text.T
    covariance[dim_image:, :dim_image] = covariance[:dim_image, dim_image:].T
    return GaussianWorld(covariance, mix_image, mix_text, rho)


def residual_image_nats(world: GaussianWorld, weights: Float64[Tensor, "d v"]) -> Nats:
    """I(Z_v;X_v|X_t) of the linear encoder Z_v = W x_v + N(0, I), exact.

    Args:
        world: images and texts.
        weights: W, [d, dim_image].

    Returns:
        Nats, a scalar, differentiable.
    """
    across = world.covariance[world.image][:, world.text]
    of_text = world.covariance[world.text][:, world.text]
    explained = across @ torch.linalg.solve(of_text, across.T)
    given_text = world.covariance[world.image][:, world.image] - explained
    identity = torch.eye(len(weights), dtype=torch.float64)
    return torch.logdet(identity + weights @ given_text @ weights.T) / 2


def optimal_linear_encoder(world: GaussianWorld, beta: float) -> Float64[Tensor, "s v"]:
    """W of the encoder Z_v = W x_v + N(0, I) that maximises I(Z_v;X_t) - beta * I(Z_v;X_v|X_t).

    With that of the other modality it maximises (I(Z_v;X_t) + I(Z_t;X_v)) / 2 - beta * R, R being
    the mean of both residuals.

    Source: Chechik et al. (2005, JMLR 6), theorem 3.1, whose beta is (1 + beta) / beta here.

    Args:
        world: images and texts.
        beta: weight of the residual, > 0: at 0 the optimal gain is infinite.

    Returns:
        W, one row per canonical direction, in the order of the world's correlations.
    """
    gain = bottleneck_variance(world.correlations, beta).sqrt()
    return gain[:, None] * world.mix_image[:, : len(gain)].T


def bottleneck_variance(correlations: Float64[Tensor, " s"], beta: float) -> Float64[Tensor, " s"]:
    """Variance of a canonical direction in the bottleneck's embedding, in units of the noise.

    With c = beta / (1 + beta) it is (rho^2 / c - 1) / (1 - rho^2), and 0 if rho^2 <= c; see
    `optimal_linear_encoder`.
    """
    squared = correlations**2
    c = beta / (1 + beta)
    return torch.clamp((squared / c - 1) / (1 - squared), min=0)


def within_reach(
    images: Float64[Tensor, "n d"], texts: Float64[Tensor, "m d"]
) -> Float64[Tensor, "n d"]:
    """The part of the images' embeddings in the linear span of the texts' embeddings."""
    directions, lengths, _ = torch.linalg.svd(texts.T, full_matrices=False)
    span = directions[:, lengths > 1e-9 * lengths[0]]
    return images @ span @ span.T
