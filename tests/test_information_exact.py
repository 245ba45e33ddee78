"""The two exact worlds against brute force: loops over every outcome, determinants in three routes, sampling."""

import itertools
import math

import pytest
import torch

from cibr.information import (
    backward_posterior,
    canonical_correlations,
    conditional_covariance,
    conditional_information_nats,
    discrete_residual_bound_nats,
    discrete_world,
    encoder_informations,
    entropy_nats,
    fit_tables,
    gaussian_information_nats,
    gaussian_world,
    information_of_correlations_nats,
    linear_encoder_nats,
    mutual_information_nats,
    optimal_linear_encoder,
)


def random_joint(*sizes, seed=0):
    joint = torch.rand(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    return joint / joint.sum()


def random_tables(world, n_codes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (2 * torch.randn(n, n_codes, generator=generator, dtype=torch.float64)).softmax(1)
        for n in world.joint.shape
    ]


def information_by_loops(outcomes, a, b, c=()):
    """I(A;B|C) from a dict of probabilities of outcomes, A, B and C being places in the outcome."""

    def marginal(places):
        sums = {}
        for outcome, p in outcomes.items():
            key = tuple(outcome[i] for i in places)
            sums[key] = sums.get(key, 0.0) + p
        return sums

    abc, ac, bc, given = marginal(a + b + c), marginal(a + c), marginal(b + c), marginal(c)
    total = 0.0
    for key, p in abc.items():
        ka, kb, kc = key[: len(a)], key[len(a) : len(a) + len(b)], key[len(a) + len(b) :]
        if p > 0:
            total += p * math.log(p * given[kc] / (ac[ka + kc] * bc[kb + kc]))
    return total


def test_discrete_information_is_that_of_a_loop_over_outcomes():
    joint = random_joint(3, 4, 2)
    joint[0, 1] = 0
    joint = joint / joint.sum()
    outcomes = {key: joint[key].item() for key in itertools.product(range(3), range(4), range(2))}
    assert mutual_information_nats(joint.sum(2)).item() == pytest.approx(
        information_by_loops(outcomes, (0,), (1,))
    )
    conditional = information_by_loops(outcomes, (0,), (1,), (2,))
    assert conditional_information_nats(joint).item() == pytest.approx(conditional, rel=1e-12)


def test_entropy_of_n_equal_outcomes_is_log_n_and_of_one_is_zero():
    assert entropy_nats(torch.full((7,), 1 / 7, dtype=torch.float64)).item() == pytest.approx(math.log(7))
    assert entropy_nats(torch.tensor([1.0, 0.0], dtype=torch.float64)).item() == 0


def test_informations_of_encoders_are_those_of_brute_force_enumeration():
    world = discrete_world((0.2, 0.0), 2, 2)
    image_encoder, text_encoder = random_tables(world)
    outcomes = {}  # (z_v, x_v, s, v, x_t, z_t)
    for i, j in itertools.product(*map(range, world.joint.shape)):
        for k, m in itertools.product(range(3), range(3)):
            key = (k, i, world.shared[i].item(), world.image_only[i].item(), j, m)
            outcomes[key] = (world.joint[i, j] * image_encoder[i, k] * text_encoder[j, m]).item()
    found = encoder_informations(world, image_encoder, text_encoder)
    expected = {
        "shared_nats": information_by_loops(outcomes, (0,), (5,)),
        "sufficiency_nats": information_by_loops(outcomes, (0,), (4,)),
        "image_nats": information_by_loops(outcomes, (0,), (1,)),
        "residual_image_nats": information_by_loops(outcomes, (0,), (1,), (4,)),
        "residual_text_nats": information_by_loops(outcomes, (5,), (4,), (1,)),
        "nuisance_image_nats": information_by_loops(outcomes, (0,), (3,), (2,)),
    }
    expected["residual_nats"] = (expected["residual_image_nats"] + expected["residual_text_nats"]) / 2
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-10), name


def test_markov_identity_residual_is_the_difference_of_two_informations():
    world = discrete_world()
    for seed in range(5):
        found = encoder_informations(world, *random_tables(world, seed=seed))
        difference = found["image_nats"] - found["sufficiency_nats"]
        assert found["residual_image_nats"].item() == pytest.approx(difference.item(), rel=1e-10)
        assert found["shared_nats"] <= found["sufficiency_nats"] + 1e-12


def test_residual_bound_lies_above_the_truth_and_meets_it_at_the_posterior():
    world = discrete_world()
    for seed in range(20):
        encoder, _ = random_tables(world, seed=seed)
        backward = torch.rand(len(world.text_only), 3, generator=torch.Generator().manual_seed(seed)).double()
        backward = backward / backward.sum(1, keepdim=True)
        truth = encoder_informations(world, *random_tables(world, seed=seed))["residual_image_nats"].item()
        posterior = backward_posterior(world.joint, encoder)
        assert discrete_residual_bound_nats(world.joint, encoder, backward).item() > truth
        assert discrete_residual_bound_nats(world.joint, encoder, posterior).item() == pytest.approx(
            truth, rel=1e-10
        )
        # The gap is the divergence from the posterior, averaged over texts.
        gap = (world.joint.sum(0)[:, None] * posterior * (posterior / backward).log()).sum().item()
        assert discrete_residual_bound_nats(world.joint, encoder, backward).item() == pytest.approx(truth + gap)


def test_a_penalty_leaves_a_table_without_nuisance_and_beta_zero_does_not():
    world = discrete_world()
    plain = [encoder_informations(world, *fit_tables(world, 0.0, 8, s, 250)) for s in range(2)]
    penalised = encoder_informations(world, *fit_tables(world, 0.2, 8, 0, 250))
    assert max(found["nuisance_image_nats"] for found in plain) > 0.1
    assert penalised["nuisance_image_nats"] < 0.01
    assert penalised["shared_nats"] > 0.9


