"""What the ablation's chapter says is computed from its tables, and follows them."""

import numpy as np
import pandas as pd
import pytest
from fake_ablation import add_run, four_arms, settings_of

from cibr.sweep import read_arms
from cibr.sweep.comparison import HEADLINE
from cibr.sweep.findings import (
    chosen,
    count_verdicts,
    evidence,
    interval_text,
    recommend,
    relation_text,
    side_by_side,
)

UP, NONE, DOWN = (0.01, 0.02, "above 0"), (-0.01, 0.01, "around 0"), (-0.02, -0.01, "below 0")


@pytest.fixture
def arms(tmp_path):
    return four_arms(tmp_path)


def differences(verdicts, against="CLIP", setting="flickr8k", beta=0.1):
    """Rows of the headline, with the verdict of each of its three scores by arm."""
    rows = [
        {"setting": setting, "arm": arm, "beta": beta if arm.startswith("CIBR") else 0.0, "variant": ""}
        | {"against": against, "measure": measure, "difference": (low + high) / 2, "low": low, "high": high}
        | {"verdict": verdict}
        for arm, of_arm in verdicts.items()
        for measure, (low, high, verdict) in zip(HEADLINE, of_arm, strict=True)
    ]
    return pd.DataFrame(rows)


def test_an_arm_that_gains_in_all_three_is_recommended(arms):
    rows = differences({"noise only": [UP, NONE, UP], "CIBR a": [UP] * 3, "CIBR b": [UP, UP, NONE]})
    (row,) = recommend(rows, arms).to_dict("records")
    assert (row["advice"], row["arm"], row["gaining"]) == (
        "CIBR a (beta = 0.1)",
        "CIBR a",
        ["CIBR a (beta = 0.1)"],
    )
    assert (row["n_ours"], row["hurting"], row["controls_gaining"]) == (2, 0, [])


def test_otherwise_plain_clip_is_and_the_best_arm_on_validation_is_shown(arms):
    rows = differences({"noise only": [UP] * 3, "CIBR a": [UP, NONE, NONE], "CIBR b": [NONE, NONE, DOWN]})
    (row,) = recommend(rows, arms).to_dict("records")
    assert (row["advice"], row["arm"], row["gaining"]) == ("plain CLIP (beta = 0)", "CIBR b", [])
    assert (row["hurting"], row["controls_gaining"]) == (1, ["noise only"])


def test_a_gain_has_to_stand_against_every_control(arms):
    rows = [differences({"CIBR a": [UP] * 3}), differences({"CIBR a": [UP, UP, NONE]}, against="CLIP in groups")]
    (row,) = recommend(pd.concat(rows), arms).to_dict("records")
    assert row["advice"] == "plain CLIP (beta = 0)"
    assert row["partly"] == ["CIBR a (beta = 0.1) in zero-shot mean and image to text"]


def test_a_gain_beside_a_loss_is_no_part_of_a_gain(arms):
    rows = differences({"CIBR a": [UP, NONE, DOWN], "CIBR b": [NONE] * 3})
    assert recommend(rows, arms)["partly"].tolist() == [[]]


def test_a_setting_without_arms_of_ours_is_said_as_it_is(arms):
    (row,) = recommend(differences({"noise only": [UP] * 3}), arms).to_dict("records")
    assert (row["advice"], row["arm"], row["n_ours"]) == ("plain CLIP (beta = 0)", "", 0)


def test_tables_show_intervals_in_points_and_mark_those_off_zero():
    table = side_by_side(differences({"noise only": [UP, NONE, DOWN]}))
    assert table.loc["noise only"].tolist() == ["+1.5 [+1.0, +2.0] *", "+0.0 [-1.0, +1.0]", "-1.5 [-2.0, -1.0] *"]
    assert list(table.columns) == list(HEADLINE)
    both = [differences({"CIBR a": [UP] * 3}, beta=beta) for beta in (0.01, 0.1)]
    assert side_by_side(pd.concat(both)).index.tolist() == [("CIBR a", 0.01), ("CIBR a", 0.1)]


