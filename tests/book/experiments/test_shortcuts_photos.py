"""What the rows of shortcuts say, and the sheets of letters."""

import re

import pytest

from cibr_book.experiments import shortcuts
from cibr_book.experiments.tables import read_table


def test_sheets_show_what_their_captions_name():
    train, validation, test = shortcuts.glyph_sheets(1.0, 1.0)
    assert (len(train), len(validation), len(test), train.split) == (2000, 1000, 1000, "train")
    words = [re.fullmatch(r"(\w+), (\w+), (\w+) and (\w+)", text) for text in train.texts()]
    assert len({word for match in words for word in match.groups()}) == 20
    assert all(len({*match.groups()}) == 4 for match in words)
    assert test.keys != train.keys and validation.image(0).tobytes() != test.image(0).tobytes()


@pytest.fixture(scope="module")
def rows():
    return read_table("shortcuts.csv")


def test_claims_are_of_the_committed_rows(rows):
    planned = rows[rows["commit"] == "128a8061c07a"]
    tests = shortcuts.hypothesis_tests(planned).set_index("claim")
    outcomes = tests.groupby("hypothesis")["outcome"].value_counts().to_dict()
    holds = {("Hb", "holds"): 4, ("Hc", "holds"): 1, ("Hd", "holds"): 1, ("Hd", "undecided"): 1}
    assert outcomes == holds | {("Ha", "holds"): 2, ("Ha", "undecided"): 2}
    own = planned[planned["condition"] == "water, tint, 1"].set_index(["method", "seed"])
    lost = own["kept/recall"] - own["removed/recall"]
    less = (lost["CLIP"] - lost["closed-form CCA"]).groupby("seed").mean()
    sizes = own.loc["closed-form CCA", "configuration"].str.contains('"cca_dim": 384')
    if sizes.all():
        claim = tests.loc["water, tint, 1: CCA loses less", "difference"]
        assert claim == pytest.approx(100 * less.mean())


def test_beyond_the_temperature_a_weaker_colour_is_a_gain_and_a_stronger_one_a_loss(rows):
    fresh = rows[rows["condition"].str.startswith("fresh")]
    found = shortcuts.beyond_temperature(fresh, 0.3)
    assert found["claim"].tolist() == ["gain"] * 3 + ["loss"] * 3
    assert found["outcome"].tolist() == ["holds"] * 5 + ["undecided"]
    one = fresh[fresh["condition"] == found["condition"][0]]
    one = one[~one["configuration"].str.contains('"dose": 1,')]
    means = 100 * one.groupby("method")["removed/recall"].mean()
    lead = means["CIBR vMF"] - means["CLIP, 1.3 times the temperature"]
    assert found["difference"][0] == pytest.approx(lead)
