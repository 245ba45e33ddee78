"""The tests of the confirmation's plan, on rows whose answers are known."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cibr_book import confirmation
from cibr_book.confirmation import (
    FEW_OR_WRONG,
    PHOTOS,
    SETS,
    best_trials,
    beta_figure,
    hypothesis_tests,
    over_sets,
    shift_figure,
    verdicts,
    with_measures,
)
from cibr_book.shifts import SHIFTS

CONDITIONS = [*FEW_OR_WRONG, "Flickr8k"]
METHODS = ["CLIP", "CLIP, CCA start", "closed-form CCA", "CCA anchor", "CIBR MINE", "CIBR vMF"]
METHODS += ["CIBR crossfit"]
COLUMNS = [f"{set_}/{way}_recall@{k}" for set_ in PHOTOS.values() for way in "ab" for k in (1, 5)]
COLUMNS += [f"{set_}/a_recall@10" for set_ in PHOTOS.values()]
ACCURACIES = [f"{suite}/{name}/accuracy@1" for suite in SETS for name in SETS[suite].split()]
OTHERS = [f"shift/{name}-{k}/recall" for name in SHIFTS for k in (1, 2, 3)]
OTHERS += [f"mini/pacs-{style}/accuracy@1" for style in confirmation.STYLES_OF_PACS]


@pytest.fixture
def rows():
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        [
            {"condition": condition, "method": method, "seed": seed}
            for condition in CONDITIONS
            for method in METHODS
            for seed in range(16)
        ]
    )
    shared = random.normal(0, 0.05, (len(table), 1)) + 0.3
    values = shared + random.normal(0, 0.001, (len(table), len(COLUMNS + ACCURACIES)))
    seeds = 0.02 * np.sin(table["seed"].to_numpy())[:, None]
    scores = pd.DataFrame(values - shared + 0.3 + seeds, columns=COLUMNS + ACCURACIES)
    for i, name in enumerate(OTHERS):
        scores[name] = scores[COLUMNS[0]] - 0.01 * i
    return pd.concat([table, scores], axis=1)


def add(rows, method, columns, points):
    rows.loc[rows["method"] == method, columns] += points / 100


def found(rows):
    best = dict.fromkeys(CONDITIONS, "CIBR vMF")
    return hypothesis_tests(with_measures(rows), best)


def test_measures_are_means_in_points(rows):
    measured = with_measures(rows)
    assert measured["recall on Flickr8k"][5] == pytest.approx(
        100 * rows.loc[5, [name for name in COLUMNS if name.startswith("mini")]].mean()
    )
    assert len(confirmation.ACCURACIES) == 11
    assert measured["zero-shot accuracy"][7] == pytest.approx(100 * rows.loc[7, ACCURACIES].mean())
    assert measured["accuracy on dtd10"][7] == 100 * rows["mini/dtd10/accuracy@1"][7]
    assert measured["accuracy on PACS, sketch"][7] == 100 * rows["mini/pacs-sketch/accuracy@1"][7]
    noise = rows.loc[9, [f"shift/noise-{k}/recall" for k in (1, 2, 3)]]
    assert measured["recall under noise"][9] == pytest.approx(100 * noise.mean())
    third = rows.loc[9, [f"shift/{name}-3/recall" for name in SHIFTS]]
    assert measured["recall at strength 3"][9] == pytest.approx(100 * third.mean())


def test_a_planted_gain_is_found_and_nothing_else(rows):
    add(rows, "CCA anchor", COLUMNS, 1)
    tests = found(rows)
    counts = {"H1": 4, "H2": 8, "H3": 12, "H4": 18}
    assert tests["hypothesis"].value_counts().to_dict() == counts
    assert tests.groupby("hypothesis")["found"].sum().to_dict() == {
        "H1": 4,
        "H2": 8,
        "H3": 12,
        "H4": 0,
    }
    assert tests.loc[tests["hypothesis"] == "H1", "difference"].between(0.9, 1.1).all()
    assert tests.loc[tests["hypothesis"] == "H3", "difference"].abs().max() < 0.1


def test_a_loss_is_no_gain_and_a_difference_beyond_the_margin_no_equality(rows):
    add(rows, "CCA anchor", COLUMNS, -1)
    add(rows, "CIBR vMF", COLUMNS, 0.6)
    add(rows, "CIBR MINE", COLUMNS, -0.3)
    tests = found(rows)
    assert not tests.loc[tests["hypothesis"].isin(["H1", "H2"]), "found"].any()
    equal = tests[tests["hypothesis"] == "H3"].groupby("method")["found"].agg(["all", "any"])
    assert equal.loc["CIBR MINE", "all"] and not equal.loc["CIBR vMF", "any"]


def test_a_gain_in_zero_shot_has_to_hold_over_sets_too(rows):
    add(rows, "CIBR crossfit", ACCURACIES[0], 20)
    add(rows, "CIBR vMF", ACCURACIES, 1)
    tests = found(rows)
    gains = tests[tests["hypothesis"] == "H4"].set_index(["condition", "method"])["found"]
    assert gains[:, "CIBR vMF"].all() and gains.sum() == 3
    table = over_sets(with_measures(rows[rows["condition"] == "Flickr8k"]))
    assert table.loc["CIBR crossfit", "low"] > 1 and table.loc["CIBR crossfit", "sets_low"] < 0
    assert table.loc["CIBR vMF", "sets_low"] > 0.9


def test_p_values_are_those_of_the_plan_and_corrected_over_all_tests(rows):
    tests = found(rows)
    own = with_measures(rows[rows["condition"] == FEW_OR_WRONG[0]])
    sides = own.pivot(index="seed", columns="method", values="recall on coco-mini")
    gaps = sides["CCA anchor"] - sides["CLIP, CCA start"]
    row = tests[(tests["hypothesis"] == "H2") & (tests["condition"] == FEW_OR_WRONG[0])].iloc[1]
    test = stats.ttest_rel(sides["CCA anchor"], sides["CLIP, CCA start"])
    assert row["measure"] == "recall on coco-mini"
    assert row["p_value"] == pytest.approx(test.pvalue)
    assert row["difference"] == pytest.approx(gaps.mean())
    assert row[["low", "high"]].tolist() == pytest.approx([*test.confidence_interval()])
    p = tests["p_value"].to_numpy()
    order = np.argsort(p)
    expected, highest = np.empty(len(p)), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        expected[i] = highest
    np.testing.assert_allclose(tests["holm"], expected)


def test_methods_with_other_seeds_are_not_compared(rows):
    with pytest.raises(ValueError, match="'CCA anchor' and 'CLIP' have the seeds .*: give both"):
        found(rows[(rows["method"] != "CCA anchor") | (rows["seed"] < 15)])


def test_the_best_trial_says_which_of_its_values_end_their_range():
    rates, dropouts = [0.001, 0.002, 0.004], [0.4, 0.5, 0.6]
    trials = pd.DataFrame(
        [
            {"condition": "few", "method": method, "validation": 50 - abs(i - best) - j}
            | {"configuration": json.dumps({"beta": 0, "learning_rate": rate, "dropout": dropout})}
            for method, best in (("CLIP", 1), ("CIBR", 2))
            for i, rate in enumerate(rates)
            for j, dropout in enumerate(dropouts)
        ]
    )
    table = best_trials(trials).set_index("method")
    assert table["n"].tolist() == [9, 9] and table["validation"].tolist() == [50, 50]
    assert table["learning_rate"].tolist() == [0.002, 0.004]
    assert table["ends"].tolist() == ["dropout", "learning_rate, dropout"]
    assert "beta" not in table


def test_a_hypothesis_holds_if_the_test_on_each_set_of_photos_finds_it(rows):
    add(rows, "CCA anchor", COLUMNS, 1)
    add(rows, "CIBR MINE", [name for name in COLUMNS if "coco" in name], 1)
    tests = found(rows)
    table = verdicts(tests).reset_index()
    assert table.groupby("hypothesis").size().to_dict() == {"H1": 2, "H2": 4, "H3": 6}
    is_mine = table["method"] == "CIBR MINE"
    assert set(table.loc[~is_mine, "holds"]) == {"yes"} and set(table.loc[is_mine, "holds"]) == {
        "no"
    }
    row, test = table[is_mine].iloc[0], tests[tests["method"] == "CIBR MINE"].iloc[1]
    text = f"{test['difference']:+.2f} [{test['low']:+.2f}, {test['high']:+.2f}]"
    assert row["recall on coco-mini"] == text and row["recall on Flickr8k"].endswith("] *")


def test_the_figure_shows_the_differences_at_every_strength(rows):
    for k, points in ((1, 0.5), (2, 1), (3, 2)):
        add(rows, "CIBR vMF", [f"shift/{name}-{k}/recall" for name in SHIFTS], points)
    rows = with_measures(rows).assign(beta=0, hyperparameters="", validation=0.0)
    axes = shift_figure(rows, ["CIBR vMF", "CCA anchor"])
    assert len(axes) == 3
    line, other = [line for line in axes[0].lines if line.get_label().startswith("C")]
    np.testing.assert_allclose(line.get_ydata(), [0, 0.5, 1, 2], atol=0.15)
    np.testing.assert_allclose(other.get_ydata(), 0, atol=0.15)
    assert line.get_label() == "CIBR vMF"


def test_the_figure_shows_the_penalty_over_beta_beside_other_methods(rows):
    add(rows, "CCA anchor", COLUMNS, 2)
    few = rows[rows["condition"] == FEW_OR_WRONG[0]].assign(beta=0.0, hyperparameters="")
    is_best = few["method"] == "CIBR vMF"
    curve = few[is_best & (few["seed"] < 8)]
    varied = [curve.assign(method="CIBR vMF over beta", beta=beta) for beta in (1.0, 0.01)]
    varied[0][COLUMNS] -= 0.03
    few.loc[is_best, "beta"] = 0.1
    few = with_measures(pd.concat([few, *varied], ignore_index=True)).assign(validation=0.0)
    other = few.assign(hyperparameters=few["hyperparameters"].mask(few["beta"] == 0.1, "rate 1"))
    line = beta_figure(other, {})[0].lines[1]
    np.testing.assert_allclose(line.get_xydata(), [[0.01, 0], [1, -3]], atol=0.15)
    left, right = beta_figure(few, {"CCA anchor": "anchor", "CLIP, CCA start": "CCA start"})
    line = left.lines[1]
    np.testing.assert_allclose(line.get_xydata(), [[0.01, 0], [0.1, 0], [1, -3]], atol=0.15)
    places = [line.get_ydata()[0] for line in right.lines[1:]]
    np.testing.assert_allclose(places, [2, 0], atol=0.15)
    assert [label.get_text() for label in right.get_xticklabels()] == ["anchor", "CCA\nstart"]
