"""The tables as chapters read them: scores by name, the tuned control, paired differences, the
committed rows.
"""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cibr_book.tables import (
    CONTRASTS,
    HEADLINE,
    KEY,
    RESULTS,
    chosen,
    comparisons,
    contenders,
    control_of,
    differences,
    in_points,
    read_table,
    score_table,
    survivors,
)


@pytest.fixture
def rows():
    """Three seeds of CLIP at two temperatures, two of a penalty."""
    table = [("CLIP", "temperature 0.1", s, 30 + s, 50 + s) for s in (1, 2, 3)]
    table += [("CLIP", "temperature 0.2", s, 20, 90) for s in (1, 2, 3)]
    table += [("ours", "", s, 30, 53 + s**2) for s in (2, 3, 4)]
    names = ["method", "hyperparameters", "seed", "validation", "zero-shot"]
    return pd.DataFrame(table, columns=names).assign(condition="toys", beta=0.0)


def test_the_control_is_the_variant_that_is_best_on_validation(rows):
    assert control_of(rows)["hyperparameters"].unique() == ["temperature 0.1"]


def test_the_chosen_variant_of_each_method_is_best_on_validation_and_keeps_its_rows(rows):
    more = rows[rows["method"] == "ours"].assign(beta=0.1, validation=31)
    both = pd.concat([rows, more], ignore_index=True)
    found = chosen(both)
    assert found.index.isin(both.index).all() and found.groupby("method")["beta"].unique().map(list).to_dict() == {
        "CLIP": [0.0], "ours": [0.1]}  # fmt: skip
    assert len(found) == 6


def test_contenders_are_the_best_of_each_kind_on_validation():
    validation = {
        "CLIP": 99, "CLIP, other temperatures": 98, "CIBR anchor, other weights": 97, "consistency": 30,
        "noise only": 31, "CIBR vMF": 20, "CIBR crossfit, sampled": 21,
        "CIBR anchor, self-training": 40, "CIBR anchor": 10, "CIBR anchor + crops": 11,
    }  # fmt: skip
    table = pd.DataFrame({"method": validation.keys(), "validation": validation.values()})
    found = contenders(table.assign(condition="toys", beta=0.0, hyperparameters=""))
    assert found.set_index("kind")["method"].to_dict() == {
        "the residual penalty": "CIBR crossfit, sampled",
        "the anchor": "CIBR anchor + crops",
        "best other method": "noise only",
    }


def test_a_table_of_scores_has_means_and_half_widths_of_students_interval(rows):
    shares = chosen(rows).assign(share=lambda part: part["zero-shot"] / 100)
    found = score_table(shares, {"top 1": "share"})
    low, high = stats.ttest_1samp([51, 52, 53], 0).confidence_interval(0.95)
    assert found.loc["CLIP"].tolist() == [f"52.0 ± {(high - low) / 2:.1f}", 3]


def test_differences_pair_seeds_and_give_students_interval(rows):
    found = differences(rows, ["zero-shot"]).set_index("hyperparameters")
    assert len(found) == 2 and found.loc["temperature 0.2", "n_seeds"] == 3
    ours = found.loc[""]
    by_seed = [53 + 4 - 52, 53 + 9 - 53]  # seeds 2 and 3, which both have
    low, high = stats.ttest_1samp(by_seed, 0).confidence_interval(0.95)
    assert [ours["difference"], ours["low"], ours["high"]] == pytest.approx([7, low, high])
    assert (
        ours["control"] == 52.5
        and ours["value"] == 59.5
        and ours["significance"] == "not significant"
    )
    assert found.loc["temperature 0.2", "significance"] == "gain"
    text = in_points(differences(rows, ["zero-shot"]), KEY)["zero-shot"]
    assert text.iloc[0].endswith("*") and text.iloc[1].startswith("+7.00 [")


def test_differences_have_the_p_value_of_students_test_and_a_shorter_bootstrap_interval(rows):
    rows = pd.concat(
        [rows, rows[rows["method"] == "ours"].head(1).assign(seed=1, **{"zero-shot": 54.5})]
    )
    ours = differences(rows, ["zero-shot"]).set_index("hyperparameters").loc[""]
    by_seed = [57 - 52, 62 - 53, 54.5 - 51]
    assert ours["p_value"] == pytest.approx(stats.ttest_1samp(by_seed, 0).pvalue)
    assert (
        ours["low"] < min(by_seed) == ours["bootstrap_low"]
        and ours["bootstrap_high"] == max(by_seed) < ours["high"]
    )


