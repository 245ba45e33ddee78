"""Von Mises-Fisher distributions on the unit sphere, and the information they bound.

The density of vMF(mu, k) on the sphere in d dimensions is C_d(k) exp(k <mu, z>), its
mean cosine is A_d(k) = I_{d/2}(k) / I_{d/2-1}(k). With e(z|x_v) = vMF(mu_v, k_e) and
b(z|x_t) = vMF(mu_t, k_b) the bound on I(Z_v; X_v | X_t) of this package is closed
(`vmf_residual_nats`). Values are float64 whatever comes in: the terms reach 1e5 and
cancel. Only samples have the precision of their directions.

Source: Mardia & Jupp, Directional Statistics (2000), section 9.3; Lee et al. (2021,
arXiv 2109.12909) for the use as encoders.
"""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from cibr.information.bessel import (
    BesselRatio,
    LogScaledBessel,
    Number,
    as_double,
    bessel_ratio_slope,
)


def _check_dim(dim: int) -> None:
    if dim < 2:
        raise ValueError(
            f"dim must be at least 2, got {dim}: a sphere needs two dimensions, pass the width of the embedding"
        )


def vmf_mean_cosine(kappa: Float[Tensor, "..."] | Number, dim: int) -> Float64[Tensor, "..."]:
    """Mean of <mu, z> under vMF(mu, kappa): A_d(kappa) = I_{d/2} / I_{d/2-1}.

    Source: Mardia & Jupp, Directional Statistics, section 9.3.

    Args:
        kappa: concentration >= 0, any shape.
        dim: d, the dimension of the space that the sphere lies in.

    Returns:
        A_d(kappa) in [0, 1), the shape of kappa, float64.

    Raises:
        ValueError: kappa is negative or not finite, or dim < 2.
    """
    _check_dim(dim)
    return BesselRatio.apply(dim / 2 - 1, as_double(kappa, "kappa"))


def vmf_log_normalizer(kappa: Float[Tensor, "..."] | Number, dim: int) -> Float64[Tensor, "..."]:
    """Log of the constant in front of the vMF density C_d(kappa) exp(kappa <mu, z>).

    Source: C_d(k) = k^{d/2-1} / ((2 pi)^{d/2} I_{d/2-1}(k)), Mardia & Jupp, section 9.3.

    Args:
        kappa: concentration >= 0, any shape; 0 gives minus the log area of the sphere.
        dim: d, the dimension of the space that the sphere lies in.

    Returns:
        log C_d(kappa) in nats, the shape of kappa, float64.

    Raises:
        ValueError: kappa is negative or not finite, or dim < 2.
    """
    _check_dim(dim)
    log_scaled = LogScaledBessel.apply(dim / 2 - 1, as_double(kappa, "kappa"))
    return -dim / 2 * math.log(2 * math.pi) - log_scaled


def vmf_fit_kappa(mean_cosine: Float[Tensor, "..."] | Number, dim: int) -> Float64[Tensor, "..."]:
    """Concentration whose mean cosine is the one given: the inverse of A_d.

    Source: the start of Banerjee et al. (2005, JMLR 6), then Newton's method (Sra
    2012), run to convergence here. The gradient is that of the exact inverse.

    Args:
        mean_cosine: below 1, any shape; at or below 0 the fit is the uniform one.
        dim: d, the dimension of the space that the sphere lies in.

    Returns:
        kappa >= 0, the shape of mean_cosine, float64; 0 where mean_cosine <= 0.

    Raises:
        ValueError: a mean_cosine is 1 or more or NaN, or dim < 2.
    """
    _check_dim(dim)
    mean_cosine = torch.as_tensor(mean_cosine, dtype=torch.float64)
    if not bool((mean_cosine < 1).all()):
        raise ValueError(
            "mean_cosine must be below 1, which no finite concentration reaches, got "
            f"{mean_cosine.detach().max().item()}: average unit vectors, or multiply by "
            "the encoder's own vmf_mean_cosine(kappa, dim)"
        )
    order = dim / 2 - 1
    positive = mean_cosine > 0
    target = torch.where(positive, mean_cosine, torch.full_like(mean_cosine, 0.5))
    with torch.no_grad():
        fit = target * (dim - target**2) / (1 - target**2)
        for _ in range(5):
            ratio = BesselRatio.apply(order, fit)
            step = (ratio - target) / bessel_ratio_slope(order, fit, ratio)
            fit = fit * torch.clamp(1 - step / fit, 0.5, 2.0)
        ratio = BesselRatio.apply(order, fit)
        slope = bessel_ratio_slope(order, fit, ratio)
    fit = fit + (target - target.detach()) / slope
    return torch.where(positive, fit, torch.zeros_like(fit))


