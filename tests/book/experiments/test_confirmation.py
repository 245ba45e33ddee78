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
    FEW_OR_WRONG,
    PHOTOS,
    SETS,
    best_trials,
    beta_figure,
    hypothesis_tests,
    shift_figure,
    with_measures,
    zero_shot_tests,
)
from cibr_book.experiments.shifts import SHIFTS
from cibr_book.experiments.tables import read_table

CONDITIONS = [*FEW_OR_WRONG, "Flickr8k"]
METHODS = ["CLIP", "CLIP, CCA start", "closed-form CCA", "CCA anchor", "CIBR MINE", "CIBR vMF"]
METHODS += ["CIBR crossfit"]
SIDES = ("image_to_text", "text_to_image")
COLUMNS = [
    f"{task}/{side}_recall@{k}" for task in PHOTOS.values() for side in SIDES for k in (1, 5, 10)
]
ACCURACIES = [f"{suite}/{name}/accuracy@1" for suite in SETS for name in SETS[suite].split()]
OTHERS = [f"shift/{name}-{k}/recall" for name in SHIFTS for k in (1, 2, 3)]
OTHERS += [f"mini/pacs-{style}/accuracy@1" for style in confirmation.STYLES_OF_PACS]
ON_VALIDATION = [f"validation_{side}_recall@{k}" for side in SIDES for k in (1, 5, 10)]
OTHERS += ON_VALIDATION


@pytest.fixture
def rows():
    random = np.random.default_rng(0)
    runs = [(c, m, seed) for c in CONDITIONS for m in METHODS for seed in confirmation.SEEDS]
    runs += [("Flickr8k", "CIBR vMF over beta", seed) for seed in (200, 201, 200, 201)]
    table = pd.DataFrame(runs, columns=["condition", "method", "seed"])
    table["run"] = [f"{i:012x}" for i in range(len(table))]
    table["beta"] = table["method"].str.startswith("CIBR").map({True: 0.1, False: 0.0})
    shared = random.normal(0, 0.05, (len(table), 1)) + 0.3
    values = shared + random.normal(0, 0.001, (len(table), len(COLUMNS + ACCURACIES)))
    seeds = 0.02 * np.sin(table["seed"].to_numpy())[:, None]
    scores = pd.DataFrame(values - shared + 0.3 + seeds, columns=COLUMNS + ACCURACIES)
    for i, name in enumerate(OTHERS):
        scores[name] = scores[COLUMNS[0]] - 0.01 * i
    return pd.concat([table, scores], axis=1)


def add(rows, method, columns, points):
    rows.loc[rows["method"] == method, columns] += points / 100


def outcome(rows):
    forms = dict.fromkeys(CONDITIONS, "CIBR vMF") | {"Flickr8k": "CIBR crossfit"}
    return hypothesis_tests(with_measures(rows), forms)


def counts(tests, *names):
    return tests.groupby([*names, "verdict"]).size().to_dict()


def test_measures_are_means_in_points(rows):
    measured = with_measures(rows)
    assert measured["recall on Flickr8k"][5] == pytest.approx(
        100 * rows.loc[5, [name for name in COLUMNS if name.startswith("mini")]].mean()
    )
    assert measured[confirmation.VALIDATION][5] == pytest.approx(
        100 * rows.loc[5, ON_VALIDATION].mean()
    )
    assert len(confirmation.ACCURACIES) == 11
    assert measured["zero-shot accuracy"][7] == pytest.approx(100 * rows.loc[7, ACCURACIES].mean())
    assert measured["accuracy on dtd10"][7] == 100 * rows["mini/dtd10/accuracy@1"][7]
    assert measured["accuracy on PACS, sketch"][7] == 100 * rows["mini/pacs-sketch/accuracy@1"][7]
    new = rows.loc[7, ACCURACIES[-4:]]
    assert measured["accuracy on the new sets"][7] == pytest.approx(100 * new.mean())
    assert measured["condition"].unique().tolist() == [*confirmation.IN_WORDS]
    with pytest.raises(ValueError, match="recall on Flickr8k has 5 columns and needs 6"):
        with_measures(rows.drop(columns=COLUMNS[0]))
    noise = rows.loc[9, [f"shift/noise-{k}/recall" for k in (1, 2, 3)]]
    assert measured["recall under noise"][9] == pytest.approx(100 * noise.mean())
    third = rows.loc[9, [f"shift/{name}-3/recall" for name in SHIFTS]]
    assert measured["recall at strength 3"][9] == pytest.approx(100 * third.mean())