def test_verdicts_are_counted_beside_what_chance_alone_would_give():
    rows = differences({f"arm {i}": [UP, NONE, DOWN] for i in range(40)})
    assert count_verdicts(rows) == {"n": 120, "above": 40, "below": 40, "by_chance": pytest.approx(3.0)}


def test_of_an_arm_over_beta_the_best_on_validation_is_chosen(tmp_path):
    table = tmp_path / "ablation.csv"
    for beta, skill in ((0.01, 0.3), (0.1, 0.6), (1.0, 0.2)):
        add_run(table, tmp_path / "runs", settings_of("CIBR", beta=beta), skill=skill)
    assert chosen(read_arms(table)).to_numpy().tolist() == [["flickr8k", "CIBR", 0.1, ""]]
    add_run(table, tmp_path / "runs", settings_of("CIBR", beta=0.01, seed=9), skill=0.3)
    assert chosen(read_arms(table))["beta"].tolist() == [0.01], "two seeds tell more than one"


def test_the_evidence_of_a_setting_is_that_of_the_arm_that_is_shown(arms):
    rows = differences({"noise only": [UP] * 3, "CIBR a": [UP, NONE, NONE], "CIBR b": [NONE, NONE, DOWN]})
    grouped = differences({"CIBR b": [UP] * 3}, against="CLIP in groups")
    rows = pd.concat([rows, grouped]).assign(n_seeds=5)
    table = evidence(recommend(rows, arms), rows)
    (row,) = table.reset_index().to_numpy().tolist()
    assert row[:4] == ["flickr8k", "plain CLIP (beta = 0)", "CIBR b (beta = 0.1)", 5]
    assert row[4:] == ["+0.0 [-1.0, +1.0]", "+0.0 [-1.0, +1.0]", "-1.5 [-2.0, -1.0] *"]
    assert list(table.columns) == list(HEADLINE)
    assert not len(evidence(recommend(rows[:3], arms), rows[:3])), "no arm of ours, nothing to show"


def test_settings_of_the_evidence_keep_the_order_of_the_recommendation(arms):
    rows = [differences({"CIBR a": [NONE] * 3}, setting=setting) for setting in ("z", "flickr8k", "a")]
    rows = pd.concat(rows).assign(n_seeds=1)
    table = evidence(recommend(rows, arms), rows)
    assert table.index.get_level_values("setting").tolist() == ["z", "flickr8k", "a"]


@pytest.mark.parametrize(("sign", "word"), [(-1, "less"), (1, "more"), (0, "neither")])
def test_a_relation_is_told_by_the_interval_of_its_correlation(sign, word):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"setting": "s", "arm": np.repeat([f"arm {i}" for i in range(12)], 3)})
    rows["x"] = np.repeat(np.arange(12.0), 3) + rng.normal(0, 0.1, 36)
    rows["y"] = sign * rows["x"] + np.repeat(rng.normal(0, 1, 12), 3)
    said = relation_text(rows, "x", "y", ("less", "more", "neither"), ["setting", "arm"])
    assert said.startswith(f"{word} (rank correlation ") and said.endswith("], 36 runs of 12 arms)")
    few = rows[rows["arm"].isin(["arm 0", "arm 1"])]
    assert relation_text(few, "x", "y", ("a", "b", "c"), ["arm"]) == "2 arms are too few to tell"
    alone = rows.groupby("arm").head(1).assign(x=lambda t: t["x"].where(t["arm"] != "arm 3"))
    assert relation_text(alone, "x", "y", ("", "", ""), ["arm"]).endswith(", 11 arms)")


def test_a_relation_within_settings_leaves_out_what_lies_between_them():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"setting": np.repeat(["a", "b", "c"], 10), "arm": [f"arm {i}" for i in range(30)]})
    offsets = np.repeat([0.0, 100.0, 200.0], 10)
    x = rng.normal(size=30)
    rows = rows.assign(x=offsets + x, y=offsets - x)
    words = ("less", "more", "neither")
    assert relation_text(rows, "x", "y", words, ["arm"]).startswith("more")
    assert relation_text(rows, "x", "y", words, ["arm"], within=True).startswith("less")


def test_one_seed_has_no_interval_of_students():
    assert interval_text({"difference": 0.5, "low": float("nan"), "high": float("nan")}) == "+50.0 (one seed)"
