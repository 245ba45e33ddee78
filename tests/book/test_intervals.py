"""Means over seeds have Student's intervals."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cibr_book.intervals import mean_intervals, student_interval

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=9)


@settings(max_examples=30, deadline=None)
@given(VALUES)
def test_the_interval_is_the_set_of_means_that_students_test_does_not_reject(values):
    mean, low, high = student_interval(values)
    assert mean == pytest.approx(np.mean(values))
    if high - low > 1e-6:
        for end in (low, high):
            assert stats.ttest_1samp(values, end).pvalue == pytest.approx(0.05, abs=1e-6)


def test_intervals_of_groups_are_their_own_and_one_seed_has_none():
    rows = pd.DataFrame({"method": list("baab"), "kind": "x", "nats": [1.0, 2.0, 3.0, 5.0]})
    table = mean_intervals(pd.concat([rows, rows[:1].assign(method="c")]), ["method"], "nats")
    assert table.columns.tolist() == ["method", "mean", "low", "high", "n"]
    assert table["method"].tolist() == ["b", "a", "c"]
    assert table.loc[0].tolist()[1:] == [*student_interval([1.0, 5.0]), 2]
    assert table.loc[2, "mean"] == 1 and math.isnan(table.loc[2, "low"])
