"""Rows of an ablation are named by setting, arm and variant."""

import json

import pandas as pd
import pytest
from fake_ablation import add_run, settings_of

from cibr.sweep import read_arms, trials
from cibr.sweep.arms import setting_name, tuned_baseline
from cibr.sweep.choice import VALIDATION


@pytest.fixture
def table(tmp_path, monkeypatch):
    return tmp_path / "ablation.csv"


def add(table, settings, **options):
    return add_run(table, table.parent / "runs", settings, **options)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "glyphs"),
        ({"dataset": "glyphs", "model": "tiny", "train_fraction": 1, "caption_noise": 0.0}, "glyphs"),
        ({"dataset": "flickr8k", "model": "frozen", "epochs": 80, "batch_size": 256}, "flickr8k"),
        ({"dataset": "flickr8k", "model": "openai/clip"}, "flickr8k, model openai/clip"),
        (
            {"caption_noise": 0.2, "learn_temperature": True, "train_fraction": 0.1},
            "glyphs, 20 % wrong captions, temperature learned, 10 % of the pairs",
        ),
        ({"shortcut_word": "dog", "shortcut_look": "small"}, "glyphs, small tied to the word 'dog'"),
        (
            {"shortcut_word": "dog", "shortcut_look": "grey", "shortcut_wording": "keywords"},
            "glyphs, grey and keywords tied to the word 'dog'",
        ),
        ({"shortcut_word": "dog", "label": "longer"}, "glyphs, longer, polarity tied to the word 'dog'"),
        (
            {"dataset": "flickr8k", "model": "frozen", "trained_blocks": 1, "train_fraction": 0.1},
            "flickr8k, 10 % of the pairs, last block trained",
        ),
        ({"correlation": 0.9, "beta": 0.1, "seed": 3, "arm": "x", "suites": []}, "glyphs, correlation 0.9"),
    ],
)
def test_a_setting_is_named_by_what_all_arms_meet(settings, name):
    assert setting_name(settings) == name


def test_only_measured_runs_that_ended_well_are_arms(table):
    add(table, settings_of("CLIP"))
    add(table, settings_of("CLIP", suites=[]))
    add(table, settings_of("CLIP", seed=1), status="ValueError: no")
    arms = read_arms(table)
    assert arms["seed"].tolist() == [0] and arms["suite"].tolist() == ["small"]
    assert len(read_arms(table.parent / "absent.csv")) == 0


def test_variants_of_an_arm_in_one_setting_are_told_apart_by_what_differs(table):
    add(table, settings_of("CLIP", temperature=0.03, dropout=0.4))
    add(table, settings_of("CLIP", temperature=0.05, dropout=0.4))
    for beta in (0.01, 0.1):
        add(table, settings_of("CIBR", beta=beta, kappa_e=512.0, seed=1))
    add(table, settings_of("CLIP", temperature=0.03, dropout=0.4, train_fraction=0.1))
    arms = read_arms(table)
    assert arms["variant"].tolist() == ["temperature 0.03", "temperature 0.05", "", "", ""]
    assert arms["setting"].tolist() == ["flickr8k"] * 4 + ["flickr8k, 10 % of the pairs"]


def test_tuned_clip_is_the_one_with_the_best_validation_recall_over_seeds(table):
    for seed in (0, 1):
        add(table, settings_of("CLIP", temperature=0.03, seed=seed), skill=[0.9, 0.1][seed])
        add(table, settings_of("CLIP", temperature=0.05, seed=seed), skill=0.6)
    arms = read_arms(table)
    assert tuned_baseline(arms) == ("flickr8k", "CLIP", 0.0, "temperature 0.05")
    assert tuned_baseline(arms, "CIBR") is None


def test_a_table_of_something_else_is_refused(table):
    table.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no table of a sweep: it lacks the columns .'configuration', 'run'"):
        read_arms(table)


def test_trials_are_counted_by_arm_with_the_best_of_them():
    rows = pd.DataFrame(
        {
            "configuration": [json.dumps({"dataset": "glyphs", "beta": beta}) for beta in (0.1, 0.2, 0.3)],
            "status": ["ok", "ok", "ValueError: no"],
            "arm": ["CIBR"] * 3,
            **{name: [0.3, 0.4, float("nan")] for name in VALIDATION},
        }
    )
    (row,) = trials(rows).to_dict("records")
    best = pytest.approx(0.4)
    assert row == dict(setting="glyphs", arm="CIBR", trials=3, failed=1, best=best, chosen="beta 0.2")
