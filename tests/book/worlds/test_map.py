"""The map: its world, recall, the gains of its stored rows, and who wins."""

import math

import pandas as pd
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from cibr.metrics.retrieval import recall_at_k
from cibr_book.worlds import map as worlds_map
from cibr_book.worlds.map import CELL, CONTENDERS, TABLE, gains, winners


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


def test_recall_equals_the_librarys_over_galleries_and_ties_are_misses():
    generator = torch.Generator().manual_seed(0)
    pairs = F.normalize(torch.randn(2, 2000, 8, generator=generator), dim=2)
    pairs[1] = F.normalize(pairs[0] + 0.8 * pairs[1], dim=1)
    halves = [recall_at_k(*part, torch.arange(1000), ks=(1,)) for part in pairs.split(1000, 1)]
    expected = sum(sum(half.values()) for half in halves) / 4
    identity = [[torch.eye(n)[None, None]] * 2 for n in (8, 1)]
    identity = [[[side] for side in each] for each in identity]
    assert worlds_map.recall(identity[0], pairs) == pytest.approx(expected)
    assert 0.1 < expected < 0.9
    assert worlds_map.recall(identity[1], torch.ones(2, 1000, 1)) == 0


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
