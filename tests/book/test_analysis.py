"""Means over seeds and correlations over runs: SciPy's values, and intervals that draw clusters."""

import math

import numpy as np
import pandas as pd
import pytest
from cibr_book.analysis import mean_intervals, rank_correlation
from scipy.stats import spearmanr


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_mean_intervals_are_those_of_student_in_every_group():
    rows = pd.DataFrame({"method": list("aaab"), "nats": [1.0, 2.0, 3.0, 5.0]})
    found = mean_intervals(rows, ["method"], "nats").set_index("method")
    # 4.3027 is Student's 97.5 % quantile for two degrees of freedom
    half = 4.3027 / 3**0.5
    assert found.loc["a", ["mean", "low", "high"]].tolist() == pytest.approx([2, 2 - half, 2 + half], abs=1e-4)
    assert math.isnan(found.loc["b", "low"])


def test_correlation_is_scipys_with_ties_too(rng):
    x = rng.integers(0, 5, 40).astype(float)
    y = x + rng.integers(0, 4, 40)
    found = rank_correlation(x, y, n_resamples=50)
    assert found["correlation"] == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert (found["n"], found["n_clusters"]) == (40, 40) and found["low"] < found["correlation"] < found["high"]


def test_copies_of_a_run_are_no_evidence_when_they_are_one_cluster(rng):
    x, y = rng.normal(size=(2, 12))
    alone = rank_correlation(x, y, n_resamples=500)
    runs, clusters = (np.repeat(x, 9), np.repeat(y, 9)), np.repeat(np.arange(12), 9)
    copied = rank_correlation(*runs, clusters, n_resamples=500)
    assert [copied[k] for k in ("correlation", "low", "high")] == pytest.approx(
        [alone[k] for k in ("correlation", "low", "high")]
    )
    naive = rank_correlation(*runs, n_resamples=500)
    assert naive["high"] - naive["low"] < (copied["high"] - copied["low"]) / 2


def test_interval_covers_no_relation_about_as_often_as_it_says(rng):
    found = [rank_correlation(*rng.normal(size=(2, 40)), n_resamples=60) for _ in range(80)]
    assert 0.86 < np.mean([ends["low"] <= 0 <= ends["high"] for ends in found]) < 1


def test_what_differs_between_conditions_alone_is_subtracted(rng):
    conditions = np.repeat(["a", "b", "c"], 30)
    offsets = np.repeat([0.0, 100.0, 200.0], 30)
    x, y = rng.normal(size=(2, 90))
    y -= x  # against each other within a condition, together between conditions
    assert rank_correlation(x + offsets, y + offsets, n_resamples=20)["correlation"] > 0.5
    assert rank_correlation(x + offsets, y + offsets, within=conditions, n_resamples=300)["high"] < 0


def test_a_side_that_does_not_vary_has_no_correlation():
    found = rank_correlation(np.ones(5), np.arange(5.0), n_resamples=10)
    assert np.isnan([found["correlation"], found["low"], found["high"]]).all()
