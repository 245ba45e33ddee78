"""The tests of the confirmation's plan, on rows whose answers are known."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

from cibr.metrics import paired_difference
from cibr_book.experiments import confirmation
from cibr_book.experiments.confirmation import (
    ACCURACIES,
    FEW_OR_WRONG,
    IN_WORDS,
    KINDS,
    PACS,
    PHOTOS,
    RECALLS,
    SEEDS,
    SETS,
    STRENGTHS,
    VALIDATION,
    best_trials,
    hypothesis_tests,
    with_measures,
    zero_shot_tests,
)
from cibr_book.experiments.shifts import SHIFTS
from cibr_book.experiments.tables import read_table

METHODS = ["CLIP", "CLIP, CCA start", "closed-form CCA", "CCA anchor", "CIBR MINE", "CIBR vMF"]
METHODS += ["CIBR crossfit"]
SIDES = ("image_to_text", "text_to_image")
TASKS = [f"{suite}/{name}" for suite in SETS for name in SETS[suite].split()]


@pytest.fixture
def rows():
    """Measured rows of all methods in all conditions: 30 points, the same seeds' effect in all."""
    random = np.random.default_rng(0)
    runs = [(c, m, seed) for c in IN_WORDS for m in METHODS for seed in SEEDS]
    runs += [("Flickr8k", "CIBR vMF over beta", seed) for seed in (200, 201)]
    table = pd.DataFrame(runs, columns=["condition", "method", "seed"])
    table["run"] = [f"{i:012x}" for i in range(len(table))]
    table["beta"] = table["method"].str.startswith("CIBR").map({True: 0.1, False: 0.0})
    seeds = 30 + 2 * np.sin(table["seed"].to_numpy())
    for name in (*RECALLS, *ACCURACIES, *STRENGTHS):
        table[name] = seeds + random.normal(0, 0.1, len(table))
    return table


def add(rows, method, columns, points):
    rows.loc[rows["method"] == method, columns] += points


def outcome(rows):
    forms = dict.fromkeys(IN_WORDS, "CIBR vMF") | {"Flickr8k": "CIBR crossfit"}
    return hypothesis_tests(rows, forms)


def verdicts(tests):
    return tests.groupby(["hypothesis", "method"])["verdict"].unique().explode().to_dict()


def test_measures_are_the_means_of_their_own_columns_in_points():
    columns = {f"{task}/{side}_recall@{k}" for task in PHOTOS.values() for side in SIDES
               for k in (1, 5, 10)}  # fmt: skip
    columns |= {f"validation_{side}_recall@{k}" for side in SIDES for k in (1, 5, 10)}
    columns |= {f"{task}/accuracy@1" for task in TASKS}
    columns |= {f"mini/pacs-{name.split()[-1]}/accuracy@1" for name in PACS}
    columns |= {f"shift/{name}-{k}/recall" for name in SHIFTS for k in (1, 2, 3)}
    row = {name: i / 100 for i, name in enumerate(sorted(columns))}
    table = pd.DataFrame([row | {"condition": "Flickr8k", "run": "a", "zero-shot": 7.0}])
    measured = with_measures(table).loc[0]

    def mean(pattern):
        return 100 * table.filter(regex=pattern).loc[0].mean()

    assert measured["recall on coco-mini"] == pytest.approx(
        mean("^confirmation/coco-mini/.*recall")
    )
    assert measured[VALIDATION] == pytest.approx(mean("^validation"))
    ways = ["text to image, Flickr8k", "image to text, coco-mini", "text to image R@1, coco-mini"]
    patterns = ["^mini/flickr8k/text_to", "^confirmation/coco-mini/image_to"]
    patterns += ["^confirmation/coco-mini/text_to_image_recall@1$"]
    assert measured[ways].tolist() == pytest.approx([mean(pattern) for pattern in patterns])
    assert measured["accuracy on dtd10"] == pytest.approx(mean("mini/dtd10/"))
    own = [100 * row[f"{task}/accuracy@1"] for task in TASKS]
    assert measured["zero-shot accuracy"] == pytest.approx(np.mean(own)) and len(own) == 11
    assert measured["accuracy on the new sets"] == pytest.approx(np.mean(own[-4:]))
    assert measured[PACS[-1]] == pytest.approx(mean("pacs-sketch"))
    assert measured[KINDS[0]] == pytest.approx(mean("shift/noise"))
    assert measured[STRENGTHS[3]] == pytest.approx(mean("shift/.*-3/"))
    with pytest.raises(ValueError, match="recall on Flickr8k has 5 columns"):
        with_measures(table.drop(columns="mini/flickr8k/text_to_image_recall@5"))
    with pytest.raises(ValueError, match="runs a "):
        with_measures(table.assign(**{"mini/flickr8k/text_to_image_recall@5": np.nan}))


