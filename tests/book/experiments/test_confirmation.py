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
    table[["hyperparameters", "validation"]] = "", 0.0
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
    recalls = [f"{side}_recall@{k}" for side in SIDES for k in (1, 5, 10)]
    columns = [f"{task}/{recall}" for task in PHOTOS.values() for recall in recalls]
    columns += [f"validation_{recall}" for recall in recalls]
    columns += [f"{task}/accuracy@1" for task in TASKS]
    columns += [f"mini/pacs-{name.split()[-1]}/accuracy@1" for name in PACS]
    columns += [f"shift/{name}-{k}/recall" for name in SHIFTS for k in (1, 2, 3)]
    values = np.random.default_rng(0).random(len(columns))
    table = pd.DataFrame([values], columns=columns).assign(condition="Flickr8k", run="a")
    patterns = {
        "recall on coco-mini": "^confirmation/coco-mini/.*recall",
        VALIDATION: "^validation",
        "text to image, Flickr8k": "^mini/flickr8k/text_to",
        "image to text, coco-mini": "^confirmation/coco-mini/image_to",
        "text to image R@1, coco-mini": "^confirmation/coco-mini/text_to_image_recall@1$",
        "accuracy on dtd10": "mini/dtd10/",
        "zero-shot accuracy": "^(?!mini/pacs-).*/accuracy@1",
        "accuracy on the new sets": "^confirmation/.*/accuracy@1",
        PACS[-1]: "pacs-sketch",
        KINDS[0]: "shift/noise",
        STRENGTHS[3]: "shift/.*-3/",
    }
    measured = with_measures(table).loc[0]
    for name, pattern in patterns.items():
        own = 100 * table.filter(regex=pattern).loc[0].mean()
        assert measured[name] == pytest.approx(own), name
    with pytest.raises(KeyError, match="mini/flickr8k/text_to_image_recall@5"):
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


# Points that are added to a method's recalls on both sets of photos, and the verdict on its claims.
VERDICTS = [
    ("CCA anchor", (-1, -1), "contradicted"),
    ("CCA anchor", (1, -1), "undecided"),
    ("CIBR MINE", (0.7, 0.7), "contradicted"),
    ("CIBR MINE", (-0.7, -0.7), "contradicted"),
    ("CIBR MINE", (-0.3, -0.3), "holds"),
    ("CIBR MINE", (0, 1), "undecided"),
]


@pytest.mark.parametrize(("method", "points", "verdict"), VERDICTS)
def test_a_claim_needs_both_sets_of_photos_and_is_contradicted_by_both(
    rows, method, points, verdict
):
    for recall, shift in zip(RECALLS, points, strict=True):
        add(rows, method, recall, shift)
    found = verdicts(outcome(rows))
    assert {own for (_, name), own in found.items() if name == method} == {verdict}


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
    claims = tests.groupby(confirmation.CLAIM).agg({"p_value": "max", "holm": "first"})
    claims = claims.sort_values("p_value")
    by_hand = (claims["p_value"] * np.arange(12, 0, -1)).cummax().clip(upper=1)
    assert claims["holm"].tolist() == pytest.approx(by_hand.tolist())


def test_other_seeds_than_the_plans_are_refused(rows):
    with pytest.raises(ValueError, match="'CCA anchor' has the seeds"):
        outcome(rows[(rows["method"] != "CCA anchor") | (rows["seed"] < 215)])


