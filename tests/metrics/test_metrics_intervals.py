"""Bootstrap intervals: a loop that draws the items, clusters, seeds and pairs."""

import numpy as np
import pytest

from cibr.metrics import bootstrap_interval, paired_difference


@pytest.mark.parametrize("statistic", [np.mean, np.median])
@pytest.mark.parametrize("n_clusters", [11, 700])  # draws of 700 are made in two blocks
def test_intervals_equal_those_of_a_loop_that_draws_the_clusters_themselves(statistic, n_clusters):
    rng = np.random.default_rng(0)
    values = rng.normal(size=n_clusters + 29)
    clusters = rng.permutation(np.r_[:n_clusters, rng.integers(0, n_clusters, 29)])
    members = [values[clusters == c] for c in range(n_clusters)]
    draws = np.random.default_rng(5).integers(n_clusters, size=(2000, n_clusters))
    slow = [statistic(np.concatenate([members[c] for c in row])) for row in draws]
    interval = bootstrap_interval(values, 3 * clusters - 7, seed=5, statistic=statistic)
    assert interval == pytest.approx((statistic(values), *np.quantile(slow, [0.025, 0.975])))


@pytest.mark.parametrize("n_values", [2, 500])  # few values are drawn by their counts
def test_the_variance_of_seeds_and_of_items_add_up(n_values):
    rng = np.random.default_rng(3)
    seeds = rng.normal(0, 1, (40, 1))
    items = rng.normal(0, 3, n_values)[np.arange(500) % n_values]
    interval = paired_difference([np.zeros((40, 500))], [seeds + items])
    half = 1.96 * np.sqrt(seeds.var() / 40 + items.var() / 500)
    assert (interval["high"] - interval["low"]) / 2 == pytest.approx(half, rel=0.1)
    assert interval["mean"] == pytest.approx(seeds.mean() + items.mean())


def test_seeds_are_drawn_for_all_data_sets_at_once():
    opposed = np.random.default_rng(4).normal(0, 1, (8, 1)) * np.ones((8, 30))
    interval = paired_difference([np.zeros((8, 30))] * 2, [opposed, -opposed])
    ends = interval["low"], interval["high"]
    assert ends == pytest.approx((0, 0), abs=1e-12)  # what one set gains the other loses


def test_data_sets_count_alike_whatever_their_size_and_four_styles_can_share_one_weight():
    sets = [np.full((1, n), value) for n, value in ((10, 1.0), (1000, 0.0), (20, 0.0))]
    zeros = [np.zeros_like(x) for x in sets]
    thirds, half = ({"mean": x, "low": x, "high": x} for x in (1 / 3, 1 / 2))
    assert paired_difference(zeros, sets) == pytest.approx(thirds)
    assert paired_difference(zeros, sets, weights=[2.0, 1.0, 1.0]) == pytest.approx(half)
