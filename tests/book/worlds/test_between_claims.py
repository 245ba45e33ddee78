"""The numbers printed on the page of the map are those of its rows."""

import json
import re

import pandas as pd
import pytest
from prose import DIFFERENCE, prose, with_intervals

from cibr_book.experiments.tables import read_table
from cibr_book.pages.between_figures import beside_ablation, gains, predictions, winners
from cibr_book.worlds.between import PLACES, TABLE

PAGE = "book/between.ipynb"


@pytest.fixture(scope="module")
def table():
    return gains(pd.read_csv(TABLE))


@pytest.fixture(scope="module")
def linear(table):
    of_linear = table[table["tower"] == "linear"]
    return of_linear.pivot(index=["pairs", "nuisance"], columns="method", values="mean")


def test_every_difference_with_an_interval_is_one_of_the_rows(table):
    beside = beside_ablation(predictions(table, pd.read_csv(PLACES)), read_table("ablation.csv"))
    known = with_intervals(table, "mean") | with_intervals(beside)
    printed = set(DIFFERENCE.findall(prose(PAGE)))
    assert printed and printed <= known, printed - known


def test_the_verdict_counts_the_cells_of_the_map(table):
    best = winners(table)
    cells = (best["method"] == "ridge CCA").sum()
    assert f"ridge CCA is best in {cells} of {len(best)} cells" in prose(PAGE)
    sure = table[
        table["method"].isin(["CIBR vMF", "CIBR vMF, sampled"]) & (table["q_value"] < 0.05)
    ]
    gaining = sure[sure["mean"] > 0].drop_duplicates(["pairs", "nuisance"])
    assert f"gains significantly, after correction, in {len(gaining)} cells" in prose(PAGE)
    assert not best["method"].str.startswith("CIBR").any()


def test_the_gains_of_ridge_cca_are_those_where_it_wins_and_clip_learns(linear, table):
    rows = pd.read_csv(TABLE)
    clip = rows[(rows["tower"] == "linear") & (rows["method"] == "CLIP")]
    recall = clip.groupby(["pairs", "nuisance"])["test_recall"].mean()
    best = winners(table).set_index(["pairs", "nuisance"])["method"]
    gained = linear.loc[recall[(recall >= 0.4) & (best == "ridge CCA")].index, "ridge CCA"]
    low, high = re.search(r"by (-?[\d.]+) to ([\d.]+) points of recall where", prose(PAGE)).groups()
    assert (low, high) == (f"{gained.min():.1f}", f"{gained.max():.1f}")


def test_the_start_ends_where_it_starts(linear):
    gap = (linear["CLIP, CCA start"] - linear["ridge CCA"]).abs().max()
    assert f"the two differ by {gap:.2f} points at most" in prose(PAGE)


def test_what_more_steps_change_is_that_of_the_rows(linear):
    rows = pd.read_csv(TABLE)
    clip = rows[(rows["tower"] == "linear") & (rows["method"] == "CLIP")]
    recall = clip.groupby(["pairs", "nuisance"])["test_recall"].mean()
    learns = recall[recall >= 0.4].index
    longer = linear.loc[learns, "CLIP, 4 x the steps"]
    told = f"change it by {longer.min():+.1f} to {longer.max():+.1f} points"
    steps = clip.drop_duplicates(["pairs", "nuisance"])["settings"].map(json.loads).str["steps"]
    assert told in prose(PAGE)
    assert f"more than 1,000 in {(steps > 1000).sum()} cells" in prose(PAGE)
    untuned, in_part = (linear.loc[learns, f"CLIP, {x}"] for x in ("untuned", "rate and steps"))
    gained = -untuned[untuned < -1]
    share = (gained + in_part[gained.index]) / gained
    told = f"recovers {100 * share.median():.0f} % in the median cell, and less than half in "
    assert f"{told}{(share < 0.5).sum()} of the {len(share)} in which" in prose(PAGE)
