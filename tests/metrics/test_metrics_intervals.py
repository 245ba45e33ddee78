"""Intervals are Student's, of clusters and of groups, too; seeds' and items' variances add up."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cibr.metrics import mean_interval, paired_difference
from cibr.metrics.intervals import of_groups

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
    values = of_groups(*flat(nested))
    assert values.mean() == pytest.approx(np.mean([np.mean(own) for own in nested]), abs=1e-9)
    errors = [stats.sem(own) if len(own) > 1 else 0.0 for own in nested]
    expected = np.linalg.norm(errors) / len(nested)
    assert stats.sem(values) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n_values", [2, 500])  # few values are drawn by their counts
def test_the_variance_of_seeds_and_of_items_add_up(n_values):
    rng = np.random.default_rng(3)
    seeds = rng.normal(0, 1, (40, 1))
    items = rng.normal(0, 3, n_values)[np.arange(500) % n_values]
    mean, low, high = paired_difference(np.zeros((40, 500)), seeds + items)
    half = 1.96 * np.sqrt(seeds.var() / 40 + items.var() / 500)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert mean == pytest.approx(seeds.mean() + items.mean())