def test_a_run_that_diverged_scores_zero_and_one_without_a_score_is_refused(rows):
    scores = [*COLUMNS, *ACCURACIES, *OTHERS]
    rows["error"] = None
    rows.loc[3, scores] = np.nan
    with pytest.raises(ValueError, match="runs 000000000003 lack scores: execute them again"):
        with_measures(rows)
    rows.loc[3, "error"] = "the loss is not finite"
    measured = with_measures(rows)
    assert (measured.loc[3, [*confirmation.RECALLS, "zero-shot accuracy"]] == 0).all()
    rows.loc[4, COLUMNS[0]] = np.nan  # one recall of six
    with pytest.raises(ValueError, match="runs 000000000004 lack"):
        with_measures(rows)


def test_a_planted_gain_is_found_and_nothing_else(rows):
    add(rows, "CCA anchor", COLUMNS, 1)
    tests = outcome(rows)
    assert counts(tests, "hypothesis") == {
        ("H1", "holds"): 4,
        ("H2", "holds"): 8,
        ("H3", "holds"): 12,
    }
    assert tests.loc[tests["hypothesis"] == "H1", "difference"].between(0.9, 1.1).all()
    assert tests.loc[tests["hypothesis"] == "H3", "difference"].abs().max() < 0.1


def test_a_loss_contradicts_a_gain_and_a_difference_beyond_the_margin_equality(rows):
    add(rows, "CCA anchor", COLUMNS, -1)
    add(rows, "CIBR vMF", COLUMNS, 0.6)
    add(rows, "CIBR crossfit", COLUMNS, -0.6)
    add(rows, "CIBR MINE", COLUMNS, -0.3)
    tests = outcome(rows)
    beyond = tests["method"].isin(["CIBR vMF", "CIBR crossfit"])
    assert (tests.loc[beyond, "p_value"] > 0.5).all()
    verdicts = tests.groupby(["hypothesis", "method"])["verdict"].unique().explode()
    assert verdicts.to_dict() == {
        ("H1", "CCA anchor"): "contradicted",
        ("H2", "CCA anchor"): "contradicted",
        ("H3", "CIBR MINE"): "holds",
        ("H3", "CIBR crossfit"): "contradicted",
        ("H3", "CIBR vMF"): "contradicted",
    }


def test_what_the_intervals_leave_open_is_undecided(rows):
    assert counts(outcome(rows), "hypothesis")[("H1", "undecided")] == 4
    on_coco = [name for name in COLUMNS if "coco" in name]
    add(rows, "CCA anchor", COLUMNS, 1)
    add(rows, "CCA anchor", on_coco, -2)
    is_odd = (rows["method"] == "CIBR MINE") & (rows["seed"] % 2 == 1)
    rows.loc[is_odd, COLUMNS] += 0.009
    tests = outcome(rows)
    mine = tests[tests["method"] == "CIBR MINE"]
    assert mine["high"].min() > 0.5 > mine["low"].max()
    undecided = tests[tests["verdict"] == "undecided"]
    assert set(undecided["method"]) == {"CCA anchor", "CIBR MINE"} and len(undecided) == 18


def test_a_claim_needs_both_sets_of_photos_and_its_p_value_is_the_larger(rows):
    add(rows, "CCA anchor", COLUMNS, 1)
    on_coco = [name for name in COLUMNS if "coco" in name]
    add(rows, "CIBR MINE", on_coco, 1)
    tests = outcome(rows)
    table = confirmation.verdict_table(tests, tests.assign(low=-7.0, high=7.0)).reset_index()
    assert table.groupby("hypothesis").size().to_dict() == {"H1": 2, "H2": 4, "H3": 6}
    is_mine = table["method"] == "CIBR MINE"
    assert set(table.loc[~is_mine, "verdict"]) == {"holds"}
    assert set(table.loc[is_mine, "verdict"]) == {"undecided"}
    row, test = table[is_mine].iloc[0], tests[tests["method"] == "CIBR MINE"].iloc[1]
    text = f"{test['difference']:+.2f} [{test['low']:+.2f}, {test['high']:+.2f}]"
    assert row["coco-mini"] == text and row["coco-mini, photos too"] == "[-7.00, +7.00]"
    assert row["beta"] == 0.1 and table.loc[0, "p, Holm"] == "< 0.001"
    forms = table[table["method"].isin(["CIBR vMF", "CIBR crossfit"])]
    assert dict(zip(forms["condition"], forms["method"], strict=True)) == {
        "10 % of the pairs": "CIBR vMF",
        "wrong captions": "CIBR vMF",
        "all pairs": "CIBR crossfit",
    }
    assert table["condition"].unique().tolist() == [*confirmation.IN_WORDS.values()]


