"""Means over seeds have Student's intervals."""

import math

import pandas as pd

from cibr.metrics import mean_interval
from cibr_book.intervals import mean_intervals


def test_intervals_of_groups_are_their_own_and_one_seed_has_none():
    values = [1.0, 2.0, 3.0, 5.0, math.nan]
    rows = pd.DataFrame({"method": list("baabb"), "kind": "x", "nats": values})
    table = mean_intervals(pd.concat([rows, rows[:1].assign(method="c")]), ["method"], "nats")
    assert table.columns.tolist() == ["method", "mean", "low", "high", "n"]
    assert table["method"].tolist() == ["b", "a", "c"]
    assert table.loc[0].tolist()[1:] == [*mean_interval(rows["nats"].to_numpy()[[0, 3]]), 2]
    assert table.loc[2, "mean"] == 1 and math.isnan(table.loc[2, "low"])
