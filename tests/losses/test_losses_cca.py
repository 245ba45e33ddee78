"""Regularised CCA against a generalised eigenproblem."""

import pytest
import scipy.linalg
import torch

from cibr.losses import RegularisedCCA


def features(n=60, p=7, q=5):
    generator = torch.Generator().manual_seed(0)
    image = 3 + torch.randn(n, p, generator=generator) @ torch.randn(p, p, generator=generator)
    return image, image[:, :q] ** 2 / 9 + torch.randn(n, q, generator=generator)


@pytest.mark.parametrize("options", [{}, {"ridge_image": 0.5, "ridge_text": 0.2}])
def test_maps_diagonalise_the_covariances_and_hold_the_correlations_of_the_eigenproblem(options):
    image, text = features()
    joint = torch.cov(torch.cat([image, text], 1).double().T, correction=0)
    cross, sides = joint[:7, 7:], []
    ridges = options.values() or (3.0, 1.0)
    for block, ridge in zip((joint[:7, :7], joint[7:, 7:]), ridges, strict=True):
        sides.append(block + ridge * block.diagonal().mean() * torch.eye(len(block)).double())
    left = torch.zeros(12, 12)
    left[:7, 7:] = cross
    left[7:, :7] = cross.T
    values = scipy.linalg.eigh(left, scipy.linalg.block_diag(*sides), eigvals_only=True)
    correlations = torch.from_numpy(values[::-1][:5].copy())
    cca = RegularisedCCA.fit(image, text, 5, **options).double()
    maps = cca.image_map, cca.text_map
    for side, covariance in zip(maps, sides, strict=True):
        product = side @ covariance @ side.T
        torch.testing.assert_close(product, correlations.diag(), atol=1e-6, rtol=0)
    product = maps[0] @ cross @ maps[1].T
    torch.testing.assert_close(product, correlations.square().diag(), atol=1e-6, rtol=0)
    directions = maps[0] @ torch.from_numpy(scipy.linalg.sqrtm(sides[0].numpy()))
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()  # which fixes the signs
    u, v = cca(image.double(), text.double())
    for found, x, side in ((u, image, maps[0]), (v, text, maps[1])):
        projected = (x.double() - x.double().mean(0)) @ side.T
        expected = projected / projected.norm(dim=1, keepdim=True)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_wider_space_is_padded_and_a_narrower_one_keeps_the_first_directions():
    five, nine, two = (RegularisedCCA.fit(*features(), dim) for dim in (5, 9, 2))
    assert torch.equal(nine.image_map[:5], five.image_map)
    assert nine.image_map.shape == (9, 7)
    assert not nine.image_map[5:].any()
    assert torch.equal(two.text_map, five.text_map[:2])