def test_p_values_are_those_of_the_plan_and_corrected_over_the_claims(rows):
    tests = outcome(rows)
    own = with_measures(rows[rows["condition"] == FEW_OR_WRONG[0]])
    sides = own.pivot(index="seed", columns="method", values="recall on coco-mini")
    gaps = sides["CCA anchor"] - sides["CLIP, CCA start"]
    row = tests[(tests["hypothesis"] == "H2") & (tests["condition"] == FEW_OR_WRONG[0])].iloc[1]
    test = stats.ttest_rel(sides["CCA anchor"], sides["CLIP, CCA start"])
    assert row["measure"] == "recall on coco-mini"
    assert row["p_value"] == pytest.approx(test.pvalue)
    assert row["difference"] == pytest.approx(gaps.mean())
    assert row[["low", "high"]].tolist() == pytest.approx([*test.confidence_interval()])
    claims = tests.groupby(confirmation.CLAIM, sort=False).agg({"p_value": "max", "holm": "first"})
    p = claims["p_value"].to_numpy()
    expected, highest = np.empty(len(p)), 0.0
    for rank, i in enumerate(np.argsort(p)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        expected[i] = highest
    assert len(p) == 12
    np.testing.assert_allclose(claims["holm"], expected)


def test_no_gain_of_a_point_is_a_claim_that_rows_can_support_and_contradict(rows):
    add(rows, "CIBR crossfit", ACCURACIES[0], 20)
    add(rows, "CIBR vMF", ACCURACIES, 0.5)
    add(rows, "CCA anchor", ACCURACIES, 1.5)
    rows.loc[rows["seed"] % 2 == 0, ACCURACIES[3]] += 0.25 * (rows["method"] == "CIBR MINE")
    tests = zero_shot_tests(with_measures(rows))
    assert len(tests) == 18
    vmf = rows.query("method == 'CIBR vMF' and condition == 'Flickr8k'")[ACCURACIES].to_numpy()
    clip = rows.query("method == 'CLIP' and condition == 'Flickr8k'")[ACCURACIES].to_numpy()
    p_value = stats.ttest_1samp(100 * (vmf - clip).mean(1), 1, alternative="less").pvalue
    row = tests.query("method == 'CIBR vMF' and condition == 'Flickr8k'").iloc[0]
    smaller = (tests["holm"] < row["holm"]).sum()
    np.testing.assert_allclose(row["holm"], (18 - smaller) * p_value, rtol=1e-6)
    few = tests[tests["condition"] == FEW_OR_WRONG[0]].set_index("method")
    expected = {"CIBR crossfit": "contradicted", "CIBR vMF": "holds", "CCA anchor": "contradicted"}
    expected |= {"CIBR MINE": "undecided", "closed-form CCA": "holds"}
    assert few.loc[list(expected), "verdict"].to_dict() == expected
    assert few.loc["CIBR vMF", ["over_seeds", "over_sets"]].tolist() == [True, True]
    assert few.loc["CIBR crossfit", ["over_seeds", "over_sets"]].tolist() == [True, False]
    assert few.loc["closed-form CCA", ["over_seeds", "over_sets"]].tolist() == [False, False]
    assert few.loc["CIBR crossfit", "low"] > 1 and few.loc["CIBR crossfit", "sets_low"] < 0


def test_the_table_of_zero_shot_gains_has_a_star_where_a_gain_is_found(rows):
    add(rows, "CIBR crossfit", ACCURACIES[0], 20)
    add(rows, "CCA anchor", ACCURACIES, 1.5)
    add(rows, "CIBR vMF", ACCURACIES, -2)
    table = confirmation.zero_shot_table(with_measures(rows))
    few = table.loc["10 % of the pairs"]
    starred = few[["eleven sets", "over sets"]].apply(lambda column: column.str.endswith(" *"))
    assert few.loc["CCA anchor", "eleven sets"].startswith(("+1.5", "+1.4"))
    assert starred.loc["CCA anchor"].tolist() == [True, True]
    assert starred.loc["CIBR crossfit"].tolist() == [True, False]
    assert not starred.loc["CIBR vMF"].any()  # a loss is no gain
    assert few.loc["CIBR vMF", "four new sets"].startswith(("-2.0", "-1.9"))
    assert few.loc["CCA anchor", "gains less than a point"] == "contradicted"
    assert few.loc[["CCA anchor", "CIBR vMF"], "p, Holm"].tolist() == ["1.000", "< 0.001"]


def test_gains_over_seeds_and_sets_are_corrected(rows):
    one = (rows["method"] == "CIBR MINE") & (rows["condition"] == "Flickr8k")
    gaps = 0.4 + np.where(np.arange(16) % 2, 0.7, -0.7)  # p = 0.02 one-sided, alone
    rows.loc[one, ACCURACIES] += gaps[:, None] / 100
    measured = with_measures(rows)
    test = zero_shot_tests(measured).set_index(["condition", "method"]).loc["Flickr8k", "CIBR MINE"]
    own = measured[measured["condition"] == "Flickr8k"]
    seeds = confirmation.paired(own, "CIBR MINE", "CLIP", confirmation.ACCURACIES).mean(axis=1)
    assert 0.001 < stats.ttest_1samp(seeds, 0, alternative="greater").pvalue < 0.05
    assert not test["over_seeds"] and test["over_sets"]


def test_other_seeds_than_the_plans_are_refused(rows):
    with pytest.raises(ValueError, match="'CCA anchor' has the seeds .*: execute"):
        outcome(rows[(rows["method"] != "CCA anchor") | (rows["seed"] < 215)])
    with pytest.raises(ValueError, match="'CCA anchor' has the seeds"):
        outcome(rows[rows["seed"] < 215])


def test_the_best_form_of_the_penalty_is_the_one_with_the_best_trial():
    setting = json.dumps({"beta": 0.1})
    values = {"CIBR MINE": 9, "CIBR vMF": 1, "CIBR crossfit": 3, "CIBR vMF, sampled": 2}
    trials = pd.DataFrame(
        [
            {"condition": "few", "method": method, "validation": value, "configuration": setting}
            for method, value in values.items()
        ]
    )
    assert confirmation.best_forms(trials) == {"few": "CIBR crossfit"}


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
    curve = few[is_best & (few["seed"] < 208)]
    varied = [curve.assign(method="CIBR vMF over beta", beta=beta) for beta in (1.0, 0.01)]
    varied[0][COLUMNS] -= 0.03
    few.loc[is_best, "beta"] = 0.1
    few = with_measures(pd.concat([few, *varied], ignore_index=True)).assign(validation=0.0)
    others_seeds = (few["method"] == "CIBR vMF") & (few["seed"] > 207)
    few.loc[others_seeds, "recall on Flickr8k"] += 50
    other = few.assign(hyperparameters=few["hyperparameters"].mask(few["beta"] == 0.1, "rate 1"))
    line = beta_figure(other, {})[0].lines[1]
    np.testing.assert_allclose(line.get_xydata(), [[0.01, 0], [1, -3]], atol=0.15)
    left, right = beta_figure(few, {"CCA anchor": "anchor", "CLIP, CCA start": "CCA start"})
    line = left.lines[1]
    np.testing.assert_allclose(line.get_xydata(), [[0.01, 0], [0.1, 0], [1, -3]], atol=0.15)
    places = [line.get_ydata()[0] for line in right.lines[1:]]
    np.testing.assert_allclose(places, [2, 0], atol=0.15)
    assert [label.get_text() for label in right.get_xticklabels()] == ["anchor", "CCA\nstart"]


def save_ranks(file, n, ranks_of_texts):
    """Ranks of n photos with five captions each, the photos' own from 0 upwards."""
    of_text = np.repeat(np.arange(n), 5)
    items = {"image_ranks": np.arange(n), "text_ranks": ranks_of_texts, "text_units": of_text}
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.tensor(values) for name, values in items.items()}
    save_file(tensors, file, {"kind": "retrieval", "asked": "", "identity": ""})


