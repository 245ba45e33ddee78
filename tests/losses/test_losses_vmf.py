"""Von Mises-Fisher distributions against mpmath, Monte Carlo, numerical gradients and limits."""

import itertools
import math

import mpmath
import pytest
import torch
from torch.nn import functional as F

from cibr.losses.vmf import (
    sample_vmf,
    vmf_fit_kappa,
    vmf_floor_nats,
    vmf_log_normalizer,
    vmf_mean_cosine,
    vmf_residual_nats,
)

DIMS = (2, 3, 8, 128, 512, 2048)
KAPPAS = (1e-3, 0.1, 1.0, 10.0, 100.0, 1024.0, 1e5)


def unit_rows(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)


def draws(n, d, kappa):
    mu = unit_rows(1, d).expand(n, d)
    z = sample_vmf(mu, kappa, torch.Generator().manual_seed(2))
    return mu, z, (z * mu).sum(1)


@pytest.mark.parametrize("dim", DIMS)
def test_bessel_functions_match_mpmath_where_scipy_underflows_and_the_fit_inverts_them(dim):
    for kappa in KAPPAS:
        with mpmath.workdps(50):
            order = mpmath.mpf(dim) / 2 - 1
            bessel = mpmath.besseli(order, kappa)
            mean_cosine = float(mpmath.besseli(order + 1, kappa) / bessel)
            normalizer = order * mpmath.log(kappa) - (order + 1) * mpmath.log(2 * mpmath.pi)
            normalizer = float(normalizer - mpmath.log(bessel))
        assert vmf_mean_cosine(kappa, dim).item() == pytest.approx(mean_cosine, rel=1e-12)
        assert vmf_log_normalizer(kappa, dim).item() == pytest.approx(normalizer, rel=1e-12)
        # near 1, rounding the cosine moves the answer by about kappa * 1e-16 of itself
        assert vmf_fit_kappa(mean_cosine, dim).item() == pytest.approx(kappa, rel=1e-9)


def test_concentration_zero_is_uniform_on_the_sphere():
    for dim, area in ((2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2)):
        assert vmf_log_normalizer(0, dim).item() == pytest.approx(-math.log(area), rel=1e-12)
    assert vmf_mean_cosine(0.0, 128).item() == 0
    assert vmf_fit_kappa(torch.tensor([-0.5, 0.0]), 16).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dim", [2, 3, 64, 1024])
def test_gradients_by_kappa_and_cosine_are_those_of_finite_differences(dim):
    kappa = torch.tensor([0.5, 8.0, 300.0], dtype=torch.float64, requires_grad=True)
    cosine = torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64, requires_grad=True)

    def residual(kappa, cosine):
        return vmf_residual_nats(cosine, kappa, 2 * kappa, dim)

    # values near 1e3 leave finite differences with six digits
    assert torch.autograd.gradcheck(residual, (kappa, cosine), rtol=1e-4, atol=1e-7)


def test_vmf_residual_is_the_divergence_that_monte_carlo_finds():
    dim, kappa_e, kappa_b, n = 16, 40.0, 15.0, 20_000
    mu_v, z, cosine = draws(n, dim, kappa_e)
    mu_t = unit_rows(2, dim)[1]
    log_e = vmf_log_normalizer(kappa_e, dim) + kappa_e * cosine
    difference = log_e - vmf_log_normalizer(kappa_b, dim) - kappa_b * (z @ mu_t)
    residual = vmf_residual_nats(mu_v[0] @ mu_t, kappa_e, kappa_b, dim)
    assert abs(difference.mean() - residual) < 4 * difference.std() / math.sqrt(n)
    assert vmf_floor_nats(kappa_e, kappa_b, dim) == vmf_residual_nats(1, kappa_e, kappa_b, dim)


@pytest.mark.parametrize("dim", [2, 3, 1024])
@pytest.mark.parametrize("kappa", [1e-2, 50.0, 1e5])
def test_samples_have_the_moments_of_the_distribution(dim, kappa):
    n = 20_000 if dim < 1000 else 2_000
    mu, z, cosine = draws(n, dim, kappa)
    mean_cosine = vmf_mean_cosine(kappa, dim)
    variance = 1 - mean_cosine**2 - (dim - 1) * mean_cosine / kappa
    # double rounding of a cosine near 1 adds 1e-16 to gaps of 1e-5
    assert abs(cosine.mean() - mean_cosine) < 4.5 * torch.sqrt(variance / n)
    assert cosine.var() / variance == pytest.approx(1.0, abs=0.25 if n < 20_000 else 0.1)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(n).double(), rtol=0, atol=1e-12)
    across = z - cosine[:, None] * mu  # isotropic in the tangent space
    assert across.mean(0).abs().max() < 6 * (across.square().mean() / n).sqrt()


def test_distribution_of_the_cosine_is_exact_on_the_ordinary_sphere():
    kappa, n = 5.0, 20_000
    cosine = draws(n, 3, kappa)[2].sort().values
    # d = 3 has the closed form (e^{kw} - e^{-k}) / (e^k - e^{-k})
    expected = torch.expm1(kappa * (cosine + 1)) / math.expm1(2 * kappa)
    distance = (expected - (torch.arange(n) + 0.5) / n).abs().max()
    assert distance < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov, one in a thousand


def test_samples_repeat_with_the_generator_and_do_not_depend_on_the_dtype():
    mu = unit_rows(64, 32)
    kinds = itertools.product((torch.float64, torch.float32), (100.0, torch.full((64,), 100.0)))
    samples = [sample_vmf(mu.to(dtype), k, torch.Generator().manual_seed(4)) for dtype, k in kinds]
    assert torch.equal(samples[0], samples[1])
    assert samples[2].dtype == torch.float32
    torch.testing.assert_close(samples[0].float(), samples[2], rtol=0, atol=1e-6)
    assert sample_vmf(mu.bfloat16(), 100.0).dtype == torch.bfloat16
