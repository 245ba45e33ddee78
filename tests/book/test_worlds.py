"""The two exact worlds against brute force: loops over every outcome, determinants in three routes,
quadrature.
"""

import itertools
import math

import pytest
import torch

from cibr.losses.vmf import vmf_log_normalizer
from cibr_book import worlds

DISCRETE, GAUSSIAN = worlds.discrete_world(), worlds.gaussian_world()


def random_joint(*sizes, seed=0):
    joint = (
        torch.rand(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    )
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
    expected = information_by_loops(outcomes, (0,), (1,))
    assert worlds.mutual_information_nats(joint.sum(2)).item() == pytest.approx(expected)
    expected = information_by_loops(outcomes, (0,), (1,), (2,))
    assert worlds.conditional_information_nats(joint).item() == pytest.approx(expected, rel=1e-12)


def test_entropy_of_n_equal_outcomes_is_log_n_and_of_one_is_zero():
    assert worlds.entropy_nats(
        torch.full((7,), 1 / 7, dtype=torch.float64)
    ).item() == pytest.approx(math.log(7))
    assert worlds.entropy_nats(torch.tensor([1.0, 0.0], dtype=torch.float64)).item() == 0


def test_informations_of_encoders_are_those_of_brute_force_enumeration():
    world = worlds.discrete_world((0.2, 0.0), 2, 2)
    image_encoder, text_encoder = random_tables(world)
    outcomes = {}  # (z_v, x_v, s, v, x_t, z_t)
    for i, j in itertools.product(*map(range, world.joint.shape)):
        for k, m in itertools.product(range(3), range(3)):
            key = (k, i, world.shared[i].item(), world.image_only[i].item(), j, m)
            outcomes[key] = (world.joint[i, j] * image_encoder[i, k] * text_encoder[j, m]).item()
    found = worlds.encoder_informations(world, image_encoder, text_encoder)
    expected = {
        "shared_nats": information_by_loops(outcomes, (0,), (5,)),
        "sufficiency_nats": information_by_loops(outcomes, (0,), (4,)),
        "image_nats": information_by_loops(outcomes, (0,), (1,)),
        "residual_image_nats": information_by_loops(outcomes, (0,), (1,), (4,)),
        "residual_text_nats": information_by_loops(outcomes, (5,), (4,), (1,)),
        "nuisance_image_nats": information_by_loops(outcomes, (0,), (3,), (2,)),
    }
    expected["residual_nats"] = (
        expected["residual_image_nats"] + expected["residual_text_nats"]
    ) / 2
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        expected, rel=1e-10
    )


def test_residual_bound_lies_above_the_truth_by_the_divergence_from_the_posterior():
    for seed in range(10):
        encoder, text_encoder = random_tables(DISCRETE, seed=seed)
        backward = torch.rand(
            len(DISCRETE.text_only), 3, generator=torch.Generator().manual_seed(seed)
        ).double()
        backward = backward / backward.sum(1, keepdim=True)
        truth = worlds.encoder_informations(DISCRETE, encoder, text_encoder)[
            "residual_image_nats"
        ].item()
        posterior = worlds.backward_posterior(DISCRETE.joint, encoder)
        at_posterior = worlds.residual_bound_nats(DISCRETE.joint, encoder, posterior).item()
        assert at_posterior == pytest.approx(truth, rel=1e-10)
        gap = (
            (DISCRETE.joint.sum(0)[:, None] * posterior * (posterior / backward).log()).sum().item()
        )
        bound = worlds.residual_bound_nats(DISCRETE.joint, encoder, backward).item()
        assert bound == pytest.approx(truth + gap) and bound > truth


def test_a_penalty_leaves_a_table_without_nuisance_and_beta_zero_does_not():
    plain, penalised = (
        worlds.encoder_informations(DISCRETE, *worlds.fit_tables(DISCRETE, beta, 8, 0, 250))
        for beta in (0.0, 0.2)
    )
    assert plain["nuisance_image_nats"] > 0.1
    assert penalised["nuisance_image_nats"] < 0.01 and penalised["shared_nats"] > 0.9