def test_a_gain_below_a_point_is_a_claim_that_rows_can_support_and_contradict(rows):
    add(rows, "CIBR crossfit", ACCURACIES[0], 20)
    add(rows, "CIBR vMF", ACCURACIES, 0.5)
    add(rows, "CCA anchor", ACCURACIES, 1.5)
    odd = (rows["seed"] % 2 == 1) & (rows["method"] == "CIBR MINE")
    rows.loc[odd, ACCURACIES[3]] += 25
    rows["accuracy on the new sets"] = rows[ACCURACIES[-4:]].mean(axis=1)
    tests = zero_shot_tests(rows)
    assert len(tests) == 18 and set(tests["method"]) == set(METHODS[1:])
    few = tests[tests["condition"] == FEW_OR_WRONG[0]].set_index("method")
    expected = {
        "CIBR crossfit": ["contradicted", True, False],
        "CIBR vMF": ["holds", True, True],
        "CCA anchor": ["contradicted", True, True],
        "CIBR MINE": ["undecided", True, False],
        "closed-form CCA": ["holds", False, False],
    }
    found = few.loc[list(expected), ["verdict", "over_seeds", "over_sets"]].T
    assert found.to_dict("list") == expected
    own = rows[rows["condition"] == FEW_OR_WRONG[0]]
    gaps = confirmation.paired(own, "CIBR vMF", "CLIP", ACCURACIES)
    p_value = stats.ttest_1samp(gaps.mean(axis=1), 1, alternative="less").pvalue
    smaller = (tests["holm"] < few.loc["CIBR vMF", "holm"]).sum()
    assert few.loc["CIBR vMF", "holm"] == pytest.approx((18 - smaller) * p_value)
    table = confirmation.zero_shot_table(rows).loc["10 % of the pairs"]
    assert table["eleven sets"].str.endswith(" *").to_dict() == few["over_seeds"].to_dict()
    new = gaps[ACCURACIES[-4:]].mean(axis=1)
    low, high = stats.ttest_1samp(new, 0).confidence_interval()
    text = f"{new.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
    assert table.loc["CIBR vMF", "four new sets"] == text


@pytest.mark.parametrize(("seeds", "sets"), [(0.7, 0.0), (0.0, 0.5)])
def test_gains_of_any_size_are_corrected_over_the_claims(rows, seeds, sets):
    one = (rows["method"] == "CIBR MINE") & (rows["condition"] == "Flickr8k")
    gaps = 0.4 + seeds * np.where(np.arange(16) % 2, 1, -1)[:, None]
    rows.loc[one, ACCURACIES] += gaps + sets * np.where(np.arange(11) % 2, 1, -1)
    test = zero_shot_tests(rows).set_index(["condition", "method"]).loc["Flickr8k", "CIBR MINE"]
    own = rows[rows["condition"] == "Flickr8k"]
    found = confirmation.paired(own, "CIBR MINE", "CLIP", ACCURACIES)
    means = found.mean(axis=1) if seeds else found.mean(axis=0)
    alone = stats.ttest_1samp(means, 0, alternative="greater").pvalue
    assert test["over_seeds"] == (seeds == 0) and test["over_sets"] == (sets == 0)
    assert 0.001 < alone < 0.05


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
    trials = trials_of({"CLIP": 9})
    best = best_trials(trials).iloc[0]
    assert best[["n", "validation", "ends"]].tolist() == [3, 9, ""]
    trials["validation"] = [1, 2, 3]
    assert best_trials(trials)["ends"].tolist() == ["learning_rate, repeats"]
    values = {"CIBR MINE": 9, "CIBR vMF": 1, "CIBR crossfit": 3, "CIBR vMF, sampled": 2}
    assert confirmation.best_forms(trials_of(values)) == {"few": "CIBR crossfit"}
    best = best_trials(read_table("confirmation_trials.csv"))
    assert best.groupby("condition")["n"].nunique().tolist() == [1, 1, 1]


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


def test_an_interval_over_photos_has_the_difference_of_the_rows_and_is_wider(rows):
    random = np.random.default_rng(0)
    own = rows[rows["condition"] == FEW_OR_WRONG[0]].copy()
    hits = {"run": own["run"].to_numpy()[::-1]}
    for name, n in (("Flickr8k", 40), ("coco-mini", 30)):
        gain = (own["method"] == "CCA anchor").to_numpy()[::-1, None] * random.integers(0, 9, n)
        hits[name] = random.integers(0, 20, (len(own), n)) + gain
        own[f"recall on {name}"] = 100 / 30 * hits[name].mean(axis=1)[::-1]
    claim = {"hypothesis": "H1", "condition": FEW_OR_WRONG[0]}
    claim |= {"method": "CCA anchor", "control": "CLIP"}
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
            # The photos' ranks are 0 and 1; the captions' of the first 3, 2, 1, 0 and 0 hits.
            ranks = [0, 1, 5, 10, 99] + [20 * i] * 5
            save_ranks(tmp_path / run / f"{place}-retrieval.safetensors", ranks)
    confirmation._main()
    hits = np.load(tmp_path / "hits.npz")
    assert hits["run"].tolist() == ["a", "b"]
    assert hits["coco-mini"].tolist() == [[15 + 6, 10 + 15], [15 + 6, 10]]
