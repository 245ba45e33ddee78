"""The correlation of two measures over runs: SciPy's value, and an interval that draws clusters."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from cibr.metrics import rank_correlation


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_correlation_is_scipys_with_ties_too(rng):
    x = rng.integers(0, 5, 40).astype(float)
    y = x + rng.integers(0, 4, 40)
    found = rank_correlation(x, y, n_resamples=50)
    assert found["correlation"] == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert (found["n"], found["n_clusters"]) == (40, 40) and found["low"] < found["correlation"] < found["high"]


def test_copies_of_a_run_are_no_evidence_when_they_are_one_cluster(rng):
    x, y = rng.normal(size=(2, 12))
    alone = rank_correlation(x, y)
    copied = rank_correlation(np.repeat(x, 9), np.repeat(y, 9), clusters=np.repeat(np.arange(12), 9))
    assert copied["correlation"] == pytest.approx(alone["correlation"])
    assert (copied["low"], copied["high"]) == pytest.approx((alone["low"], alone["high"]))
    naive = rank_correlation(np.repeat(x, 9), np.repeat(y, 9))
    assert naive["high"] - naive["low"] < (copied["high"] - copied["low"]) / 2


def test_interval_covers_no_relation_about_as_often_as_it_says(rng):
    holds = [
        found["low"] <= 0 <= found["high"]
        for found in (rank_correlation(*rng.normal(size=(2, 40)), n_resamples=200) for _ in range(200))
    ]
    assert 0.88 < np.mean(holds) < 0.99


def test_what_differs_between_groups_alone_is_taken_off(rng):
    groups = np.repeat(["a", "b", "c"], 30)
    offsets = np.repeat([0.0, 100.0, 200.0], 30)
    x, y = rng.normal(size=(2, 90))
    y -= x  # against each other within a group, together between groups
    assert rank_correlation(x + offsets, y + offsets, n_resamples=20)["correlation"] > 0.5
    assert rank_correlation(x + offsets, y + offsets, groups=groups)["high"] < 0


def test_a_side_that_does_not_vary_has_no_correlation():
    found = rank_correlation(np.ones(5), np.arange(5.0), n_resamples=10)
    assert np.isnan([found["correlation"], found["low"], found["high"]]).all()


@pytest.mark.parametrize(
    ("x", "y", "clusters", "message"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0], None, "3, 2 and 3 values"),
        ([1.0, 2.0, np.nan], [1.0, 2.0, 3.0], None, "finite"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0, 0, 1], "2 clusters"),
        ([], [], None, "0 clusters"),
    ],
)
def test_what_has_no_interval_is_refused(unchecked, x, y, clusters, message):
    clusters = None if clusters is None else np.array(clusters)
    with pytest.raises(ValueError, match=message):
        rank_correlation(np.array(x), np.array(y), clusters)
