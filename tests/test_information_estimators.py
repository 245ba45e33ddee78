"""Critics, estimators, tasks and probes against truths and libraries."""

import math

import pandas as pd
import pytest
import torch
from sklearn.feature_selection import mutual_info_regression

from cibr.information import (
    ESTIMATORS,
    MAPS,
    GaussianConditional,
    JointCritic,
    SeparableCritic,
    additive_noise_task,
    correlation_of,
    estimate_nats,
    estimate_rows,
    fit_critic,
    gaussian_log_ratio,
    gaussian_task,
    ksg_nats,
    mean_intervals,
    probe_nats,
    sparse_task,
    student_excess_nats,
    student_task,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small only wait for each other
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def easy():
    """Estimates of one easy task, 0.8 nats between single Gaussians, and its samples."""
    task = gaussian_task(1, 0.8)
    x, y = task.sample(6000, seed=2)
    return task, x, y, {name: estimate_nats(x, y, name, n_steps=300) for name in ESTIMATORS}


def test_mine_is_within_fifteen_percent_on_easy_tasks(easy):
    assert easy[3]["mine"].nats == pytest.approx(0.8, rel=0.15)
    for task in (sparse_task(3, 2), gaussian_task(1, 0.6, "half-cube")):
        x, y = task.sample(8000, seed=3)
        assert estimate_nats(x, y, "mine", n_steps=400).nats == pytest.approx(task.nats, rel=0.15), task.name


def test_trained_lower_bounds_stay_below_the_truth_plus_three_errors(easy):
    for name in ("nwj", "nce"):
        found = easy[3][name]
        assert found.nats < 0.8 + 3 * found.standard_error, name
        assert found.nats > 0.6, name


def test_club_with_a_fitted_q_is_above_the_truth_and_near_its_closed_form(easy):
    found = easy[3]["club"]
    assert found.nats > 0.8
    # with the true q it is d rho^2 / (1 - rho^2) = d (e^(2 I / d) - 1)
    assert found.nats == pytest.approx(math.expm1(1.6), rel=0.1)


def test_estimates_repeat_with_the_seed_and_leave_the_global_generator(easy):
    _, x, y, found = easy
    state = torch.get_rng_state()
    assert estimate_nats(x, y, "nce", n_steps=300) == found["nce"]
    assert torch.equal(state, torch.get_rng_state())


def test_ksg_is_the_library_in_one_dimension():
    for task in (gaussian_task(1, 1.0), additive_noise_task(), student_task(1, 1.0)):
        x, y = task.sample(800, seed=4)
        library = mutual_info_regression(x.numpy(), y.flatten().numpy(), n_neighbors=3, random_state=0)[0]
        # the library adds noise of 1e-10 to break ties
        assert ksg_nats(x, y) == pytest.approx(library, abs=1e-6), task.name


def test_ksg_is_near_the_truth_in_few_dimensions():
    x, y = gaussian_task(2, 1.0).sample(3000, seed=5)
    assert ksg_nats(x, y) == pytest.approx(1.0, abs=0.1)


def test_published_values_of_beyond_normal_are_reached_in_closed_form():
    assert sparse_task(5, 2, 0.8).nats == pytest.approx(1.0217, abs=5e-5)
    assert correlation_of(sparse_task(1, 1, 0.75).nats) == pytest.approx(0.75)
    assert student_excess_nats(1e6, 2, 3) == pytest.approx(0, abs=1e-5)


def test_student_excess_is_the_information_that_its_densities_have():
    # A scale mixture with identity dispersion: all information is in the shared scale. Monte Carlo over densities.
    dof, dim = 3.0, 2
    x, y = student_task(dim, dof).sample(200_000, seed=6)

    def log_density(z):
        d = z.shape[1]
        constant = math.lgamma((dof + d) / 2) - math.lgamma(dof / 2) - d / 2 * math.log(dof * math.pi)
        return constant - (dof + d) / 2 * torch.log1p((z**2).sum(1) / dof)

    ratio = log_density(torch.cat([x, y], 1)) - log_density(x) - log_density(y)
    error = ratio.std().item() / len(ratio) ** 0.5
    assert ratio.mean().item() == pytest.approx(student_excess_nats(dof, dim, dim), abs=4 * error)


@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_information_through_uniform_noise_is_that_of_quadrature(spread):
    y = torch.linspace(-spread, 1 + spread, 200_001, dtype=torch.float64)
    density = (torch.clamp(y + spread, max=1) - torch.clamp(y - spread, min=0)) / (2 * spread)
    entropy = torch.trapezoid(-torch.special.xlogy(density, density), y).item()
    assert additive_noise_task(spread).nats == pytest.approx(entropy - math.log(2 * spread), abs=1e-6)


@pytest.mark.parametrize("name", sorted(MAPS))
def test_maps_of_coordinates_can_be_undone(name):
    x = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    assert (MAPS[name](x).diff() > 0).all()


def test_perfect_critic_is_the_log_ratio_of_densities():
    rho, x, y = 0.6, *gaussian_task(2, 1.0).sample(5, seed=7)
    covariance = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
    joint = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance)
    single = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    scores = gaussian_log_ratio(x, y, rho)
    for i in range(5):
        for j in range(5):
            expected = sum(
                joint.log_prob(torch.stack([x[i, k], y[j, k]]))
                - single.log_prob(x[i, k])
                - single.log_prob(y[j, k])
                for k in range(2)
            )
            assert scores[i, j].item() == pytest.approx(expected.item(), rel=1e-10)


