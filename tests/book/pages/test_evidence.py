"""The page of evidence takes all rows of a plan, and says of them what the tables hold."""

import numpy as np
import pandas as pd
import pytest

from cibr_book.experiments.tables import read_table
from cibr_book.pages import evidence


def test_rows_are_those_of_a_plan_only_if_none_is_missing():
    rows = read_table("confirmation.csv")
    assert evidence.plan_rows(rows, "confirmation.md") is rows
    with pytest.raises(ValueError, match=r"543 rows.*confirmation\.md"):
        evidence.plan_rows(rows.iloc[1:], "confirmation.md")


def test_differences_stay_in_the_order_of_the_rows_with_half_their_interval():
    rows = pd.DataFrame({"method": ["z", "a", "z"], "measure": ["search", "search", "naming"]})
    rows = rows.assign(difference=[1.0, -2.0, 3.0], low=[0.5, -3, np.nan], high=[1.5, -1, np.nan])
    table = evidence.plus_minus(rows, ["method"], ["measure"], 1)
    assert table.index.tolist() == ["z", "a"]
    assert table.columns.tolist() == ["search", "text retrieval"]
    assert table.to_numpy().tolist() == [["+1.0 ± 0.5", "+3.0"], ["-2.0 ± 1.0", ""]]


def test_outcomes_are_counted_by_family():
    tests = pd.DataFrame({"outcome": ["holds", "undecided", "holds"]})
    table = evidence.outcome_counts({"both": tests, "one": tests[:1]})
    columns = ["claims", "holds", "undecided", "contradicted"]
    assert table[columns].to_numpy().tolist() == [[3, 2, 1, 0], [1, 1, 0, 0]]
