"""Means over seeds have Student's intervals."""

import math

import pandas as pd
import pytest

from cibr_book.experiments.analysis import mean_intervals


def test_mean_intervals_are_those_of_student_in_every_group():
    rows = pd.DataFrame({"method": list("aaab"), "nats": [1.0, 2.0, 3.0, 5.0]})
    table = mean_intervals(rows, ["method"], "nats").set_index("method")
    half = 4.3027 / 3**0.5  # Student's 97.5 % quantile for two degrees of freedom
    assert table.loc["a"].tolist() == pytest.approx([2, 2 - half, 2 + half, 3], abs=1e-4)
    assert table.loc["b", "mean"] == 5 and math.isnan(table.loc["b", "low"])
