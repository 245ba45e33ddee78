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

from cibr.losses import CIBRLoss
from cibr.losses.penalties import Anchor
from cibr.losses.vmf import vmf_log_normalizer
from cibr_book.worlds import exact as worlds
from cibr_book.worlds.estimators import nce_nats

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
        worlds.encoder_informations(DISCRETE, *worlds.fit_tables(DISCRETE, beta, 8, [0], 250)[0])
        for beta in (0.0, 2.0, 4.0)
    )
    assert plain["shared_nats"] > 0.98 * worlds.mutual_information_nats(DISCRETE.joint)
    assert plain["nuisance_image_nats"] > 0.1 > 0.01 > penalised["nuisance_image_nats"]
    # Telling the second pair apart is worth 0.25 nats and costs 0.10; which pair it is, costs none.
    assert penalised["shared_nats"] > 0.9
    assert dear["shared_nats"].item() == pytest.approx(math.log(2), abs=0.01)


def test_the_weight_of_fitted_tables_rises_over_the_first_half_of_the_steps(monkeypatch):
    weights = []
    losses = worlds._cib_losses

    def recorded(joint, images, texts, beta):
        weights.append(beta)
        return losses(joint, images, texts, beta)

    monkeypatch.setattr(worlds, "_cib_losses", recorded)
    worlds.fit_tables(DISCRETE, 2.0, 3, n_steps=4)
    assert weights == [0.0, 1.0, 2.0, 2.0]


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


def test_the_standard_error_is_the_spread_over_draws():
    world = worlds.discrete_world(n_image=1, n_text=1)
    embeddings = F.normalize(randn(4, 3), dim=1)
    drawn = [worlds.embedding_informations(world, embeddings, 8.0, seed) for seed in range(40)]
    residuals = torch.tensor([nats["residual_image_nats"] for nats in drawn])
    # The spread of forty draws is known to about 11 %.
    assert residuals.std().item() == pytest.approx(drawn[0]["standard_error"], rel=0.35)


def test_a_step_of_training_descends_the_clip_loss_of_a_fresh_batch():
    after = worlds.train_gaussian(GAUSSIAN, 4, 0.2, 16, 3, n_steps=1, weight_decay=0.1)
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
        # The first step of AdamW, at a rate of 0.01.
        stepped = start * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(end, (stepped / stepped.norm()).detach())


def test_training_with_an_objective_at_no_penalty_is_that_with_infonce():
    options = dict(dim=4, temperature=0.2, batch_size=16, seed=1, n_steps=3)
    plain, through_cibr = (
        worlds.train_discrete(DISCRETE, objective=objective, **options)
        for objective in (None, {"beta": 0.0})
    )
    torch.testing.assert_close(plain, through_cibr)


def test_every_objective_starts_from_the_same_networks_and_moves_them():
    options = dict(dim=4, temperature=0.2, batch_size=16, seed=1)
    start, _ = worlds.train_discrete(DISCRETE, **options, n_steps=0)
    ends = []
    for more in ({}, {"sample": True}, {"penalty": "crossfit"}, {"penalty": "mine"}):
        objective = {"beta": 1.0, "kappa_e": 20.0} | more
        untrained, _ = worlds.train_discrete(DISCRETE, objective=objective, n_steps=0, **options)
        assert torch.equal(untrained, start)
        ends.append(worlds.train_discrete(DISCRETE, objective=objective, n_steps=3, **options)[0])
    distances = [(a - b).abs().max() for a, b in itertools.combinations([start, *ends], 2)]
    assert min(distances) > 1e-4


def test_draws_of_the_noise_move_with_the_embeddings_so_that_the_gradient_is_that_of_quadrature():
    kappa, n = 8.0, 2000
    world = worlds.discrete_world(n_image=1, n_text=1)
    angles = torch.tensor([0.0, 0.7, 2.0, 4.0]).double().requires_grad_()
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    grid = torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    table = (kappa * torch.cos(grid - angles[:, None])).softmax(1)
    exact = worlds.encoder_informations(world, table, torch.ones(4, 1).double())
    sampled = worlds.sampled_informations(world, embeddings, kappa)
    for name in ("sufficiency_nats", "residual_image_nats"):
        (slope,) = torch.autograd.grad(sampled[name], angles, retain_graph=True)
        (expected,) = torch.autograd.grad(exact[name], angles, retain_graph=True)
        # Two thousand draws an image: standard errors of the slopes are below 0.01.
        torch.testing.assert_close(slope, expected, atol=0.03, rtol=0)


