"""Regularised CCA against a generalised eigenproblem."""

import pytest
import scipy.linalg
import torch
from torch.testing import assert_close

from cibr.losses import RegularisedCCA

generator = torch.Generator().manual_seed(0)
IMAGE = 3 + torch.randn(60, 7, generator=generator) @ torch.randn(7, 7, generator=generator)
TEXT = IMAGE[:, :5] ** 2 / 9 + torch.randn(60, 5, generator=generator)


@pytest.mark.parametrize("ridges", [(), (0.5, 0.2)])
def test_maps_diagonalise_the_covariances_and_hold_the_correlations_of_the_eigenproblem(ridges):
    joint = torch.cov(torch.cat([IMAGE, TEXT], 1).double().T, correction=0)
    cross, covariances = joint[:7, 7:], [joint[:7, :7], joint[7:, 7:]]
    for covariance, ridge in zip(covariances, ridges or (3.0, 1.0), strict=True):
        covariance.diagonal().add_(ridge * covariance.diagonal().mean())
    regularised = torch.block_diag(*covariances)
    values = scipy.linalg.eigh(joint - regularised, regularised, eigvals_only=True)
    correlations = torch.from_numpy(values[::-1][:5].copy())
    cca = RegularisedCCA.fit(IMAGE, TEXT, 5, *ridges).double()
    maps = cca.image_map, cca.text_map
    for side, covariance in zip(maps, covariances, strict=True):
        assert_close(side @ covariance @ side.T, correlations.diag(), atol=1e-6, rtol=0)
    product = maps[0] @ cross @ maps[1].T
    assert_close(product, correlations.square().diag(), atol=1e-6, rtol=0)
    directions = maps[0] @ torch.from_numpy(scipy.linalg.sqrtm(covariances[0].numpy()))
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()  # which fixes the signs
    features = IMAGE.double(), TEXT.double()
    for unit, x, side in zip(cca(*features), features, maps, strict=True):
        projected = (x - x.mean(0)) @ side.T
        assert_close(unit, projected / projected.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)


def test_a_wider_space_is_padded_and_a_narrower_one_keeps_the_first_directions():
    five, nine, two = (RegularisedCCA.fit(IMAGE, TEXT, dim) for dim in (5, 9, 2))
    assert torch.equal(nine.image_map, torch.cat([five.image_map, torch.zeros(4, 7)]))
    assert torch.equal(two.text_map, five.text_map[:2])
