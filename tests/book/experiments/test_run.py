"""One run of the study has the columns of the committed rows."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest

from cibr_book.experiments.run import train_and_measure
from cibr_book.experiments.tables import read_table

TINY = {"dataset": "glyphs", "model": "tiny", "penalty": "vmf", "sample": True, "kappa_e": 8192.0}
TINY |= {"beta": 0.1, "epochs": 1, "batch_size": 64, "temperature": 0.1, "seed": 1}


@pytest.mark.slow
def test_a_run_of_glyphs_has_the_columns_of_the_committed_rows(tmp_path):
    settings = TINY | {"corruption": {"fraction": 0.02}, "suites": ["glyphs"]}
    metrics = train_and_measure(settings, tmp_path / "run")
    committed = read_table("confirmation.csv")
    common = committed.filter(regex="^(?:validation_recall|last|training)_?").columns
    assert {*common} <= {*metrics} and len(common) > 5
    assert "glyphs/mean of 7/accuracy@1" in metrics and metrics["validation_recall@10"] < 0.2


def test_a_trial_has_the_recalls_of_its_last_epoch_and_the_first_step_that_reached_a_level(
    tmp_path, monkeypatch
):
    names = [
        f"{side}_recall@{k}" for side in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    ]
    columns = ["step", "seconds", "clip_loss", "penalty_excess", "temperature", *names]
    columns += ["residual_image_nats", "residual_text_nats"]
    history = pd.DataFrame(0.0, range(3), columns).assign(step=[5, 10, 15], clip_loss=[3, 2, 1])
    history[names] = [[0.01] * 6, [0.05, 0.1, 0.1, 0.05, 0.1, 0.2], [0.1, 0.2, 0.1, 0.3, 0.4, 0.3]]
    finished = SimpleNamespace(train=lambda: None, history=history)
    make = lambda *given, **named: finished  # noqa: E731
    monkeypatch.setattr("cibr_book.experiments.run.StudyTrainer", make)
    metrics = train_and_measure(TINY | {"corruption": {"fraction": 0.02}}, tmp_path / "run")
    assert [metrics[f"validation_recall@{k}"] for k in (1, 5, 10)] == pytest.approx([0.2, 0.3, 0.2])
    assert metrics["validation_text_to_image_recall@1"] == 0.3 and metrics["last_clip_loss"] == 1
    assert metrics["steps_to_recall@10_0.1"] == 10 and metrics["steps"] == 15
    assert math.isnan(metrics["steps_to_recall@10_0.3"])