def test_hits_of_a_photo_count_its_query_five_times_and_each_caption_once(tmp_path):
    file = tmp_path / "ranks.safetensors"
    save_ranks(file, 3, np.array([0, 1, 5, 10, 99] + [0] * 5 + [10] * 5))
    # The photos' ranks are 0, 1 and 2: 3, 2 and 2 hits; the captions' of the first 3, 2, 1, 0, 0.
    hits = confirmation.photo_hits(file)
    assert hits.tolist() == [15 + 6, 10 + 15, 10]
    recalls = [np.mean(np.array(k) > [0, 1, 5, 10, 99] + [0] * 5 + [10] * 5) for k in (1, 5, 10)]
    assert hits.mean() / 30 == pytest.approx(np.mean([1 / 3, 1, 1, *recalls]))
    save_file(
        {
            "image_ranks": torch.zeros(1),
            "text_ranks": torch.zeros(2),
            "text_units": torch.zeros(2).int(),
        },
        file,
        {"kind": "retrieval", "asked": ""},
    )
    with pytest.raises(ValueError, match="other than five captions"):
        confirmation.photo_hits(file)


def test_an_interval_over_photos_has_the_difference_of_the_rows_and_is_wider(rows, tmp_path):
    random = np.random.default_rng(0)
    n = {"mini/flickr8k": 40, "confirmation/coco-mini": 30}
    two = ["CLIP", "CCA anchor"]
    rows = rows[rows["method"].isin(two) & (rows["condition"] == FEW_OR_WRONG[0])].copy()
    for name, size in n.items():
        easy = random.integers(0, 12, (size, 5))
        for i, row in rows.iterrows():
            gain = easy[:, :1] % 4 * (row["method"] == two[1])
            ranks = np.maximum(easy - gain + random.integers(0, 2, easy.shape), 0).ravel()
            save_ranks(tmp_path / row["run"] / f"{name}-retrieval.safetensors", size, ranks)
            for side, own in zip(SIDES, (np.arange(size), ranks), strict=True):
                for k in (1, 5, 10):
                    rows.loc[i, f"{name}/{side}_recall@{k}"] = (own < k).mean()
    measured = with_measures(rows)
    claim = dict(zip(confirmation.CLAIM, ["H1", FEW_OR_WRONG[0], *two[::-1]], strict=True))
    gaps = confirmation.paired(measured, *two[::-1], confirmation.RECALLS)
    tests = pd.DataFrame([claim | {"measure": m, "difference": gaps[m].mean()} for m in gaps])
    hits = confirmation.collect_hits(sorted(rows["run"], reverse=True), tmp_path)
    table = confirmation.photo_intervals(tests, rows, hits)
    np.testing.assert_allclose(table["difference"], gaps.mean())
    over_seeds = stats.t.interval(0.95, 15, gaps.mean(), gaps.sem())
    assert (table["low"] < over_seeds[0]).all() and (table["high"] > over_seeds[1]).all()
    sides = []
    for method in two:
        own = rows[rows["method"] == method].sort_values("seed")["run"]
        files = [tmp_path / run / "mini/flickr8k-retrieval.safetensors" for run in own]
        sides.append([np.stack([confirmation.photo_hits(file) for file in files]) / 0.3])
    expected = [*paired_difference(*sides).values()]
    assert table.loc[0, ["difference", "low", "high"]].tolist() == pytest.approx(expected)
    rolled = hits | {"run": np.roll(hits["run"], 1)}
    with pytest.raises(ValueError, match="CCA anchor minus CLIP .* in the rows, .* in the hits"):
        confirmation.photo_intervals(tests, rows, rolled)


