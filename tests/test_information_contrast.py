"""Contrastive training in the exact worlds: what is measured, against quadrature, and what a gradient can move."""

import math

import pytest
import torch
from torch.nn import functional as F

from cibr.information import (
    discrete_contrast_rows,
    discrete_world,
    embedding_informations,
    encoder_informations,
    gaussian_contrast_rows,
    gaussian_world,
    linear_encoder_nats,
    train_discrete,
    train_gaussian,
    vmf_log_normalizer,
)


def test_information_of_noisy_embeddings_is_that_of_quadrature_on_the_circle():
    world, kappa = discrete_world(), 8.0
    angles = torch.rand(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 * math.pi
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    grid = torch.arange(2000, dtype=torch.float64) * 2 * math.pi / 2000
    density = torch.exp(vmf_log_normalizer(kappa, 2) + kappa * torch.cos(grid[:, None] - angles))  # [z, image]
    table = (density * 2 * math.pi / 2000).T
    table = table / table.sum(1, keepdim=True)
    exact = encoder_informations(world, table, torch.ones(8, 1, dtype=torch.float64))
    found = embedding_informations(world, embeddings, kappa, n_samples=4000)
    for name in ("image_nats", "sufficiency_nats", "residual_image_nats", "nuisance_image_nats"):
        assert found[name] == pytest.approx(exact[name].item(), abs=5 * found["standard_error"]), name


def test_contrastive_training_raises_shared_information_and_repeats_with_its_seed():
    world, gaussian = discrete_world(), gaussian_world()
    before, after, again = (train_discrete(world, n_steps=n)[0] for n in (0, 100, 100))
    assert torch.equal(after, again)
    assert torch.allclose(after.norm(dim=1), torch.ones(12, dtype=torch.float64))
    informations = [embedding_informations(world, e, 10.0)["sufficiency_nats"] for e in (before, after)]
    assert informations[1] > informations[0]
    before, after, again = (train_gaussian(gaussian, n_steps=n)[0] for n in (0, 100, 100))
    assert torch.equal(after, again)
    assert after.square().sum().item() == pytest.approx(1)
    informations = [linear_encoder_nats(gaussian, w, 0.1)["sufficiency_nats"] for w in (before, after)]
    assert informations[1] > informations[0]


def test_gradient_of_a_linear_tower_stays_in_the_span_of_the_other_tower():
    # Without a length to keep, InfoNCE moves W_v by W_t times something: what W_t does not use is never touched.
    generator = torch.Generator().manual_seed(4)
    image, text = (torch.randn(32, n, generator=generator, dtype=torch.float64) for n in (8, 6))
    w_image = torch.randn(16, 8, generator=generator, dtype=torch.float64).requires_grad_()
    w_text = torch.randn(16, 6, generator=generator, dtype=torch.float64)
    scores = image @ w_image.T @ w_text @ text.T
    (gradient,) = torch.autograd.grad(F.cross_entropy(scores, torch.arange(32)), w_image)
    basis = torch.linalg.qr(w_text).Q
    outside = gradient - basis @ (basis.T @ gradient)
    assert outside.abs().max() < 1e-12 * gradient.abs().max()


def test_errors_of_contrastive_worlds_name_the_rule():
    world = discrete_world()
    with pytest.raises(ValueError, match="kappa must be positive"):
        embedding_informations(world, F.normalize(torch.ones(12, 2)).double(), 0.0)
    with pytest.raises(ValueError, match="embeddings must have one row an image, 12, got 3"):
        embedding_informations(world, F.normalize(torch.ones(3, 2)).double(), 1.0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        train_discrete(world, temperature=-1.0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        train_gaussian(gaussian_world(), temperature=0.0)


def test_rows_measure_each_setting_before_and_after_with_the_noise_of_its_temperature():
    gaussian = gaussian_world()
    rows = gaussian_contrast_rows(gaussian, (0.1, 0.5), (16,), (4,), (0, 1), n_steps=5)
    assert list(rows["trained"]) == [False, True] * 4
    last = rows.iloc[-1]
    weights, _ = train_gaussian(gaussian, 4, 0.5, 16, 5, seed=1)
    expected = linear_encoder_nats(gaussian, weights, 0.5)["nuisance_image_nats"].item()
    assert last["nuisance_image_nats"] == expected
    world = discrete_world()
    rows = discrete_contrast_rows(world, (0.1,), (16,), (4,), (0,), n_steps=5)
    embeddings, _ = train_discrete(world, 4, 0.1, 16, 5, seed=0)
    assert (
        rows.iloc[1]["nuisance_image_nats"]
        == embedding_informations(world, embeddings, 10.0)["nuisance_image_nats"]
    )
