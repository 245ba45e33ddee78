"""`cibr.information` against mpmath, Monte Carlo, numerical gradients and limits."""

import itertools
import math

import mpmath
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F

from cibr.information import (
    gaussian_kl_nats,
    info_nce_nats,
    log_bessel_i,
    sample_vmf,
    vmf_fit_kappa,
    vmf_floor_nats,
    vmf_log_normalizer,
    vmf_mean_cosine,
    vmf_residual_nats,
)

DIMS = (2, 3, 8, 128, 512, 1024, 2048)
KAPPAS = (1e-3, 0.1, 1.0, 10.0, 100.0, 1024.0, 1e5)
GRID = list(itertools.product(DIMS, KAPPAS))


@pytest.fixture(autouse=True)
def fifty_digits():
    with mpmath.workdps(50):
        yield


def double(value, **options):
    return torch.tensor(value, dtype=torch.float64, **options)


def unit_rows(n, d, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=generator, dtype=dtype), dim=1)


def exact(dim, kappa):
    """log I_{d/2-1}, A_d and log C_d, in fifty digits."""
    order = mpmath.mpf(dim) / 2 - 1
    bessel = mpmath.besseli(order, kappa)
    mean_cosine = mpmath.besseli(order + 1, kappa) / bessel
    log_normalizer = order * mpmath.log(kappa) - mpmath.mpf(dim) / 2 * mpmath.log(2 * mpmath.pi)
    return mpmath.log(bessel), mean_cosine, log_normalizer - mpmath.log(bessel)


def test_log_bessel_matches_mpmath_where_scipy_underflows():
    for dim, kappa in GRID:
        expected = float(exact(dim, kappa)[0])
        # absolute 1e-13 because log I_0 is near zero at small arguments
        assert log_bessel_i(dim / 2 - 1, kappa).item() == pytest.approx(expected, 1e-12, 1e-13)


def test_mean_cosine_matches_mpmath():
    for dim, kappa in GRID:
        expected = float(exact(dim, kappa)[1])
        assert vmf_mean_cosine(kappa, dim).item() == pytest.approx(expected, rel=1e-12)


def test_log_normalizer_matches_mpmath():
    for dim, kappa in GRID:
        expected = float(exact(dim, kappa)[2])
        assert vmf_log_normalizer(kappa, dim).item() == pytest.approx(expected, rel=1e-12)


def test_fitted_kappa_inverts_the_mean_cosine():
    for dim, kappa in GRID:
        mean_cosine = float(exact(dim, kappa)[1])
        # near 1, rounding the cosine moves the answer by about kappa * 1e-16 of itself
        assert vmf_fit_kappa(mean_cosine, dim).item() == pytest.approx(kappa, rel=1e-9)


def test_concentration_zero_is_uniform_on_the_sphere():
    for dim, area in ((2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2)):
        assert vmf_log_normalizer(0, dim).item() == pytest.approx(-math.log(area), rel=1e-12)
    assert vmf_mean_cosine(0.0, 128).item() == 0
    assert log_bessel_i(0, 0.0).item() == pytest.approx(0.0, abs=1e-13)
    assert log_bessel_i(3, 0.0).item() == -math.inf
    kappa = double(0.0, requires_grad=True)
    (slope,) = torch.autograd.grad(vmf_mean_cosine(kappa, 128), kappa)
    assert slope.item() == pytest.approx(1 / 128, rel=1e-12)


def test_a_mean_cosine_of_zero_or_less_fits_the_uniform_distribution():
    cosine = double([-0.5, 0.0, 0.5], requires_grad=True)
    kappa = vmf_fit_kappa(cosine, 16)
    assert kappa[:2].tolist() == [0.0, 0.0]
    kappa.sum().backward()
    assert cosine.grad[:2].tolist() == [0.0, 0.0]
    assert cosine.grad[2] > 0


def test_gradients_are_those_of_finite_differences():
    for dim in (2, 3, 64, 1024):
        kappa = double([0.5, 8.0, 300.0], requires_grad=True)
        cosine = double([0.01, 0.3, 0.9], requires_grad=True)
        # values near 1e3 leave finite differences with six digits
        options = {"rtol": 1e-4, "atol": 1e-7}
        for function in (vmf_mean_cosine, vmf_log_normalizer):
            assert torch.autograd.gradcheck(lambda k: function(k, dim), kappa, **options)  # noqa: B023
            assert torch.autograd.gradgradcheck(lambda k: function(k, dim), kappa, **options)  # noqa: B023
        assert torch.autograd.gradcheck(lambda k: log_bessel_i(dim / 2, k), kappa, **options)  # noqa: B023
        assert torch.autograd.gradcheck(lambda c: vmf_fit_kappa(c, dim), cosine, **options)  # noqa: B023