def test_a_planted_gain_is_found_and_nothing_else(rows):
    assert verdicts(outcome(rows))["H1", "CCA anchor"] == "undecided"
    add(rows, "CCA anchor", RECALLS, 1)
    tests = outcome(rows)
    assert set(tests["verdict"]) == {"holds"} and len(tests) == 24
    assert tests.loc[tests["hypothesis"] == "H1", "difference"].between(0.9, 1.1).all()
    table = confirmation.verdict_table(tests)
    assert table.index.get_level_values("claim").tolist() == ["H1"] * 2 + ["H2"] * 4 + ["H3"] * 6
    assert table["verdict"].eq("holds").all() and table["p, Holm"].iloc[0] == "< 0.001"
    first = tests.iloc[1]
    text = f"{first['difference']:+.2f} [{first['low']:+.2f}, {first['high']:+.2f}]"
    assert table["coco-mini"].iloc[0] == text


def test_a_loss_contradicts_a_gain_and_a_difference_beyond_the_margin_equality(rows):
    add(rows, "CCA anchor", RECALLS, -1)
    add(rows, "CIBR vMF", RECALLS, 0.6)
    add(rows, "CIBR crossfit", RECALLS, -0.6)
    add(rows, "CIBR MINE", RECALLS, -0.3)
    assert verdicts(outcome(rows)) == {
        ("H1", "CCA anchor"): "contradicted",
        ("H2", "CCA anchor"): "contradicted",
        ("H3", "CIBR MINE"): "holds",
        ("H3", "CIBR crossfit"): "contradicted",
        ("H3", "CIBR vMF"): "contradicted",
    }


def test_a_claim_needs_both_sets_of_photos(rows):
    add(rows, "CCA anchor", RECALLS[0], 1)
    add(rows, "CCA anchor", RECALLS[1], -1)
    add(rows, "CIBR MINE", RECALLS[1], 1)
    found = verdicts(outcome(rows))
    assert found["H1", "CCA anchor"] == found["H3", "CIBR MINE"] == "undecided"


def test_p_values_are_those_of_the_plan_and_corrected_over_the_claims(rows):
    tests = outcome(rows)
    own = rows[rows["condition"] == FEW_OR_WRONG[0]]
    sides = own.pivot(index="seed", columns="method", values=RECALLS[1])
    test = stats.ttest_rel(sides["CCA anchor"], sides["CLIP, CCA start"])
    row = tests.query("control == 'CLIP, CCA start'").iloc[1]
    assert row["measure"] == RECALLS[1] and row["p_value"] == pytest.approx(test.pvalue)
    assert row[["low", "high"]].tolist() == pytest.approx([*test.confidence_interval()])
    gaps = sides["CIBR MINE"] - sides["CLIP"]
    sided = [stats.ttest_1samp(gaps + s * 0.5, 0, alternative=a).pvalue
             for s, a in ((1, "greater"), (-1, "less"))]  # fmt: skip
    mine = tests.query("method == 'CIBR MINE'").iloc[1]
    assert mine["p_value"] == pytest.approx(max(sided))
    claims = tests.groupby(confirmation.CLAIM, sort=False).agg({"p_value": "max", "holm": "first"})
    p, highest = claims["p_value"].to_numpy(), 0.0
    assert len(p) == 12
    for rank, i in enumerate(np.argsort(p)):  # Holm by hand
        highest = max(highest, min(1.0, (12 - rank) * p[i]))
        assert claims["holm"].iloc[i] == pytest.approx(highest)


def test_other_seeds_than_the_plans_are_refused(rows):
    with pytest.raises(ValueError, match="'CCA anchor' has the seeds"):
        outcome(rows[(rows["method"] != "CCA anchor") | (rows["seed"] < 215)])