def test_gaussian_information_agrees_in_three_routes():
    world = gaussian_world()
    route_1 = gaussian_information_nats(world.covariance, world.image, world.text)
    route_2 = information_of_correlations_nats(canonical_correlations(world.covariance, world.image, world.text))
    remaining = conditional_covariance(world.covariance, world.image, world.text)
    of_image = world.covariance[world.image][:, world.image]
    route_3 = (torch.logdet(of_image) - torch.logdet(remaining)) / 2
    expected = -sum(math.log(1 - rho**2) for rho in (0.95, 0.8, 0.5)) / 2
    for route in (route_1, route_2, route_3):
        assert route.item() == pytest.approx(expected, abs=1e-12)


def test_conditional_gaussian_information_follows_the_chain_rule():
    a = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = a @ a.T + torch.eye(6, dtype=torch.float64)
    together = gaussian_information_nats(covariance, [0, 1], [2, 3, 4, 5])
    first = gaussian_information_nats(covariance, [0, 1], [2, 3])
    then = gaussian_information_nats(covariance, [0, 1], [4, 5], given=[2, 3])
    assert together.item() == pytest.approx((first + then).item(), abs=1e-12)
    assert gaussian_information_nats(covariance, slice(0, 2), slice(2, 6)).item() == together.item()


def joint_with_code(world, weights, noise):
    """Covariance of (x_v, x_t, z_v) with z_v = W x_v + noise, written out."""
    lift = torch.cat([weights, torch.zeros(len(weights), world.dim_text, dtype=torch.float64)], 1)
    across = lift @ world.covariance
    below = torch.cat([across, across @ lift.T + noise * torch.eye(len(weights), dtype=torch.float64)], 1)
    return torch.cat([torch.cat([world.covariance, across.T], 1), below])


def test_linear_encoder_informations_are_determinants_of_the_whole_covariance():
    world = gaussian_world()
    weights = torch.randn(4, world.dim_image, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = linear_encoder_nats(world, weights, 0.3)
    covariance = joint_with_code(world, weights, 0.3)
    code = list(range(len(world.covariance), len(covariance)))
    expected = gaussian_information_nats(covariance, code, world.text)
    assert found["sufficiency_nats"].item() == pytest.approx(expected.item(), abs=1e-12)
    # I(Z;X_v|X_t) by the definition of the conditional one, not as a difference
    expected = gaussian_information_nats(covariance, code, world.image, given=world.text)
    assert found["residual_image_nats"].item() == pytest.approx(expected.item(), abs=1e-12)
    factors = torch.block_diag(world.mix_image.T, torch.eye(world.dim_text + 4, dtype=torch.float64))
    turned = factors @ covariance @ factors.T
    expected = gaussian_information_nats(turned, code, world.image[3:], given=world.image[:3])
    assert found["nuisance_image_nats"].item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_no_linear_encoder_beats_the_optimal_one(beta):
    world = gaussian_world()

    def objective(weights):
        found = linear_encoder_nats(world, weights)
        return found["sufficiency_nats"] - beta * found["residual_image_nats"]

    best = optimal_linear_encoder(world, beta)
    value = objective(best)
    # The optimum in closed form: 1/2 log((1 - c) / (1 - rho^2)) - beta/2 log(rho^2 / c) a kept direction.
    c = beta / (1 + beta)
    kept = [rho**2 for rho in (0.95, 0.8, 0.5) if rho**2 > c]
    closed = sum(math.log((1 - c) / (1 - r)) - beta * math.log(r / c) for r in kept) / 2
    assert value.item() == pytest.approx(closed, abs=1e-12)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(4, world.dim_image, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -objective(weights)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert objective(weights).item() <= value.item() + 1e-9
    assert objective(weights).item() == pytest.approx(value.item(), abs=1e-4)


def test_residual_of_a_linear_encoder_has_no_limit_as_the_noise_goes():
    world = gaussian_world()
    weights = optimal_linear_encoder(world, 0.1)
    values = [linear_encoder_nats(world, weights, 10.0**-p)["residual_image_nats"].item() for p in (4, 6, 8)]
    # each hundredth of the variance adds log(100)/2 nats for each of the three directions
    assert values[1] - values[0] == pytest.approx(3 * math.log(100) / 2, rel=1e-2)
    assert values[2] - values[1] == pytest.approx(3 * math.log(100) / 2, rel=1e-3)


def test_errors_of_the_exact_worlds_name_the_rule(unchecked):
    world, gaussian = discrete_world(), gaussian_world()
    image, text = random_tables(world)
    with pytest.raises(ValueError, match="sum to 1"):
        entropy_nats(torch.tensor([0.5, 0.4], dtype=torch.float64))
    with pytest.raises(ValueError, match="finite"):
        entropy_nats(torch.tensor([0.5, math.nan], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"image_encoder must be \[12, k\]"):
        encoder_informations(world, image[:3], text)
    with pytest.raises(ValueError, match="each row of text_encoder"):
        encoder_informations(world, image, 2 * text)
    with pytest.raises(ValueError, match="confusions must be chances"):
        discrete_world((0.7,))
    with pytest.raises(ValueError, match="positive definite"):
        gaussian_information_nats(torch.ones(2, 2, dtype=torch.float64), [0], [1])
    with pytest.raises(ValueError, match="no index in common"):
        gaussian_information_nats(gaussian.covariance, [0, 1], [1])
    with pytest.raises(ValueError, match="noise_variance must be positive"):
        linear_encoder_nats(gaussian, torch.eye(8, dtype=torch.float64), 0.0)
    with pytest.raises(ValueError, match="beta must be positive"):
        optimal_linear_encoder(gaussian, 0.0)
