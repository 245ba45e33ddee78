"""The tests of the confirmation's plan, on rows whose answers are known."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cibr.metrics import paired_difference
from cibr_book.experiments import confirmation
from cibr_book.experiments.confirmation import (
    ACCURACIES,
    DEGRADED,
    PHOTOS,
    SETS,
    VALIDATION,
    best_forms,
    best_trials,
    hypothesis_tests,
    measure_columns,
    with_measures,
    zero_shot_tests,
)
from cibr_book.experiments.tables import read_table

SHIFTS = ("noise", "blur", "contrast", "jpeg", "occlusion")
SIDES = ("image_to_text", "text_to_image")
TASKS = [f"{suite}/{name}" for suite in SETS for name in SETS[suite].split()]


def test_measures_are_the_means_of_their_own_columns_in_points():
    recalls = [f"{side}_recall@{k}" for side in SIDES for k in (1, 5, 10)]
    columns = [f"{task}/{recall}" for task in PHOTOS.values() for recall in recalls]
    columns += [f"validation_{recall}" for recall in recalls]
    columns += [f"{task}/accuracy@1" for task in TASKS]
    columns += [f"shift/{name}-{k}/recall" for name in SHIFTS for k in (1, 2, 3)]
    values = np.random.default_rng(0).random(len(columns))
    table = pd.DataFrame([values], columns=columns).assign(condition="Flickr8k", run="a")
    patterns = {
        "recall on coco-mini": "^confirmation/coco-mini/.*recall",
        VALIDATION: "^validation",
        "text to image, Flickr8k": "^mini/flickr8k/text_to",
        "image to text, coco-mini": "^confirmation/coco-mini/image_to",
        "accuracy on dtd10": "mini/dtd10/",
        "zero-shot accuracy": "/accuracy@1",
        "accuracy on the new sets": "^confirmation/.*/accuracy@1",
        DEGRADED: "^shift/",
    }
    measured = with_measures(table).loc[0]
    for name, pattern in patterns.items():
        own = 100 * table.filter(regex=pattern).loc[0].mean()
        assert measured[name] == pytest.approx(own), name
    with pytest.raises(KeyError, match="mini/flickr8k/text_to_image_recall@5"):
        with_measures(table.drop(columns="mini/flickr8k/text_to_image_recall@5"))


def student(values, bound=0.0, sided="two-sided"):
    return stats.ttest_1samp(values, bound, alternative=sided)


def holm(p_values):
    """Holm's corrections: of m the k-th smallest times m - k + 1, none below a smaller one's."""
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    return np.maximum.accumulate(scaled.clip(max=1))[np.argsort(order)].tolist()


def in_plan(p_value, supported, excluded):
    return "holds" if supported and p_value < 0.05 else "contradicted" if excluded else "undecided"


@pytest.fixture(scope="module")
def measured():
    """Committed rows with their forms."""
    forms = best_forms(read_table("confirmation_trials.csv"))
    return with_measures(read_table("confirmation.csv")), forms


def test_claims_on_recall_are_tested_and_decided_as_planned(measured):
    rows, forms = measured
    tests = hypothesis_tests(rows, forms)
    for row in tests.itertuples():
        own = rows[rows["condition"] == row.condition].set_index("seed")
        ours, control = (own[own["method"] == m][row.measure] for m in (row.method, row.control))
        gaps = ours - control
        p_value = student(gaps).pvalue
        if row.hypothesis == "H3":
            one_sided = student(gaps, -0.5, "greater"), student(gaps, 0.5, "less")
            p_value = max(test.pvalue for test in one_sided)
        expected = [gaps.mean(), *student(gaps).confidence_interval(), p_value]
        assert [*row[6:10]] == pytest.approx(expected)
    claims = tests.groupby(confirmation.CLAIM).agg(list)
    assert claims.index.get_level_values(0).tolist() == ["H1"] * 2 + ["H2"] * 4 + ["H3"] * 6
    controls = [{"CLIP"}, {"CLIP, CCA start", "closed-form CCA"}, {"CLIP"}]
    assert tests.groupby("hypothesis")["control"].agg(set).tolist() == controls
    corrected = holm([max(both) for both in claims["p_value"]])
    for claim, p_value in zip(claims.itertuples(), corrected, strict=True):
        about_equality = claim.Index[0] == "H3"
        supported = about_equality or min(claim.difference) > 0
        below = max(claim.high) < (-0.5 if about_equality else 0)
        sides = zip(claim.low, claim.high, strict=True)
        beyond = about_equality and all(low > 0.5 or high < -0.5 for low, high in sides)
        outcome = in_plan(p_value, supported, below or beyond)
        assert claim.outcome == [outcome] * 2 and claim.holm == [pytest.approx(p_value)] * 2


def test_gains_of_zero_shot_accuracy_are_tested_and_decided_as_planned(measured):
    rows, _ = measured
    found = zero_shot_tests(rows)
    planned = rows[(rows["method"] != "CLIP") & ~rows["method"].str.endswith("over beta")]
    assert len(found) == len(planned[["condition", "method"]].drop_duplicates())
    p_values = []
    for row in found.itertuples():
        own = rows[rows["condition"] == row.condition].set_index("seed")
        ours, control = (own.loc[own["method"] == m, ACCURACIES] for m in (row.method, "CLIP"))
        gaps = ours - control
        seeds, sets = gaps.mean(axis=1), gaps.mean(axis=0)
        assert [*row[3:6]] == pytest.approx([seeds.mean(), *student(seeds).confidence_interval()])
        each = student(seeds, 1, "less"), student(seeds, 0, "greater"), student(sets, 0, "greater")
        p_values.append([test.pvalue for test in each])
    below, over_seeds, over_sets = map(holm, zip(*p_values, strict=True))
    assert found["holm"].tolist() == pytest.approx(below)
    assert found["over_seeds"].tolist() == [p < 0.05 for p in over_seeds]
    assert found["over_sets"].tolist() == [p < 0.05 for p in over_sets]
    outcomes = map(in_plan, below, [True] * len(below), found["low"] > 1)
    assert found["outcome"].tolist() == [*outcomes]


def test_the_best_trial_says_which_of_its_values_end_their_range():
    settings = [{"learning_rate": rate, "beta": 0} for rate in (0.001, 0.002, 0.004)]
    unpaired = [{"self_training": True}, {"repeats": 2}, {"repeats": 3}]
    tried = [json.dumps(own | {"unpaired": u}) for own, u in zip(settings, unpaired, strict=True)]
    trials = pd.DataFrame({"condition": "few", "method": "CLIP", "configuration": tried})
    best = best_trials(trials.assign(validation=[1, 9, 2])).iloc[0]
    assert best[["n", "validation", "ends"]].tolist() == [3, 9, ""]
    best = best_trials(trials.assign(validation=[1, 2, 3]))
    assert best["ends"].tolist() == ["learning_rate, repeats"]
    names = ["CIBR MINE", "CIBR vMF", "CIBR crossfit"]
    forms = trials.assign(method=names, validation=[9, 1, 3])
    assert best_forms(forms) == {"few": "CIBR crossfit"}


def test_a_trial_counts_by_the_mean_over_its_seeds():
    of_seeds = [json.dumps({"beta": beta, "seed": seed}) for beta in (0, 1, 2) for seed in (1, 2)]
    trials = pd.DataFrame({"configuration": of_seeds, "validation": [1, 9, 6, 6, 2, 3]})
    trials = trials.assign(condition="few", method="CLIP")
    assert best_trials(trials).iloc[0][["n", "validation", "ends"]].tolist() == [3, 6, ""]


def test_an_interval_over_photos_is_of_the_hits_of_the_runs_that_a_claim_compares(measured):
    (rows, forms), hits = measured, dict(np.load(confirmation.HITS))
    tests = hypothesis_tests(rows, forms).query("method == 'CCA anchor' and control == 'CLIP'")
    table = confirmation.photo_intervals(tests, rows, hits)
    own, places = rows[rows["condition"] == tests["condition"].iloc[0]], list(hits["run"])
    sides = []
    for method in ("CLIP", "CCA anchor"):
        runs = own[own["method"] == method].sort_values("seed")["run"]
        sides.append(100 / 30 * hits["Flickr8k"][[places.index(run) for run in runs]])
    expected = [*paired_difference(*sides)]
    assert table.iloc[0][["difference", "low", "high"]].tolist() == pytest.approx(expected)


def test_a_run_that_diverged_scores_0():
    columns = sorted({name for of in measure_columns().values() for name in of})
    rows = pd.DataFrame([[np.nan], [0.5]] * np.ones(len(columns)), columns=columns)
    rows = rows.assign(condition="Flickr8k", error=["not finite", None])
    found = with_measures(rows)[[*measure_columns()]]
    assert (found.loc[0] == 0).all() and np.allclose(found.loc[1], 50)