def test_a_gain_below_a_point_is_a_claim_that_rows_can_support_and_contradict(rows):
    add(rows, "CIBR crossfit", ACCURACIES[0], 20)
    add(rows, "CIBR vMF", ACCURACIES, 0.5)
    add(rows, "CCA anchor", ACCURACIES, 1.5)
    odd = (rows["seed"] % 2 == 1) & (rows["method"] == "CIBR MINE")
    rows.loc[odd, ACCURACIES[3]] += 25
    tests = zero_shot_tests(rows)
    assert len(tests) == 18 and set(tests["method"]) == set(METHODS[1:])
    few = tests[tests["condition"] == FEW_OR_WRONG[0]].set_index("method")
    expected = {"CIBR crossfit": "contradicted", "CIBR vMF": "holds", "CCA anchor": "contradicted"}
    expected |= {"CIBR MINE": "undecided", "closed-form CCA": "holds"}
    assert few.loc[list(expected), "verdict"].to_dict() == expected
    assert few.loc["CIBR vMF", ["over_seeds", "over_sets"]].tolist() == [True, True]
    assert few.loc["CIBR crossfit", ["over_seeds", "over_sets"]].tolist() == [True, False]
    assert few.loc["closed-form CCA", ["over_seeds", "over_sets"]].tolist() == [False, False]
    gaps = confirmation.paired(
        rows[rows["condition"] == FEW_OR_WRONG[0]], "CIBR vMF", "CLIP", ACCURACIES
    )
    p_value = stats.ttest_1samp(gaps.mean(axis=1), 1, alternative="less").pvalue
    smaller = (tests["holm"] < few.loc["CIBR vMF", "holm"]).sum()
    assert few.loc["CIBR vMF", "holm"] == pytest.approx((18 - smaller) * p_value)
    table = confirmation.zero_shot_table(rows).loc["10 % of the pairs"]
    assert table["eleven sets"].str.endswith(" *").to_dict() == few["over_seeds"].to_dict()
    assert table.loc["CIBR crossfit", "four new sets"].startswith(("+0.", "-0."))


def test_gains_of_any_size_are_corrected_over_the_claims(rows):
    one = (rows["method"] == "CIBR MINE") & (rows["condition"] == "Flickr8k")
    gaps = 0.4 + np.where(np.arange(16) % 2, 0.7, -0.7)  # p = 0.02 one-sided, alone
    rows.loc[one, ACCURACIES] += gaps[:, None]
    test = zero_shot_tests(rows).set_index(["condition", "method"]).loc["Flickr8k", "CIBR MINE"]
    own = rows[rows["condition"] == "Flickr8k"]
    seeds = confirmation.paired(own, "CIBR MINE", "CLIP", ACCURACIES).mean(axis=1)
    assert 0.001 < stats.ttest_1samp(seeds, 0, alternative="greater").pvalue < 0.05
    assert not test["over_seeds"] and test["over_sets"]


def trials_of(values):
    """Trials of methods at two settings, by the score of each method's best."""
    table = []
    for method, best in values.items():
        for i, rate in enumerate([0.001, 0.002, 0.004]):
            setting = {"learning_rate": rate, "beta": 0, "unpaired": {"repeats": i + 1}}
            setting["unpaired"] = setting["unpaired"] if i else {"self_training": True}
            row = {"condition": "few", "method": method, "validation": best - abs(i - 1)}
            table.append(row | {"configuration": json.dumps(setting)})
    return pd.DataFrame(table)


def test_the_best_trial_says_which_of_its_values_end_their_range():
    best = best_trials(trials_of({"CLIP": 9})).iloc[0]
    assert best[["n", "validation", "ends"]].tolist() == [3, 9, ""]
    trials = trials_of({"CLIP": 9})
    trials["validation"] = [1, 2, 3]
    assert best_trials(trials)["ends"].tolist() == ["learning_rate, repeats"]


def test_the_best_form_of_the_penalty_is_the_one_with_the_best_trial():
    values = {"CIBR MINE": 9, "CIBR vMF": 1, "CIBR crossfit": 3, "CIBR vMF, sampled": 2}
    assert confirmation.best_forms(trials_of(values)) == {"few": "CIBR crossfit"}


def test_a_forms_own_runs_are_a_point_of_its_curve_where_they_share_its_settings():
    cells = [("CLIP", 0.0, "rate 1", 30), ("CIBR vMF", 0.1, "rate 1", 31)]
    cells += [("CIBR crossfit", 0.1, "rate 2", 39), ("CIBR vMF over beta", 1.0, "rate 1", 25)]
    cells += [("CIBR crossfit over beta", 0.3, "rate 1", 32)]
    table = pd.DataFrame(cells, columns=["method", "beta", "hyperparameters", "recall"])
    table = table.merge(pd.DataFrame({"seed": [1, 2, 3]}), how="cross")
    other = table["seed"].eq(3) & table["method"].str.endswith("over beta")
    table = table[~other].assign(condition="few", validation=0.0)
    curve = confirmation.over_beta(table, ["recall"])
    assert (curve["n_seeds"] == 2).all()
    found = curve.set_index(["method", "beta"])["difference"].to_dict()
    assert found == {("CIBR vMF", 0.1): 1, ("CIBR vMF", 1.0): -5, ("CIBR crossfit", 0.3): 2}


