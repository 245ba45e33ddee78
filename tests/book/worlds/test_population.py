"""CLIP's exact population loss against loops, and the adversary of theorem 1."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from cibr.losses.clip import clip_loss
from cibr_book.worlds import exact as worlds
from cibr_book.worlds import population
from cibr_book.worlds.population import PopulationLoss

WORLD = worlds.discrete_world((0.3, 0.05), n_image=2, n_text=1)  # 8 images, 4 texts
SIZES = (2, 3, None)


def towers(dim, seed=0, n_images=8, n_texts=4):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n_images + n_texts, dim, generator=generator, dtype=torch.float64)
    return F.normalize(drawn, dim=1).split([n_images, n_texts])


def swapped(world):
    factors = world.text_shared, world.text_only, world.shared, world.image_only
    return worlds.DiscreteWorld(world.joint.T, *factors)


@pytest.mark.parametrize("batch_size", [2, 3])
def test_population_loss_is_the_mean_of_the_clip_loss_over_all_batches(batch_size):
    images, texts = towers(3)
    cells = [(i, j) for i, j in itertools.product(range(8), range(4)) if WORLD.joint[i, j] > 0]
    expected = 0.0
    for batch in itertools.product(cells, repeat=batch_size):
        v, t = (list(side) for side in zip(*batch, strict=True))
        chance = math.prod(WORLD.joint[cell].item() for cell in batch)
        expected += chance * clip_loss(images[v], texts[t], 4.0).item()
    loss = PopulationLoss(WORLD, batch_size)
    assert loss(images, texts, 0.25).item() == pytest.approx(expected, rel=1e-9)
    both = loss(torch.stack([images, images.flip(0)]), texts, 0.25)
    assert both[0].item() == pytest.approx(expected, rel=1e-9)


def test_the_limit_is_that_of_large_batches():
    images, texts = towers(3)
    generator = torch.Generator().manual_seed(0)
    cells = torch.multinomial(WORLD.joint.flatten(), 40_000, True, generator=generator)
    losses = [clip_loss(images[c // 4], texts[c % 4], 4.0) for c in cells.split(2000)]
    sampled = torch.stack(losses).mean().item() - math.log(2000)
    # Twenty batches of 2,000: the standard error is 0.01.
    assert PopulationLoss(WORLD, None)(images, texts, 0.25).item() == pytest.approx(
        sampled, abs=0.03
    )


@pytest.mark.parametrize("batch_size", SIZES)
def test_averaging_over_the_nuisance_never_raises_the_loss(batch_size):
    loss = PopulationLoss(WORLD, batch_size)
    twice = worlds.discrete_world((0.3, 0.05), n_image=1, n_text=2)  # two texts tell the same
    of_texts = PopulationLoss(swapped(twice), batch_size)
    for seed, (dim, temperature) in enumerate(itertools.product((1, 2, 8), (0.05, 0.3, 2.0))):
        images, texts = towers(dim, seed)
        mean = population.averaged(WORLD, images)
        torch.testing.assert_close(mean[0], (images[0] + images[1]) / 2)
        assert loss(images, texts, temperature) - loss(mean, texts, temperature) > -1e-12
        texts, images = towers(dim, seed)  # and with the modalities exchanged
        mean = population.averaged(swapped(twice), texts)
        assert of_texts(texts, images, temperature) - of_texts(mean, images, temperature) > -1e-12


@pytest.mark.parametrize("batch_size", SIZES)
def test_the_loss_sees_nuisance_exactly_within_the_span_of_the_texts(batch_size):
    loss = PopulationLoss(WORLD, batch_size)
    images, texts = towers(8)
    texts = F.normalize(texts * torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]), dim=1)
    images = population.averaged(WORLD, images)
    sign = torch.tensor([1.0, -1.0]).double().repeat(4)[:, None]
    beyond, within = torch.eye(8).double()[[6]], texts[:1]
    at_mean = loss(images, texts, 0.2).item()
    assert loss(images + sign * beyond, texts, 0.2).item() == pytest.approx(at_mean, abs=1e-12)
    assert loss(images + 0.1 * sign * within, texts, 0.2).item() > at_mean + 1e-4
    reach = worlds.within_reach(images + sign * beyond, texts)
    torch.testing.assert_close(reach, worlds.within_reach(images, texts))
    # A direction in which all texts are equal, not zero, shifts an image's scores alike: texts do
    # not tell images apart by it, but images are told apart by each text.
    raised = F.normalize(texts, dim=1) + beyond
    shifted = loss(images + 0.1 * sign * beyond, raised, 0.2).item()
    assert shifted > loss(images, raised, 0.2).item() + 1e-5


@pytest.mark.parametrize("batch_size", SIZES)
def test_choosing_one_image_for_each_shared_value_never_raises_the_mean_loss(batch_size):
    loss = PopulationLoss(WORLD, batch_size)
    rose = []
    for seed, (dim, temperature) in enumerate(itertools.product((1, 2, 8), (0.05, 0.3, 2.0))):
        images, texts = towers(dim, seed)
        chosen = population.representatives(WORLD, images)
        assert chosen.shape == (16, 8, dim)
        assert torch.equal(chosen[5], images[[0, 0, 3, 3, 4, 4, 7, 7]])
        falls = loss(images, texts, temperature) - loss(chosen, texts, temperature)
        assert falls.mean() > -1e-12
        rose.append(bool((falls < -1e-3).any()))
    assert any(rose)  # it is the mean over choices that does not rise, not every choice
    # equality where the scores depend on the shared factor alone
    images = population.averaged(WORLD, images)
    chosen = loss(population.representatives(WORLD, images), texts, 0.3).mean().item()
    assert chosen == pytest.approx(loss(images, texts, 0.3).item(), abs=1e-12)


def test_pairs_of_two_do_not_see_nuisance_towards_texts_that_an_image_never_has():
    texts = torch.eye(4).double()
    images = population.averaged(WORLD, towers(4)[0])
    images[:2, 2] += torch.tensor([0.5, -0.5]).double()  # texts 2 and 3 never name the first value
    two, three = (
        loss(images, texts, 0.3)
        - loss(population.representatives(WORLD, images), texts, 0.3).mean()
        for loss in map(partial(PopulationLoss, WORLD), (2, 3))
    )
    assert abs(two) < 1e-12 and three > 1e-4


def test_a_mean_made_a_unit_vector_again_can_have_a_higher_loss_where_length_is_short():
    loss = PopulationLoss(WORLD, 3)
    images, texts = towers(2, seed=3)
    start = loss(images, texts, 0.05)
    unit = F.normalize(population.averaged(WORLD, images), dim=1)
    assert loss(unit, texts, 0.05) > start + 0.1
    assert loss(population.representatives(WORLD, images), texts, 0.05).min() < start


def test_the_adversary_finds_a_false_theorem_and_not_a_hole_in_this_one():
    options = dict(dim=4, temperature=0.3, n_steps=60)
    for batch_size in (2, None):
        loss = PopulationLoss(WORLD, batch_size)
        for replace in (population.averaged, population.representatives):
            images, _, least = population.adversary(WORLD, loss, replace, **options)
            start = population.adversary(WORLD, loss, replace, **options | {"n_steps": 1})[2]
            assert -1e-12 < least < 0.2 * start
            torch.testing.assert_close(images.norm(dim=1), torch.ones(8).double())

    def over_the_shared_factor(world, images):  # averages what the texts do tell
        return images.unflatten(0, (4, 2)).mean(0).repeat(4, 1)

    assert population.adversary(WORLD, loss, over_the_shared_factor, **options)[2] < -0.01


def test_the_adversary_seeks_a_small_fall_and_not_only_images_close_to_their_mean():
    class Spread(PopulationLoss):  # a fall that is the spread itself: nothing to gain
        def __call__(self, images, texts, temperature):
            return (images - population.averaged(WORLD, images)).square().sum(1).mean()

    ends = [
        population.adversary(WORLD, Spread(WORLD, None), population.averaged, 4, 1.0, n_steps=n)[0]
        for n in (1, 9)
    ]
    torch.testing.assert_close(*ends)


def test_the_adversary_reports_the_least_fall_on_the_way():
    falls = iter([0.3, 0.1, 0.2])

    class Scripted(PopulationLoss):
        def __call__(self, images, texts, temperature):
            if torch.equal(images, population.averaged(WORLD, images)):
                return 0 * images.sum()
            return 0 * images.sum() + next(falls)

    loss = Scripted(WORLD, None)
    least = population.adversary(WORLD, loss, population.averaged, 4, 1.0, n_steps=3)[2]
    assert least == pytest.approx(0.1)


def test_a_batch_that_is_too_large_to_enumerate_says_what_to_do():
    with pytest.raises(ValueError, match="2 to 4, got 5: pass None for the limit"):
        PopulationLoss(WORLD, 5)