def test_hits_are_added_to_those_stored(rows, tmp_path, monkeypatch, capsys):
    assert {"CLIP", "CIBR vMF", *METHODS} <= {*confirmation.COMPARED}
    rows = rows.iloc[[0, 100, 200, -1]]  # of CLIP, closed-form CCA, MINE; the last is of a curve
    assert rows["method"].nunique() == 4 and rows["method"].iloc[3] == "CIBR vMF over beta"
    stored = tmp_path / "hits.npz"
    monkeypatch.setattr(confirmation, "HITS", stored)
    monkeypatch.setattr(confirmation, "read_table", lambda name: rows)
    monkeypatch.setattr("sys.argv", ["confirmation", str(tmp_path)])
    for i, run in enumerate(rows["run"][:2]):
        for place in PHOTOS.values():
            save_ranks(tmp_path / run / f"{place}-retrieval.safetensors", 2, np.full(10, 20 * i))
        confirmation.main()
        hits = np.load(stored)
        assert hits["run"].tolist() == rows["run"][: i + 1].tolist()
        assert hits["coco-mini"][:, 1].tolist() == [25, 10][: i + 1]
    assert capsys.readouterr().out.endswith(": 1 new runs; 1 of the 3 runs have none\n")


def test_the_committed_trials_vary_what_self_training_adds():
    best = best_trials(read_table("confirmation_trials.csv")).set_index("method")
    own = best.loc["CLIP, self-training"]
    assert own["repeats"] == 10 and "repeats" not in own["ends"]
    assert best["n"].isin([32, 36]).all() and best["repeats"].notna().sum() == 1