def test_the_price_of_clip_makes_the_bottleneck_keep_what_clip_keeps_at_any_noise():
    rho = torch.tensor([0.1, 0.5, 0.8, 0.95], dtype=torch.float64)
    closed = rho**2 / ((1 + rho) ** 2 * (1 - rho))
    torch.testing.assert_close(worlds.clip_price(rho), closed)
    assert [round(worlds.clip_price(r), 2) for r in (0.95, 0.8, 0.5)] == [4.75, 0.99, 0.22]
    for ratio in (0.1, 1.0, 30.0):
        prices = worlds.clip_price(rho, ratio)
        assert bool((prices.diff() > 0).all())
        for r, price in zip(rho, prices.tolist(), strict=True):
            kept = worlds.bottleneck_variance(r[None], price).item()
            assert kept == pytest.approx(ratio * r.item())


def test_towers_of_the_least_length_send_a_direction_to_the_variance_that_the_price_is_for():
    rho = torch.tensor([0.95, 0.8, 0.5], dtype=torch.float64)
    least = torch.cat([rho.sqrt().diag(), torch.zeros(2, 3).double()])  # in units of the noise
    # In canonical coordinates CLIP's score is the diagonal of rho, of both towers' vectors.
    for seed in range(20):
        u = randn(5, 3, seed=seed)
        w = torch.linalg.pinv(u).T @ rho.diag()  # another tower of texts with the same score
        off = randn(5, 3, seed=100 + seed)
        w = w + off - u @ torch.linalg.pinv(u) @ off  # off the images' span
        torch.testing.assert_close(u.T @ w, rho.diag())
        assert u.square().sum() + w.square().sum() > 2 * least.square().sum() + 1e-3
    # Equal variances are not enough: the bottleneck at the price is another encoder.
    u = torch.cat([(rho + 0.25).sqrt().diag(), 0.5 * torch.eye(3).double()])
    w = torch.cat([(rho + 0.25).sqrt().diag(), -0.5 * torch.eye(3).double()])
    torch.testing.assert_close(u.T @ w, rho.diag())
    torch.testing.assert_close(u.square().sum(0), w.square().sum(0))
    prices = worlds.clip_price(rho).tolist()
    kept = [worlds.bottleneck_variance(r[None], b) for r, b in zip(rho, prices, strict=True)]
    torch.testing.assert_close(torch.cat(kept), least.square().sum(0))
    assert (u.square().sum(0) > torch.cat(kept) + 0.4).all()


def test_weight_decay_picks_the_towers_of_the_least_length_and_lowers_their_gains():
    rho = GAUSSIAN.correlations  # inputs are uncorrelated, of unit variance: weights are vectors
    decay = 0.6
    towers = [(0.3 * randn(5, 3, seed=seed)).requires_grad_() for seed in (0, 1)]
    optimizer = torch.optim.LBFGS(towers, max_iter=500, line_search_fn="strong_wolfe")

    def loss():  # minus the limit of theorem 2 (a), in units of the temperature
        optimizer.zero_grad()
        gain = towers[0].T @ towers[1]
        value = gain.square().sum() / 2 - (gain.diagonal() * rho).sum()
        value = value + decay / 2 * sum(tower.square().sum() for tower in towers)
        value.backward()
        return value

    optimizer.step(loss)
    gain = (towers[0].T @ towers[1]).detach()
    torch.testing.assert_close(gain, (rho - decay).clamp(min=0).diag(), atol=1e-3, rtol=0)
    torch.testing.assert_close(towers[0], towers[1], atol=1e-2, rtol=0)


def test_with_both_embeddings_noisy_no_beta_keeps_a_direction_as_clip_does():
    def objective(variance, rho, beta):  # I(Z_v;Z_t) - beta R of one direction, equal towers
        cosine = rho * variance / (1 + variance)
        residual = torch.log1p(variance * (1 - rho**2)) / 2
        return -torch.log1p(-(cosine**2)) / 2 - beta * residual

    prices = []
    for rho in [0.95, 0.8, 0.5, *torch.linspace(0.01, 0.99, 50).tolist()]:
        variance = torch.tensor(rho, dtype=torch.float64, requires_grad=True)
        slopes = []
        for beta in (0.0, 1.0):
            (slope,) = torch.autograd.grad(objective(variance, rho, beta), variance)
            slopes.append(slope)
        stationary = (slopes[0] / (slopes[0] - slopes[1])).item()
        assert objective(variance, rho, stationary) < 0  # which dropping the direction is worth
        prices.append(stationary)
    assert [round(price, 2) for price in prices[:3]] == [3.3, 0.72, 0.14]


