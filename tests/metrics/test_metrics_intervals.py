"""Bootstrap intervals: the normal interval where it holds, coverage of a known truth, clusters,
seeds, pairs.
"""

import numpy as np
import pytest
from scipy.stats import norm

from cibr.metrics import bootstrap_interval, intervals, paired_difference

Z = norm.ppf(0.975)


@pytest.mark.parametrize("statistic", [np.mean, np.median])
@pytest.mark.parametrize("clustered", [False, True])
def test_weights_equal_a_loop_that_draws_the_items_themselves(statistic, clustered, monkeypatch):
    monkeypatch.setattr(intervals, "N_RESAMPLES", 300)
    monkeypatch.setattr(intervals, "DRAWS", 3000)  # in blocks, the last one shorter
    rng = np.random.default_rng(0)
    values = rng.integers(0, 9, 40).astype(float)
    clusters = rng.integers(0, 11, 40) if clustered else np.arange(40)
    groups = [values[clusters == c] for c in np.unique(clusters)]
    draws = np.random.default_rng(5).integers(len(groups), size=(300, len(groups)))
    slow = [statistic(np.concatenate([groups[c] for c in row])) for row in draws]
    found = bootstrap_interval(values, clusters, seed=5, statistic=statistic)
    assert found == pytest.approx((statistic(values), *np.quantile(slow, [0.025, 0.975])))


def test_nineteen_of_twenty_intervals_hold_the_truth_and_fewer_where_clusters_are_ignored(
    monkeypatch,
):
    monkeypatch.setattr(intervals, "N_RESAMPLES", 300)
    rng = np.random.default_rng(0)
    clusters, inside = np.arange(300) // 5, {True: 0, False: 0}
    for repeat in range(300):
        rates = rng.beta(
            1, 1, 60
        )  # an image's five texts are hit at a rate of its own; the mean rate is 1/2
        hits = rng.random(300) < rates[clusters]
        for kept in inside:
            _, low, high = bootstrap_interval(hits, clusters if kept else None, seed=repeat)
            inside[kept] += low <= 0.5 <= high
    assert 0.90 < inside[True] / 300 < 0.985  # 0.95 give or take three standard errors
    assert inside[False] / 300 < 0.9


def test_the_variance_of_seeds_and_of_items_add_up():
    rng = np.random.default_rng(3)
    seeds, items = rng.normal(0, 1, (40, 1)), rng.normal(0, 3, (1, 500))
    found = paired_difference([np.zeros((40, 500))], [seeds + items])
    half = Z * np.sqrt(seeds.var() / 40 + items.var() / 500)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.1)


def test_seeds_are_drawn_for_all_data_sets_at_once():
    rng = np.random.default_rng(4)
    opposed = rng.normal(0, 1, (8, 1)) * np.ones((8, 30))
    found = paired_difference([np.zeros((8, 30))] * 2, [opposed, -opposed])
    assert (found["low"], found["high"]) == pytest.approx(
        (0, 0), abs=1e-12
    )  # what one set gains the other loses


def test_data_sets_count_alike_whatever_their_size_and_four_styles_can_share_one_weight():
    sets = [np.full((1, n), value) for n, value in ((10, 1.0), (1000, 0.0), (20, 0.0))]
    zeros = [np.zeros_like(x) for x in sets]
    assert paired_difference(zeros, sets)["mean"] == pytest.approx(1 / 3)
    assert paired_difference(zeros, sets, weights=[2.0, 1.0, 1.0])["mean"] == pytest.approx(1 / 2)
