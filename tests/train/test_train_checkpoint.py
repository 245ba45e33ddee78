"""A run that is killed or stopped resumes to the weights of an undisturbed one, bit for bit."""

import json
import os
import pickle
import signal
import subprocess
from dataclasses import replace
from functools import partial
from importlib import import_module

import pandas as pd
import pytest
import small_runs
import torch
from helpers import Crafted, noise_pairs, picture, same
from processes import exit_code_of, run_together
from small_runs import before_step, forks, small_model

from cibr import DualEncoder
from cibr.models import inputs
from cibr.models.inputs import prepare
from cibr.train.loop import Training

train = partial(small_runs.train, save_steps=1)
stop_at = partial(small_runs.stop_at, save_steps=1)


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


def saved_step(folder):
    """The number of steps that the checkpoint has."""
    return torch.load(folder / "checkpoint.pt")["step"]


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
    torch.nn.init.zeros_(model.head.image[2].weight)
    return model


RUNS = [  # settings, and the step of the last checkpoint
    (dict(loss_options={"sample": True}, micro_batch_size=3), 4),
    (dict(penalty="mine", save_steps=3), 3),  # an epoch
]


@forks
@pytest.mark.parametrize(("options", "step"), RUNS)
def test_a_resumed_run_is_bit_equal(tmp_path, monkeypatch, options, step):
    train(tmp_path / "whole", **options)
    stop_at(5, tmp_path / "stopped", **options)
    assert saved_step(tmp_path / "stopped") == step
    small_runs.fail_before(7 - step, EOFError, monkeypatch.setattr)  # of six, the others are left
    monkeypatch.setattr(small_runs, "small_model", without_image_head)
    train(tmp_path / "stopped", **options)
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


@forks
def test_short_epochs_have_no_checkpoint_each_and_a_run_begins_again(tmp_path):
    stop_at(5, tmp_path, save_steps=None)  # after an epoch of three steps
    assert not (tmp_path / "checkpoint.pt").exists()
    train(tmp_path, save_steps=None)
    assert DualEncoder.from_pretrained(tmp_path)


def kill_at(function, name, time):
    """Kills the process before a function is called for a path that ends so the n-th time."""
    module, function = function.split()
    module = import_module(module)
    real = getattr(module, function)
    times = []

    def call(*given, **named):
        times.extend([1] * any(str(x).endswith(name) for x in given))
        if len(times) == time:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    setattr(module, function, call)