def save_ranks(file, ranks_of_texts):
    """Ranks of photos with five captions each, the photos' own from 0 upwards."""
    n = len(ranks_of_texts) // 5
    items = {"image_ranks": np.arange(n), "text_ranks": np.array(ranks_of_texts)}
    items["text_units"] = np.repeat(np.arange(n), 5)
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.tensor(values) for name, values in items.items()}
    save_file(tensors, file, {"kind": "retrieval", "digest": ""})


def test_hits_of_a_photo_count_its_query_five_times_and_each_caption_once(tmp_path):
    file = tmp_path / "ranks.safetensors"
    ranks = [0, 1, 5, 10, 99] + [0] * 5 + [10] * 5
    save_ranks(file, ranks)
    # The photos' ranks are 0, 1 and 2: 3, 2 and 2 hits; the captions' of the first 3, 2, 1, 0, 0.
    hits = confirmation.photo_hits(file)
    assert hits.tolist() == [15 + 6, 10 + 15, 10]
    recalls = [np.mean(np.array(k) > ranks) for k in (1, 5, 10)]
    assert hits.mean() / 30 == pytest.approx(np.mean([1 / 3, 1, 1, *recalls]))


def test_an_interval_over_photos_has_the_difference_of_the_rows_and_is_wider(rows):
    random = np.random.default_rng(0)
    own = rows[rows["condition"] == FEW_OR_WRONG[0]].copy()
    hits = {"run": own["run"].to_numpy()[::-1]}
    for name, n in (("Flickr8k", 40), ("coco-mini", 30)):
        gain = (own["method"] == "CCA anchor").to_numpy()[::-1, None] * random.integers(0, 9, n)
        hits[name] = random.integers(0, 20, (len(own), n)) + gain
        own[f"recall on {name}"] = 100 / 30 * hits[name].mean(axis=1)[::-1]
    claim = dict(
        zip(confirmation.CLAIM, ["H1", FEW_OR_WRONG[0], "CCA anchor", "CLIP"], strict=True)
    )
    gaps = confirmation.paired(own, "CCA anchor", "CLIP", RECALLS)
    tests = pd.DataFrame([claim | {"measure": m, "difference": gaps[m].mean()} for m in gaps])
    table = confirmation.photo_intervals(tests, own, hits)
    places = {run: i for i, run in enumerate(hits["run"])}
    sides = []
    for method in ("CLIP", "CCA anchor"):
        runs = own[own["method"] == method].sort_values("seed")["run"]
        sides.append(100 / 30 * hits["Flickr8k"][[places[run] for run in runs]])
    expected = [*paired_difference(*sides)]
    assert table.loc[0, ["difference", "low", "high"]].tolist() == pytest.approx(expected)
    rolled = hits | {"run": np.roll(hits["run"], 1)}
    with pytest.raises(ValueError, match="CCA anchor minus CLIP"):
        confirmation.photo_intervals(tests, own, rolled)


def test_hits_of_the_compared_runs_are_stored(tmp_path, monkeypatch):
    table = pd.DataFrame({"method": ["CLIP", "CIBR MINE", "other"], "run": ["a", "b", "c"]})
    monkeypatch.setattr(confirmation, "HITS", tmp_path / "hits.npz")
    monkeypatch.setattr(confirmation, "read_table", lambda name: table)
    monkeypatch.setattr("sys.argv", ["confirmation", str(tmp_path)])
    for i, run in enumerate(table["run"][:2]):
        for place in PHOTOS.values():
            save_ranks(tmp_path / run / f"{place}-retrieval.safetensors", [20 * i] * 10)
    confirmation.main()
    hits = np.load(tmp_path / "hits.npz")
    assert hits["run"].tolist() == ["a", "b"] and hits["coco-mini"].tolist() == [[30, 25], [15, 10]]


def test_the_committed_trials_are_equally_many():
    best = best_trials(read_table("confirmation_trials.csv"))
    assert best.groupby("condition")["n"].nunique().tolist() == [1, 1, 1]