def test_gaussian_information_agrees_in_three_routes():
    determinants = worlds.gaussian_information_nats(
        GAUSSIAN.covariance, GAUSSIAN.image, GAUSSIAN.text
    )
    rho = worlds.canonical_correlations(GAUSSIAN.covariance, GAUSSIAN.image, GAUSSIAN.text)
    remaining = worlds.conditional_covariance(GAUSSIAN.covariance, GAUSSIAN.image, GAUSSIAN.text)
    of_image = GAUSSIAN.covariance[GAUSSIAN.image][:, GAUSSIAN.image]
    conditional = (torch.logdet(of_image) - torch.logdet(remaining)) / 2
    expected = -sum(math.log(1 - rho**2) for rho in (0.95, 0.8, 0.5)) / 2
    for route in (determinants, -torch.log1p(-(rho**2)).sum() / 2, conditional):
        assert route.item() == pytest.approx(expected, abs=1e-12)


def test_conditional_gaussian_information_follows_the_chain_rule():
    a = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = a @ a.T + torch.eye(6, dtype=torch.float64)
    together = worlds.gaussian_information_nats(covariance, [0, 1], [2, 3, 4, 5])
    first = worlds.gaussian_information_nats(covariance, [0, 1], [2, 3])
    then = worlds.gaussian_information_nats(covariance, [0, 1], [4, 5], given=[2, 3])
    assert together.item() == pytest.approx((first + then).item(), abs=1e-12)


def joint_with_code(world, weights, noise):
    """Covariance of (x_v, x_t, z_v) with z_v = W x_v + noise, written out."""
    lift = torch.cat([weights, torch.zeros(len(weights), len(world.text), dtype=torch.float64)], 1)
    across = lift @ world.covariance
    below = torch.cat(
        [across, across @ lift.T + noise * torch.eye(len(weights), dtype=torch.float64)], 1
    )
    return torch.cat([torch.cat([world.covariance, across.T], 1), below])


def test_linear_encoder_informations_are_determinants_of_the_whole_covariance():
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(4, len(GAUSSIAN.image), generator=generator, dtype=torch.float64)
    found = worlds.linear_encoder_nats(GAUSSIAN, weights, 0.3)
    covariance = joint_with_code(GAUSSIAN, weights, 0.3)
    code = list(range(len(GAUSSIAN.covariance), len(covariance)))
    factors = torch.block_diag(
        GAUSSIAN.mix_image.T, torch.eye(len(GAUSSIAN.text) + 4, dtype=torch.float64)
    )
    turned = factors @ covariance @ factors.T
    image, text, nats = GAUSSIAN.image, GAUSSIAN.text, worlds.gaussian_information_nats
    expected = {
        "sufficiency_nats": nats(covariance, code, text),
        # I(Z;X_v|X_t) by the definition of the conditional one, not as a difference
        "residual_image_nats": nats(covariance, code, image, given=text),
        "nuisance_image_nats": nats(turned, code, image[3:], image[:3]),
    }
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), abs=1e-12), name


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_no_linear_encoder_beats_the_optimal_one(beta):

    def objective(weights):
        found = worlds.linear_encoder_nats(GAUSSIAN, weights)
        return found["sufficiency_nats"] - beta * found["residual_image_nats"]

    value = objective(worlds.optimal_linear_encoder(GAUSSIAN, beta)).item()
    # The optimum in closed form: 1/2 log((1 - c) / (1 - rho^2)) - beta/2 log(rho^2 / c) a kept
    # direction.
    c = beta / (1 + beta)
    kept = [rho**2 for rho in (0.95, 0.8, 0.5) if rho**2 > c]
    closed = sum(math.log((1 - c) / (1 - r)) - beta * math.log(r / c) for r in kept) / 2
    assert value == pytest.approx(closed, abs=1e-12)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(
        4, len(GAUSSIAN.image), generator=generator, dtype=torch.float64
    ).requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -objective(weights)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert value - 1e-4 < objective(weights).item() <= value + 1e-9


