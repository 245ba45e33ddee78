"""Theorems 4 and 5: closed forms of few pairs against canonical correlations of drawn samples."""

import numpy as np
import torch
from scipy import stats

from cibr_book.worlds import few_pairs

SIZES = dict(n=600, p=150, q=60)  # rho is seen from 0.439
RHO = torch.tensor([0.9, 0.6], dtype=torch.float64)


def drawn_directions(rho, n, p, q, draws):
    """Sample correlations r; and s and the covariance matrices of both coordinates at test."""
    k, covariance = len(rho), np.eye(p + q)
    covariance[range(k), range(p, p + k)] = covariance[range(p, p + k), range(k)] = rho
    moments = torch.from_numpy(stats.wishart(n, covariance, seed=0).rvs(draws)) / n
    image, text = moments[:, :p, :p], moments[:, p:, p:]
    image, text = (torch.linalg.inv(torch.linalg.cholesky(side)) for side in (image, text))
    u, r, v = torch.linalg.svd(image @ moments[:, :p, p:] @ text.mT, full_matrices=False)
    a, b = image.mT @ u, text.mT @ v.mT
    return r, (rho[:, None] * a[:, :k] * b[:, :k]).sum(1), a.mT @ a, b.mT @ b


def nats(g, s, v, w):
    return ((g * s).sum(1) ** 2 / torch.einsum("ni,nij,nj->n", g, v * w, g) / 2).nan_to_num()


def assert_mean(values, expected, slack=0.0):
    error = (values.mean(0) - expected).abs() - slack * abs(expected)
    assert (error < 4 * values.std(0) / len(values) ** 0.5).all()


def test_without_correlation_the_cost_of_gains_is_exact_whatever_the_sample():
    r, _, v, w = drawn_directions(RHO[:0], 40, 9, 14, 4000)
    cost = r.square().sum(1) / (2 * nats(r, r, v, w))
    noise = few_pairs.predicted_directions(RHO[:0], 40, 9, 14)
    assert_mean(cost, noise.variance_image[0] * noise.variance_text[0])
    assert_mean(v.diagonal(dim1=1, dim2=2), noise.variance_image)


def test_what_is_seen_is_stronger_in_the_sample_than_at_test():
    r, s, v, w = drawn_directions(RHO, **SIZES, draws=150)
    predicted = few_pairs.predicted_directions(RHO, **SIZES)
    found = r, s, v.diagonal(dim1=1, dim2=2), w.diagonal(dim1=1, dim2=2)
    for values, expected in zip(found, predicted, strict=True):
        assert_mean(values[:, :2], expected[:2], slack=0.005)
    assert_mean(s[:, 2:].cumsum(1), predicted.covariance[2:].cumsum(0), slack=0.05)  # of noise


def test_a_correlation_is_seen_if_it_is_strong_and_else_looks_like_noise():
    rho = torch.tensor([0.99, 0.7, 0.44, 0.43, 0.2], dtype=torch.float64)
    spike, seen = few_pairs.sample_spike(rho, **SIZES), rho > 0.439
    assert spike.covariance.isfinite().equal(seen)
    r = drawn_directions(rho[4:], **SIZES, draws=30)[0].mean(0)
    assert abs(r[0] - few_pairs.noise_edge(**SIZES)) < 0.015
    torch.testing.assert_close(r, few_pairs.noise_correlations(**SIZES), atol=0.01, rtol=0)


def test_the_best_threshold_is_the_predicted_one():
    rho, few = RHO.repeat_interleave(4), dict(n=256, p=64, q=32)
    r, *at_test = drawn_directions(rho, **few, draws=150)
    theta, product, value = few_pairs.best_threshold(rho, **few)
    gains = [(r - each).clamp(min=0) for each in (0, theta, *np.linspace(0.02, 0.9, 45))]
    values = [nats(each, *at_test).mean().item() for each in gains]
    assert values[1] > 0.995 * max(values) and abs(values[1] / value - 1) < 0.015
    assert abs(product * gains[1].sum(1).mean() - 1) < 0.015
    predicted = few_pairs.predicted_directions(rho, **few)
    assert abs(values[0] / few_pairs.nats(predicted.sample, predicted) - 1) < 0.015


def test_with_many_pairs_a_threshold_gains_what_theorem_5_says():
    n, u = 100_000, 1.5
    r, *at_test = drawn_directions(torch.tensor([0.9, 0.3]).double(), n, 6, 6, draws=4000)
    before, after = (nats((r - theta).clamp(min=0), *at_test) for theta in (0, u / n**0.5))
    sigma = np.linalg.svd(np.random.default_rng(0).normal(size=(4000, 4, 4)))[1]
    gain = 16 - (2 - 1.2**2 / 0.9) * u**2 - ((sigma - u).clip(min=0) ** 2).sum(1).mean()
    assert_mean(2 * n * (after - before), gain, slack=0.01)