def test_comparisons_are_with_clip_and_of_what_one_ingredient_adds_corrected_together(rows):
    with_both = rows.assign(
        method=rows["method"].replace("ours", CONTRASTS[0][0]), **dict.fromkeys(HEADLINE, 0.0)
    )
    control = with_both[with_both["method"] == "CLIP"].assign(method=CONTRASTS[0][1])
    both = pd.concat([with_both, control.head(3)], ignore_index=True)
    both[[*HEADLINE]] = np.random.default_rng(0).normal(size=(len(both), 3))
    found = comparisons(both)
    added = found[found["against"] != "CLIP"]
    assert added[["method", "against"]].drop_duplicates().to_numpy().tolist() == [
        list(CONTRASTS[0])
    ]
    expected = differences(both[both["method"].isin(CONTRASTS[0])], control=CONTRASTS[0][1])
    assert added["difference"].tolist() == expected["difference"].tolist() and len(found) == 3 * 4
    assert found["q_value"].tolist() == pytest.approx(
        stats.false_discovery_control(found["p_value"])
    )
    sure = found.assign(significance="gain", q_value=[0.01, *[0.5] * 11])
    texts = in_points(sure, ("method", "against", "hyperparameters")).stack()
    assert sorted(text.count("*") for text in texts) == [1] * 11 + [2]


def test_survivors_count_as_holm_and_benjamini_hochberg_do_by_hand():
    p = [0.001, 0.012, 0.025, 0.04, 0.2, float("nan")]  # Holm: x 5, 4, 3; BH: x 5/1, 5/2, 5/3, 5/4
    rows = pd.DataFrame({"p_value": p, "difference": [1, -1, 1, 1, 1, 1]})
    found = survivors(rows)
    assert found.loc["gain"].tolist() == [3, 1, 2] and found.loc["loss"].tolist() == [1, 1, 1]
    assert list(found) == ["one by one", "Holm", "Benjamini-Hochberg"]


def test_conditions_without_the_control_are_left_out(rows):
    alone = rows[rows["method"] == "ours"].assign(condition="alone")
    found = differences(pd.concat([rows, alone]), ["zero-shot"])
    assert set(found["condition"]) == {"toys"}


def test_every_committed_run_has_the_three_scores_of_one_suite():
    rows = read_table()
    assert rows[[*HEADLINE, "validation"]].notna().all(axis=None) and rows["run"].is_unique
    assert (rows.groupby([*KEY, "seed"]).size() == 1).all()
    assert not rows.filter(regex="^test|looks|arm$").columns.tolist()
    glyphs = rows["condition"].str.startswith("glyphs")
    assert (
        rows.loc[glyphs].filter(regex="_to_(image|text)_recall@").isna().all(axis=None)
    )  # by label, not by pair
    trials = read_table("ablation_trials.csv")
    assert trials["validation"].notna().all() and trials["zero-shot"].isna().all()


def test_the_mini_suite_agrees_with_the_rows_that_it_compares():
    suite, rows = pd.read_csv(RESULTS / "mini_suite.csv"), read_table()
    rows = chosen(
        rows[(rows["condition"] == "Flickr8k") & rows["method"].isin(["CLIP", "CIBR vMF"])]
    )
    rows = rows[rows["seed"].isin(rows.loc[rows["method"] == "CIBR vMF", "seed"])]
    means = rows.groupby("method").mean(numeric_only=True)
    n_compared = 0
    for row in suite.itertuples():
        if (column := f"{row.suite}/{row.dataset}/{row.metric}") in means:
            expected = means.loc[["CLIP", "CIBR vMF"], column].tolist()
            assert [row.a, row.b] == pytest.approx(expected, abs=2e-6)
            n_compared += 1
        assert (
            math.isclose(row.difference, row.b - row.a, abs_tol=2e-6)
            and row.low <= row.difference <= row.high
        )
    assert n_compared == 18


def test_the_archive_names_the_commit_of_every_retired_row():
    rows = pd.read_csv(RESULTS / "ablation_archive.csv", dtype={"run": str, "commit": str})
    assert (
        len(rows) > 208
        and rows["run"].is_unique
        and rows["commit"].str.match(r"[0-9a-f]{12}\+?$").all()
    )
    assert not set(rows["run"]) & set(read_table()["run"])
    assert rows["method"].isin(["CIBR prototypes", "CIBR Gaussian", "CIBR CLUB"]).sum() == 71
