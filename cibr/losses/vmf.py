"""Von Mises-Fisher distributions on the unit sphere, and bounds on information with them.

    density       C_d(k) exp(k <mu, z>) on the unit sphere in d dimensions
    mean cosine   A_d(k) = E <mu, z> = I_{d/2}(k) / I_{d/2-1}(k), the mean resultant length

With e(z|x_v) = vMF(mu_v, k_e) and b(z|x_t) = vMF(mu_t, k_b) the bound
E[log e(z|x_v) - log b(z|x_t)] on I(Z_v; X_v | X_t) has a closed form (`vmf_residual_nats`). Values
are float64 for any input: the terms reach 1e5 and cancel, and I_v itself under- and overflows for
orders up to thousands and arguments up to 1e5. Only samples have the dtype of their mean
directions.

Source: Mardia & Jupp, Directional Statistics (2000), section 9.3; Lee et al. (2021, arXiv
2109.12909) for the use as encoders; DLMF 10.41 (uniform expansion in the order, due to Debye) and
10.29 (recurrence) for the Bessel functions.
"""

import math

import torch
from jaxtyping import Float, Float64
from numpy.polynomial import Polynomial
from torch import Tensor
from torch.nn import functional as F

from cibr.losses.clip import Number

# Debye's expansion is used only at orders of at least 50, where nine terms leave an error below
# 1e-14; lower orders are reached by the stable downward recurrence.
_N_TERMS = 9
_LOWEST_DEBYE_ORDER = 50
_FEWEST_STEPS = 2  # down from the order of the expansion; each makes its error smaller
_NEWTON_STEPS = 5  # of `vmf_fit_kappa`, which converges quadratically

_Values = Float[Tensor, "..."] | Number
_Float64s = Float64[Tensor, "..."]


def _debye_polynomials() -> Float64[Tensor, "2 k powers"]:
    """Coefficients of U_k(t), and of V_k(t), by ascending powers of t (DLMF 10.41.10-11).

    U_{k+1}(t) = t^2 (1 - t^2) U_k'(t) / 2 + integral from 0 to t of (1 - 5 s^2) U_k(s) / 8 ds
    V_{k+1}(t) = U_{k+1}(t) - t (1 - t^2) U_k(t) / 2 - t^2 (1 - t^2) U_k'(t)
    """
    coefficients = torch.zeros(2, _N_TERMS, 3 * _N_TERMS - 2, dtype=torch.float64)
    coefficients[:, 0, 0] = 1.0  # U_0 = V_0 = 1
    t = Polynomial([0.0, 1.0])
    u = Polynomial([1.0])
    for k in range(1, _N_TERMS):
        slope = t**2 * (1 - t**2) * u.deriv()
        next_u = slope / 2 + ((1 - 5 * t**2) * u / 8).integ()
        next_v = next_u - t * (1 - t**2) * u / 2 - slope
        coefficients[0, k, : len(next_u.coef)] = torch.from_numpy(next_u.coef)
        coefficients[1, k, : len(next_v.coef)] = torch.from_numpy(next_v.coef)
        u = next_u
    return coefficients


_DEBYE = _debye_polynomials()


def _log_bessel_and_ratio(
    order: float, x: Float64[Tensor, "..."]
) -> tuple[Float64[Tensor, "..."], Float64[Tensor, "..."]]:
    """log(I_v(x) / x^v) and I_{v+1}(x) / I_v(x), both regular at x = 0, with relative errors of
    about 1e-14.

    Debye's expansion gives log(I_n / x^n) and y_n = x I_{n+1} / I_n at a high order, from which the
    recurrence leads down to n = v:

        I_n / x^n = (2 (n + 1) + y_{n+1}) I_{n+1} / x^{n+1}
        y_n = x^2 / (2 (n + 1) + y_{n+1})

    Args:
        order: v, which is d / 2 - 1 for the sphere in d dimensions.
        x: any shape.
    """
    n_steps = max(_FEWEST_STEPS, math.ceil(_LOWEST_DEBYE_ORDER - order))
    log_scaled, y = _debye_expansion(order + n_steps, x)
    for steps_left in reversed(range(1, n_steps)):
        n = order + steps_left
        denominator = 2 * (n + 1) + y
        log_scaled = log_scaled + torch.log(denominator)
        y = x**2 / denominator
    # The last step leads to n = v. There y_v = x * ratio = x^2 / denominator, so that the ratio is
    # x / denominator; y_v / x would be 0 / 0 at x = 0.
    denominator = 2 * (order + 1) + y
    log_scaled = log_scaled + torch.log(denominator)
    ratio = x / denominator
    return log_scaled, ratio


