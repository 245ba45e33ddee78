"""What a final sweep trains is what validation chose: the rule, and the sweeps of this project held to it."""

import json
from pathlib import Path

import pandas as pd
import pytest

from cibr.results import read_rows
from cibr.sweep import read_plan
from cibr.sweep.choice import NOT_CHOSEN, VALIDATION, best_trials
from cibr.sweep.runs import as_json

ROOT = Path(__file__).resolve().parents[1]
CHOSEN_FROM = {
    "flickr8k": "ablation_trials",
    "flickr8k-views": "ablation_trials_views",
    "flickr8k-small": "ablation_trials_small",
    "flickr8k-look": "ablation_trials_look",
    "flickr8k-grey": "ablation_trials_grey",
    "flickr8k-sources": "ablation_trials_sources",
    "flickr8k-blocks": "ablation_trials_blocks",
    "glyphs": "ablation_trials_glyphs",
    "glyphs-small": "ablation_trials_glyphs_small",
    "glyphs-third": "ablation_trials_glyphs_third",
    "glyphs-noisy": "ablation_trials_glyphs_noisy",
    "glyphs-shortcut": "ablation_trials_shortcut",
}


def trial(arm, beta, recall, status="ok", seed=0):
    settings = {"arm": arm, "beta": beta, "seed": seed}
    return {"arm": arm, "configuration": json.dumps(settings), "status": status} | dict.fromkeys(
        VALIDATION, recall
    )


def test_the_best_mean_of_the_six_recalls_wins_and_failed_trials_do_not_count():
    rows = pd.DataFrame(
        [
            trial("CLIP", 0.0, 0.30),
            trial("CIBR", 0.1, 0.20),
            trial("CIBR", 0.2, 0.25) | {VALIDATION[0]: 0.0},  # 0.208 on average
            trial("CIBR", 0.3, 0.90, status="ValueError: no"),
        ]
    )
    found = best_trials(rows)
    assert found["arm"].tolist() == ["CLIP", "CIBR"]
    assert found["n_trials"].tolist() == [1, 2]
    assert found["settings"].tolist() == [{"arm": "CLIP", "beta": 0.0}, {"arm": "CIBR", "beta": 0.2}]
    assert found["validation_score"].tolist() == pytest.approx([0.30, 0.25 * 5 / 6])


def test_a_table_without_a_good_trial_is_refused():
    with pytest.raises(ValueError, match="none of the trials has the status ok"):
        best_trials(pd.DataFrame([trial("CLIP", 0.0, 0.3, status="ValueError: no")]))


@pytest.mark.parametrize(("sweep", "trials"), CHOSEN_FROM.items())
def test_final_sweeps_hold_for_each_arm_what_its_best_trial_chose(sweep, trials):
    best = best_trials(read_rows(ROOT / "data" / "results" / f"{trials}.csv")).set_index("arm")
    runs = read_plan(ROOT / "workflow" / f"{sweep}.yaml").runs
    assert {run["arm"] for run in runs} <= set(best.index)
    assert best["n_trials"].nunique() == 1  # equally hard for all
    for run in runs:
        assert run["seed"] != 0  # the seed of the trials
        settings = {name: value for name, value in run.items() if name not in NOT_CHOSEN}
        assert as_json(settings) == as_json(best.loc[run["arm"], "settings"])
