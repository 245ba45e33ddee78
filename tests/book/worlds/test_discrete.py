"""The discrete world against brute force: definitions, quadrature, and adversaries of
theorem 1.
"""

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.special import xlogy

from cibr.losses.clip import clip_loss
from cibr.losses.vmf import vmf_log_normalizer
from cibr_book.worlds.discrete import (
    PopulationLoss,
    adversary,
    averaged,
    discrete_world,
    embedding_informations,
    encoder_informations,
    representatives,
)
from cibr_book.worlds.gaussian import within_reach

WORLD = discrete_world()
SMALL = discrete_world((0.3, 0.05), n_image=2, n_text=1)  # 8 images, 4 texts
LOSSES = {n: PopulationLoss(SMALL, n) for n in (2, 3, None)}
CASES = {"n": st.sampled_from(list(LOSSES)), "dim": st.sampled_from([1, 2, 8])}
CASES |= {"temperature": st.sampled_from([0.05, 0.3, 2.0]), "seed": st.integers(0, 999)}


def randn(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def towers(dim, seed=0, n_images=8, n_texts=4):
    return F.normalize(randn(n_images + n_texts, dim, seed=seed), dim=1).split([n_images, n_texts])


def tables(world, seed=0):
    sizes = enumerate(world.joint.shape, start=seed)
    return [(2 * randn(n, 3, seed=i)).softmax(1) for i, n in sizes]


def by_definition(joint):
    """I(A;B|C) of p(a, b, c) as the mean of log p(a, b, c) p(c) / p(a, c) p(b, c)."""
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return xlogy(joint, joint * joint.sum((0, 1)) / apart).sum()


@settings(max_examples=20, deadline=None)
@given(confusions=st.tuples(st.floats(0.01, 0.5), st.floats(0.01, 0.5)), seed=st.integers(0, 99))
def test_informations_of_encoders_are_those_of_the_joint_distribution_of_all(confusions, seed):
    world = discrete_world(confusions, 2, 2)
    encoders = tables(world, seed)
    channel = world.joint + 1e-300  # p(z_v, s, v, x_t, z_t); what cannot occur has no weight
    p = torch.einsum("ik,ij,jm->kijm", encoders[0], channel, encoders[1]).unflatten(1, (4, 2))
    expected = {
        "shared_nats": by_definition(p.sum((1, 2, 3))[..., None]),
        "residual_image_nats": by_definition(p.sum(4).flatten(1, 2)),
        "residual_text_nats": by_definition(p.sum(0).flatten(0, 1).permute(2, 1, 0)),
    }
    expected["residual_nats"] = sum(expected[f"residual_{x}_nats"] for x in ("image", "text")) / 2
    torch.testing.assert_close(encoder_informations(world, *encoders), expected)


def test_information_of_noisy_embeddings_and_its_gradient_are_those_of_quadrature_on_the_circle():
    kappa, n = 8.0, 2000
    angles = 2 * math.pi * torch.rand(12, generator=torch.Generator().manual_seed(3)).double()
    angles.requires_grad_()
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    grid = torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    log_density = vmf_log_normalizer(kappa, 2) + kappa * torch.cos(grid - angles[:, None])
    table = log_density.softmax(1)  # of the points of the grid, by image
    exact = encoder_informations(WORLD, table, torch.eye(8, dtype=torch.float64))
    exact["sufficiency_nats"] = exact["shared_nats"]  # with the text itself
    sampled = embedding_informations(WORLD, embeddings, kappa)
    for name in ("sufficiency_nats", "residual_image_nats"):
        assert sampled[name].item() == pytest.approx(exact[name].item(), abs=0.02), name
        (slope,) = torch.autograd.grad(sampled[name], angles, retain_graph=True)
        (expected,) = torch.autograd.grad(exact[name], angles, retain_graph=True)
        # Two thousand draws an image: standard errors of the slopes are below 0.005.
        torch.testing.assert_close(slope, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_population_loss_is_the_mean_of_the_clip_loss_over_all_batches(n):
    world = discrete_world((0.3,), n_image=2, n_text=1)  # 4 images, 2 texts
    images, texts = towers(3, n_images=4, n_texts=2)
    expected = 0.0
    for batch in itertools.product(itertools.product(range(4), range(2)), repeat=n):
        v, t = (list(side) for side in zip(*batch, strict=True))
        chance = math.prod(world.joint[cell].item() for cell in batch)
        expected += chance * clip_loss(images[v], texts[t], 4.0).item()
    both = PopulationLoss(world, n)(torch.stack([images, images.flip(0)]), texts, 0.25)
    assert both[0].item() == pytest.approx(expected, rel=1e-9)


def test_the_limit_of_large_batches_is_near_the_loss_of_one_less_the_log_of_its_size():
    images, texts = towers(3)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(SMALL.joint.flatten(), 40_000, True, generator=generator)
    sampled = [clip_loss(images[c // 4], texts[c % 4], 4.0) for c in drawn.split(2000)]
    mean = torch.stack(sampled).mean().item() - math.log(2000)
    # Twenty batches of 2,000: the standard error is 0.01.
    assert LOSSES[None](images, texts, 0.25).item() == pytest.approx(mean, abs=0.03)


@settings(max_examples=30, deadline=None)
@given(**CASES)
def test_averaging_or_choosing_never_raises_the_loss(n, dim, temperature, seed):
    images, texts = towers(dim, seed)
    mean, chosen = averaged(SMALL, images), representatives(SMALL, images)
    torch.testing.assert_close(mean[0], (images[0] + images[1]) / 2)
    assert torch.equal(chosen[5], images[[0, 0, 3, 3, 4, 4, 7, 7]])
    loss = partial(LOSSES[n], texts=texts, temperature=temperature)
    assert loss(images) - loss(mean) > -1e-12
    assert loss(images) - loss(chosen).mean() > -1e-12
    # Equality of (b) where scores depend on the shared factor alone.
    again = loss(representatives(SMALL, mean)).mean()
    torch.testing.assert_close(again, loss(mean), atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_the_loss_sees_nuisance_exactly_within_the_span_of_the_texts(loss):
    images, texts = towers(8)
    texts = F.normalize(texts * torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]), dim=1)
    images = averaged(SMALL, images)
    sign = torch.tensor([1.0, -1.0]).double().repeat(4)[:, None]
    beyond, within = torch.eye(8).double()[[6]], texts[:1]
    at_mean = loss(images, texts, 0.2).item()
    assert loss(images + sign * beyond, texts, 0.2).item() == pytest.approx(at_mean, abs=1e-12)
    assert loss(images + 0.1 * sign * within, texts, 0.2).item() > at_mean + 1e-4
    reach = within_reach(images + sign * beyond, texts)
    torch.testing.assert_close(reach, within_reach(images, texts))


def test_the_adversary_finds_a_false_theorem_and_not_a_hole_in_this_one():
    options = dict(dim=4, temperature=0.3, n_steps=40)
    for n, replace in itertools.product((2, None), (averaged, representatives)):
        images, _, least = adversary(SMALL, LOSSES[n], replace, **options)
        start = adversary(SMALL, LOSSES[n], replace, **options | {"n_steps": 1})[2]
        assert -1e-12 < least < 0.2 * start
        torch.testing.assert_close(images.norm(dim=1), torch.ones(8).double())

    def over_the_shared_factor(world, images):  # averages what the texts do tell
        return images.unflatten(0, (4, 2)).mean(0).repeat(4, 1)

    assert adversary(SMALL, LOSSES[None], over_the_shared_factor, **options)[2] < -0.01
