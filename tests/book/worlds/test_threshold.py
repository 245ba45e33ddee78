"""Theorem 3 at random spectra: closed forms against the objectives that they minimise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cibr_book.worlds import threshold

CORRELATIONS = st.lists(st.floats(0.05, 0.99), min_size=1, max_size=6)


@settings(deadline=None)
@given(core=CORRELATIONS, shared=CORRELATIONS, penalty=st.floats(1e-6, 1e-4))
def test_a_small_price_helps_if_and_only_if_shortcuts_are_typically_weaker(core, shared, penalty):
    core, shared = (torch.tensor(side, dtype=torch.float64) for side in (core, shared))
    rho = torch.cat([core, shared])
    at_test = torch.cat([core, 0 * shared])
    typical = [of.square().sum() / of.sum() for of in (core, shared)]  # weighted by themselves
    gap = typical[0] - typical[1]
    gains = threshold.free_length_gains(rho, penalty)
    change = threshold.shifted_nats(gains, at_test) - threshold.shifted_nats(rho, at_test)
    assert change * gap > 0 or abs(gap) < 0.01
    assert threshold.shifted_nats(gains, rho) <= threshold.shifted_nats(rho, rho) + 1e-12
    assert threshold.shifted_nats(rho, -rho) == 0.0 == threshold.shifted_nats(0 * rho, rho)


@settings(deadline=None)
@given(rho=CORRELATIONS, temperature=st.floats(0.1, 5), penalty=st.floats(0, 2))
def test_at_fixed_length_gains_are_thresholded_until_their_sum_fits(rho, temperature, penalty):
    rho = torch.tensor(rho, dtype=torch.float64)
    gains = threshold.fixed_length_gains(rho, temperature, penalty)
    scaled = (1 + penalty) * rho
    total = min(scaled.sum().item(), 1 / temperature)
    assert gains.sum().item() == pytest.approx(total) and gains.min() >= 0
    lowered = (scaled - gains)[gains > 1e-9]
    assert lowered.max() - lowered.min() < 1e-9 and lowered.min() > -1e-12
    assert (scaled - gains).max() <= lowered.max() + 1e-9


@settings(deadline=None)
@given(rho=CORRELATIONS, temperature=st.floats(0.05, 5), beta=st.floats(0, 3))
def test_at_fixed_length_the_penalty_is_a_higher_temperature(rho, temperature, beta):
    rho = torch.tensor(rho, dtype=torch.float64)
    cosines = temperature * threshold.fixed_length_gains(rho, temperature, beta)
    hotter = (1 + beta) * temperature
    torch.testing.assert_close(cosines, hotter * threshold.fixed_length_gains(rho, hotter))


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0, 10.0])
def test_with_a_trained_temperature_gains_minimise_the_objective(weight):
    rho = torch.tensor([0.95, 0.8, 0.5, 0.2], dtype=torch.float64)
    free = torch.full((4,), 0.5, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.Adam([free], lr=0.01)
    for _ in range(3000):
        g = free.clamp(min=0)
        own = (g * rho).sum()
        descent.zero_grad()
        (g.square().sum() / 2 - own - weight * own / g.sum()).backward()  # 1 / g.sum(): temperature
        descent.step()
    gains, temperature = threshold.trained_temperature_gains(rho, weight)
    torch.testing.assert_close(gains, free.detach().clamp(min=0), atol=1e-4, rtol=0)
    assert temperature == pytest.approx(1 / gains.sum().item())
    beta, cosine = weight * temperature, temperature * (gains * rho).sum()
    kept = gains > 0
    expected = (1 + beta) * (rho - beta * cosine / (1 + beta))
    torch.testing.assert_close(gains[kept], expected[kept], atol=1e-5, rtol=0)


def test_with_a_trained_temperature_the_lowest_of_several_minima_is_found():
    rho = torch.tensor([0.95] + 100 * [0.3], dtype=torch.float64)

    def limit(gains, weight=2.0):
        own = (gains * rho).sum()
        return (gains.square().sum() / 2 - own - weight * own / gains.sum()).item()

    gains, _ = threshold.trained_temperature_gains(rho, 2.0)
    assert (gains > 0).all()
    peaked = torch.zeros_like(rho)
    peaked[0] = 0.95  # the other minimum: (1 + 2 tau) (0.95 - theta) at theta = 2 tau c
    assert limit(gains) == pytest.approx(-5.59, abs=0.01) and limit(peaked) > -2.36
    weights = torch.rand(200, 101, generator=torch.Generator().manual_seed(0)).double()
    assert all(limit(gains * (0.9 + 0.2 * w)) > limit(gains) for w in weights)


def test_gains_of_the_loss_are_those_of_the_limit_but_steeper_at_unit_length():
    rho = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64).repeat_interleave(8)
    limit = threshold.fixed_length_gains(rho, 0.15, 0.2)
    mean = threshold.loss_gains(rho, 0.15, 0.2, 512, unit=False)
    unit = threshold.loss_gains(rho, 0.15, 0.2, 512)
    assert mean.sum().item() == pytest.approx(1 / 0.15) == unit.sum().item()
    torch.testing.assert_close(mean, limit, atol=0.05, rtol=0)
    ratios = [float(gains[8:16].mean() / gains[:8].mean()) for gains in (limit, mean, unit)]
    assert ratios[1] == pytest.approx(ratios[0], abs=0.05) and ratios[2] < ratios[0] - 0.1
