"""The two exact worlds against brute force: loops over every outcome, determinants in three routes,
quadrature.
"""

import itertools
import math
from collections import defaultdict
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from cibr.losses.vmf import vmf_log_normalizer
from cibr_book import worlds

DISCRETE = worlds.discrete_world()
GAUSSIAN = worlds.gaussian_world()


def randn(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tables(world, seed=0):
    sizes = enumerate(world.joint.shape, start=seed)
    return [(2 * randn(n, 3, seed=i)).softmax(1) for i, n in sizes]


def information_by_loops(outcomes, a, b, c=()):
    """I(A;B|C) from a dict of probabilities of outcomes, A, B and C being places in the outcome."""
    marginals = {}
    for places in (a + b + c, a + c, b + c, c):
        marginals[places] = defaultdict(float)
        for outcome, p in outcomes.items():
            marginals[places][tuple(outcome[i] for i in places)] += p
    total = 0.0
    for outcome, p in outcomes.items():
        abc, ac, bc, of_c = (
            sums[tuple(outcome[i] for i in places)] for places, sums in marginals.items()
        )
        total += p * math.log(abc * of_c / (ac * bc)) if p > 0 else 0.0
    return total


def test_a_certain_outcome_has_no_entropy_and_a_finite_gradient():
    certain = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    entropy = worlds.entropy_nats(certain)
    entropy.backward()
    assert entropy.item() == 0 and certain.grad.isfinite().all()


def test_texts_confuse_each_pair_of_shared_values_as_often_as_asked():
    world = worlds.discrete_world((0.3, 0.0), 3, 2)
    chances = torch.block_diag(torch.tensor([[0.7, 0.3], [0.3, 0.7]]), torch.eye(2)).double()
    shared = torch.arange(4)
    assert torch.equal(world.shared, shared.repeat_interleave(3))
    assert torch.equal(world.text_shared, shared.repeat_interleave(2))
    assert world.image_only.tolist() == [0, 1, 2] * 4 and world.text_only.tolist() == [0, 1] * 4
    expected = chances[world.shared][:, world.text_shared] / (4 * 3 * 2)
    torch.testing.assert_close(world.joint, expected)


def test_informations_of_encoders_are_those_of_brute_force_enumeration():
    world = worlds.discrete_world((0.2, 0.0), 2, 2)
    image_encoder, text_encoder = tables(world)
    outcomes = {}  # (z_v, x_v, s, v, x_t, z_t)
    for i, j, k, m in itertools.product(range(8), range(8), range(3), range(3)):
        key = (k, i, i // 2, i % 2, j, m)
        outcomes[key] = (world.joint[i, j] * image_encoder[i, k] * text_encoder[j, m]).item()
    places = {
        "shared_nats": ((0,), (5,)),
        "sufficiency_nats": ((0,), (4,)),
        "image_nats": ((0,), (1,)),
        "residual_image_nats": ((0,), (1,), (4,)),
        "residual_text_nats": ((5,), (4,), (1,)),
        "nuisance_image_nats": ((0,), (3,), (2,)),
    }
    expected = {name: information_by_loops(outcomes, *of) for name, of in places.items()}
    residuals = expected["residual_image_nats"] + expected["residual_text_nats"]
    expected["residual_nats"] = residuals / 2
    nats = worlds.encoder_informations(world, image_encoder, text_encoder)
    assert {name: value.item() for name, value in nats.items()} == pytest.approx(
        expected, rel=1e-10
    )


@pytest.mark.parametrize("seed", range(3))
def test_residual_bound_lies_above_the_truth_by_the_divergence_from_the_posterior(seed):
    encoder, text_encoder = tables(DISCRETE, seed)
    nats = worlds.encoder_informations(DISCRETE, encoder, text_encoder)
    truth = nats["residual_image_nats"].item()
    posterior = worlds.backward_posterior(DISCRETE.joint, encoder)
    at_posterior = worlds.residual_bound_nats(DISCRETE.joint, encoder, posterior).item()
    assert at_posterior == pytest.approx(truth, rel=1e-10)
    other = text_encoder  # any table of three codes
    gap = (DISCRETE.joint.sum(0)[:, None] * posterior * (posterior / other).log()).sum().item()
    bound = worlds.residual_bound_nats(DISCRETE.joint, encoder, other).item()
    assert bound == pytest.approx(truth + gap) and bound > truth


def test_fitted_tables_share_all_they_can_and_a_penalty_removes_what_is_not_worth_its_price():
    plain, penalised, dear = (
        worlds.encoder_informations(DISCRETE, *worlds.fit_tables(DISCRETE, beta, 8, 0, 250))
        for beta in (0.0, 2.0, 4.0)
    )
    assert plain["shared_nats"] > 0.98 * worlds.mutual_information_nats(DISCRETE.joint)
    assert plain["nuisance_image_nats"] > 0.1 > 0.01 > penalised["nuisance_image_nats"]
    # Telling the second pair apart is worth 0.25 nats and costs 0.10; which pair it is, costs none.
    assert penalised["shared_nats"] > 0.9
    assert dear["shared_nats"].item() == pytest.approx(math.log(2), abs=0.01)


def test_gaussian_information_agrees_in_three_routes():
    covariance, image, text = GAUSSIAN.covariance, GAUSSIAN.image, GAUSSIAN.text
    determinants = worlds.gaussian_information_nats(covariance, image, text)
    rho = worlds.canonical_correlations(covariance, image, text)
    remaining = worlds.conditional_covariance(covariance, image, text)
    conditional = (torch.logdet(covariance[image][:, image]) - torch.logdet(remaining)) / 2
    expected = -sum(math.log(1 - rho**2) for rho in (0.95, 0.8, 0.5)) / 2
    for route in (determinants, -torch.log1p(-(rho**2)).sum() / 2, conditional):
        assert route.item() == pytest.approx(expected, abs=1e-12)
    factors = GAUSSIAN.mix_image.T @ covariance[image][:, text] @ GAUSSIAN.mix_text
    known = torch.zeros(8, 6, dtype=torch.float64)
    known[range(3), range(3)] = torch.tensor([0.95, 0.8, 0.5], dtype=torch.float64)
    torch.testing.assert_close(factors, known)


def test_conditional_gaussian_information_follows_the_chain_rule():
    a = randn(6, 6)
    covariance = a @ a.T + torch.eye(6, dtype=torch.float64)
    together = worlds.gaussian_information_nats(covariance, [0, 1], [2, 3, 4, 5])
    first = worlds.gaussian_information_nats(covariance, [0, 1], [2, 3])
    then = worlds.gaussian_information_nats(covariance, [0, 1], [4, 5], given=[2, 3])
    assert together.item() == pytest.approx((first + then).item(), abs=1e-12)


def test_linear_encoder_informations_are_determinants_of_the_whole_covariance():
    weights = randn(4, 8)
    nats = worlds.linear_encoder_nats(GAUSSIAN, weights, 0.3)
    # Of (factors of the image, x_t, z_v) with z_v = W x_v + noise, written out.
    mix = torch.block_diag(GAUSSIAN.mix_image.T, torch.eye(6).double())
    lift = torch.cat([mix, F.pad(weights, (0, 6))])
    covariance = lift @ GAUSSIAN.covariance @ lift.T
    covariance += torch.diag(torch.tensor([0.0] * 14 + [0.3] * 4, dtype=torch.float64))
    shared, image_only, text, code = [0, 1, 2], [3, 4, 5, 6, 7], [*range(8, 14)], [*range(14, 18)]
    blocks = {
        "image_nats": (code, shared + image_only),
        "sufficiency_nats": (code, text),
        "residual_image_nats": (code, shared + image_only, text),  # not as a difference
        "nuisance_image_nats": (code, image_only, shared),
    }
    for name, of in blocks.items():
        expected = worlds.gaussian_information_nats(covariance, *of).item()
        assert nats[name].item() == pytest.approx(expected, abs=1e-12), name


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_no_linear_encoder_beats_the_optimal_one(beta):
    def objective(weights):
        nats = worlds.linear_encoder_nats(GAUSSIAN, weights)
        return nats["sufficiency_nats"] - beta * nats["residual_image_nats"]

    optimum = worlds.optimal_linear_encoder(GAUSSIAN, beta)
    value = objective(optimum).item()
    # In closed form, with c = beta / (1 + beta), each kept direction is worth
    # 1/2 log((1 - c) / (1 - rho^2)) - beta/2 log(rho^2 / c).
    c = beta / (1 + beta)
    kept = [rho**2 for rho in (0.95, 0.8, 0.5) if rho**2 > c]
    closed = sum(math.log((1 - c) / (1 - r)) - beta * math.log(r / c) for r in kept) / 2
    assert value == pytest.approx(closed, abs=1e-12)
    weights = optimum.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(weights), weights)
    assert gradient.abs().max() < 1e-10
    assert all(objective(optimum + 0.1 * randn(3, 8, seed=i)) < value for i in range(5))


def test_information_of_noisy_embeddings_is_that_of_quadrature_on_the_circle():
    kappa = 8.0
    angles = 2 * math.pi * torch.rand(12, generator=torch.Generator().manual_seed(3)).double()
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    grid = torch.arange(2000, dtype=torch.float64) * 2 * math.pi / 2000
    log_density = vmf_log_normalizer(kappa, 2) + kappa * torch.cos(grid - angles[:, None])
    table = log_density.softmax(1)  # of the points of the grid, by image
    exact = worlds.encoder_informations(DISCRETE, table, torch.ones(8, 1, dtype=torch.float64))
    sampled = worlds.embedding_informations(DISCRETE, embeddings, kappa)
    assert 0 < sampled["standard_error"] < 0.01
    for name in ("image_nats", "sufficiency_nats", "residual_image_nats", "nuisance_image_nats"):
        margin = 5 * sampled["standard_error"]
        assert sampled[name] == pytest.approx(exact[name].item(), abs=margin), name


def test_a_step_of_training_descends_the_clip_loss_of_a_fresh_batch():
    options = dict(n_steps=1, learning_rate=0.5, weight_decay=0.1, optimizer="SGD")
    after = worlds.train_gaussian(GAUSSIAN, 4, 0.2, 16, 3, **options)
    generator = torch.Generator().manual_seed(3)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    draws = [draw(4, 8), draw(4, 6), draw(16, 14)]
    before = [weights.requires_grad_() for weights in draws[:2]]
    x = (draws[2] @ torch.linalg.cholesky(GAUSSIAN.covariance).T).split([8, 6], 1)
    image, text = (x[i] @ (before[i] / before[i].norm()).T for i in range(2))
    scores, target = image @ text.T / 0.2, torch.arange(16)
    loss = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
    gradients = torch.autograd.grad(loss, before)
    for start, end, gradient in zip(before, after, gradients, strict=True):
        stepped = start - 0.5 * (gradient + 0.1 * start)
        torch.testing.assert_close(end, (stepped / stepped.norm()).detach())


def test_a_trained_penalty_lowers_residual_and_nuisance_at_no_loss_of_shared_information():
    condition = dict(temperatures=(0.05,), batch_sizes=(64,), dims=(8,), seeds=(0, 1), n_steps=200)
    rows = [worlds.contrast_rows(DISCRETE, **condition, beta=beta) for beta in (0.0, 1.0)]
    plain, penalised = (part[part["trained"]].mean() for part in rows)
    # Means of two seeds; sampling z adds 0.002, and single seeds of plain InfoNCE differ by 0.1.
    assert penalised["residual_image_nats"] < 0.6 * plain["residual_image_nats"]
    assert penalised["nuisance_image_nats"] < 0.3 * plain["nuisance_image_nats"]
    assert penalised["sufficiency_nats"] > plain["sufficiency_nats"] - 0.02


def test_rows_measure_each_condition_before_and_after_with_the_noise_of_its_temperature():
    rows = worlds.contrast_rows(GAUSSIAN, (0.1, 0.5), (16,), (4,), (0, 1), n_steps=5)
    assert list(rows["trained"]) == [False, True] * 4
    weights, _ = worlds.train_gaussian(GAUSSIAN, 4, 0.5, 16, seed=1, n_steps=5)
    nats = worlds.linear_encoder_nats(GAUSSIAN, weights, 0.5)
    assert rows.iloc[-1]["nuisance_image_nats"] == nats["nuisance_image_nats"].item()
    before, after = worlds.contrast_rows(DISCRETE, (0.1,), (64,), (16,), (2,), n_steps=60).iloc
    embeddings, _ = worlds.train_discrete(DISCRETE, 16, 0.1, 64, seed=2, n_steps=60)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(12).double())
    nats = worlds.embedding_informations(DISCRETE, embeddings, 10.0, seed=2)
    assert after["nuisance_image_nats"] == nats["nuisance_image_nats"]
    assert after["sufficiency_nats"] > before["sufficiency_nats"]
