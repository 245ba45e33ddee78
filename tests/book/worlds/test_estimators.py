"""Estimates of information against slow loops, limits, and the perfect critic of a known world."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from cibr_book.worlds import estimators
from cibr_book.worlds.estimators import READINGS, estimate_nats, gaussian_pairs


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 7), seed=st.integers(0, 999))
def test_readings_of_a_score_matrix_are_those_of_their_definitions(n, seed):
    s = 3 * np.random.default_rng(seed).normal(size=(n, n))
    own, off = s.diagonal(), s[~np.eye(n, dtype=bool)]
    mean_exp = np.exp(off).mean()
    expected = {
        estimators.nce_nats: math.log(n) + (own - (logsumexp(s, 0) + logsumexp(s, 1)) / 2).mean(),
        READINGS["NWJ"]: own.mean() - mean_exp / math.e,
        READINGS["MINE"]: own.mean() - math.log(mean_exp),
        estimators.smile_nats: own.mean() - math.log(np.exp(off.clip(-5, 5)).mean()),
        estimators._jsd_objective: -np.log1p(np.exp(-own)).mean() - np.log1p(np.exp(off)).mean(),
    }
    for reading, value in expected.items():
        assert reading(torch.tensor(s)).item() == pytest.approx(value, rel=1e-9, abs=1e-9), reading


def test_trained_estimates_of_an_easy_task_are_near_the_truth_and_leave_the_global_generator():
    x, y = gaussian_pairs(1, 0.8, 4000, seed=2)
    more, _ = gaussian_pairs(1, 0.0, 4000, seed=3)  # tells nothing, and makes one side wider
    state = torch.get_rng_state()
    nats = estimate_nats(x, torch.cat([100 * y + 7, more], 1), n_steps=150)
    assert torch.equal(state, torch.get_rng_state())
    for name in ("MINE", "SMILE"):
        assert nats[name] == pytest.approx(0.8, abs=0.06), name
    for name in ("NWJ", "InfoNCE"):  # lower bounds, up to the noise of a mean over 2,000 samples
        assert 0.72 < nats[name] < 0.83, name


def test_critics_are_evaluated_on_samples_that_they_have_not_learned():
    x, y = gaussian_pairs(20, 0.0, 1000, seed=0)  # nothing to know, but much to memorise
    assert estimate_nats(x, y, ["InfoNCE"], n_steps=200)["InfoNCE"] < 0.05
    # On the half that the critic learned from, the same critic reports nats that do not exist.
    learned = estimators._fit_critic(x[:500].float(), y[:500].float(), "InfoNCE", n_steps=200)
    assert estimators.nce_nats(learned(x[:128].float(), y[:128].float())) > 0.5
    # What the second half holds decides the estimate, what it says of the first does not.
    x, y = gaussian_pairs(1, 2.0, 1000)
    broken = torch.cat([y[:500], y[500:].flip(0)])
    assert estimate_nats(x, broken, ["InfoNCE"], n_steps=100)["InfoNCE"] < 0


def test_perfect_critic_is_the_log_ratio_of_densities():
    rho = 0.6
    x, y = gaussian_pairs(2, 1.0, 4, seed=7)
    covariance = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
    joint = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance)
    both = joint.log_prob(torch.stack(torch.broadcast_tensors(x[:, None], y), -1)).sum(-1)
    single = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    apart = single.log_prob(x).sum(1)[:, None] + single.log_prob(y).sum(1)
    found = estimators.gaussian_log_ratio(x, y, -math.log(1 - rho**2))
    torch.testing.assert_close(found, both - apart)