def test_slope_of_the_mean_cosine_matches_mpmath():
    for dim, kappa in GRID:
        mean_cosine = exact(dim, kappa)[1]
        expected = float(1 - mean_cosine**2 - (dim - 1) * mean_cosine / mpmath.mpf(kappa))
        value = double(kappa, requires_grad=True)
        (slope,) = torch.autograd.grad(vmf_mean_cosine(value, dim), value)
        # cancellation leaves an absolute error of a few 1e-16 or 1e-15
        assert slope.item() == pytest.approx(expected, rel=1e-9, abs=5e-15)


def test_everything_is_float64_whatever_comes_in():
    half = torch.tensor([1.0, 1024.0], dtype=torch.bfloat16)
    for value in (vmf_mean_cosine(half, 256), vmf_log_normalizer(half, 256), log_bessel_i(9, half)):
        assert value.dtype == torch.float64
        assert value.isfinite().all()


def test_vmf_residual_is_the_divergence_that_monte_carlo_finds():
    dim, kappa_e, kappa_b, n = 16, 40.0, 15.0, 200_000
    mu_v, mu_t = unit_rows(2, dim)
    z = sample_vmf(mu_v.expand(n, dim), kappa_e, torch.Generator().manual_seed(1))
    log_e = vmf_log_normalizer(kappa_e, dim) + kappa_e * (z @ mu_v)
    log_b = vmf_log_normalizer(kappa_b, dim) + kappa_b * (z @ mu_t)
    difference = log_e - log_b
    residual = vmf_residual_nats(mu_v @ mu_t, kappa_e, kappa_b, dim)
    error = difference.std() / math.sqrt(n)
    assert abs(difference.mean() - residual) < 4 * error


def test_vmf_residual_is_zero_for_equal_encoders_and_never_negative():
    assert vmf_residual_nats(1.0, 30.0, 30.0, 64).item() == pytest.approx(0.0, abs=1e-10)
    for kappa_e, kappa_b, dim in itertools.product((0.1, 10.0, 1e3), (0.0, 5.0, 2e3), (2, 256)):
        assert vmf_floor_nats(kappa_e, kappa_b, dim).item() > -1e-10
    assert vmf_floor_nats(1024, 10, 256).item() == pytest.approx(184.684, abs=1e-3)


def test_fitted_concentration_makes_the_residual_least():
    kappa_e, dim, cosine = 200.0, 64, 0.6
    best = vmf_fit_kappa(vmf_mean_cosine(kappa_e, dim) * cosine, dim)
    at_best = vmf_residual_nats(cosine, kappa_e, best, dim)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert vmf_residual_nats(cosine, kappa_e, best * factor, dim) > at_best


@pytest.mark.parametrize("dim", [2, 3, 128, 1024])
@pytest.mark.parametrize("kappa", [1e-2, 1.0, 50.0, 1024.0, 1e5])
def test_samples_have_the_moments_of_the_distribution(dim, kappa):
    n = 20_000 if dim < 1000 else 2_000
    mu = unit_rows(1, dim).expand(n, dim)
    z = sample_vmf(mu, kappa, torch.Generator().manual_seed(2))
    gap, mean_cosine = 1 - (z * mu).sum(1), vmf_mean_cosine(kappa, dim)
    variance = 1 - mean_cosine**2 - (dim - 1) * mean_cosine / kappa
    error = torch.sqrt(variance / n)
    # double rounding of a cosine near 1 adds 1e-16 to gaps of 1e-5
    assert abs((1 - gap).mean() - mean_cosine) < 4.5 * error
    assert gap.var() / variance == pytest.approx(1.0, abs=0.25 if n < 20_000 else 0.1)
    assert torch.allclose(z.norm(dim=1), torch.ones(n, dtype=z.dtype), atol=1e-12)
    across = z - (1 - gap).unsqueeze(1) * mu  # isotropic in the tangent space
    assert across.mean(0).abs().max() < 6 * (across.pow(2).mean() / n).sqrt()


