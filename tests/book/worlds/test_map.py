"""The map: its world, exact information against determinants, its stored rows again, who wins."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from cibr.losses.cca import RegularisedCCA
from cibr.metrics.retrieval import recall_at_k
from cibr_book.worlds import map as worlds_map
from cibr_book.worlds.gaussian import gaussian_information_nats
from cibr_book.worlds.map import CELL, CONTENDERS, TABLE, gains, method_rows, winners


def draw(n_pairs, nuisance=2.0, seed=0):
    return worlds_map.draw_sample(n_pairs, nuisance, seed)


@pytest.fixture(scope="module")
def stored():
    return pd.read_csv(TABLE)


def test_pairs_have_the_stated_covariance_and_a_mean_square_of_one():
    sample = draw(40_000)
    scale = math.sqrt((8 + 56 * 4) / 64)
    rotations = sample.world.mix_image, sample.world.mix_text
    sides = zip(sample.train.double(), rotations, strict=True)
    both = torch.cat([x @ rotation * scale for x, rotation in sides], 1)
    expected = torch.diag(torch.tensor(([1.0] * 8 + [4.0] * 56) * 2))
    expected[range(8), range(64, 72)] = expected[range(64, 72), range(8)] = 0.95
    found = both.T @ both / len(both)
    torch.testing.assert_close(found.float(), expected, atol=0.15, rtol=0)
    assert sample.train[0].square().mean().item() == pytest.approx(1, abs=0.01)


def test_smaller_samples_are_parts_of_larger_ones_and_test_pairs_are_no_others():
    small, large = draw(50, 1.0, 3), draw(100, 1.0, 3)
    assert torch.equal(small.train, large.train[:, :50])
    assert torch.equal(small.validation, large.validation) and torch.equal(small.test, large.test)
    pairs = torch.cat([large.train, large.validation, large.test], 1)[0]
    assert len(pairs.unique(dim=0)) == 100 + 1000 + 4000
    assert not torch.allclose(small.test, draw(50, 1.0, 4).test)


def test_exact_information_equals_determinants_over_codes_and_inputs():
    sample = draw(10, 0.7)
    maps = torch.randn(2, 64, 5, generator=torch.Generator().manual_seed(0))
    stretch = torch.block_diag(*sample.stretch)
    inputs = stretch @ sample.world.covariance @ stretch.T
    own = inputs[:64, :64], inputs[64:, 64:]
    codes = [w / (w.T @ c @ w).trace().sqrt() for w, c in zip(maps.double(), own, strict=True)]
    whole = torch.cat([torch.block_diag(*codes), torch.eye(128, dtype=torch.float64)], 1)
    covariance = whole.T @ inputs @ whole
    covariance[:10, :10] += 0.05 * torch.eye(10, dtype=torch.float64)
    z, images, texts = range(10), range(10, 74), range(74, 138)
    sides = (z[:5], images, texts), (z[5:], texts, images)
    residuals = [gaussian_information_nats(covariance, *side).item() for side in sides]
    shared = gaussian_information_nats(covariance, z[:5], z[5:]).item()
    found = worlds_map._exact_nats(sample, 7 * maps, 0.05)
    assert found["shared_nats"] == pytest.approx(shared)
    assert found["residual_nats"] == pytest.approx(sum(residuals) / 2)
    # A code of own factors is nothing but nuisance, one of shared factors has none.
    axes = torch.stack([sample.world.mix_image, sample.world.mix_text]).float()
    of_shared, of_own = (
        worlds_map._exact_nats(sample, part, 0.01) for part in axes.split([8, 56], 2)
    )
    assert of_shared["nuisance_nats"] == pytest.approx(0, abs=1e-6)
    assert of_own["nuisance_nats"] == pytest.approx(of_own["residual_nats"], rel=1e-6)


def test_recall_equals_the_librarys_over_galleries_and_ties_are_misses():
    generator = torch.Generator().manual_seed(0)
    pairs = F.normalize(torch.randn(2, 2000, 8, generator=generator), dim=2)
    pairs[1] = F.normalize(pairs[0] + 0.8 * pairs[1], dim=1)
    halves = [recall_at_k(*part, torch.arange(1000), ks=(1,)) for part in pairs.split(1000, 1)]
    expected = sum(sum(half.values()) for half in halves) / 4
    assert worlds_map._recall(pairs) == pytest.approx(expected) and 0.1 < expected < 0.9
    assert worlds_map._recall(torch.ones(2, 1000, 1)) == 0


def test_closed_form_is_the_librarys_cca_at_power_one_half_and_weighs_by_correlation():
    sample = draw(96)
    settings = [{"ridge": 0.3, "power": power, "dim": 6} for power in (0, 0.5, 1, 2)]
    maps = [worlds_map._closed_form(sample, trial) for trial in settings]
    library = RegularisedCCA.fit(*sample.train, 6, 0.3, 0.3)
    expected = torch.stack([library.image_map.T, library.text_map.T])
    torch.testing.assert_close(maps[1], expected, atol=1e-5, rtol=0)
    rho = (maps[2] / maps[0]).mean(1)
    assert torch.allclose(rho[0], rho[1], atol=1e-4) and ((rho > 0) & (rho < 1)).all()
    torch.testing.assert_close(maps[3], maps[0] * rho[:, None] ** 2, atol=1e-4, rtol=0)


STORED = [(64, 0.25, "ridge CCA"), (64, 0.25, "CLIP, CCA start")]
STORED += [(2048, 0.25, "noise only"), (256, 2.0, "CIBR vMF")]


@pytest.mark.parametrize(("pairs", "nuisance", "method"), STORED)
def test_stored_rows_come_out_again(stored, pairs, nuisance, method):
    cell = stored[(stored["pairs"] == pairs) & (stored["nuisance"] == nuisance)]
    trials = cell.drop_duplicates("method").set_index("method")["settings"].map(json.loads)
    rows = method_rows(pairs, nuisance, method, trials[method], trials["ridge CCA"], seeds=(5,))
    old = cell[(cell["method"] == method) & (cell["seed"] == 5)].reset_index(drop=True)
    assert len(old) == 1 and old["test_recall"].min() > 5
    for name in [name for name in old if "recall" in name or "nats" in name]:
        # The table has three decimals; a rank that flips is 0.0125 points.
        np.testing.assert_allclose(rows[name], old[name], atol=0.03, rtol=0)


def test_gains_are_mean_differences_from_clip_of_the_same_seed_corrected_over_the_map(stored):
    table = gains(stored.sample(frac=1, random_state=0))
    assert len(table) == 42 * 8 and {*CONTENDERS} < {*table["method"]}
    by_seed = stored.pivot(index=[*CELL, "seed"], columns="method", values="test_recall")
    p_values = {}
    for row in table.itertuples():
        gaps = (by_seed[row.method] - by_seed["CLIP"]).loc[row.pairs, row.nuisance]
        test = stats.ttest_1samp(gaps, 0)
        expected = [gaps.mean(), *test.confidence_interval(), 8]
        assert [row.mean, row.low, row.high, row.n] == pytest.approx(expected)
        if row.method in CONTENDERS and gaps.std() > 0:
            p_values[row.Index] = test.pvalue
    by_size = sorted(p_values.values())
    scaled = [p * len(by_size) / (i + 1) for i, p in enumerate(by_size)]
    expected = {row: min(scaled[by_size.index(p) :]) for row, p in p_values.items()}
    assert table["q_value"].dropna().to_dict() == pytest.approx(expected)


# Mean gains of contenders by cell, certain unless in brackets, and the best of the cell.
CELLS = {
    0.5: ({"CIBR vMF": 6.0, "CLIP, CCA start": 5.9, "ridge CCA": 3.0}, "CLIP, CCA start"),
    1.0: ({"CIBR vMF": 8.0, "CLIP, CCA start": 5.9}, "CIBR vMF"),
    2.0: ({"CIBR vMF": 0.4}, "CLIP"),
    4.0: ({"CIBR vMF": 6.0, "CLIP, CCA start": 5.9, "ridge CCA": 5.8}, "ridge CCA"),
    8.0: ({"noise only": -5.0}, "CLIP"),
}


@pytest.mark.parametrize(("q_value", "certain"), [(0.049, True), (0.051, False)])
def test_the_simplest_of_equally_good_certain_gains_wins(q_value, certain):
    rows = [(64, scale, *gain) for scale, (of, _) in CELLS.items() for gain in of.items()]
    table = pd.DataFrame(rows, columns=[*CELL, "method", "mean"]).assign(q_value=q_value)
    best = winners(table).set_index("nuisance")
    expected = {scale: name if certain else "CLIP" for scale, (_, name) in CELLS.items()}
    assert best["method"].to_dict() == expected and best.loc[2.0, "mean"] == 0