def vmf_residual_nats(
    cosine: Float[Tensor, "..."] | Number,
    kappa_e: Float[Tensor, "..."] | Number,
    kappa_b: Float[Tensor, "..."] | Number,
    dim: int,
) -> Float64[Tensor, "..."]:
    """Upper bound on I(Z_v; X_v | X_t) for vMF encoders, one value per pair.

    The divergence KL(vMF(mu_v, k_e) || vMF(mu_t, k_b)) in closed form:
    log C_d(k_e) / C_d(k_b) + k_e A_d(k_e) - k_b A_d(k_e) <mu_v, mu_t>.

    Source: Fischer (2020, arXiv 2002.05379) for the bound, Lee et al. (2021, arXiv
    2109.12909) for its vMF form; they estimate it by sampling, here the expectation
    over z is exact. Its mean over pairs bounds the information.

    Args:
        cosine: <mu_v, mu_t> of unit vectors, any shape.
        kappa_e: concentration of the encoder e(z|x_v).
        kappa_b: concentration of the backward encoder b(z|x_t). Where it is not the
            one that fits, most of the value is a mismatch of concentrations.
        dim: d, the width of the embedding.

    Returns:
        Nats, the common shape of the three, float64; never negative.

    Raises:
        ValueError: a concentration is negative or not finite, dim < 2, or a cosine is NaN or
            outside [-1, 1] by more than rounding.
    """
    cosine = torch.as_tensor(cosine, dtype=torch.float64)
    if not bool((cosine.abs() <= 1 + 1e-3).all()):
        raise ValueError(
            f"cosine must lie in [-1, 1], got {cosine.detach().abs().max().item()}: pass products of unit vectors"
        )
    kappa_e, kappa_b = as_double(kappa_e, "kappa_e"), as_double(kappa_b, "kappa_b")
    log_ratio = vmf_log_normalizer(kappa_e, dim) - vmf_log_normalizer(kappa_b, dim)
    mean_cosine = vmf_mean_cosine(kappa_e, dim)
    return log_ratio + kappa_e * mean_cosine - kappa_b * mean_cosine * cosine


def vmf_floor_nats(
    kappa_e: Float[Tensor, "..."] | Number, kappa_b: Float[Tensor, "..."] | Number, dim: int
) -> Float64[Tensor, "..."]:
    """What `vmf_residual_nats` still is at cosine 1: mismatch, not information.

    Args:
        kappa_e: concentration of the encoder.
        kappa_b: concentration of the backward encoder.
        dim: d, the width of the embedding.

    Returns:
        Nats, the common shape of the two, float64; 0 where they are equal.

    Raises:
        ValueError: a concentration is negative or not finite, or dim < 2.
    """
    return vmf_residual_nats(1.0, kappa_e, kappa_b, dim)


def _sample_cosine_gap(kappa: Tensor, dim: int, generator: torch.Generator | None) -> Tensor:
    """1 - <mu, z> for z ~ vMF(mu, kappa), [n], by Wood's rejection, all rows at once.

    Wood's Beta variable is (1 + c) / 2 with c one coordinate of a uniform unit vector,
    which two uniform numbers give (Ulrich 1984). Gaps instead of cosines keep the
    digits at high concentrations.
    """
    n, device = len(kappa), kappa.device
    b = (dim - 1) / (2 * kappa + torch.sqrt(4 * kappa**2 + (dim - 1) ** 2))
    mode = 2 * b / (1 + b)
    gap, pending = torch.zeros_like(kappa), torch.ones(n, dtype=torch.bool, device=device)
    while bool(pending.any()):
        u = torch.rand(3, n, generator=generator, dtype=kappa.dtype, device=device)
        radius = torch.sqrt(-torch.expm1(2 * torch.log(u[0]) / (dim - 2)))
        beta = (1 + radius * torch.cos(2 * math.pi * u[1])) / 2
        proposal = 2 * b * beta / (1 - beta + b * beta)
        shrink = (mode + (1 - mode) * proposal) / (mode * (2 - mode))
        log_accept = kappa * (mode - proposal) + (dim - 1) * torch.log(shrink)
        accepted = pending & (torch.log(u[2]) <= log_accept)
        gap = torch.where(accepted, proposal, gap)
        pending = pending & ~accepted
    return gap


def sample_vmf(
    mean_directions: Float[Tensor, "n d"],
    kappa: Float[Tensor, "..."] | Number,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n d"]:
    """Exact draws z ~ vMF(mu, kappa), one per row, differentiable in mu.

    z = w mu + sqrt(1 - w^2) v, with v uniform among the unit vectors orthogonal to mu.

    Source: Wood (1994), Simulation of the von Mises-Fisher distribution. The noise
    is drawn in one precision and for all rows at once: the same generator gives the
    same noise whatever the dtype of the directions.

    Args:
        mean_directions: mu, unit vectors, [n, d].
        kappa: concentration >= 0, one number or one per row; not differentiated.
        generator: source of the noise, on any device; torch's global one if None.

    Returns:
        Unit vectors, [n, d], in the dtype of mean_directions.

    Raises:
        ValueError: kappa is negative or not finite, or d < 2.
    """
    n, dim = mean_directions.shape
    _check_dim(dim)
    device = mean_directions.device if generator is None else generator.device
    kappa = as_double(kappa, "kappa").detach().to(device).expand(n)
    gap = _sample_cosine_gap(kappa, dim, generator)
    noise = torch.randn(n, dim, generator=generator, device=device, dtype=torch.float32)
    dtype = torch.promote_types(mean_directions.dtype, torch.float32)
    mu = mean_directions.to(dtype)
    along = (1 - gap).to(mu).unsqueeze(1)
    across = torch.sqrt(gap * (2 - gap)).to(mu).unsqueeze(1)
    noise = noise.to(mu)
    tangent = F.normalize(noise - (noise * mu).sum(1, keepdim=True) * mu, dim=1)
    return (along * mu + across * tangent).to(mean_directions.dtype)
