"""Estimates of information against slow loops, limits, the perfect critic of a known world, and
libraries.
"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_t
from sklearn.feature_selection import mutual_info_regression

from cibr_book.worlds import estimators


def test_readings_of_a_score_matrix_are_those_of_slow_loops():
    scores = 3 * torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    n, s = len(scores), scores.tolist()
    off = [s[i][j] for i in range(n) for j in range(n) if i != j]
    joint = sum(s[i][i] for i in range(n)) / n
    nce = math.log(n)
    for i in range(n):
        row = math.log(sum(math.exp(s[i][j]) for j in range(n)))
        column = math.log(sum(math.exp(s[j][i]) for j in range(n)))
        nce += (2 * s[i][i] - row - column) / (2 * n)
    mean_exp = sum(math.exp(t) for t in off) / len(off)
    clipped = sum(math.exp(min(max(t, -5), 5)) for t in off) / len(off)
    jsd = sum(-math.log1p(math.exp(-s[i][i])) for i in range(n)) / n
    jsd -= sum(math.log1p(math.exp(t)) for t in off) / len(off)
    expected = {
        estimators.nce_nats: nce,
        estimators.nwj_nats: joint - mean_exp / math.e,
        estimators.dv_nats: joint - math.log(mean_exp),
        estimators.smile_nats: joint - math.log(clipped),
        estimators.club_nats: joint - sum(off) / len(off),
        estimators.plug_in_nats: joint,
        estimators.jsd_objective: jsd,
    }
    for function, value in expected.items():
        assert function(scores).item() == pytest.approx(value, rel=1e-12), function
    assert torch.equal(estimators.smile_nats(scores, 1e6), estimators.dv_nats(scores))


def test_trained_estimates_of_an_easy_task_lie_where_they_should():
    x, y = estimators.gaussian_task(1, 0.8).sample(4000, seed=2)
    nats = estimators.estimate_nats(x, 100 * y + 7, tuple(estimators.READINGS), n_steps=150)
    assert nats["MINE"] == pytest.approx(0.8, rel=0.15)
    assert nats["JSD"] == pytest.approx(0.8, rel=0.15)
    assert nats["SMILE"] == pytest.approx(0.8, rel=0.15)
    for name in ("NWJ", "InfoNCE"):  # lower bounds, up to the noise of a mean over 2,000 samples
        assert 0.6 < nats[name] < 0.85, name
    # with the true q, CLUB is d rho^2 / (1 - rho^2) = d (e^(2 I / d) - 1)
    assert nats["CLUB"] == pytest.approx(math.expm1(1.6), rel=0.1)


def test_infonce_is_evaluated_in_batches_and_cannot_exceed_the_log_of_their_size():
    x, y = estimators.gaussian_task(5, 8.0).sample(2000)
    nats = estimators.estimate_nats(x, y, ["InfoNCE"], batch_size=16, n_steps=200)["InfoNCE"]
    assert 0.8 * math.log(16) < nats < math.log(16)


def test_rows_hold_the_estimates_of_every_task_and_seed():
    task = estimators.gaussian_task(1, 0.5)
    state = torch.get_rng_state()
    rows = estimators.estimate_rows([task], 600, seeds=(0, 1), n_steps=5)
    assert torch.equal(state, torch.get_rng_state())  # the global generator is left alone
    names = ["MINE", "NWJ", "InfoNCE", "SMILE", "JSD", "CLUB", "KSG"]
    assert list(rows["estimator"]) == names * 2 and set(rows["truth"]) == {0.5}
    x, y = task.sample(600, 1)
    second = rows[rows["seed"] == 1].set_index("estimator")["nats"]
    for name in ("InfoNCE", "SMILE"):
        assert second[name] == estimators.estimate_nats(x, y, [name], n_steps=5, seed=1)[name]
    assert second["KSG"] == estimators.ksg_nats(x, y)


def test_ksg_is_the_library_in_one_dimension_and_near_the_truth_in_two():
    for task in (estimators.gaussian_task(1, 1.0), estimators.student_task(1, 1.0)):
        x, y = task.sample(800, seed=4)
        for k in (3, 5):
            library = mutual_info_regression(x, y[:, 0], n_neighbors=k, random_state=0)[0]
            # the library adds noise of 1e-10 to break ties
            assert estimators.ksg_nats(x, 10 * y, k) == pytest.approx(library, abs=1e-6), task.name
    x, y = estimators.gaussian_task(2, 1.0).sample(3000, seed=5)
    assert estimators.ksg_nats(x, y) == pytest.approx(1, abs=0.1)


def test_samples_of_a_task_have_the_correlations_of_its_information():
    task = estimators.sparse_task(4, 2, 0.8)
    assert task.nats == pytest.approx(1.0217, abs=5e-5)  # as Czyz et al. (2023) print
    assert estimators.correlation_of(task.nats, 2) == pytest.approx(0.8)
    x, y = task.sample(50_000)
    across = torch.corrcoef(torch.cat([x, y], 1).T)[:4, 4:]
    expected = torch.diag(torch.tensor([0.8, 0.8, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(across, expected, atol=0.02, rtol=0)
    torch.testing.assert_close(y.std(0), torch.ones(4).double(), atol=0.02, rtol=0)


def test_student_excess_is_the_information_that_its_densities_have():
    # A scale mixture with identity dispersion: all information is in the shared scale. Monte Carlo
    # over densities.
    dof, dim = 3.0, 2
    x, y = estimators.student_task(dim, dof).sample(100_000, seed=6)
    both, *single = (
        multivariate_t(shape=np.eye(z.shape[1]), df=dof).logpdf(z)
        for z in (torch.cat([x, y], 1), x, y)
    )
    ratio = both - sum(single)
    excess = estimators.student_excess_nats(dof, dim, dim)
    assert ratio.mean() == pytest.approx(excess, abs=4 * ratio.std() / 100_000**0.5)
    assert estimators.student_task(dim, dof, 0.7).nats == pytest.approx(0.7 + excess)


@pytest.mark.parametrize("name", ["half-cube", "asinh", "wiggly"])
def test_maps_are_invertible_and_keep_the_information(name):
    x = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    assert (estimators.MAPS[name](x).diff() > 0).all()
    task = estimators.gaussian_task(2, 1.0)
    seen = task.seen_through(name)
    assert seen.nats == 1.0
    for plain, mapped in zip(task.sample(5, 1), seen.sample(5, 1), strict=True):
        assert torch.equal(mapped, estimators.MAPS[name](plain))


def test_perfect_critic_is_the_log_ratio_of_densities():
    rho = 0.6
    x, y = estimators.gaussian_task(2, 1.0).sample(4, seed=7)
    covariance = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
    joint = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance)
    single = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    both = joint.log_prob(torch.stack(torch.broadcast_tensors(x[:, None], y), -1)).sum(-1)
    apart = single.log_prob(x).sum(1)[:, None] + single.log_prob(y).sum(1)
    torch.testing.assert_close(estimators.gaussian_log_ratio(x, y, rho), both - apart)


def test_conditional_gaussian_gives_the_density_of_every_pair():
    torch.manual_seed(0)
    q = estimators.GaussianConditional(2, 3).double()
    x, y = (torch.randn(4, n, dtype=torch.float64) for n in (2, 3))
    mean, log_variance = q.parameters_of(x)
    density = torch.distributions.Normal(mean[:, None], torch.exp(log_variance / 2)[:, None])
    torch.testing.assert_close(q(x, y), density.log_prob(y).sum(2))
    torch.testing.assert_close(q.log_likelihood(x, y), q(x, y).diagonal())
    assert 7.9 < q.parameters_of(1e9 * x)[1].abs().max() <= 8
