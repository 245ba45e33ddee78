"""Every number in the prose of the ablation's chapter is of its tables, and its conclusions hold in the rows."""

import json
import re
from pathlib import Path

import pytest

from cibr_book.tables import HEADLINE, differences, in_points, read_table

NOTEBOOK = Path(__file__).resolve().parents[2] / "book" / "ablation.ipynb"
DIFFERENCE = re.compile(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]")


@pytest.fixture(scope="module")
def prose():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return re.sub(
        r"`[^`]*`|```.*?```", "", "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    )


@pytest.fixture(scope="module")
def rows():
    return read_table()


def sentence(found, condition, method, beta):
    """The three differences of one method as the chapter prints them."""
    cells = in_points(found).loc[(condition, method, beta), [*HEADLINE]]
    return [text.removesuffix(" *") for text in cells]


def test_every_difference_in_the_prose_is_that_of_the_named_rows(prose, rows):
    found = differences(rows)
    later = differences(rows[(rows["condition"] == "Flickr8k") & (rows["seed"] > 5)])
    shuffled = "glyphs, 30 % shuffled captions"
    noise = differences(rows[rows["condition"] == shuffled], control="noise only")
    claims = {
        "the vMF bound is at": sentence(found, "Flickr8k", "CIBR vMF", 0.01),
        "MINE, the paper's estimator, at": sentence(found, "Flickr8k", "CIBR MINE", 0.003),
        "trained after the choice are at": sentence(later, "Flickr8k", "CIBR crossfit", 0.1),
        "*consistency* is at": sentence(found, "glyphs, spurious polarity", "consistency", 0.3),
        "CLIP on every image in both styles is at": sentence(
            found, "Flickr8k, spurious grey", "CLIP, in both styles", 0.0
        ),
        "where consistency is at": sentence(found, "Flickr8k, spurious grey", "consistency", 0.3),
        "With shuffled captions the vMF bound is at": sentence(found, shuffled, "CIBR vMF", 0.03)[:1],
        "without a penalty, at": sentence(found, shuffled, "noise only", 0.0)[:1],
        "On glyphs it stands at": sentence(found, "glyphs, spurious polarity", "CLIP, in both styles", 0.0),
        "the vMF bound at beta 0.03 is at": sentence(noise, shuffled, "CIBR vMF", 0.03),
    }
    for words, expected in claims.items():
        assert DIFFERENCE.findall(prose.split(words)[1])[: len(expected)] == expected, words
    assert len(DIFFERENCE.findall(prose)) == sum(map(len, claims.values()))


def test_every_other_number_in_the_prose_is_a_setting_of_the_study(prose):
    rest = DIFFERENCE.sub("", prose)
    numbers = set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\w)", rest))
    shares = {"10", "30", "1"}  # per cent of the pairs, of the captions, of the counterexamples
    recalls, level, weight, text_weights = {"1", "5", "10"}, {"95"}, {"0.03"}, {"0", "1"}
    assert numbers <= shares | recalls | level | weight | text_weights


def test_the_conclusions_of_the_prose_hold_in_the_rows(rows):
    found = differences(rows)
    ours = found[found["method"].str.contains("CIBR")]
    gains = ours[ours["significance"] == "gain"].groupby(["condition", "method", "beta"]).size()
    assert gains.max() < len(HEADLINE)  # no form of the penalty gains in all three scores
    consistent = found.query(
        "condition == 'glyphs, spurious polarity' and method == 'consistency' and beta == 0.3"
    )
    assert (consistent["significance"] == "gain").all() and (consistent["n_seeds"] == 8).all()
    crossfit = ours.query("method == 'CIBR crossfit' and measure == 'zero-shot' and significance == 'gain'")
    assert sorted(zip(crossfit["condition"], crossfit["beta"], strict=True)) == [
        ("Flickr8k", 0.1),
        ("Flickr8k", 0.3),
        ("Flickr8k, 30 % of the pairs", 0.03),
    ]
    few = found[found["condition"].isin(["glyphs", "glyphs, 10 % of the pairs", "glyphs, 30 % of the pairs"])]
    assert not (few["significance"] == "gain").any()
    both = found[found["method"] == "CLIP, in both styles"]
    assert (both["n_seeds"] == 3).all()


def test_mine_ran_at_the_smallest_weight_and_without_trials_are_the_conditions_that_the_prose_names(rows):
    trials = read_table("ablation_trials.csv")
    mine = trials[trials["method"] == "CIBR MINE"]
    assert set(rows[rows["method"] == "CIBR MINE"]["beta"]) == {mine["beta"].min()}
    assert set(rows[rows["method"] == "CIBR MINE"]["condition"]) == {"Flickr8k"}
    untried = set(rows["condition"]) - set(trials["condition"])
    related = ("full size", "twice the epochs", "1 % counterexamples", "learned temperature")
    assert len(untried) == 5 and {c for c in untried if not c.endswith(related)} == {"Flickr8k, 30 % of the pairs"}
    settings = trials[trials["condition"] == "glyphs, spurious polarity"]["configuration"].map(json.loads)
    assert not any("dropout" in s for s in settings)


def test_consistency_has_another_loss_on_photos_than_where_a_style_is_spurious(rows):
    settings = rows[rows["method"] == "consistency"].set_index("condition")["configuration"].map(json.loads)
    weights = settings.map(lambda s: s["text_weight"])
    assert {weights.loc[c].iloc[0] for c in ("Flickr8k", "Flickr8k, 10 % of the pairs")} == {1}
    assert set(weights[weights.index.str.contains("spurious")]) == {0}
