"""One run of the study has the columns of the committed rows."""

import pandas as pd
import pytest

import cibr
from cibr_book.experiments import run
from cibr_book.experiments.tables import read_table

TINY = {"dataset": "glyphs", "model": "tiny", "penalty": "vmf", "sample": True, "kappa_e": 8192.0}
TINY |= {"beta": 0.1, "epochs": 1, "batch_size": 64, "temperature": 0.1, "seed": 1}
TINY["corruption"] = {"fraction": 0.02}


def test_a_run_of_glyphs_has_the_columns_of_the_committed_rows(tmp_path):
    metrics = run.train_and_measure(TINY, tmp_path / "run")
    committed = read_table("confirmation.csv")
    common = committed.filter(regex="^(?:validation_recall|last_(?!residual)|training)_?").columns
    assert {*common} <= {*metrics} and len(common) > 5
    assert metrics["validation_recall@10"] < 0.2


def test_a_trial_has_the_recalls_of_its_last_epoch(tmp_path, monkeypatch):
    sides = ("image_to_text", "text_to_image")
    names = [f"{side}_recall@{k}" for side in sides for k in (1, 5, 10)]
    columns = ["step", "seconds", "clip_loss", "penalty_excess", "temperature", *names]
    history = pd.DataFrame(0.0, range(2), columns).assign(step=[5, 10], clip_loss=[3, 1])
    history[names] = [[0.9] * 6, [0.1, 0.2, 0.1, 0.3, 0.4, 0.3]]
    monkeypatch.setattr(cibr, "fit", lambda *given: history)
    metrics = run.train_and_measure(TINY, tmp_path / "run")
    assert [metrics[f"validation_recall@{k}"] for k in (1, 5, 10)] == pytest.approx([0.2, 0.3, 0.2])
    assert metrics["validation_text_to_image_recall@1"] == 0.3 and metrics["last_clip_loss"] == 1
    assert metrics["steps"] == 10


def test_names_of_committed_rows_are_translated_and_unknown_settings_refused():
    row = {"model": "frozen", "validate_every": 10}
    found = run.library_settings(row | {"kappa_e": 8192, "suites": ["mini"], "epochs": 3})
    assert found == {
        **{"model": "frozen", "epochs": 3, "cca": False, "batch_size": 1024},
        "loss_options": {"kappa_e": 8192, "kappa_b": 10.0},
    }
    given = {"penalty": "vmf", "kappa_e": 8192, "kappa_b": 34.39}
    assert run.library_settings(given)["loss_options"] == {"kappa_e": 8192, "kappa_b": 34.39}
    assert run.library_settings({"penalty": "vmf"})["loss_options"] == {}
    assert run.library_settings({"penalty": "mine", "kappa_e": 50})["loss_options"] == {
        "kappa_e": 50
    }
    with pytest.raises(ValueError, match="unknown setting 'group_size'"):
        run.library_settings(row | {"group_size": 2})
