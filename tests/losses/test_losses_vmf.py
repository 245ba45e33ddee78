"""Von Mises-Fisher distributions against mpmath, their own moments, bounds and limits."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from cibr.losses import vmf

DIMS = st.integers(2, 3000)
KAPPAS = st.floats(-3, 5).map(lambda power: 10**power)


@settings(max_examples=30, deadline=None)
@given(dim=DIMS, kappa=KAPPAS)
def test_bessel_functions_match_mpmath_where_scipy_underflows_and_the_fit_inverts_them(dim, kappa):
    with mpmath.workdps(50):
        order = mpmath.mpf(dim) / 2 - 1
        bessel, next_one = (mpmath.besseli(order + i, kappa, maxterms=10**6) for i in (0, 1))
        mean_cosine = float(next_one / bessel)
        normalizer = order * mpmath.log(kappa) - (order + 1) * mpmath.log(2 * mpmath.pi)
        normalizer = float(normalizer - mpmath.log(bessel))
    got = vmf.vmf_mean_cosine(kappa, dim).item()
    assert got == pytest.approx(mean_cosine, rel=1e-14, abs=0)
    # where the terms cancel, their size sets the error
    tolerance = {"rel": 1e-13, "abs": 1e-13 * max(kappa, dim)}
    assert vmf.vmf_log_normalizer(kappa, dim).item() == pytest.approx(normalizer, **tolerance)
    # near 1, rounding the cosine moves the answer by about kappa * 1e-16 of itself
    assert vmf.vmf_fit_kappa(mean_cosine, dim).item() == pytest.approx(kappa, rel=1e-9, abs=0)


@settings(max_examples=30, deadline=None)
@given(dim=DIMS, kappa_e=KAPPAS, kappa_b=KAPPAS, cosine=st.floats(-1, 1))
def test_the_residual_is_a_divergence_that_its_own_concentration_minimises(
    dim, kappa_e, kappa_b, cosine
):
    nats = vmf.vmf_residual_nats(cosine, kappa_e, kappa_b, dim)
    fitted = vmf.vmf_fit_kappa(vmf.vmf_mean_cosine(kappa_e, dim) * cosine, dim)
    least = vmf.vmf_residual_nats(cosine, kappa_e, fitted, dim)
    rounding = 1e-11 * (kappa_e + kappa_b + dim)
    assert -rounding <= least <= nats + rounding
    assert vmf.vmf_residual_nats(1.0, kappa_e, kappa_e, dim).abs() <= rounding


def test_concentration_zero_is_uniform_on_the_sphere():
    assert vmf.vmf_log_normalizer(0, 3).item() == pytest.approx(-math.log(4 * math.pi), rel=1e-12)
    assert vmf.vmf_mean_cosine(0.0, 128).item() == 0
    assert vmf.vmf_fit_kappa(torch.tensor([-0.5, 0.0]), 16).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dim", [2, 3, 1024])
@pytest.mark.parametrize("kappa", [1e-2, 50.0, 1e5])
def test_samples_have_the_moments_of_the_distribution(dim, kappa):
    n = 20_000 if dim < 1000 else 2_000
    generator = torch.Generator().manual_seed(2)
    mu = F.normalize(torch.randn(dim, generator=generator, dtype=torch.float64), dim=0)
    z = vmf.sample_vmf(mu.expand(n, dim), kappa, generator)
    cosine = z @ mu
    mean_cosine = vmf.vmf_mean_cosine(kappa, dim)
    variance = 1 - mean_cosine**2 - (dim - 1) * mean_cosine / kappa
    # double rounding of a cosine near 1 adds 1e-16 to gaps of 1e-5
    assert abs(cosine.mean() - mean_cosine) < 4.5 * torch.sqrt(variance / n)
    assert cosine.var() / variance == pytest.approx(1.0, abs=0.25 if n < 20_000 else 0.1)
    assert_close(z.norm(dim=1), torch.ones(n).double(), rtol=0, atol=1e-12)
    across = z - cosine[:, None] * mu  # isotropic in the tangent space
    assert across.mean(0).abs().max() < 6 * (across.square().mean() / n).sqrt()


def test_samples_repeat_with_the_generator_and_do_not_depend_on_the_dtype():
    mu = F.normalize(torch.ones(64, 32).double().tril(), dim=1)
    draws = (mu, 100.0), (mu, torch.full((64,), 100.0)), (mu.float(), 100.0)
    one, same, rounded = (vmf.sample_vmf(*draw, torch.Generator().manual_seed(4)) for draw in draws)
    assert torch.equal(one, same)
    assert_close(rounded, one.float(), rtol=0, atol=1e-6)
