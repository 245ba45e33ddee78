"""What a run reports to a tracker, and when a penalty's reports are computed."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from small_runs import PAIRS, settings, small_model, train

from cibr.losses import CIBRLoss
from cibr.models.inputs import prepare
from cibr.train import Training


def test_tensorboard_gets_the_history(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, history = train(tmp_path, log_with="tensorboard")
    events = EventAccumulator(str(tmp_path / "cibr")).Reload()
    names = history.columns.drop(["epoch", "step"])
    assert set(names) <= set(events.Tags()["scalars"])
    for name in names:
        logged = events.Scalars(name)
        assert [event.step for event in logged] == history["step"].tolist()
        assert [event.value for event in logged] == pytest.approx(history[name].tolist(), rel=1e-5)


def test_a_finished_run_is_the_same_with_another_tracker(tmp_path):
    model, history = train(tmp_path, epochs=1)
    again, stored = train(tmp_path, epochs=1, log_with="tensorboard")
    assert stored.equals(history) and torch.equal(again.logit_scale, model.logit_scale)


def test_reports_of_a_penalty_are_those_of_the_last_batch_and_computed_once_an_epoch(monkeypatch):
    reported = []
    reports = CIBRLoss.reports

    def counted(loss_fn):
        reported.append(reports(loss_fn))
        return reported[-1]

    monkeypatch.setattr(CIBRLoss, "reports", counted)
    config = settings(penalty="mine", epochs=3)
    model = small_model(config)
    history = Training(model, config, prepare(model, PAIRS)).run()
    assert len(reported) == 3
    for name in ("penalty_excess", "residual_image_nats", "mi_lower_bound_nats"):
        assert history[name].tolist() == [values[name].item() for values in reported]


def test_a_precision_that_accelerate_has_for_the_whole_process_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "mixed_precision", "bf16")
    with pytest.raises(ValueError, match="mixed_precision bf16: leave it out, and give .* bf16"):
        train(tmp_path)


def test_a_tracker_is_told_that_the_run_ends(tmp_path, monkeypatch):
    ends = []
    monkeypatch.setattr(TensorBoardTracker, "finish", lambda tracker: ends.append(tracker.name))
    train(tmp_path, epochs=1, log_with="tensorboard")
    assert ends == ["tensorboard"]
