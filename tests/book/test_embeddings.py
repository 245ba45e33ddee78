"""Neighbours and the modality gap, against loops and spaces whose shape is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cibr_book import embeddings
from cibr_book.geometry import uniformity


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_nearest_items_are_those_of_a_loop_and_never_the_item_itself():
    z = unit(12, 5)
    nearest = embeddings.nearest_items(z, 3)
    for i in range(12):
        others = sorted((j for j in range(12) if j != i), key=lambda j: -float(z[i] @ z[j]))
        assert nearest[i].tolist() == others[:3]


def test_neighbours_agree_not_at_all_by_chance_and_fully_in_separate_groups():
    nearest = torch.tensor([[1], [0], [0], [2]])
    shares = embeddings.neighbour_agreement(nearest, torch.tensor([0, 0, 1, 1]))
    # Of 12 pairs of two items, 4 have the same value: chance is 1/3.
    assert shares.tolist() == pytest.approx([1, 1, -0.5, 1])
    by_chance = embeddings.neighbour_agreement(
        embeddings.nearest_items(unit(400, 8), 5), torch.arange(400) % 2
    )
    assert abs(by_chance.mean()) < 0.1


def test_margins_are_zero_at_a_tie_and_negative_for_a_wrong_answer():
    similarity = torch.tensor([[0.5, 0.5, 0.1], [0.9, 0.2, 0.4]])
    right = torch.tensor([[True, False, False], [False, False, True]])
    assert embeddings.margins(similarity, right).tolist() == pytest.approx([0, -0.5])


def test_kinds_of_a_wrong_name_go_from_near_to_far():
    right = "latin small letter a with acute"
    kinds = {
        right: "right",
        "greek small letter alpha with acute": "other",
        "latin small letter a": "same letter",
        "latin capital letter b": "same script or kind",
    }
    assert {name: embeddings.error_kind(right, name, False) for name in kinds} == kinds
    assert embeddings.error_kind(right, "latin small letter a", True) == "same drawing"


def test_the_map_of_a_space_keeps_groups_apart():
    noise = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    z = F.normalize(unit(2, 8).repeat_interleave(30, 0) + 0.05 * noise, dim=1)
    places = embeddings.embedding_map(z, perplexity=10.0)
    apart = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(60)
    assert (apart.argmin(1) // 30 == np.arange(60) // 30).mean() > 0.9


def test_the_effective_dimension_is_that_of_the_directions_with_equal_variance():
    z = torch.randn(20000, 7, generator=torch.Generator().manual_seed(0))
    assert embeddings.effective_dimension(z) == pytest.approx(7, rel=0.02)
    assert embeddings.effective_dimension(z * torch.tensor([1.0, *[1e-6] * 6])) == pytest.approx(1)


def test_a_gap_along_no_direction_of_variance_has_no_share_and_closing_it_leaves_none():
    scale = torch.tensor([0.1, 0.1, 0.1, 0.0])
    noise = scale * torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    across = torch.tensor([0, 0, 0, 1.0])
    images, texts = noise + across, noise.flip(0) - across
    assert embeddings.gap_share(images, texts) < 1e-6
    shifted = images + torch.tensor([3.0, 0, 0, -2.0])
    assert embeddings.gap_share(shifted, texts) == pytest.approx(1, abs=1e-3)
    a, b = embeddings.closed_gap(F.normalize(images, dim=1), F.normalize(texts, dim=1))
    assert (a.mean(0) - b.mean(0)).norm() < 0.1  # of 2; the new length of each row leaves a little
    torch.testing.assert_close(a.norm(dim=1), torch.ones(500))


def test_the_gap_table_is_that_of_a_loop():
    images, texts = unit(9, 4), unit(9, 4, seed=1)
    table = embeddings.gap_table(images, texts)
    cosines = images @ texts.T
    assert table["paired_cosine"] == pytest.approx(cosines.diagonal().mean().item(), abs=1e-6)
    others = [cosines[i, j].item() for i in range(9) for j in range(9) if i != j]
    assert table["unpaired_cosine"] == pytest.approx(np.mean(others), abs=1e-6)
    for name, side in (("image", images), ("text", texts)):
        assert table[f"{name}_dimension"] == embeddings.effective_dimension(side)
        assert table[f"{name}_uniformity"] == uniformity(side)


def test_subsampling_intervals_of_a_mean_have_the_width_of_the_normal_one():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    mean = embeddings.subsampling_intervals(lambda i: {"mean": values[i].mean().item()}, 400, 1000)
    value, low, high = mean.loc["mean"]
    assert value == values.mean().item() and (low + high) / 2 == pytest.approx(value, abs=0.01)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std().item() / 20, rel=0.1)
