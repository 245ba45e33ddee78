"""Arms are compared with tuned CLIP of their setting, seed by seed and picture by picture; what lacks is said."""

import numpy as np
import pytest
from fake_ablation import TASKS, add_run, settings_of

from cibr.evaluate import SUITES, compare, read_evaluation
from cibr.sweep import arm_differences, measure_differences, read_arms


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A function that adds a run, with the table and the folder of the runs."""
    monkeypatch.setitem(SUITES, "small", TASKS)
    table, runs = tmp_path / "ablation.csv", tmp_path / "runs"

    def add(settings, **options):
        return add_run(table, runs, settings, **options)

    add.table, add.runs = table, runs
    return add


@pytest.fixture
def said():
    return []


def differences(made, said):
    return arm_differences(read_arms(made.table), made.runs, said.append)


def test_each_arm_is_compared_with_clip_on_every_set_and_the_headline(made, said):
    names = {
        arm: [made(settings_of(arm, seed), skill=skill) for seed in (0, 1)]
        for arm, skill in (("CLIP", 0.4), ("better", 0.6), ("same", 0.4), ("worse", 0.2))
    }
    rows = differences(made, said)
    assert said == []
    assert rows["measure"].unique().tolist() == [
        "one", "left", "right", "image to text", "text to image", "image to text, test characters",
        "text to image, test characters", "sides", "zero-shot mean",
    ]  # fmt: skip
    verdicts = rows.groupby("arm")["verdict"].unique().map(list).to_dict()
    assert verdicts == {"better": ["above 0"], "same": ["around 0"], "worse": ["below 0"]}
    assert (rows["against"] == "CLIP").all() and (rows["n_seeds"] == 2).all()
    a, b = ([read_evaluation(made.runs / name, "small", arm) for name in names[arm]] for arm in ("CLIP", "better"))
    expected = compare(a, b).query("dataset == 'mean of 2' and metric == 'accuracy@1'")
    (found,) = rows.query("arm == 'better' and measure == 'zero-shot mean'").to_dict("records")
    columns = ["a", "b", "difference", "low", "high"]
    assert [found[c] for c in columns] == expected[columns].iloc[0].tolist()


def test_several_betas_of_an_arm_stay_apart(made, said):
    made(settings_of("CLIP"))
    for beta in (0.01, 0.1):
        made(settings_of("CIBR", beta=beta))
    rows = differences(made, said)
    assert rows.groupby("beta").size().to_dict() == {0.01: 9, 0.1: 9}
    assert set(rows["verdict"]) == {"one seed"}


def test_settings_do_not_mix_and_one_without_clip_is_said(made, said):
    for fraction, skill in ((1.0, 0.5), (0.1, 0.2)):
        for arm in ("CLIP", "CIBR"):
            made(settings_of(arm, train_fraction=fraction), skill=skill)
    made(settings_of("CIBR", caption_noise=0.2))
    rows = differences(made, said)
    assert (rows["difference"] == 0).all() and rows["setting"].nunique() == 2
    assert said == ["flickr8k, 20 % wrong captions: no row of the arm 'CLIP'; nothing to compare with"]


def test_seeds_and_outcomes_that_one_side_lacks_are_left_out_and_said(made, said):
    for seed in range(4):
        made(settings_of("CLIP", seed))
    for seed in range(1, 4):
        name = made(settings_of("CIBR", seed))
    (made.runs / name / "small" / "one.safetensors").unlink()
    made(settings_of("alone", seed=7))
    rows = differences(made, said)
    assert set(rows["arm"]) == {"CIBR"} and set(rows["n_seeds"]) == {2}
    assert [line.split(":")[1].strip() for line in said] == [
        "seeds 0 are of one side alone and left out",
        f"no outcomes in {made.runs / name}",
        "seeds 0, 1, 2, 3, 7 are of one side alone and left out",
        "no seed with outcomes on both sides",
    ]


def test_arms_that_draw_groups_are_compared_with_clip_in_groups_too(made, said):
    made(settings_of("CLIP"))
    made(settings_of("CLIP in groups", group_size=2), skill=0.4)
    made(settings_of("CIBR siblings", group_size=2), skill=0.4)
    made(settings_of("CIBR", group_size=1))
    rows = differences(made, said)
    pairs = rows[["arm", "against"]].drop_duplicates().apply(tuple, axis=1).tolist()
    assert pairs == [
        ("CLIP in groups", "CLIP"), ("CIBR siblings", "CLIP"),
        ("CIBR siblings", "CLIP in groups"), ("CIBR", "CLIP"),
    ]  # fmt: skip


def test_nothing_to_compare_gives_an_empty_table(made, said):
    made(settings_of("CLIP"))
    assert len(differences(made, said)) == 0
    assert len(measure_differences(read_arms(made.table), ["leakage"])) == 0


def test_measures_of_runs_are_compared_over_seeds_by_students_interval(made):
    leaks = {"CLIP": [0.30, 0.40, 0.50], "CIBR": [0.20, 0.31, 0.39]}
    for arm, values in leaks.items():
        for seed, value in enumerate(values):
            made(settings_of(arm, seed), leakage=value)
    (row,) = measure_differences(read_arms(made.table), ["leakage", "absent"]).to_dict("records")
    each = np.subtract(leaks["CIBR"], leaks["CLIP"])
    half = 4.302653 * each.std(ddof=1) / 3**0.5  # Student's 97.5 % point with two degrees of freedom
    assert row["difference"] == pytest.approx(each.mean())
    assert (row["low"], row["high"]) == pytest.approx((each.mean() - half, each.mean() + half))
    assert (row["n_seeds"], row["verdict"], row["a"]) == (3, "below 0", pytest.approx(0.4))
    called = measure_differences(read_arms(made.table), {"leakage": "read by a probe", "absent": "no column"})
    assert called["measure"].tolist() == ["read by a probe"] and called["difference"].tolist() == [
        row["difference"]
    ]