def test_information_of_noisy_embeddings_is_that_of_quadrature_on_the_circle():
    world, kappa = DISCRETE, 8.0
    angles = (
        torch.rand(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        * 2
        * math.pi
    )
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    grid = torch.arange(2000, dtype=torch.float64) * 2 * math.pi / 2000
    density = torch.exp(
        vmf_log_normalizer(kappa, 2) + kappa * torch.cos(grid[:, None] - angles)
    )  # [z, image]
    table = (density * 2 * math.pi / 2000).T
    table = table / table.sum(1, keepdim=True)
    exact = worlds.encoder_informations(world, table, torch.ones(8, 1, dtype=torch.float64))
    found = worlds.embedding_informations(world, embeddings, kappa, n_samples=4000)
    for name in ("image_nats", "sufficiency_nats", "residual_image_nats", "nuisance_image_nats"):
        assert found[name] == pytest.approx(exact[name].item(), abs=5 * found["standard_error"]), (
            name
        )


def test_contrastive_training_raises_shared_information_and_keeps_its_scale():
    unit = [worlds.train_discrete(DISCRETE, n_steps=n)[0] for n in (0, 60)]
    linear = [worlds.train_gaussian(GAUSSIAN, n_steps=n)[0] for n in (0, 60)]
    shared = [worlds.embedding_informations(DISCRETE, e, 10.0)["sufficiency_nats"] for e in unit]
    shared += [worlds.linear_encoder_nats(GAUSSIAN, w, 0.1)["sufficiency_nats"] for w in linear]
    assert shared[1] > shared[0] and shared[3] > shared[2]
    assert torch.allclose(unit[1].norm(dim=1), torch.ones(12, dtype=torch.float64))
    assert linear[1].square().sum().item() == pytest.approx(1)


def test_gradient_descent_stays_in_the_span_of_both_starts_and_adamw_does_not():
    start = worlds.train_gaussian(GAUSSIAN, 32, 0.05, n_steps=0)
    basis = torch.linalg.qr(torch.cat(start, 1)).Q
    outside = {}
    for optimizer, rate in (("SGD", 10.0), ("AdamW", 0.01)):
        end, _ = worlds.train_gaussian(
            GAUSSIAN, 32, 0.05, n_steps=50, learning_rate=rate, optimizer=optimizer
        )
        moved = end - start[0]
        outside[optimizer] = ((moved - basis @ (basis.T @ moved)).norm() / moved.norm()).item()
    assert outside["SGD"] < 1e-10 and outside["AdamW"] > 0.1


def test_trainable_penalty_lowers_the_exact_residual_and_nuisance_at_no_loss_of_shared_information():
    rows = [
        worlds.contrast_rows(DISCRETE, (0.05,), (64,), (8,), (0, 1), n_steps=200, beta=beta)
        for beta in (0.0, 1.0)
    ]
    plain, penalised = (row[row["trained"]].mean() for row in rows)
    # Means of two seeds; sampling z adds 0.002, and single seeds of plain InfoNCE differ by 0.1 in
    # shared nats.
    assert penalised["residual_image_nats"] < 0.6 * plain["residual_image_nats"]
    assert penalised["nuisance_image_nats"] < 0.3 * plain["nuisance_image_nats"]
    assert penalised["sufficiency_nats"] > plain["sufficiency_nats"] - 0.02


def test_rows_measure_each_condition_before_and_after_with_the_noise_of_its_temperature():
    rows = worlds.contrast_rows(GAUSSIAN, (0.1, 0.5), (16,), (4,), (0, 1), n_steps=5)
    assert list(rows["trained"]) == [False, True] * 4
    weights, _ = worlds.train_gaussian(GAUSSIAN, 4, 0.5, 16, seed=1, n_steps=5)
    expected = worlds.linear_encoder_nats(GAUSSIAN, weights, 0.5)["nuisance_image_nats"].item()
    assert rows.iloc[-1]["nuisance_image_nats"] == expected
    rows = worlds.contrast_rows(DISCRETE, (0.1,), (16,), (4,), (0,), n_steps=5)
    embeddings, _ = worlds.train_discrete(DISCRETE, 4, 0.1, 16, seed=0, n_steps=5)
    expected = worlds.embedding_informations(DISCRETE, embeddings, 10.0)["nuisance_image_nats"]
    assert rows.iloc[1]["nuisance_image_nats"] == expected