def _debye_expansion(
    order: float, x: Float64[Tensor, "..."]
) -> tuple[Float64[Tensor, "..."], Float64[Tensor, "..."]]:
    """log(I_w(x) / x^w) and y_w = x I_{w+1}(x) / I_w(x) at a high order w.

    With s = sqrt(w^2 + x^2) and t = w / s:

        log(I_w / x^w) = s - w log(w + s) - log(2 pi s) / 2 + log sum_k U_k(t) / w^k
        y_w = s (sum_k V_k(t) / w^k) / (sum_k U_k(t) / w^k) - w

    Args:
        order: w, at least `_LOWEST_DEBYE_ORDER`.
        x: any shape.
    """
    s = torch.sqrt(order**2 + x**2)
    t = order / s
    powers_of_t = t.unsqueeze(-1) ** torch.arange(_DEBYE.shape[2], dtype=x.dtype, device=x.device)
    powers_of_w = float(order) ** -torch.arange(_N_TERMS, dtype=x.dtype, device=x.device)
    debye = _DEBYE.to(x.device, non_blocking=True)  # small enough not to synchronise
    polynomials = powers_of_w @ debye  # [2, powers]
    sum_u, sum_v = (powers_of_t @ polynomials.T).unbind(-1)  # the shape of x
    log_scaled = s - order * torch.log(order + s) - torch.log(2 * math.pi * s) / 2
    return log_scaled + torch.log(sum_u), s * sum_v / sum_u - order


def vmf_mean_cosine(kappa: _Values, dim: int) -> _Float64s:
    """Mean of <mu, z> under vMF(mu, kappa): A_d(kappa) = I_{d/2} / I_{d/2-1}.

    Source: Mardia & Jupp, Directional Statistics, section 9.3.

    Args:
        kappa: concentration >= 0, any shape.
        dim: d, the dimension of the space that the sphere lies in.

    Returns:
        A_d(kappa) in [0, 1), the shape of kappa, float64.
    """
    kappa = torch.as_tensor(kappa, dtype=torch.float64)
    _, mean_cosine = _log_bessel_and_ratio(dim / 2 - 1, kappa)
    return mean_cosine


def vmf_log_normalizer(kappa: _Values, dim: int) -> _Float64s:
    """Log of the normalising constant of the vMF density C_d(kappa) exp(kappa <mu, z>).

    Source: C_d(k) = k^{d/2-1} / ((2 pi)^{d/2} I_{d/2-1}(k)), Mardia & Jupp, section 9.3.

    Args:
        kappa: concentration >= 0, any shape; 0 gives minus the log area of the sphere.
        dim: d, the dimension of the space that the sphere lies in.

    Returns:
        log C_d(kappa) in nats, the shape of kappa, float64.
    """
    kappa = torch.as_tensor(kappa, dtype=torch.float64)
    log_bessel, _ = _log_bessel_and_ratio(dim / 2 - 1, kappa)
    return -dim / 2 * math.log(2 * math.pi) - log_bessel


def vmf_fit_kappa(mean_cosine: _Values, dim: int) -> _Float64s:
    """Maximum-likelihood concentration for a given mean cosine: the inverse of A_d.

    Source: the initial value of Banerjee et al. (2005, JMLR 6), then Newton's method (Sra 2012) to
    convergence.

    Args:
        mean_cosine: below 1, any shape; at or below 0 the fit is uniform. Not differentiated.
        dim: d, the dimension of the space that the sphere lies in.

    Returns:
        kappa >= 0, the shape of mean_cosine, float64; 0 where mean_cosine <= 0.
    """
    mean_cosine = torch.as_tensor(mean_cosine, dtype=torch.float64).detach()
    is_positive = mean_cosine > 0
    target = torch.where(is_positive, mean_cosine, 0.5)  # any value that has a fit
    kappa = target * (dim - target**2) / (1 - target**2)
    for _ in range(_NEWTON_STEPS):
        fitted = vmf_mean_cosine(kappa, dim)
        slope = 1 - fitted**2 - (dim - 1) * fitted / kappa  # A_d'(kappa)
        newton_factor = 1 - (fitted - target) / slope / kappa
        # Near a cosine of 1 the slope is mostly rounding: a step halves or doubles kappa at most.
        kappa = kappa * torch.clamp(newton_factor, min=0.5, max=2.0)
    return torch.where(is_positive, kappa, 0.0)


def vmf_residual_nats(cosine: _Values, kappa_e: _Values, kappa_b: _Values, dim: int) -> _Float64s:
    """Upper bound on I(Z_v; X_v | X_t) for vMF encoders, one value per pair.

    The divergence KL(vMF(mu_v, k_e) || vMF(mu_t, k_b)) in closed form:
    log C_d(k_e) / C_d(k_b) + k_e A_d(k_e) - k_b A_d(k_e) <mu_v, mu_t>.

    Source: Fischer (2020, arXiv 2002.05379) for the bound, Lee et al. (2021, arXiv 2109.12909) for
    its vMF form; they estimate it by sampling, here the expectation over z is exact. Its mean over
    pairs bounds the information.

    Args:
        cosine: <mu_v, mu_t> of unit vectors, any shape.
        kappa_e: concentration of the encoder e(z|x_v).
        kappa_b: concentration of the backward encoder b(z|x_t). Unless it is fitted, most of the
            value is a mismatch of concentrations.
        dim: d, the width of the embedding.

    Returns:
        Nats, float64, in the common shape of the three; below 0 only through rounding.
    """
    cosine = torch.as_tensor(cosine, dtype=torch.float64)
    kappa_e = torch.as_tensor(kappa_e, dtype=torch.float64)
    kappa_b = torch.as_tensor(kappa_b, dtype=torch.float64)
    log_ratio = vmf_log_normalizer(kappa_e, dim) - vmf_log_normalizer(kappa_b, dim)
    mean_cosine = vmf_mean_cosine(kappa_e, dim)
    return log_ratio + kappa_e * mean_cosine - kappa_b * mean_cosine * cosine


