"""Modified Bessel functions of the first kind, in float64 and in logarithms.

What von Mises-Fisher distributions need, for orders from 0 to thousands and arguments
from 0 to 1e5, where I_v itself under- and overflows: log I_v(x), log(I_v(x) / x^v) and
I_{v+1}(x) / I_v(x), differentiable twice. Relative errors are about 1e-14; only the
derivative of the ratio cancels at large x, to 1e-5 at v = 0 and x = 1e5.

Source: DLMF 10.41 (uniform expansion in the order, due to Debye), 10.29 (recurrence).
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Float64
from numpy.polynomial import Polynomial
from torch import Tensor

# Debye's expansion is used at orders of at least 50 only, where nine terms leave an
# error below 1e-14; lower orders are reached by the stable downward recurrence.
N_TERMS = 9
LOWEST_DEBYE_ORDER = 50

Number = float | int


@lru_cache(maxsize=1)
def _debye_polynomials() -> tuple[Tensor, Tensor]:
    """Coefficients of U_k(t) and V_k(t), [k, power of t] (DLMF 10.41.10-11)."""
    t = Polynomial([0.0, 1.0])
    u, v = [Polynomial([1.0])], [Polynomial([1.0])]
    for _ in range(N_TERMS - 1):
        slope = t**2 * (1 - t**2) * u[-1].deriv()
        following = slope / 2 + ((1 - 5 * t**2) * u[-1] / 8).integ()
        v.append(following - t * (1 - t**2) * u[-1] / 2 - slope)
        u.append(following)
    tables = torch.zeros(2, N_TERMS, 3 * N_TERMS - 2, dtype=torch.float64)
    for table, polynomials in zip(tables, (u, v), strict=True):
        for row, polynomial in zip(table, polynomials, strict=True):
            row[: len(polynomial.coef)] = torch.from_numpy(polynomial.coef)
    return tables[0], tables[1]


def _scaled_bessel_and_ratio(order: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """log(I_v(x) / x^v) and I_{v+1}(x) / I_v(x), both regular at x = 0.

    Starts from Debye's expansion at a high order w (t = w / s, s = sqrt(w^2 + x^2)):
        log(I_w / x^w) = s - w log(w + s) - log(2 pi s) / 2 + log sum_k U_k(t) / w^k
        y_w = x I_{w+1} / I_w = s sum_k V_k / w^k / sum_k U_k / w^k - w
    and steps down with I_n / x^n = (2 n + 2 + y_{n+1}) I_{n+1} / x^{n+1}.
    """
    n_steps = max(2, math.ceil(LOWEST_DEBYE_ORDER - order))
    top = order + n_steps
    s = torch.sqrt(top**2 + x**2)
    table_u, table_v = (table.to(x.device) for table in _debye_polynomials())
    weights = float(top) ** -torch.arange(N_TERMS, dtype=x.dtype, device=x.device)
    exponents = torch.arange(table_u.shape[1], dtype=x.dtype, device=x.device)
    powers = (top / s).unsqueeze(-1) ** exponents  # [..., 3 * N_TERMS - 2]
    sum_u, sum_v = powers @ (weights @ table_u), powers @ (weights @ table_v)
    log_scaled = s - top * torch.log(top + s) - torch.log(2 * math.pi * s) / 2
    log_scaled = log_scaled + torch.log(sum_u)
    y = s * sum_v / sum_u - top
    for step in range(n_steps - 1, -1, -1):
        denominator = 2 * (order + step + 1) + y
        log_scaled = log_scaled + torch.log(denominator)
        y = x**2 / denominator
    return log_scaled, x / denominator


class LogScaledBessel(torch.autograd.Function):
    """log(I_v(x) / x^v), whose derivative is I_{v+1}(x) / I_v(x)."""

    @staticmethod
    def forward(ctx, order, x):
        ctx.order = order
        ctx.save_for_backward(x)
        return _scaled_bessel_and_ratio(order, x)[0]

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return None, grad * BesselRatio.apply(ctx.order, x)


class BesselRatio(torch.autograd.Function):
    """r = I_{v+1}(x) / I_v(x), whose derivative is 1 - r^2 - (2 v + 1) r / x."""

    @staticmethod
    def forward(ctx, order, x):
        ctx.order = order
        ctx.save_for_backward(x)
        return _scaled_bessel_and_ratio(order, x)[1]

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        ratio = BesselRatio.apply(ctx.order, x)
        return None, grad * bessel_ratio_slope(ctx.order, x, ratio)


def bessel_ratio_slope(order: float, x: Tensor, ratio: Tensor) -> Tensor:
    safe = torch.where(x > 0, x, torch.ones_like(x))
    slope = 1 - ratio**2 - (2 * order + 1) * ratio / safe
    return torch.where(x > 0, slope, torch.full_like(x, 1 / (2 * order + 2)))


def as_double(value, name: str) -> Tensor:
    value = torch.as_tensor(value, dtype=torch.float64)
    if not bool(((value >= 0) & (value < math.inf)).all()):
        raise ValueError(
            f"{name} must be finite and not negative, got {value.detach().tolist()}: "
            "a concentration of 0 is the uniform distribution, check what computed it"
        )
    return value


def log_bessel_i(order: Number, x: Float[Tensor, "..."] | Number) -> Float64[Tensor, "..."]:
    """Logarithm of the modified Bessel function of the first kind, log I_v(x).

    Source: DLMF 10.41.3 (uniform expansion in the order) with 10.29.1 (recurrence).

    Args:
        order: v >= 0; not differentiated.
        x: argument >= 0, any shape; differentiable twice.

    Returns:
        log I_v(x), the shape of x, float64; -inf at x = 0 when v > 0.

    Raises:
        ValueError: order or x is negative or not finite.
    """
    as_double(order, "order")
    x = as_double(x, "x")
    log_scaled = LogScaledBessel.apply(float(order), x)
    return log_scaled + order * torch.log(x) if order else log_scaled