def kill_within_a_save():
    """Kills the process when half of the fourth checkpoint is written."""
    save = torch.save
    times = []

    def save_half(state, file):
        save(state, file)
        times.append(1)
        if len(times) == 4:
            os.truncate(file, os.path.getsize(file) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save_half


KILLS = {
    "in the fifth step": partial(kill_at, "torch.autograd backward", "", 5),
    "before a checkpoint": partial(kill_at, "torch save", ".checkpoint.pt.part", 3),
    "within a checkpoint": kill_within_a_save,
    "before a checkpoint is in its place": partial(kill_at, "os replace", "checkpoint.pt", 3),
    "before the history": partial(kill_at, "os replace", "history.csv", 1),
    "before the record of the end": partial(kill_at, "os replace", "run.json", 2),
    "before the checkpoint is removed": partial(kill_at, "os unlink", "checkpoint.pt", 1),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_at_any_moment_loses_at_most_one_checkpoint(whole, tmp_path, moment):
    assert exit_code_of(run, tmp_path, KILLS[moment]) == -signal.SIGKILL
    assert json.loads((tmp_path / "run.json").read_text())["finished"] or saved_step(tmp_path) >= 2
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
            train(tmp_path, save_steps=None)
    assert caught.value.code == 143 and saved_step(tmp_path) == step
    assert signal.getsignal(signal.SIGTERM) is handler
    message = f"SIGTERM: the run is saved at step {step} of 6; start it again to go on"
    assert message in capsys.readouterr().err
    train(tmp_path, save_steps=None)
    assert_equal_runs(tmp_path, whole)


def stop_one_process(folder, rank):
    """A run on two processes, of which the second is told to stop in its fourth step."""
    if rank == 1:
        before_step(4, partial(signal.raise_signal, signal.SIGTERM))
    try:
        train(folder, save_steps=None)
    except SystemExit as end:
        (folder.parent / f"code {rank}").write_text(str(end.code))


def go_on(folder, rank):
    train(folder, save_steps=None)


def test_sigterm_to_one_of_several_processes_saves_and_stops_them_all(tmp_path):
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    run_together(2, stop_one_process, stopped)
    assert [(tmp_path / f"code {rank}").read_text() for rank in (0, 1)] == ["143", "143"]
    assert saved_step(stopped) == 4
    run_together(2, go_on, stopped)
    run_together(2, go_on, tmp_path / "whole")
    assert_equal_runs(stopped, tmp_path / "whole")


def stop_all_with_workers(folder):
    """A run that decodes images in workers; it and they are told to stop in its fourth step."""
    os.setsid()  # a process group of its own
    inputs._MOST_IN_MEMORY = 0
    # From outside, as by SLURM: workers know a signal of their parent.
    kill = ["kill", "-TERM", f"-{os.getpgid(0)}"]
    before_step(4, partial(subprocess.run, kill, start_new_session=True))
    train(folder, save_steps=None)


def test_sigterm_to_the_workers_as_well_lets_the_run_save(whole, tmp_path):
    assert exit_code_of(stop_all_with_workers, tmp_path) == 143
    assert saved_step(tmp_path) == 4
    train(tmp_path, save_steps=None)
    assert_equal_runs(tmp_path, whole)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    stop_at(3, tmp_path)
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(pickle.dumps(Crafted(tmp_path / "owned"), protocol=2))
    with pytest.raises(ValueError, match="checkpoint.pt' is damaged .*: remove it to begin again"):
        train(tmp_path)
    assert not (tmp_path / "owned").exists() and file.exists()


def test_a_full_disk_is_said_and_the_checkpoint_before_it_stays(tmp_path, monkeypatch):
    save = torch.save

    def full(state, place):
        if state["step"] == 3:
            raise RuntimeError("PytorchStreamWriter failed writing file: no space left")
        save(state, place)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="cannot write a checkpoint to .*no space left; make room"):
        train(tmp_path)
    assert saved_step(tmp_path) == 2


INTERVALS = [  # pairs in batches of two, epochs, settings, and the steps of the checkpoints
    (6, 135, {}, [201, 402, 405]),
    (600, 2, {}, [300, 600]),
    (1200, 1, {}, [500, 600]),
    (6, 5, {"save_steps": 7}, [7, 14, 15]),
]


@pytest.mark.parametrize(("n", "epochs", "options", "steps"), INTERVALS)
def test_checkpoints_are_200_to_500_steps_apart_or_as_asked(monkeypatch, n, epochs, options, steps):
    pairs = replace(noise_pairs(n), load=lambda i: picture(0))

    def take_no_step(training, batch):
        training.step += 1
        return {"loss": 0.0}, {}

    monkeypatch.setattr(Training, "take_step", take_no_step)
    monkeypatch.setattr(Training, "_end_epoch", lambda *_: None)
    config = small_runs.settings(epochs=epochs, batch_size=2, **options)
    model = small_model(config, pairs)
    saved = []
    training = Training(model, config, prepare(model, pairs))
    training.run(save=lambda state: saved.append(state["step"]))
    assert saved == steps


def test_sigterm_ends_a_run_that_is_not_saved_as_usual(monkeypatch):
    handlers = []
    before_step(2, lambda: handlers.append(signal.getsignal(signal.SIGTERM)), monkeypatch.setattr)
    config = small_runs.settings()
    model = small_model(config)
    Training(model, config, prepare(model, small_runs.PAIRS)).run()
    assert handlers == [signal.getsignal(signal.SIGTERM)]
