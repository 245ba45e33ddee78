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
    """The values of nested lists and the index of each value's list."""
    indices = [index for index, values in enumerate(nested) for _ in values]
    return np.concatenate(nested), np.array(indices)


@settings(max_examples=30, deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=9))
def test_the_interval_is_the_set_of_means_that_students_test_does_not_reject(values):
    mean, low, high = mean_interval(np.array(values))
    assert mean == pytest.approx(np.mean(values))
    if high - low > 1e-6:
        for end in (low, high):
            assert stats.ttest_1samp(values, end).pvalue == pytest.approx(0.05, abs=1e-6)


def test_values_that_are_not_numbers_have_no_interval():
    assert all(map(math.isnan, proportion_interval(np.array([0.0, math.nan, 1.0]))))


def test_a_single_item_has_no_interval():
    mean, low, high = mean_interval(np.array([0.25]))
    assert mean == 0.25
    assert math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize("hit", [0.0, 1.0])
@pytest.mark.parametrize("n", [1, 24])
def test_where_all_items_agree_the_interval_is_wilsons_and_not_of_width_zero(hit, n):
    wilson = stats.binomtest(int(n * hit), n).proportion_ci(method="wilson")
    interval = proportion_interval(np.full(n, hit))
    assert interval == pytest.approx((hit, wilson.low, wilson.high), abs=1e-6)


@pytest.mark.parametrize("n_hits", [1, 12, 23])
def test_elsewhere_it_is_students_within_zero_and_one(n_hits):
    hits = np.arange(24) < n_hits
    mean, low, high = mean_interval(hits)
    assert proportion_interval(hits) == (mean, max(low, 0), min(high, 1))


@settings(max_examples=30, deadline=None)
@given(NESTED)
def test_the_items_of_a_cluster_count_as_one_by_the_ratio_estimator(nested):
    values, clusters = flat(nested)
    mean = values.mean()
    residuals = [sum(cluster) - len(cluster) * mean for cluster in nested]
    error = stats.sem(residuals) * len(nested) / len(values)
    half_width = stats.t.ppf(0.975, len(nested) - 1) * error
    expected = (mean, mean - half_width, mean + half_width)
    names = 7 - 3 * clusters  # neither sorted nor from zero
    assert mean_interval(values, names) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(NESTED)
def test_the_mean_of_balanced_values_is_the_mean_of_group_means(nested):
    values = group_balanced_values(*flat(nested))
    assert values.mean() == pytest.approx(np.mean([np.mean(group) for group in nested]), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(NESTED)
def test_the_error_of_balanced_values_is_that_of_a_mean_of_group_means(nested):
    values = group_balanced_values(*flat(nested))
    errors = [stats.sem(group) if len(group) > 1 else 0.0 for group in nested]
    expected = np.sqrt(np.sum(np.square(errors))) / len(nested)
    assert stats.sem(values) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("n_seeds", "seed_spread"), [(2, 1.0), (3, 0.1), (16, 0.01)])
def test_the_variances_of_seeds_and_of_items_add_up_as_in_welchs_test(n_seeds, seed_spread):
    rng = np.random.default_rng(3)
    item_effects = rng.normal(0, 1, 50)
    b = item_effects + rng.normal(0, seed_spread, (n_seeds, 1))
    a = rng.normal(0, 0.1, b.shape)
    seed_means = (b - a).mean(axis=1)
    item_means = (b - a).mean(axis=0)
    # Its two samples are the seeds and the items, of which the latter have a mean of zero.
    welch = stats.ttest_ind(seed_means, item_means - item_means.mean(), equal_var=False)
    low, high = welch.confidence_interval()
    assert paired_difference(a, b) == pytest.approx((seed_means.mean(), low, high))


def test_the_difference_of_a_single_seed_is_that_of_its_items():
    a, b = np.random.default_rng(4).normal(size=(2, 1, 9))
    assert paired_difference(a, b) == pytest.approx(mean_interval(b[0] - a[0]))


def test_a_difference_without_spread_has_an_interval_of_width_zero():
    a = np.zeros((2, 9))
    assert paired_difference(a, a) == (0, 0, 0)
    assert paired_difference(a, a + 2) == (2, 2, 2)


def test_the_difference_of_a_single_item_has_no_interval():
    mean, low, high = paired_difference(np.zeros((3, 1)), np.array([[1.0], [2.0], [3.0]]))
    assert mean == 2
    assert math.isnan(low) and math.isnan(high)
