"""Regularised CCA against a generalised eigenproblem."""

import pytest
import scipy.linalg
import torch
from torch.testing import assert_close

from cibr.models import RegularisedCCA, cca
from cibr.models.cca import canonical_maps, centred_moments, choose_ridges

generator = torch.Generator().manual_seed(0)
IMAGE = 3 + torch.randn(60, 7, generator=generator) @ torch.randn(7, 7, generator=generator)
TEXT = IMAGE[:, :5] ** 2 / 9 + torch.randn(60, 5, generator=generator)


@pytest.mark.parametrize("ridges", [(), (0.5, 0.2)])
@torch.no_grad()
def test_maps_diagonalise_the_covariances_and_hold_the_correlations_of_the_eigenproblem(ridges):
    joint = torch.cov(torch.cat([IMAGE, TEXT], 1).double().T, correction=0)
    cross, covariances = joint[:7, 7:], [joint[:7, :7], joint[7:, 7:]]
    for covariance, ridge in zip(covariances, ridges or (3.0, 1.0), strict=True):
        covariance.diagonal().add_(ridge * covariance.diagonal().mean())
    regularised = torch.block_diag(*covariances)
    values = scipy.linalg.eigh(joint - regularised, regularised, eigvals_only=True)
    correlations = torch.from_numpy(values[::-1][:5].copy())
    cca = RegularisedCCA.fit(IMAGE, TEXT, 5, *ridges).double()
    maps = cca.image.weight, cca.text.weight
    for side, covariance in zip(maps, covariances, strict=True):
        assert_close(side @ covariance @ side.T, correlations.diag(), atol=1e-6, rtol=0)
    product = maps[0] @ cross @ maps[1].T
    assert_close(product, correlations.square().diag(), atol=1e-6, rtol=0)
    directions = maps[0] @ torch.from_numpy(scipy.linalg.sqrtm(covariances[0].numpy()))
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()  # which fixes the signs
    image = IMAGE.double()
    text = TEXT.double()
    assert_close(cca.project_images(image), (image - image.mean(0)) @ maps[0].T, atol=1e-5, rtol=0)
    assert_close(cca.project_texts(text), (text - text.mean(0)) @ maps[1].T, atol=1e-5, rtol=0)


def test_a_wider_space_is_padded_and_a_narrower_one_keeps_the_first_directions():
    five = RegularisedCCA.fit(IMAGE, TEXT, 5)
    nine = RegularisedCCA.fit(IMAGE, TEXT, 9)
    two = RegularisedCCA.fit(IMAGE, TEXT, 2)
    assert torch.equal(nine.image.weight, torch.cat([five.image.weight, torch.zeros(4, 7)]))
    assert torch.equal(two.text.weight, five.text.weight[:2])


@pytest.mark.parametrize("constant", [0, 1])
def test_constant_features_of_either_side_are_refused(constant):
    sides = [IMAGE, TEXT]
    sides[constant] = torch.full_like(sides[constant], 2.0)
    with pytest.raises(ValueError, match="image_pooled and text_pooled must be finite and vary"):
        RegularisedCCA.fit(*sides, 5)


def held_out_information(ridges, fold):
    """J of the pairs of a fold, by the score of each pair."""
    _, moments = centred_moments(IMAGE[~fold], TEXT[~fold])
    image_map, text_map = canonical_maps(moments, 5, *ridges)
    image = IMAGE[fold].double()
    text = TEXT[fold].double()
    scores = (image - image.mean(0)) @ image_map.T @ text_map @ (text - text.mean(0)).T
    return scores.diag().mean().clamp(min=0) ** 2 / (2 * scores.square().mean())


def test_ridges_are_those_whose_cca_scores_held_out_images_best(monkeypatch):
    image_of_pair = torch.arange(60)
    folds = torch.arange(60) % 5
    monkeypatch.setattr("cibr.models.cca._folds", lambda _: folds)
    candidates = ((0.01, 0.3, 10.0), (0.02, 0.5, 20.0))
    information = {
        (a, b): sum(held_out_information((a, b), folds == fold) for fold in range(5)).item()
        for a in candidates[0]
        for b in candidates[1]
    }
    best = max(information, key=information.get)
    assert choose_ridges(IMAGE, TEXT, image_of_pair, *candidates) == best


def test_fewer_pairs_need_larger_ridges():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2000, 40, generator=generator)
    text = image[:, :30] + 2 * torch.randn(2000, 30, generator=generator)
    few = choose_ridges(image[:60], text[:60], torch.arange(60))
    many = choose_ridges(image, text, torch.arange(2000))
    assert few[0] > many[0] and few[1] > many[1]


def test_texts_of_one_image_lie_in_one_fold():
    image_of_pair = torch.arange(40).repeat_interleave(3) + 7
    folds = cca._folds(image_of_pair)
    assert torch.equal(folds.view(40, 3), folds.view(40, 3)[:, :1].expand(40, 3))
    assert torch.bincount(folds).tolist() == [24] * 5


def test_too_few_images_to_choose_from_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match="ridges cannot be chosen from 9 images: give 10 or more"):
        choose_ridges(IMAGE[:9], TEXT[:9], torch.arange(9))
    with pytest.raises(ValueError, match="must be finite and vary over the pairs"):
        choose_ridges(torch.full_like(IMAGE, torch.nan), TEXT, torch.arange(60))


def test_a_constant_fifth_says_nothing_and_equal_ridges_are_decided_for_the_largest(monkeypatch):
    folds = torch.arange(60) % 5
    monkeypatch.setattr("cibr.models.cca._folds", lambda _: folds)
    text = TEXT.clone()
    text[folds == 2] = 0.1
    image_of_pair = torch.arange(60)
    ridges = choose_ridges(IMAGE, text, image_of_pair, (0.01, 0.3), (0.02, 0.5))
    assert ridges[0] in (0.01, 0.3) and ridges[1] in (0.02, 0.5)
    without_relation = torch.full_like(TEXT, 0.1)
    without_relation[0] = 1.0  # so that all but one fifth are constant, and this has A = 0 or less
    image = IMAGE.clone()
    image[folds == 0] = image[folds == 0].mean(0)
    chosen = choose_ridges(image, without_relation, image_of_pair, (0.1, 9.0), (0.2, 8.0))
    assert chosen == (9.0, 8.0)
