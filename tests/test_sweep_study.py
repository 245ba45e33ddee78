"""The study's tables are read whole, and every row has its command."""

import pandas as pd
import pytest
from fake_ablation import add_run, four_arms, settings_of

from cibr.sweep.plan import Plan
from cibr.sweep.study import arm_commands, defaults, read_study, sweeps_of, trial_log


@pytest.fixture
def arms(tmp_path):
    return four_arms(tmp_path)


def test_a_study_is_read_whole_or_says_how_to_make_it(tmp_path, arms):
    with pytest.raises(ValueError, match="ablation_differences.csv' is missing: make the tables with python book"):
        read_study(tmp_path)
    rows = pd.DataFrame({"setting": ["flickr8k"] * 3, "variant": ""})
    for name in ("ablation_differences.csv", "ablation_training.csv"):
        rows.to_csv(tmp_path / name, index=False)
    study = read_study(tmp_path)
    assert study.arms.equals(arms) and study.differences["variant"].tolist() == [""] * 3
    rows.assign(setting="gone").to_csv(tmp_path / "ablation_training.csv", index=False)
    with pytest.raises(ValueError, match="ablation_training.csv has the setting 'gone', which ablation.csv lacks"):
        read_study(tmp_path)


def test_defaults_name_what_each_arm_ran_with_and_which_is_tuned_clip(arms):
    table = defaults(arms).set_index("arm")
    assert table["tuned_clip"].to_dict() == {"CLIP": True, "noise only": False, "CIBR a": False, "CIBR b": False}
    assert table.loc["CIBR b", ["settings", "validation", "seeds"]].tolist() == ["beta 0.1", pytest.approx(60), 1]


def test_every_arm_has_its_command_and_every_row_its_sweep(tmp_path, arms):
    runs = [settings_of(arm, beta=0.1) for arm in ("CIBR a", "CIBR b")]
    plans = {
        "a.yaml": Plan(tmp_path / "ablation.csv", "w", runs),
        "b.yaml": Plan(tmp_path / "other.csv", "w", runs),
    }
    table = arm_commands(plans, "ablation.csv")
    assert table["command"].tolist() == [
        f'python -m cibr.sweep workflow/a.yaml --only "arm={arm}"' for arm in ("CIBR a", "CIBR b")
    ]
    assert sweeps_of(arms, plans).tolist() == ["", "", "a.yaml", "a.yaml"]


def test_the_log_has_every_trial_with_its_score_or_its_error(tmp_path):
    table = tmp_path / "ablation_trials.csv"
    add_run(table, tmp_path / "runs", settings_of("CIBR", beta=0.1, suites=[]), skill=0.3)
    add_run(table, tmp_path / "runs", settings_of("CIBR", beta=9.0, suites=[]), status="ValueError: no")
    rows = trial_log([table, tmp_path / "absent.csv"])
    assert rows["settings"].tolist() == ["beta 0.1", "beta 9"] and rows["setting"].unique().tolist() == [
        "flickr8k"
    ]
    assert rows["validation"].iloc[0] == pytest.approx(30) and rows["validation"].isna().tolist() == [False, True]
    assert rows["status"].tolist() == ["ok", "ValueError: no"]
