"""Samplers whose mutual information is known: Gaussians, and what is not Gaussian although it could be.

A map of each side that can be undone leaves I(X;Y) as it was, so that a Gaussian seen through cubes and sines
keeps its truth and loses its shape. The families are those of Czyz et al. (2023, arXiv 2306.11078), section 3;
the samplers are our own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from scipy.special import digamma, gammaln
from torch import Tensor

Map = Callable[[Tensor], Tensor]

# Maps of single coordinates that can be undone.
MAPS: dict[str, Map] = {
    "none": lambda x: x,
    "half-cube": lambda x: x * x.abs().sqrt(),
    "asinh": torch.asinh,
    "wiggly": lambda x: x + 0.4 * torch.sin(x) + 0.3 * torch.sin(1.7 * x + 1),
    "uniform": lambda x: torch.special.ndtr(x),
}


@dataclass(frozen=True)
class Task:
    """A sampler and its truth.

    Args:
        name: for tables.
        nats: the true I(X;Y).
        draw: from a number of samples and a generator to x [n, d] and y [n, e].
    """

    name: str
    nats: float
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]

    def sample(self, n: int, seed: int = 0) -> tuple[Float64[Tensor, "n d"], Float64[Tensor, "n e"]]:
        """n pairs, float64; the same seed gives the same pairs."""
        if n < 2:
            raise ValueError(f"a sample needs two pairs at least, got {n}")
        return self.draw(n, torch.Generator().manual_seed(seed))


def correlation_of(nats: float, dim: int = 1) -> float:
    """The correlation that dim independent pairs of Gaussians need for this information together."""
    if not 0 <= nats < math.inf or dim < 1:
        raise ValueError(f"information is finite and at least 0 over at least one dimension, got {nats} and {dim}")
    return math.sqrt(-math.expm1(-2 * nats / dim))


def gaussian_task(dim: int, nats: float, seen_through: str = "none") -> Task:
    """dim pairs of Gaussians with one correlation, each coordinate seen through a map of `MAPS`."""
    rho, change = correlation_of(nats, dim), _map(seen_through)

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, noise = _normal(n, dim, generator), _normal(n, dim, generator)
        return change(x), change(rho * x + math.sqrt(1 - rho**2) * noise)

    name = f"Gaussian {dim} x {dim}" + ("" if seen_through == "none" else f", {seen_through}")
    return Task(name, nats, draw)


def sparse_task(dim: int = 5, n_pairs: int = 2, correlation: float = 0.8, seen_through: str = "none") -> Task:
    """Gaussians of which only the first n_pairs coordinates of x and y are correlated.

    Two pairs with correlation 0.8 have -log(1 - 0.64) = 1.0217 nats, the value that Czyz et al. (2023) list.
    """
    nats, change = -n_pairs * math.log1p(-(correlation**2)) / 2, _map(seen_through)

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, y = _normal(n, dim, generator), _normal(n, dim, generator)
        y[:, :n_pairs] = correlation * x[:, :n_pairs] + math.sqrt(1 - correlation**2) * y[:, :n_pairs]
        return change(x), change(y)

    name = f"{n_pairs} pairs in {dim} x {dim}" + ("" if seen_through == "none" else f", {seen_through}")
    return Task(name, nats, draw)


def student_task(
    dim: int = 1, dof: float = 1.0, nats_of_gaussian: float = 0.0, seen_through: str = "none"
) -> Task:
    """A multivariate Student t: one heavy-tailed scale multiplies all of x and y, and is information itself."""
    rho, change = correlation_of(nats_of_gaussian, dim), _map(seen_through)
    nats = nats_of_gaussian + student_excess_nats(dof, dim, dim)

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, noise = _normal(n, dim, generator), _normal(n, dim, generator)
        y = rho * x + math.sqrt(1 - rho**2) * noise
        # Chi-squared by its Gamma, drawn with the generator through the exponential family's own sampler.
        gamma = torch._standard_gamma(torch.full((n, 1), dof / 2, dtype=torch.float64), generator=generator)
        scale = torch.sqrt(dof / (2 * gamma))
        return change(scale * x), change(scale * y)

    name = f"Student {dim} x {dim}, {dof:g} d.o.f." + ("" if seen_through == "none" else f", {seen_through}")
    return Task(name, nats, draw)


def student_excess_nats(dof: float, dim_x: int, dim_y: int) -> float:
    """What a multivariate Student t has beyond the Gaussian of the same dispersion.

    f(v) + f(v + m + n) - f(v + m) - f(v + n) with f(x) = log Gamma(x/2) - x/2 psi(x/2).

    Source: from the entropies of Arellano-Valle et al. (2013), eq. 7; Czyz et al. (2023, arXiv 2306.11078) use it.

    Args:
        dof: degrees of freedom > 0.
        dim_x: m.
        dim_y: n.

    Returns:
        Nats.
    """
    if not dof > 0:
        raise ValueError(f"dof must be positive, got {dof}")

    def f(x: float) -> float:
        return float(gammaln(x / 2) - x / 2 * digamma(x / 2))

    return f(dof) + f(dof + dim_x + dim_y) - f(dof + dim_x) - f(dof + dim_y)


def additive_noise_task(spread: float = 0.1) -> Task:
    """x uniform on [0, 1], y = x + uniform noise on [-spread, spread]: log(1 / (2 spread)) + spread nats."""
    if not 0 < spread <= 0.5:
        raise ValueError(f"spread must be in (0, 1/2], got {spread}: beyond, the formula is another")

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, noise = (torch.rand(n, 1, generator=generator, dtype=torch.float64) for _ in range(2))
        return x, x + spread * (2 * noise - 1)

    return Task(f"uniform noise {spread:g}", spread - math.log(2 * spread), draw)


def gaussian_log_ratio(
    x: Float64[Tensor, "n d"], y: Float64[Tensor, "n d"], correlation: float
) -> Float64[Tensor, "n n"]:
    """The perfect critic of `gaussian_task`: log p(x_i, y_j) / p(x_i) p(y_j), [n, n], in nats."""
    gap = 1 - correlation**2
    squares = correlation**2 * ((x**2).sum(1)[:, None] + (y**2).sum(1)[None])
    return -x.shape[1] * math.log(gap) / 2 - (squares - 2 * correlation * x @ y.T) / (2 * gap)


def _normal(n: int, dim: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, dim, generator=generator, dtype=torch.float64)


def _map(name: str) -> Map:
    if name not in MAPS:
        raise ValueError(f"unknown map {name!r}: it is one of {', '.join(MAPS)}")
    return MAPS[name]