def test_distribution_of_the_cosine_is_exact_on_the_ordinary_sphere():
    kappa, n = 5.0, 100_000
    mu = unit_rows(1, 3).expand(n, 3)
    z = sample_vmf(mu, kappa, torch.Generator().manual_seed(3))
    cosine = (z * mu).sum(1).sort().values
    # d = 3 has the closed form (e^{kw} - e^{-k}) / (e^k - e^{-k})
    expected = torch.expm1(kappa * (cosine + 1)) / math.expm1(2 * kappa)
    distance = (expected - (torch.arange(n) + 0.5) / n).abs().max()
    assert distance < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov, one in a thousand


def test_samples_repeat_with_the_generator_and_do_not_depend_on_the_dtype():
    mu = unit_rows(64, 32)
    draws = [
        sample_vmf(mu.to(dtype), 100.0, torch.Generator().manual_seed(4))
        for dtype in (torch.float64, torch.float64, torch.float32)
    ]
    assert torch.equal(draws[0], draws[1])
    assert draws[2].dtype == torch.float32
    assert torch.allclose(draws[0], draws[2].double(), atol=1e-6)
    assert sample_vmf(mu.bfloat16(), 100.0).dtype == torch.bfloat16


def test_rows_may_have_concentrations_of_their_own():
    mu = unit_rows(2000, 32)
    kappa = torch.cat([torch.full((1000,), 1.0), torch.full((1000,), 1e4)])
    cosine = (sample_vmf(mu, kappa, torch.Generator().manual_seed(5)) * mu).sum(1)
    assert cosine[:1000].mean() == pytest.approx(vmf_mean_cosine(1.0, 32).item(), abs=0.03)
    assert cosine[1000:].mean() == pytest.approx(vmf_mean_cosine(1e4, 32).item(), abs=1e-3)


def test_samples_carry_gradients_to_the_mean_directions():
    mu = unit_rows(3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: sample_vmf(m, 20.0, torch.Generator().manual_seed(6)), mu)


def test_gaussian_kl_matches_torch_distributions():
    generator = torch.Generator().manual_seed(7)
    means = torch.randn(2, 9, 5, generator=generator, dtype=torch.float64)
    log_variances = torch.randn(2, 9, 5, generator=generator, dtype=torch.float64)
    e, b = (Independent(Normal(m, torch.exp(v / 2)), 1) for m, v in zip(means, log_variances, strict=True))
    value = gaussian_kl_nats(means[0], log_variances[0], means[1], log_variances[1])
    assert torch.allclose(value, kl_divergence(e, b), rtol=1e-12)
    same = gaussian_kl_nats(means[0], log_variances[0], means[0], log_variances[0])
    assert torch.equal(same, torch.zeros(9, dtype=torch.float64))


def test_info_nce_certifies_log_n_minus_the_loss():
    assert info_nce_nats(0.5, 100) == pytest.approx(math.log(100) - 0.5)


def test_errors_name_the_thing_the_rule_and_the_fix(unchecked):
    with pytest.raises(ValueError, match="kappa must be finite and not negative.*-1"):
        vmf_log_normalizer(-1.0, 8)
    with pytest.raises(ValueError, match="kappa must be finite"):
        sample_vmf(unit_rows(4, 8), math.nan)
    with pytest.raises(ValueError, match="dim must be at least 2.*width"):
        vmf_mean_cosine(1.0, 1)
    with pytest.raises(ValueError, match="mean_cosine must be below 1"):
        vmf_fit_kappa(1.0, 8)
    with pytest.raises(ValueError, match="mean_cosine must be below 1"):
        vmf_fit_kappa(math.nan, 8)
    with pytest.raises(ValueError, match="cosine must lie in .*1.2"):
        vmf_residual_nats(1.2, 10.0, 10.0, 8)
    with pytest.raises(ValueError, match="cosine must lie in .*nan"):
        vmf_residual_nats(math.nan, 10.0, 10.0, 8)
    mean = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"all be \[n, d\], got mean_e \[3, 2\].*log_variance_b \[2, 2\]"):
        gaussian_kl_nats(mean, mean, mean, mean[:2])
    with pytest.raises(ValueError, match="mean_b must be finite"):
        gaussian_kl_nats(mean, mean, mean * math.nan, mean)
    with pytest.raises(ValueError, match="n must be at least 2"):
        info_nce_nats(0.5, 1)
    with pytest.raises(ValueError, match="order must be finite"):
        log_bessel_i(-0.5, 1.0)
