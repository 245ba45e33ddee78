"""Geometry of embeddings, against loops and spaces whose shape is known."""

import math

import pytest
import torch
import torch.nn.functional as F

from cibr_book.embeddings import geometry as embeddings


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_alignment_is_two_minus_twice_the_mean_cosine():
    x, y = unit(50, 8), unit(50, 8, seed=1)
    expected = 2 - 2 * (x * y).sum(1).mean().item()
    assert embeddings.alignment(x, y) == pytest.approx(expected, rel=1e-5)


def test_uniformity_is_known_for_a_few_vectors_and_that_of_all_pairs_over_several_tiles():
    assert embeddings.uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)
    assert embeddings.uniformity(unit(1, 9).repeat(30, 1)) == pytest.approx(0, abs=1e-5)
    x = unit(1100, 6)
    expected = torch.pdist(x.double()).square().mul(-2).exp().mean().log()
    assert embeddings.uniformity(x) == pytest.approx(expected.item(), rel=1e-5)


def test_the_gap_of_two_points_is_their_distance_and_of_centred_sides_zero():
    images, texts = torch.tensor([[1.0, 0.0]]).expand(3, 2), torch.tensor([[0.6, 0.8]]).expand(5, 2)
    assert embeddings.modality_gap(images, texts) == pytest.approx(math.sqrt(2 - 2 * 0.6))
    both = torch.cat([torch.eye(3), -torch.eye(3)])
    assert embeddings.modality_gap(both, both.flip(0)) == pytest.approx(0, abs=1e-7)


def test_cka_equals_its_kernel_form_and_is_zero_for_sides_that_do_not_correlate():
    x, y = unit(40, 5), 3 * unit(40, 5, seed=1) + 1
    centre = torch.eye(40) - 1 / 40
    k, q = (centre @ side @ side.T @ centre for side in (x, y))
    expected = (k * q).sum() / (k.norm() * q.norm())
    assert embeddings.linear_cka(x, y) == pytest.approx(expected.item(), rel=1e-5)
    alternating = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert embeddings.linear_cka(alternating, alternating.sort(0).values) == 0


def test_nearest_items_are_those_of_a_loop_and_never_the_item_itself():
    z = unit(12, 5)
    nearest = embeddings.nearest_items(z, 11)
    for i in range(12):
        others = sorted((j for j in range(12) if j != i), key=lambda j: -float(z[i] @ z[j]))
        assert nearest[i].tolist() == others


def test_mutual_neighbours_are_those_among_images_and_texts():
    x, y = unit(80, 4), unit(80, 4, seed=1)
    y = F.normalize(y + x, dim=1)
    nearest = [embeddings.nearest_items(side, 6).tolist() for side in (x, y)]
    shared = [len({*images} & {*texts}) for images, texts in zip(*nearest, strict=True)]
    assert embeddings.mutual_knn(x, y, k=6) == pytest.approx(sum(shared) / (6 * 80))