def _sample_cosine_gaps(
    kappa: Float64[Tensor, " n"], dim: int, generator: torch.Generator | None
) -> Float64[Tensor, " n"]:
    """1 - <mu, z> for z ~ vMF(mu, kappa), [n], by Wood's rejection sampling, all rows at once.

    It draws gaps, 1 minus a cosine, because the cosines themselves lose their digits at high
    concentrations. A gap g is proposed, and accepted with a probability that has its maximum, 1, at
    the gap h:

        g = 2 b beta / (1 - beta + b beta),   h = 2 b / (1 + b)
        log u <= kappa (h - g) + (d - 1) log((h + (1 - h) g) / (h (2 - h)))

    Here b = (d - 1) / (2 kappa + sqrt(4 kappa^2 + (d - 1)^2)), u is uniform, and beta is
    (1 + c) / 2 with c one coordinate of a uniform unit vector, drawn from two uniform numbers
    (Ulrich 1984). Wood writes the same with the cosines w = 1 - g and x = 1 - h: the test is then
    log u <= kappa (w - x) + (d - 1) log((1 - x w) / (1 - x^2)).
    """
    n = len(kappa)
    b = (dim - 1) / (2 * kappa + torch.sqrt(4 * kappa**2 + (dim - 1) ** 2))
    surest_gap = 2 * b / (1 + b)  # h = 1 - x
    gaps = torch.zeros_like(kappa)
    is_pending = torch.ones(n, dtype=torch.bool, device=kappa.device)
    while bool(is_pending.any()):
        # For every row, pending or not, so that shapes do not depend on what was accepted.
        u_radius, u_angle, u_accept = torch.rand(
            3, n, generator=generator, dtype=kappa.dtype, device=kappa.device
        )
        # In two dimensions log(u) / 0 = -inf, and the radius is 1.
        radius = torch.sqrt(-torch.expm1(2 * torch.log(u_radius) / (dim - 2)))
        beta = (1 + radius * torch.cos(2 * math.pi * u_angle)) / 2
        proposal = 2 * b * beta / (1 - beta + b * beta)  # g = 1 - w
        # (1 - x w) / (1 - x^2), in gaps
        ratio = (surest_gap + (1 - surest_gap) * proposal) / (surest_gap * (2 - surest_gap))
        log_accept = kappa * (surest_gap - proposal) + (dim - 1) * torch.log(ratio)
        is_accepted = is_pending & (torch.log(u_accept) <= log_accept)
        gaps = torch.where(is_accepted, proposal, gaps)
        is_pending = is_pending & ~is_accepted
    return gaps


def sample_vmf(
    mean_directions: Float[Tensor, "n d"], kappa: _Values, generator: torch.Generator | None = None
) -> Float[Tensor, "n d"]:
    """Exact draws z ~ vMF(mu, kappa), one per row, differentiable in mu.

    z = w mu + sqrt(1 - w^2) v, with v uniform among the unit vectors orthogonal to mu.

    Source: Wood (1994), Simulation of the von Mises-Fisher distribution. The noise is drawn
    in fixed precisions (gaps in float64, tangents in float32) and for all rows at once, so a
    generator gives the same noise for every dtype of the directions.

    Args:
        mean_directions: mu, unit vectors, [n, d].
        kappa: concentration >= 0, one number or one per row; not differentiated.
        generator: random generator of the noise, on any device; torch's global one if None.

    Returns:
        Unit vectors, [n, d], in the dtype of mean_directions.

    Raises:
        ValueError: kappa is negative or not finite, or d < 2.
    """
    n, dim = mean_directions.shape
    device = mean_directions.device if generator is None else generator.device
    kappa = torch.as_tensor(kappa, dtype=torch.float64).detach()
    if dim < 2:
        raise ValueError(f"mean_directions must have 2 dimensions or more, but have {dim}")
    if not ((kappa >= 0) & (kappa < math.inf)).all():  # no draw would be accepted
        raise ValueError(f"kappa must be finite and not negative, but is {kappa.tolist()}")
    gaps = _sample_cosine_gaps(kappa.to(device).expand(n), dim, generator)  # 1 - w, [n]
    noise = torch.randn(n, dim, generator=generator, device=device, dtype=torch.float32)
    mu = mean_directions.to(torch.promote_types(mean_directions.dtype, torch.float32))
    cosine = (1 - gaps).to(mu)[:, None]
    sine = torch.sqrt(gaps * (2 - gaps)).to(mu)[:, None]
    noise = noise.to(mu)
    tangent = F.normalize(noise - (noise * mu).sum(1, keepdim=True) * mu, dim=1)
    return (cosine * mu + sine * tangent).to(mean_directions.dtype)
