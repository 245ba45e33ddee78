"""Von Mises-Fisher distributions against mpmath, their own moments, bounds and limits."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from cibr.losses.vmf import (
    sample_vmf,
    vmf_fit_kappa,
    vmf_log_normalizer,
    vmf_mean_cosine,
    vmf_residual_nats,
)

DIMS = st.integers(2, 3000)
KAPPAS = st.floats(-3, 5).map(lambda power: 10**power)


def bessel(order, x):
    return mpmath.besseli(order, x, maxterms=10**6)


def exact_mean_cosine(kappa, dim):
    with mpmath.workdps(50):
        half = mpmath.mpf(dim) / 2
        return float(bessel(half, kappa) / bessel(half - 1, kappa))


def exact_log_normalizer(kappa, dim):
    with mpmath.workdps(50):
        half = mpmath.mpf(dim) / 2
        log_bessel = mpmath.log(bessel(half - 1, kappa))
        return float((half - 1) * mpmath.log(kappa) - half * mpmath.log(2 * mpmath.pi) - log_bessel)


@settings(max_examples=30, deadline=None)
@given(dim=DIMS, kappa=KAPPAS)
def test_the_mean_cosine_is_that_of_mpmath_where_bessel_functions_underflow(dim, kappa):
    expected = exact_mean_cosine(kappa, dim)
    assert vmf_mean_cosine(kappa, dim).item() == pytest.approx(expected, rel=1e-14, abs=0)


@settings(max_examples=30, deadline=None)
@given(dim=DIMS, kappa=KAPPAS)
def test_the_normalizer_is_that_of_mpmath_where_bessel_functions_underflow(dim, kappa):
    expected = exact_log_normalizer(kappa, dim)
    # where the terms cancel, their size sets the error
    tolerance = {"rel": 1e-13, "abs": 1e-13 * max(kappa, dim)}
    assert vmf_log_normalizer(kappa, dim).item() == pytest.approx(expected, **tolerance)


@settings(max_examples=30, deadline=None)
@given(dim=DIMS, kappa=KAPPAS)
def test_the_fit_inverts_the_mean_cosine(dim, kappa):
    mean_cosine = exact_mean_cosine(kappa, dim)
    # near 1, rounding the cosine moves the answer by about kappa * 1e-16 of itself
    assert vmf_fit_kappa(mean_cosine, dim).item() == pytest.approx(kappa, rel=1e-9, abs=0)


def test_the_fit_has_no_gradient():
    mean_cosine = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert not vmf_fit_kappa(mean_cosine, 8).requires_grad


@settings(max_examples=30, deadline=None)
@given(dim=DIMS, kappa_e=KAPPAS, kappa_b=KAPPAS, cosine=st.floats(-1, 1))
def test_the_residual_is_not_negative_and_least_at_the_concentration_that_fits(
    dim, kappa_e, kappa_b, cosine
):
    nats = vmf_residual_nats(cosine, kappa_e, kappa_b, dim)
    fitted_kappa = vmf_fit_kappa(vmf_mean_cosine(kappa_e, dim) * cosine, dim)
    least_nats = vmf_residual_nats(cosine, kappa_e, fitted_kappa, dim)
    rounding = 1e-11 * (kappa_e + kappa_b + dim)
    assert -rounding <= least_nats <= nats + rounding


@settings(max_examples=30, deadline=None)
@given(dim=DIMS, kappa=KAPPAS)
def test_the_residual_of_equal_distributions_is_zero(dim, kappa):
    assert abs(vmf_residual_nats(1.0, kappa, kappa, dim)) <= 1e-11 * (2 * kappa + dim)


def test_the_residual_is_the_divergence_on_the_ordinary_sphere():
    # With d = 3, C(k) = k / (4 pi sinh k) and A(k) = coth k - 1 / k.
    def log_c(kappa):
        return math.log(kappa / (4 * math.pi * math.sinh(kappa)))

    mean_cosine = 1 / math.tanh(5.0) - 1 / 5.0
    expected = log_c(5.0) - log_c(2.0) + 5.0 * mean_cosine - 2.0 * mean_cosine * 0.3
    assert vmf_residual_nats(0.3, 5.0, 2.0, 3).item() == pytest.approx(expected, rel=1e-12)


def test_concentration_zero_is_uniform_on_the_sphere():
    assert vmf_log_normalizer(0, 3).item() == pytest.approx(-math.log(4 * math.pi), rel=1e-12)
    assert vmf_mean_cosine(0.0, 128).item() == 0


def test_without_a_positive_mean_cosine_the_fit_is_uniform():
    assert vmf_fit_kappa(torch.tensor([-0.5, 0.0]), 16).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dim", [2, 3, 1024])
@pytest.mark.parametrize("kappa", [1e-2, 50.0, 1e5])
def test_samples_have_the_moments_of_the_distribution(dim, kappa):
    n = 20_000 if dim < 1000 else 2_000
    generator = torch.Generator().manual_seed(2)
    mu = F.normalize(torch.randn(dim, generator=generator, dtype=torch.float64), dim=0)
    z = sample_vmf(mu.expand(n, dim), kappa, generator)
    cosines = z @ mu
    mean_cosine = vmf_mean_cosine(kappa, dim)
    variance = 1 - mean_cosine**2 - (dim - 1) * mean_cosine / kappa
    # double rounding of a cosine near 1 adds 1e-16 to gaps of 1e-5
    assert abs(cosines.mean() - mean_cosine) < 4.5 * torch.sqrt(variance / n)
    assert cosines.var() / variance == pytest.approx(1.0, abs=0.25 if n < 20_000 else 0.1)
    assert_close(z.norm(dim=1), torch.ones(n).double(), rtol=0, atol=1e-12)
    tangents = z - cosines[:, None] * mu  # isotropic in the tangent space
    assert tangents.mean(0).abs().max() < 6 * (tangents.square().mean() / n).sqrt()


MU = F.normalize(torch.ones(64, 32, dtype=torch.float64).tril(), dim=1)


def draw(mean_directions, kappa):
    return sample_vmf(mean_directions, kappa, torch.Generator().manual_seed(4))


def test_samples_repeat_with_the_generator():
    assert torch.equal(draw(MU, 100.0), draw(MU, 100.0))


def test_one_concentration_a_row_is_the_same_as_one_for_all():
    assert torch.equal(draw(MU, torch.full((64,), 100.0)), draw(MU, 100.0))


def test_the_noise_does_not_depend_on_the_dtype():
    assert_close(draw(MU.float(), 100.0), draw(MU, 100.0).float(), rtol=0, atol=1e-6)
