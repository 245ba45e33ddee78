"""Intervals are Student's, of clusters and of groups, too, and Wilson's where all items agree; the
variances of seeds and items add up.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cibr.metrics import mean_interval, paired_difference, proportion_interval
from cibr.metrics.intervals import group_balanced_values

NUMBERS = st.floats(-100, 100)
NESTED = st.lists(st.lists(NUMBERS, min_size=1, max_size=4), min_size=2, max_size=12)


def flat(nested):
    """The values of nested lists and the number of each value's list."""
    parts = [part for part, values in enumerate(nested) for _ in values]
    return np.concatenate(nested), np.array(parts)


@settings(max_examples=30, deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=9))
def test_the_interval_is_the_set_of_means_that_students_test_does_not_reject(values):
    mean, low, high = mean_interval(np.array(values))
    assert mean == pytest.approx(np.mean(values))
    if high - low > 1e-6:
        for end in (low, high):
            assert stats.ttest_1samp(values, end).pvalue == pytest.approx(0.05, abs=1e-6)
    assert all(map(math.isnan, mean_interval(np.array(values[:1]))[1:]))


@pytest.mark.parametrize("hit", [0.0, 1.0])
@pytest.mark.parametrize("n", [1, 24])
def test_where_all_items_agree_the_interval_is_wilsons_and_not_of_width_zero(hit, n):
    wilson = stats.binomtest(int(n * hit), n).proportion_ci(method="wilson")
    found = proportion_interval(np.full(n, hit))
    assert found == pytest.approx((hit, wilson.low, wilson.high), abs=1e-6)


def test_elsewhere_it_is_students_within_zero_and_one():
    for n_hits in (1, 12, 23):
        hits = np.arange(24) < n_hits
        mean, low, high = mean_interval(hits)
        assert proportion_interval(hits) == (mean, max(low, 0), min(high, 1))


@settings(max_examples=30, deadline=None)
@given(NESTED)
def test_the_items_of_a_cluster_count_as_one_by_the_ratio_estimator(nested):
    values, clusters = flat(nested)
    mean = values.mean()
    residuals = [sum(own) - len(own) * mean for own in nested]
    error = stats.sem(residuals) * len(nested) / len(values)
    half = stats.t.ppf(0.975, len(nested) - 1) * error
    expected = (mean, mean - half, mean + half)
    assert mean_interval(values, 7 - 3 * clusters) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(NESTED)
def test_groups_count_alike_and_only_the_spread_within_them_counts(nested):
    values = group_balanced_values(*flat(nested))
    assert values.mean() == pytest.approx(np.mean([np.mean(own) for own in nested]), abs=1e-9)
    errors = [stats.sem(own) if len(own) > 1 else 0.0 for own in nested]
    expected = np.linalg.norm(errors) / len(nested)
    assert stats.sem(values) == pytest.approx(expected, abs=1e-9)


def test_the_variances_of_seeds_and_of_items_add_up_as_in_welchs_test():
    rng = np.random.default_rng(3)
    for n_seeds, of_seeds in ((2, 1.0), (3, 0.1), (16, 0.01)):
        b = rng.normal(0, of_seeds, (n_seeds, 1)) + rng.normal(0, 1, 50)
        a = rng.normal(0, 0.1, b.shape)
        over_seeds, over_items = (b - a).mean(1), (b - a).mean(0)
        welch = stats.ttest_ind(over_seeds, over_items - over_items.mean(), equal_var=False)
        expected = [over_seeds.mean(), *welch.confidence_interval()]
        assert paired_difference(a, b) == pytest.approx(expected)


def test_a_single_seed_counts_its_items_and_a_single_item_has_no_interval():
    a, b = np.random.default_rng(4).normal(size=(2, 1, 9))
    assert paired_difference(a, b) == pytest.approx(mean_interval((b - a)[0]))
    assert paired_difference(a, a) == (0, 0, 0)
    assert paired_difference(0 * a, 0 * a + 2) == (2, 2, 2)
    assert all(map(math.isnan, paired_difference(a.T[:, :1], b.T[:, :1])[1:]))