def test_both_towers_are_solved_apart_where_each_has_the_others_input_as_its_target():
    beta = 0.3
    order = [*GAUSSIAN.text, *GAUSSIAN.image]
    swapped = worlds.GaussianWorld(
        GAUSSIAN.covariance[order][:, order],
        GAUSSIAN.mix_text,
        GAUSSIAN.mix_image,
        GAUSSIAN.correlations,
    )

    def objective(weights):  # with R, the mean of both residuals, as in the book's objective
        sides = zip((GAUSSIAN, swapped), weights, strict=True)
        nats = [worlds.linear_encoder_nats(world, w) for world, w in sides]
        shared = sum(side["sufficiency_nats"] for side in nats) / 2
        return shared - beta * sum(side["residual_image_nats"] for side in nats) / 2

    worlds_of_towers = (GAUSSIAN, swapped)
    weights = [worlds.optimal_linear_encoder(w, beta).requires_grad_() for w in worlds_of_towers]
    best = objective(weights)
    for gradient in torch.autograd.grad(best, weights):
        assert gradient.abs().max() < 1e-10
    for seed in range(5):
        moved = [w + 0.1 * randn(*w.shape, seed=seed) for w in weights]
        assert objective(moved) < best


def test_training_leaves_nuisance_off_the_span_of_the_texts():
    options = dict(batch_sizes=(128,), seeds=(0,), n_steps=150)
    before, after = worlds.contrast_rows(GAUSSIAN, (0.05,), dims=(32,), **options).iloc
    towers = worlds.train_gaussian(GAUSSIAN, 32, 0.05, seed=0, n_steps=150)
    images = (towers[0] @ GAUSSIAN.mix_image[:, 3:]).T
    basis = torch.linalg.qr(towers[1]).Q  # six texts' directions: of full rank
    expected = (images @ basis).square().sum() / images.square().sum()
    assert after["nuisance_in_span"] == pytest.approx(expected.item(), abs=1e-9)
    assert after["nuisance_in_span"] < 0.01 < 0.1 < before["nuisance_in_span"]
    assert after["nuisance_image_nats"] > 0.9 * before["nuisance_image_nats"]
    narrow = worlds.contrast_rows(GAUSSIAN, (0.05,), dims=(3,), **options | {"n_steps": 1})
    assert narrow["nuisance_in_span"].tolist() == pytest.approx([1.0, 1.0])


def test_no_bilinear_score_beats_the_weighted_canonical_correlations():
    covariance = GAUSSIAN.covariance
    v, t = covariance[:8, :8], covariance[8:, 8:]
    cross = covariance[:8, 8:]

    def limit(score):  # of log N - loss for large batches
        return (score * cross).sum() - (score @ t @ score.T * v).sum() / 2

    optimum = torch.linalg.solve(v, cross) @ torch.linalg.inv(t)
    best = limit(optimum).item()
    assert best == pytest.approx(sum(rho**2 for rho in (0.95, 0.8, 0.5)) / 2)
    assert all(limit(optimum + 0.1 * randn(8, 6, seed=i)) < best for i in range(5))
    # The limit itself, from one large batch of pairs.
    pairs = randn(4000, 14) @ torch.linalg.cholesky(covariance).T
    sampled = nce_nats(pairs[:, :8] @ optimum @ pairs[:, 8:].T).item()
    assert sampled == pytest.approx(best, abs=0.05)


def test_the_anchor_reports_nothing_where_the_embedding_keeps_what_texts_leave_open():
    corners = torch.eye(4).double()
    images, texts = corners[DISCRETE.shared], corners[DISCRETE.text_shared]
    kappa = 200.0
    exact = worlds.embedding_informations(DISCRETE, images, kappa)["residual_image_nats"]

    class Same(torch.nn.Module):
        def forward(self, image_pooled, text_pooled):
            return image_pooled, text_pooled

    pairs = torch.multinomial(DISCRETE.joint.flatten(), 400, True)
    drawn = images[pairs // 8], texts[pairs % 8]
    loss_fn = CIBRLoss(1.0, Anchor(Same()), kappa_e=kappa)
    loss_fn(*drawn, 5.0, image_pooled=drawn[0], text_pooled=drawn[1])
    assert loss_fn.reports()["beyond_statistic_image_nats"] < 0.01 < 0.35 < exact


def test_rows_measure_each_condition_before_and_after_with_the_noise_of_its_temperature():
    rows = worlds.contrast_rows(GAUSSIAN, (0.1, 0.5), (16,), (4,), (0, 1), n_steps=5)
    assert list(rows["trained"]) == [False, True] * 4
    weights, _ = worlds.train_gaussian(GAUSSIAN, 4, 0.5, 16, seed=1, n_steps=5)
    nats = worlds.linear_encoder_nats(GAUSSIAN, weights, 0.5)
    assert rows.iloc[-1]["nuisance_image_nats"] == nats["nuisance_image_nats"].item()
