"""A world of Gaussians, where every information is a ratio of determinants, in three routes.

    I(A;B) = 1/2 log |S_a| |S_b| / |S_ab|          determinants of covariance blocks
           = -1/2 sum_i log(1 - rho_i^2)           canonical correlations
           = 1/2 log |S_a| / |S_a|b|               what remains of A when B is known

Source: Cover & Thomas (2006), section 8.5, for determinants; Chechik et al. (2005, JMLR 6), theorem 3.1, for
the optimal linear encoder, which is restated here in the residual information.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from cibr.information.checks import check_finite, check_positive

Block = Sequence[int] | slice


def conditional_covariance(covariance: Float64[Tensor, "n n"], a: Block, given: Block) -> Float64[Tensor, "a a"]:
    """Covariance of A when B is known, S_aa - S_ab S_bb^-1 S_ba.

    Args:
        covariance: of all variables, positive definite.
        a: the indices of A.
        given: the indices of what is known.

    Returns:
        The covariance of A given B.

    Raises:
        ValueError: a covariance that is not square, finite and positive definite.
    """
    _check_covariance(covariance)
    across = covariance[a][:, given]
    return covariance[a][:, a] - across @ torch.linalg.solve(covariance[given][:, given], across.T)


def gaussian_information_nats(
    covariance: Float64[Tensor, "n n"], a: Block, b: Block, given: Block | None = None
) -> Float64[Tensor, ""]:
    """I(A;B) or I(A;B|C) of jointly Gaussian variables by determinants of covariance blocks.

    Args:
        covariance: of all variables, positive definite.
        a: the indices of A.
        b: the indices of B, none of A's.
        given: the indices of C, none of A's and B's; nothing if None.

    Returns:
        Nats, a scalar, differentiable.

    Raises:
        ValueError: as `conditional_covariance`, or blocks that share an index.
    """
    _check_covariance(covariance)
    a, b, c = (_indices(block, len(covariance)) for block in (a, b, given or []))
    if len({*a, *b, *c}) < len(a) + len(b) + len(c):
        raise ValueError("the blocks must have no index in common: a variable tells everything about itself")
    log_det = {
        key: _log_det(covariance, block)
        for key, block in {"ac": a + c, "bc": b + c, "abc": a + b + c, "c": c}.items()
    }
    return (log_det["ac"] + log_det["bc"] - log_det["abc"] - log_det["c"]) / 2


def canonical_correlations(covariance: Float64[Tensor, "n n"], a: Block, b: Block) -> Float64[Tensor, " k"]:
    """Correlations of the pairs of directions of A and B that agree most, largest first.

    Singular values of S_a^-1/2 S_ab S_b^-1/2, taken with Cholesky factors.

    Args:
        covariance: of all variables, positive definite.
        a: the indices of A.
        b: the indices of B.

    Returns:
        Correlations in [0, 1), as many as the smaller block has variables.

    Raises:
        ValueError: as `conditional_covariance`.
    """
    _check_covariance(covariance)
    roots = [torch.linalg.cholesky(covariance[block][:, block]) for block in (a, b)]
    left = torch.linalg.solve_triangular(roots[0], covariance[a][:, b], upper=False)
    return torch.linalg.svdvals(torch.linalg.solve_triangular(roots[1], left.T, upper=False))


def information_of_correlations_nats(correlations: Float64[Tensor, " k"]) -> Float64[Tensor, ""]:
    """-1/2 sum log(1 - rho^2): the information of pairs of Gaussians with these correlations."""
    if not bool((correlations.abs() < 1).all()):
        raise ValueError("correlations must lie in (-1, 1): at 1 the information is infinite")
    return -torch.log1p(-(correlations**2)).sum() / 2


@dataclass(frozen=True)
class GaussianWorld:
    """Images and texts that are Gaussian vectors; build one with `gaussian_world`.

    Args:
        covariance: of (x_v, x_t).
        mix_image: the image's factors are rotated into x_v = mix_image @ (shared, image-only).
        mix_text: the same of the text.
        correlations: of the shared factors of image and text.
        dim_image, dim_text: lengths of x_v and of x_t.
    """

    covariance: Float64[Tensor, "n n"]
    mix_image: Float64[Tensor, "v v"]
    mix_text: Float64[Tensor, "t t"]
    correlations: Float64[Tensor, " s"]

    @property
    def dim_image(self) -> int:
        return len(self.mix_image)

    @property
    def dim_text(self) -> int:
        return len(self.mix_text)

    @property
    def image(self) -> list[int]:
        """The indices of x_v in the covariance."""
        return list(range(self.dim_image))

    @property
    def text(self) -> list[int]:
        """The indices of x_t in the covariance."""
        return list(range(self.dim_image, len(self.covariance)))


def gaussian_world(
    correlations: Sequence[float] = (0.95, 0.8, 0.5), n_image: int = 5, n_text: int = 3, seed: int = 0
) -> GaussianWorld:
    """Shared factors with the correlations given, image-only and text-only factors, all of unit variance.

    The factors of each side are hidden by a random rotation, so that no coordinate is one of them.

    Args:
        correlations: between the image's and the text's copy of each shared factor, in (0, 1).
        n_image: image-only factors.
        n_text: text-only factors.
        seed: of the rotations.

    Returns:
        The world.

    Raises:
        ValueError: a correlation outside (0, 1).
    """
    rho = torch.tensor(correlations, dtype=torch.float64)
    if not bool(((rho > 0) & (rho < 1)).all()):
        raise ValueError(f"correlations must lie in (0, 1), got {list(correlations)}")
    n_shared, generator = len(rho), torch.Generator().manual_seed(seed)
    sizes = n_shared + n_image, n_shared + n_text
    mixes = [torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q for n in sizes]
    across = torch.zeros(sizes, dtype=torch.float64)
    across[range(n_shared), range(n_shared)] = rho
    across = mixes[0] @ across @ mixes[1].T
    identity = [torch.eye(n, dtype=torch.float64) for n in sizes]
    covariance = torch.cat([torch.cat([identity[0], across], 1), torch.cat([across.T, identity[1]], 1)])
    return GaussianWorld(covariance, *mixes, rho)


def linear_encoder_nats(
    world: GaussianWorld, weights: Float64[Tensor, "d v"], noise_variance: float = 1.0
) -> dict[str, Float64[Tensor, ""]]:
    """Informations of Z_v = W x_v + noise, exact.

    Args:
        world: images and texts.
        weights: W, [d, dim_image].
        noise_variance: of each coordinate of the noise, > 0: without noise the residual is infinite.

    Returns:
        Nats, scalars: `sufficiency_nats` I(Z_v;X_t), `image_nats` I(Z_v;X_v), `residual_image_nats`
        I(Z_v;X_v|X_t), and `nuisance_image_nats` I(Z_v;V|S), the part of the residual that is about the
        image-only factors V; the rest is about the shared factors S where the text leaves them open.

    Raises:
        ValueError: a noise variance that is not positive, or weights that do not fit.
    """
    check_positive("noise_variance", noise_variance)
    if weights.ndim != 2 or weights.shape[1] != world.dim_image:
        raise ValueError(f"weights must be [d, {world.dim_image}], got {list(weights.shape)}")
    n_shared = len(world.correlations)
    identity = torch.eye(len(weights), dtype=torch.float64)
    given_text = conditional_covariance(world.covariance, world.image, world.text)
    image_only = world.mix_image[:, n_shared:]

    def spread(of_image: Tensor) -> Tensor:
        """log det of the covariance of Z_v, in units of the noise, for a covariance of x_v."""
        return torch.logdet(identity + weights @ of_image @ weights.T / noise_variance)

    everything, remaining = spread(torch.eye(world.dim_image, dtype=torch.float64)), spread(given_text)
    return {
        "sufficiency_nats": (everything - remaining) / 2,
        "image_nats": everything / 2,
        "residual_image_nats": remaining / 2,
        "nuisance_image_nats": spread(image_only @ image_only.T) / 2,
    }


def optimal_linear_encoder(world: GaussianWorld, beta: float) -> Float64[Tensor, "s v"]:
    """W of the encoder Z_v = W x_v + N(0, I) with the largest I(Z_v;X_t) - beta * I(Z_v;X_v|X_t).

    Along the canonical direction with correlation rho, with c = beta / (1 + beta), the squared gain is
    (rho^2 / c - 1) / (1 - rho^2), and 0 where rho^2 <= c.

    Source: Chechik et al. (2005, JMLR 6), theorem 3.1, whose beta is (1 + beta) / beta here.

    Args:
        world: images and texts.
        beta: weight of the residual, > 0: without it the best gain is infinite.

    Returns:
        W, one row a canonical direction, in the order of the world's correlations.

    Raises:
        ValueError: beta is not positive.
    """
    check_positive("beta", beta)
    squared, c = world.correlations**2, beta / (1 + beta)
    gain = torch.sqrt(torch.clamp((squared / c - 1) / (1 - squared), min=0))
    return gain[:, None] * world.mix_image[:, : len(squared)].T


def _indices(block: Block, n: int) -> list[int]:
    return list(range(n))[block] if isinstance(block, slice) else list(block)


def _log_det(covariance: Tensor, block: list[int]) -> Tensor:
    return torch.logdet(covariance[block][:, block]) if block else covariance.new_zeros(())


def _check_covariance(covariance: Tensor) -> None:
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"covariance must be [n, n], got {list(covariance.shape)}")
    check_finite("covariance", covariance)
    lowest = torch.linalg.eigvalsh(covariance.detach())[0].item()
    if not lowest > 0:
        raise ValueError(
            f"covariance must be positive definite, its lowest eigenvalue is {lowest:.3g}: a variable that is a "
            "sum of others has infinite information about them"
        )