def test_conditional_gaussian_gives_the_density_of_every_pair():
    torch.manual_seed(0)
    q = GaussianConditional(2, 3).double()
    x, y = (torch.randn(4, n, dtype=torch.float64) for n in (2, 3))
    mean, log_variance = q.parameters_of(x)
    table = q(x, y)
    for i in range(4):
        for j in range(4):
            density = torch.distributions.Normal(mean[i], torch.exp(log_variance[i] / 2))
            assert table[i, j].item() == pytest.approx(density.log_prob(y[j]).sum().item(), rel=1e-10)
    assert torch.allclose(table.diagonal(), q.log_likelihood(x, y))


def test_critics_score_every_pair():
    x, y = torch.randn(5, 2), torch.randn(5, 3)
    for critic in (SeparableCritic(2, 3), JointCritic(2, 3)):
        scores = critic(x, y)
        assert scores.shape == (5, 5)
        swapped = critic(x[[1, 0, 2, 3, 4]], y)
        assert torch.allclose(swapped[0], scores[1], atol=1e-6)


def test_probe_finds_a_known_factor_and_nothing_in_noise():
    generator = torch.Generator().manual_seed(8)
    factor = torch.randint(3, (1500,), generator=generator)
    noise = torch.randn(1500, 4, generator=generator)
    held_out = torch.arange(1500) % 2 == 0
    told = noise.clone()
    told[:, 0] += 20 * factor
    found = probe_nats(told, factor, held_out)
    assert found["nats"] == pytest.approx(found["entropy_nats"], rel=0.05)
    assert found["accuracy"] == 1
    assert probe_nats(noise, factor, held_out)["nats"] < 0.01


def test_a_network_reads_rings_that_a_linear_probe_cannot():
    generator = torch.Generator().manual_seed(9)
    factor = torch.randint(3, (6000,), generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(6000, 2, generator=generator), dim=1)
    rings, held_out = directions * (factor + 1)[:, None], torch.arange(6000) % 2 == 0
    assert probe_nats(rings, factor, held_out)["nats"] < 0.01
    assert probe_nats(rings, factor, held_out, 32)["nats"] > 0.5


def test_errors_of_estimators_name_the_rule(unchecked):
    x, y = gaussian_task(1, 1.0).sample(40)
    with pytest.raises(ValueError, match="row i of one drawn with row i"):
        estimate_nats(x, y[:-1], "nce")
    with pytest.raises(ValueError, match="at least 256"):
        estimate_nats(x, y, "nce")
    with pytest.raises(ValueError, match="unknown estimator 'nse'.*did you mean 'nce'"):
        fit_critic(x, y, "nse")
    with pytest.raises(ValueError, match="n_neighbors must be at least 1"):
        ksg_nats(x, y, 0)
    with pytest.raises(ValueError, match="x must be finite"):
        ksg_nats(x * math.inf, y)
    with pytest.raises(ValueError, match="dof must be positive"):
        student_task(1, 0.0)
    with pytest.raises(ValueError, match="two values at least"):
        probe_nats(torch.zeros(4, 1), torch.zeros(4).long(), torch.tensor([True, False, True, False]))


def test_rows_of_estimates_are_those_of_single_estimates_and_smile_shares_the_critic_of_jsd():
    task = gaussian_task(1, 0.5)
    rows = estimate_rows([task], 600, seeds=(0, 1), n_steps=5)
    assert list(rows["estimator"]) == [*ESTIMATORS, "ksg"] * 2
    assert set(rows["truth"]) == {0.5}
    x, y = task.sample(600, 1)
    second = rows[rows["seed"] == 1].set_index("estimator")["nats"]
    assert second["nce"] == estimate_nats(x, y, "nce", n_steps=5, seed=1).nats
    assert second["smile"] == estimate_nats(x, y, "smile", n_steps=5, seed=1).nats
    assert second["ksg"] == ksg_nats(x, y)


def test_mean_intervals_are_those_of_student_in_every_group():
    rows = pd.DataFrame({"arm": list("aaab"), "nats": [1.0, 2.0, 3.0, 5.0]})
    found = mean_intervals(rows, ["arm"], "nats").set_index("arm")
    # 4.3027 is Student's 97.5 % quantile for two degrees of freedom
    assert found.loc["a", "mean"] == 2
    assert found.loc["a", "high"] == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-4)
    assert found.loc["a", "low"] == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4)
    assert math.isnan(found.loc["b", "low"])
    with pytest.raises(ValueError, match="no column nat; they have arm, nats"):
        mean_intervals(rows, ["arm"], "nat")
