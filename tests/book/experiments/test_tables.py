"""The tables as chapters read them: tuned methods, paired differences, and the committed rows."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cibr_book.experiments import tables
from cibr_book.experiments.tables import HEADLINE, KEY, RESULTS, chosen, differences, read_table

METHODS = ["CLIP", "CIBR vMF"]


@pytest.fixture
def rows():
    """Three seeds of CLIP at two temperatures, and three of a penalty, of which CLIP has two."""
    table = [("CLIP", "temperature 0.1", seed, 30 + seed, 50 + seed) for seed in (1, 2, 3)]
    table += [("CLIP", "temperature 0.2", seed, 20, 90) for seed in (1, 2, 3)]
    table += [("ours", "", seed, 30, 53 + seed**2) for seed in (2, 3, 4)]
    names = ["method", "hyperparameters", "seed", "validation", "zero-shot"]
    return pd.DataFrame(table, columns=names).assign(condition="toys", beta=0.0)


def test_the_settings_of_each_method_are_those_that_are_best_on_validation(rows):
    better = rows[rows["method"] == "ours"].assign(beta=0.1, validation=31)
    best = chosen(pd.concat([rows, better], ignore_index=True))
    assert best.index.tolist() == [0, 1, 2, 9, 10, 11]
    assert set(zip(best["method"], best["beta"], best["hyperparameters"], strict=True)) == {
        ("CLIP", 0.0, "temperature 0.1"),
        ("ours", 0.1, ""),
    }


def test_contenders_are_the_best_of_each_kind_on_validation():
    validation = {"CLIP": 99, "CLIP, in both styles": 98, "consistency": 30, "noise only": 31}
    validation |= {"CIBR vMF": 20, "CIBR crossfit, sampled": 21}
    validation |= {"CCA anchor": 10, "CLIP, CCA start": 11}
    table = pd.DataFrame({"method": validation.keys(), "validation": validation.values()})
    best = tables.contenders(table.assign(condition="toys", beta=0.0, hyperparameters=""))
    assert best[["kind", "method", "against"]].values.tolist() == [
        ["the residual penalty", "CIBR crossfit, sampled", "CLIP"],
        ["the CCA start", "CLIP, CCA start", "CLIP"],
        ["the anchor, over the CCA start", "CCA anchor", "CLIP, CCA start"],
        ["best other control", "CLIP, in both styles", "CLIP"],
    ]


def test_a_table_of_scores_has_means_and_half_widths_of_students_interval(rows):
    shares = chosen(rows).assign(share=lambda part: part["zero-shot"] / 100)
    table = tables.score_table(
        pd.concat([shares, shares.tail(1).assign(method="one")]), {"top 1": "share"}
    )
    low, high = stats.ttest_1samp([51, 52, 53], 0).confidence_interval(0.95)
    assert table.loc["CLIP"].tolist() == [f"52.0 ± {(high - low) / 2:.1f}", 3]
    assert table.loc["one"].tolist() == ["69.0", 1]


def test_differences_pair_seeds_and_give_students_interval_and_test(rows):
    first = rows[rows["method"] == "ours"].head(1).assign(seed=1, **{"zero-shot": 54.5})
    alone = first.assign(condition="without CLIP")
    table = differences(pd.concat([rows, first, alone]), ["zero-shot"])
    assert len(table) == 2 and set(table["condition"]) == {"toys"}
    table = table.set_index("hyperparameters")
    by_seed = [54.5 - 51, 57 - 52, 62 - 53]  # CLIP has no seed 4
    test = stats.ttest_1samp(by_seed, 0)
    ours = table.loc[""]
    names = ["control", "value", "difference", "low", "high", "n_seeds", "p_value"]
    expected = [52, (54.5 + 57 + 62) / 3, np.mean(by_seed), *test.confidence_interval(0.95), 3]
    assert ours[names].tolist() == pytest.approx([*expected, test.pvalue])
    assert ours["significance"] == "not significant"
    assert table.loc["temperature 0.2", "significance"] == "gain"
    losses = differences(rows.assign(**{"zero-shot": -rows["zero-shot"]}), ["zero-shot"])
    assert losses.set_index("hyperparameters").loc["temperature 0.2", "significance"] == "loss"


def test_comparisons_are_with_clip_and_of_what_one_ingredient_adds_corrected_together(rows):
    method, control = tables.CONTRASTS[0]
    pair = rows.assign(method=rows["method"].replace("ours", method))
    controls = pair[pair["method"] == "CLIP"].head(3).assign(method=control)
    pair = pd.concat([pair, controls], ignore_index=True)
    pair[[*HEADLINE]] = np.random.default_rng(0).normal(size=(len(pair), 2))
    table = tables.comparisons(pair)
    added = table[table["against"] != "CLIP"]
    assert set(added["method"]) == {method} and set(added["against"]) == {control}
    expected = differences(pair[pair["method"].isin([method, control])], control=control)
    assert added["difference"].tolist() == expected["difference"].tolist() and len(table) == 2 * 4
    q_values = stats.false_discovery_control(table["p_value"])
    assert table["q_value"].tolist() == pytest.approx(q_values)
    sure = table.assign(significance="gain", q_value=[0.01, *[0.5] * 7])
    texts = tables.in_points(sure, ("method", "against", "hyperparameters")).stack()
    assert sorted(text.count("*") for text in texts) == [1] * 7 + [2]


def test_a_difference_as_text_has_two_decimals_and_a_star_where_zero_is_outside(rows):
    table = tables.in_points(differences(rows, ["zero-shot"]), KEY)["zero-shot"]
    assert table.iloc[0] == "+38.00 [+35.52, +40.48] *" and not table.iloc[1].endswith("*")


def test_survivors_count_as_holm_and_benjamini_hochberg_do_by_hand():
    p = [0.001, 0.012, 0.025, 0.04, 0.2, float("nan")]  # Holm: x 5, 4, 3; BH: x 5/1, 5/2, 5/3, 5/4
    table = tables.survivors(pd.DataFrame({"p_value": p, "difference": [1, -1, 1, 1, 1, 1]}))
    assert list(table) == ["one by one", "Holm", "Benjamini-Hochberg"]
    assert table.loc["gain"].tolist() == [3, 1, 2] and table.loc["loss"].tolist() == [1, 1, 1]


def test_every_committed_run_has_the_scores_of_one_suite_and_its_own_settings():
    rows = read_table()
    assert rows[[*HEADLINE, "validation"]].notna().all(axis=None) and rows["run"].is_unique
    assert (rows.groupby([*KEY, "seed"]).size() == 1).all()
    assert not rows["hyperparameters"].str.contains("beta|seed|dataset|corruption").any()
    of_glyphs = rows[rows["condition"].str.startswith("glyphs")]  # by label, not by pair
    assert of_glyphs.filter(regex="_to_(image|text)_recall@").isna().all(axis=None)
    trials = read_table("ablation_trials.csv")
    assert trials["validation"].notna().all() and trials["zero-shot"].isna().all()


def test_the_mini_suite_agrees_with_the_rows_that_it_compares():
    rows = read_table()
    rows = chosen(rows[(rows["condition"] == "Flickr8k") & rows["method"].isin(METHODS)])
    rows = rows[rows["seed"].isin(rows.loc[rows["method"] == "CIBR vMF", "seed"])]
    means = rows.groupby("method").mean(numeric_only=True).loc[METHODS]
    suite = pd.read_csv(RESULTS / "mini_suite.csv")
    n_compared = 0
    for row in suite.itertuples():
        if (column := f"{row.suite}/{row.dataset}/{row.metric}") in means:
            assert [row.a, row.b] == pytest.approx(means[column].tolist(), abs=2e-6)
            n_compared += 1
        assert row.difference == pytest.approx(row.b - row.a, abs=2e-6)
        assert row.low <= row.difference <= row.high
    assert n_compared == 18
