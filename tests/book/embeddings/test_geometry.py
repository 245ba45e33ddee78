"""Geometry of embeddings, against loops and spaces whose shape is known."""

import math
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cibr_book.embeddings import geometry


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def nearest(z, i, k):
    """The k most similar other items, by sorting."""
    others = [j for j in range(len(z)) if j != i]
    return sorted(others, key=lambda j: -float(z[i] @ z[j]))[:k]


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 20), d=st.integers(2, 6), seed=st.integers(0, 99))
def test_measures_are_those_of_loops(n, d, seed):
    x, y = unit(n, d, seed=seed), unit(n, d, seed=seed + 100)
    distances = [float((x[i] - y[i]).square().sum()) for i in range(n)]
    assert geometry.alignment(x, y) == pytest.approx(sum(distances) / n, rel=1e-4)
    potentials = [math.exp(-2 * (x[i] - x[j]).square().sum()) for i, j in permutations(range(n), 2)]
    expected = math.log(sum(potentials) / len(potentials))
    assert geometry.uniformity(x) == pytest.approx(expected, rel=1e-4)
    assert geometry.modality_gap(x, y) == pytest.approx(float((x.mean(0) - y.mean(0)).norm()), 1e-4)
    centre = torch.eye(n) - 1 / n
    a, b = (centre @ side @ side.T @ centre for side in (x, y))
    expected = float((a * b).sum() / (a.norm() * b.norm()))
    assert geometry.linear_cka(x, y) == pytest.approx(expected, rel=1e-3)
    k = min(4, n - 1)
    assert [row.tolist() for row in geometry.nearest_items(x, k)] == [
        nearest(x, i, k) for i in range(n)
    ]
    shared = [len({*nearest(x, i, k)} & {*nearest(y, i, k)}) for i in range(n)]
    assert geometry.mutual_knn(x, y, k) == pytest.approx(sum(shared) / (n * k))


def test_uniformity_of_several_tiles_is_that_of_all_pairs():
    x = unit(1100, 6)
    expected = torch.pdist(x.double()).square().mul(-2).exp().mean().log()
    assert geometry.uniformity(x) == pytest.approx(expected.item(), rel=1e-5)
