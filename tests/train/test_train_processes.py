"""Processes that share a batch take the steps of one, and resume its run."""

import pandas as pd
import torch
from accelerate import Accelerator
from processes import run_together
from small_runs import PAIRS, forks, settings, small_model, stop_at, train
from twin import CASES, model_of, plain_run, settings_of

from cibr.models.inputs import prepare
from cibr.train.loop import Training


def weights(*modules):
    return [dict(module.named_parameters()) for module in modules]


def train_together(folder, rank):
    """Saves the weights of a model and its loss after a run of every case."""
    for case in CASES:
        config = settings_of(case)
        model = model_of(config)
        if rank:  # every process starts from the weights of the first one
            torch.nn.init.zeros_(model.head.image[2].weight)
        training = Training(model, config, prepare(model, PAIRS))
        training.run()
        torch.save(weights(model, training.loss_fn), folder / f"{case} {rank}.pt")


def test_two_processes_take_the_steps_of_one_that_encodes_their_rows(tmp_path):
    run_together(2, train_together, tmp_path)
    for case in CASES:
        config = settings_of(case)
        model = model_of(config)
        loss_fn, _ = plain_run(config, model, n_processes=2)
        for rank in range(2):
            found = torch.load(tmp_path / f"{case} {rank}.pt")
            torch.testing.assert_close(found, weights(model, loss_fn), rtol=1e-9, atol=1e-9)


MINE = dict(penalty="mine", dropout=0.0)


def resume_together(folder, rank):
    train(folder, **MINE)


@forks
def test_a_run_resumes_on_two_processes(tmp_path):
    stop_at(5, tmp_path / "several", **MINE)
    run_together(2, resume_together, tmp_path / "several")
    _, one = train(tmp_path / "one", **MINE)
    several = pd.read_csv(tmp_path / "several" / "history.csv")
    columns = one.columns.drop("seconds")
    pd.testing.assert_frame_equal(several[columns], one[columns], rtol=1e-3, atol=1e-3)


def test_processes_share_a_set_that_is_smaller_than_its_batch(monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    config = settings(batch_size=512)
    model = small_model(config)
    training = Training(model, config, prepare(model, PAIRS.subset(range(23))))
    assert (training.rows_per_process, training.batch_size, training.n_steps) == (11, 22, 2)
