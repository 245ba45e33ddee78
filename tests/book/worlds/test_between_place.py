"""Placement: an estimate from a world's pairs finds the cell that they were drawn from."""

import pytest
import torch

import cibr
from cibr_book.worlds.between_place import (
    SETS,
    Structure,
    place,
    places,
    shared_structure,
)
from cibr_book.worlds.between_world import draw_sample


@pytest.mark.parametrize("nuisance", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_an_estimate_from_a_worlds_pairs_finds_the_cell_they_were_drawn_from(nuisance):
    structure = shared_structure(*draw_sample(3000, nuisance, 0).train)
    assert structure.shared_dimension == pytest.approx(8, abs=0.2)
    assert structure.correlation == pytest.approx(0.95, abs=0.02)
    assert place(512, structure) == pytest.approx((512, nuisance), rel=0.1)


def test_an_estimate_does_not_depend_on_the_scale_and_the_basis_of_features():
    images, texts = draw_sample(1500, 1.0, 0).train
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).Q
    plain = shared_structure(images, texts)
    turned = shared_structure(3 * images @ rotation + 5, texts)
    assert vars(turned) == pytest.approx(vars(plain), rel=1e-3)


def pairs(n, n_shared, noise, n_own, scale=1.0):
    """Images and texts with equally strong shared factors and factors of their own."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(n, n_shared, generator=generator)
    errors = noise * torch.randn(2, n, n_shared, generator=generator)
    own = scale * torch.randn(2, n, n_own, generator=generator)
    return [torch.cat([shared + errors[i], own[i]], 1) for i in (0, 1)]


def test_the_number_of_shared_dimensions_is_found_where_it_is_not_the_worlds():
    structure = shared_structure(*pairs(3000, 20, 0.5, 30))
    assert structure.shared_dimension == pytest.approx(20, abs=0.6)
    assert structure.correlation == pytest.approx(0.8, abs=0.03)
    assert structure.predicted == pytest.approx(20 * 1.25 * 0.64 / 55, rel=0.1)
    assert place(1000, structure)[0] == pytest.approx(400, rel=0.05)


def test_chance_correlations_of_own_factors_are_no_shared_dimensions():
    structure = shared_structure(*pairs(3000, 4, 1.0, 60))
    assert structure.shared_dimension == pytest.approx(4, abs=0.5)


def test_the_ridge_suits_features_that_are_nearly_as_many_as_pairs():
    structure = shared_structure(*pairs(600, 8, 0.3, 142, 0.5))
    assert structure.correlation > 0.8  # 0.92 in truth
    share = 8 * 1.09 * 0.917**2 / (8 * 1.09 + 142 * 0.25)
    assert structure.predicted == pytest.approx(share, rel=0.15)


def test_pairs_without_correlation_and_too_few_pairs_are_errors():
    noise = torch.randn(2, 600, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="uncorrelated"):
        shared_structure(*noise)
    with pytest.raises(ValueError, match="299 pairs are too few"):
        shared_structure(*noise[:, :299])


def test_more_predicted_than_in_any_world_is_placed_at_no_nuisance():
    assert place(80, Structure(16.0, 0.99, 0.95)) == (40, 0)


def test_a_row_for_each_part_of_the_data_that_is_trained_on(monkeypatch):
    sample = draw_sample(1500, 1.0, 0)
    images, texts = sample.train
    glyphs = cibr.load_pairs("glyphs", "validation_characters")
    for name in SETS:
        monkeypatch.setitem(SETS, name, lambda: ((images, texts), glyphs))
    rows = places()
    assert rows["fraction"].tolist() == [1, 0.3, 0.2, 0.1, 0.05, 1, 0.3, 0.1]
    n_characters = glyphs.factors["character"].nunique()
    assert rows["n_pairs"][0] == rows["n_pairs"][5] == n_characters
    counts = rows["n_pairs"][:5].tolist()
    assert counts == sorted(counts, reverse=True)
    assert 0.3 * n_characters < counts[1] < n_characters  # a part has most characters, not images
    assert rows["pairs"].tolist() == pytest.approx(rows["n_pairs"].tolist(), rel=0.03)
    assert rows["nuisance"].tolist() == pytest.approx([1.0] * 8, rel=0.1)
