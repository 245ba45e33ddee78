"""A run that is killed or told to stop resumes to the weights of an undisturbed one, bit for bit;
its folder is for one run, and code in its files is not run.
"""

import json
import os
import pickle
import signal
from functools import partial
from importlib import import_module

import pandas as pd
import pytest
import small_runs
import torch
from helpers import Crafted, same
from processes import exit_code_of
from small_runs import before_step, forks, small_model

from cibr import DualEncoder
from cibr.train.run_folder import RunFolder

EVERY_STEP = {"save_steps": 1}
train = partial(small_runs.train, training_arguments=EVERY_STEP)
stop_at = partial(small_runs.stop_at, training_arguments=EVERY_STEP)


@pytest.fixture(autouse=True)
def one_thread():
    """Computes on one thread, as the processes of these tests do."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def run(folder, arrange=None):
    """A run in a process, whose end `arrange` may see to."""
    if arrange:
        arrange()
    train(folder)


def last_step(folder):
    """The step of the newest whole checkpoint."""
    return int(RunFolder(folder).newest_checkpoint().rpartition("-")[2])


def assert_equal_runs(folder, whole):
    assert same(DualEncoder.from_pretrained(folder), DualEncoder.from_pretrained(whole))
    one, other = (pd.read_csv(place / "history.csv") for place in (folder, whole))
    columns = other.columns.drop("seconds")
    pd.testing.assert_frame_equal(one[columns], other[columns], check_exact=True)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    assert exit_code_of(run, folder) == 0
    return folder


def without_image_head(config, pairs):
    """A model with other weights, which all come from the checkpoint then."""
    model = small_model(config, pairs)
    torch.nn.init.zeros_(model.image_head[2].weight)
    return model


RUNS = [  # settings, the step of the last checkpoint, and how many there are
    (dict(loss_options={"sample": True}, micro_batch_size=3), 4, 2),
    (dict(penalty="mine", training_arguments={"save_steps": 3}), 3, 1),  # an epoch
]


@forks
@pytest.mark.parametrize(("options", "step", "n_checkpoints"), RUNS)
def test_resume_is_bit_equal(tmp_path, monkeypatch, options, step, n_checkpoints):
    train(tmp_path / "whole", **options)
    stop_at(5, tmp_path / "stopped", **options)
    assert last_step(tmp_path / "stopped") == step
    assert len([*RunFolder(tmp_path / "stopped").checkpoints.iterdir()]) == n_checkpoints
    small_runs.fail_before(7 - step, EOFError, monkeypatch.setattr)  # of six, the others are left
    monkeypatch.setattr(small_runs, "small_model", without_image_head)
    train(tmp_path / "stopped", **options)
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


@forks
def test_short_epochs_have_no_checkpoint_each_and_a_run_begins_again(tmp_path):
    options = {"training_arguments": {}}
    stop_at(5, tmp_path, **options)  # after an epoch of three steps
    assert not RunFolder(tmp_path).newest_checkpoint()
    train(tmp_path, **options)
    assert DualEncoder.from_pretrained(tmp_path)


def kill_at(function, name, time):
    """Kills the process before a function is called for a path that ends so the n-th time."""
    module, function = function.split()
    module = import_module(module)
    real, times = getattr(module, function), []

    def call(*given, **named):
        times.extend([1] * any(str(x).endswith(name) for x in given))
        if len(times) == time:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    setattr(module, function, call)


KILLS = [  # before which function is called for what, and how often
    ("torch.autograd backward", "", 5),  # in the fifth step
    ("torch save", "checkpoint-3/cibr.pt", 1),
    ("torch save", "checkpoint-3/optimizer.pt", 1),
    ("builtins open", "checkpoint-3/trainer_state.json", 1),
    ("shutil rmtree", "checkpoint-1", 1),
    ("os replace", "history.csv", 1),  # after the last step
    ("os replace", "run.json", 2),
    ("shutil rmtree", ".checkpoints", 1),  # after the record of the finished run
]


@pytest.mark.parametrize("moment", KILLS, ids=lambda moment: " ".join(map(str, moment)))
def test_a_kill_in_the_middle_of_a_save_loses_at_most_that_save(whole, tmp_path, moment):
    assert exit_code_of(run, tmp_path, partial(kill_at, *moment)) == -signal.SIGKILL
    assert json.loads((tmp_path / "run.json").read_text())["finished"] or last_step(tmp_path) >= 2
    train(tmp_path)
    assert_equal_runs(tmp_path, whole)


@pytest.mark.parametrize("step", [4, 6])  # in an epoch, and at the end of one
def test_sigterm_saves_after_the_step_and_ends_with_code_143(
    whole, tmp_path, monkeypatch, capsys, step
):
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        before_step(step, partial(signal.raise_signal, signal.SIGTERM), patch.setattr)
        with pytest.raises(SystemExit) as caught:
            train(tmp_path, training_arguments={})
    assert caught.value.code == 143 and last_step(tmp_path) == step
    assert signal.getsignal(signal.SIGTERM) is handler
    message = f"SIGTERM: the run is saved at step {step} of 6; start it again to go on"
    assert message in capsys.readouterr().err
    train(tmp_path, training_arguments={})
    assert_equal_runs(tmp_path, whole)


@pytest.mark.parametrize("name", ["cibr.pt", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, name):
    stop_at(3, tmp_path)
    file = tmp_path / ".checkpoints" / "checkpoint-2" / name
    assert file.exists()
    file.write_bytes(pickle.dumps(Crafted(tmp_path / "owned"), protocol=2))
    with pytest.raises(Exception, match="[Ww]eights.only"):
        train(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_the_newest_checkpoint_that_is_whole_counts(tmp_path):
    for step in (10, 9, 8, 11):
        folder = tmp_path / ".checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{\n}\n" if step < 11 else "{\n")
    assert last_step(tmp_path) == 10


def test_a_second_run_on_a_folder_is_refused_until_the_first_one_has_ended(tmp_path):
    refused = pytest.raises(ValueError, match="another run is writing to output_dir .*: wait for")
    with RunFolder(tmp_path).locked(), RunFolder(tmp_path, writes=False).locked(), refused:
        train(tmp_path, epochs=1)
    train(tmp_path, epochs=1)


def test_a_finished_run_is_loaded_and_one_of_another_configuration_refused(tmp_path, capsys):
    model, history = train(tmp_path, epochs=1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    again, stored = train(tmp_path, epochs=1, micro_batch_size=3)  # which changes no weight
    assert "holds this run, finished: its model is loaded" in capsys.readouterr().err
    assert same(model, again) and not again.training and stored.equals(history)
    with pytest.raises(ValueError, match="holds a run with another beta, epochs: choose another"):
        train(tmp_path, epochs=2, beta=0.2)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_full_disk_is_said_and_the_checkpoint_before_it_stays(tmp_path, monkeypatch):
    save = torch.save

    def full(state, place, *given, **named):
        if "checkpoint-3" in str(place) and str(place).endswith("optimizer.pt"):
            raise RuntimeError("PytorchStreamWriter failed writing file: no space left")
        save(state, place, *given, **named)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="cannot write a checkpoint to .*no space left; make room"):
        train(tmp_path)
    assert last_step(tmp_path) == 2
