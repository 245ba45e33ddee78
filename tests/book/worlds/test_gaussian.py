"""The Gaussian world: determinants in three routes, optima against their neighbours, theorem 2."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cibr_book.worlds.estimators import nce_nats
from cibr_book.worlds.gaussian import (
    bottleneck_variance,
    gaussian_information_nats,
    gaussian_world,
    optimal_linear_encoder,
    residual_image_nats,
)

WORLD = gaussian_world()
RHO = torch.tensor([0.95, 0.8, 0.5], dtype=torch.float64)


def randn(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_residual_of_a_linear_encoder_is_that_of_the_whole_covariance():
    weights = randn(4, 8)
    # Of (x_v, x_t, z_v) with z_v = W x_v + noise, written out.
    lift = torch.cat([torch.eye(14).double(), F.pad(weights, (0, 6))])
    covariance = lift @ WORLD.covariance @ lift.T
    covariance += torch.diag(torch.tensor([0.0] * 14 + [1.0] * 4, dtype=torch.float64))
    image, text, code = range(8), range(8, 14), range(14, 18)
    expected = gaussian_information_nats(covariance, code, image, text).item()
    assert residual_image_nats(WORLD, weights).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_no_linear_encoder_beats_the_optimal_one(beta):
    def objective(weights):  # I(Z_v;X_t) is I(Z_v;X_v) less the residual
        everything = torch.logdet(torch.eye(3).double() + weights @ weights.T) / 2
        return everything - (1 + beta) * residual_image_nats(WORLD, weights)

    optimum = optimal_linear_encoder(WORLD, beta)
    value = objective(optimum).item()
    # In closed form, with c = beta / (1 + beta), each kept direction is worth
    # 1/2 log((1 - c) / (1 - rho^2)) - beta/2 log(rho^2 / c).
    c = beta / (1 + beta)
    kept = [r for r in RHO.square().tolist() if r > c]
    closed = sum(math.log((1 - c) / (1 - r)) - beta * math.log(r / c) for r in kept) / 2
    assert value == pytest.approx(closed, abs=1e-12)
    weights = optimum.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(weights), [weights])
    assert gradient.abs().max() < 1e-10
    assert objective(optimum + 0.1 * randn(*optimum.shape)) < value


@settings(max_examples=40, deadline=None)
@given(rho=st.floats(0.05, 0.97), ratio=st.floats(0.05, 30), beta=st.floats(0.01, 10))
def test_the_price_of_clip_makes_the_bottleneck_keep_what_clip_keeps_at_any_noise(rho, ratio, beta):
    def clip_price(rho, ratio=1.0):
        """At noise of variance temperature / ratio, for which CLIP keeps ratio * rho."""
        return rho**2 / ((1 - rho**2) * (1 + ratio * rho))

    correlation = torch.tensor([rho], dtype=torch.float64)
    price = clip_price(rho, ratio)
    assert bottleneck_variance(correlation, price).item() == pytest.approx(ratio * rho)
    assert clip_price(rho) == pytest.approx(rho**2 / ((1 + rho) ** 2 * (1 - rho)))
    assert clip_price(rho + 0.01, ratio) > price
    # Towers (s, x) and (s, -x) have CLIP's score at any x >= 0: every smaller beta has its own.
    longer = bottleneck_variance(correlation, min(beta, price)).item()
    assert longer >= ratio * rho * (1 - 1e-9)
    # A direction is kept exactly where its squared correlation exceeds beta / (1 + beta).
    kept = bottleneck_variance(correlation, beta).item()
    assert (kept > 0) == (rho**2 > beta / (1 + beta))


def test_no_bilinear_score_beats_the_weighted_canonical_correlations():
    covariance = WORLD.covariance
    v, t = covariance[:8, :8], covariance[8:, 8:]
    cross = covariance[:8, 8:]

    def limit(score):  # of log N - loss for large batches
        return (score * cross).sum() - (score @ t @ score.T * v).sum() / 2

    optimum = torch.linalg.solve(v, cross) @ torch.linalg.inv(t)
    best = limit(optimum).item()
    assert best == pytest.approx(RHO.square().sum().item() / 2)
    assert all(limit(optimum + 0.1 * randn(8, 6, seed=i)) < best for i in range(5))
    # The limit itself, from one large batch of pairs.
    pairs = randn(4000, 14) @ torch.linalg.cholesky(covariance).T
    sampled = nce_nats(pairs[:, :8] @ optimum @ pairs[:, 8:].T).item()
    assert sampled == pytest.approx(best, abs=0.05)
