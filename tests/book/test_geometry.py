"""Geometry of pairs on configurations with known values and against loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from cibr.metrics import retrieval
from cibr_book.geometry import alignment, linear_cka, modality_gap, mutual_knn, uniformity


def unit(n, d, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_alignment_is_two_minus_twice_the_mean_cosine():
    x = unit(50, 8)
    y = unit(50, 8, seed=1)
    assert alignment(x, y) == pytest.approx(2 - 2 * (x * y).sum(1).mean().item(), rel=1e-5)


def test_uniformity_of_orthogonal_opposite_and_equal_vectors_is_known():
    assert uniformity(torch.eye(6)) == pytest.approx(-4)  # squared distance 2 everywhere, t = 2
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)
    assert uniformity(unit(1, 9).repeat(30, 1)) == pytest.approx(0, abs=1e-5)


def test_uniformity_equals_a_loop_over_pairs_in_tiles_of_any_size(monkeypatch):
    x = unit(90, 6)
    squares = [float((x[i] - x[j]).square().sum()) for i in range(90) for j in range(i)]
    expected = math.log(sum(math.exp(-2 * square) for square in squares) / len(squares))
    monkeypatch.setattr(retrieval, "BLOCK", 64)
    monkeypatch.setattr(retrieval, "TILE_ELEMENTS", 500)
    assert uniformity(x) == pytest.approx(expected, rel=1e-5)


def test_the_gap_of_two_points_is_their_distance_and_of_centred_sides_zero():
    images, texts = torch.tensor([[1.0, 0.0]]).expand(3, 2), torch.tensor([[0.6, 0.8]]).expand(5, 2)
    assert modality_gap(images, texts) == pytest.approx(math.sqrt(2 - 2 * 0.6))
    both = torch.cat([torch.eye(3), -torch.eye(3)])
    assert modality_gap(both, both.flip(0)) == pytest.approx(0, abs=1e-7)


def test_cka_equals_its_kernel_form_and_is_zero_for_sides_that_do_not_correlate():
    x, y = unit(40, 5), 3 * unit(40, 5, seed=1) + 1
    centre = torch.eye(40) - 1 / 40
    k, q = (centre @ side @ side.T @ centre for side in (x, y))
    expected = (k * q).sum() / (k.norm() * q.norm())
    assert linear_cka(x, y) == pytest.approx(expected.item(), rel=1e-5)
    alternating = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert linear_cka(alternating, alternating.sort(0).values) == 0


def test_mutual_neighbours_equal_a_loop_over_sets():
    x, y = unit(80, 4), unit(80, 4, seed=1)
    y = F.normalize(y + x, dim=1)
    shared = 0
    for i in range(80):
        others = [j for j in range(80) if j != i]
        near_x = sorted(others, key=lambda j, i=i: -float(x[i] @ x[j]))[:6]
        near_y = sorted(others, key=lambda j, i=i: -float(y[i] @ y[j]))[:6]
        shared += len({*near_x} & {*near_y})
    assert mutual_knn(x, y, k=6) == pytest.approx(shared / (6 * 80))
    assert mutual_knn(x, x, k=6) == 1
