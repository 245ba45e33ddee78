"""A run that is killed, told to stop or out of space resumes to the weights of an undisturbed one,
bit for bit; its folder is for one run, and code in its files is not run.
"""

import json
import os
import pickle
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
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
from cibr.train import run_folder
from cibr.train.run_folder import RunFolder
from cibr.train.trainer import sigterm_noted

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
    return int(RunFolder(folder).checkpoints()[-1].split("-")[-1])


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


RUNS = [  # settings, and the step of the last checkpoint
    (dict(loss_options={"sample": True}, micro_batch_size=3), 4),
    (dict(penalty="mine", training_arguments={}), 3),
]


@forks
@pytest.mark.parametrize(("options", "step"), RUNS)
def test_resume_is_bit_equal(tmp_path, monkeypatch, options, step):
    train(tmp_path / "whole", **options)
    stop_at(5, tmp_path / "stopped", **options)
    assert last_step(tmp_path / "stopped") == step
    monkeypatch.setattr(small_runs, "small_model", without_image_head)
    train(tmp_path / "stopped", **options)
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


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
    ("cibr.train.trainer embed_pairs", "", 1),  # in the first validation
    ("torch save", "checkpoint-3/cibr.pt", 1),
    ("torch save", "checkpoint-3/optimizer.pt", 1),
    ("builtins open", "checkpoint-3/trainer_state.json", 1),
    ("os unlink", "checkpoint-1/optimizer.pt", 1),
    ("os unlink", "checkpoint-1/cibr.pt", 1),
    ("os replace", "history.csv", 1),  # after the last step
    ("os replace", "run.json", 2),
    ("os unlink", "checkpoint-5/optimizer.pt", 1),  # after the record of the finished run
]


@pytest.mark.parametrize("moment", KILLS, ids=lambda moment: " ".join(map(str, moment)))
def test_a_kill_in_the_middle_of_a_save_loses_at_most_that_save(whole, tmp_path, moment):
    assert exit_code_of(run, tmp_path, partial(kill_at, *moment)) == -signal.SIGKILL
    assert json.loads((tmp_path / "run.json").read_text())["finished"] or last_step(tmp_path) >= 2
    train(tmp_path)
    assert_equal_runs(tmp_path, whole)


def full_before_step_4():
    """From then on the system refuses files of more than 50 kB, as a full disk does."""
    before_step(4, partial(resource.setrlimit, resource.RLIMIT_FSIZE, (50_000, 50_000)))


def test_a_full_disk_keeps_the_last_checkpoints(whole, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    assert exit_code_of(run, folder, full_before_step_4, log=log) == 1
    assert "ValueError: cannot write" in log.read_text()
    assert f"the last good checkpoint is {str(folder / 'checkpoint-3')!r}" in log.read_text()
    assert {path.name for path in folder.glob("check*")} == {"checkpoint-2", "checkpoint-3"}
    train(folder)
    assert_equal_runs(folder, whole)


@pytest.mark.parametrize("step", [4, 6])  # in an epoch, and at the end of one
def test_sigterm_saves_after_the_step_and_ends_with_code_143(
    whole, tmp_path, monkeypatch, capsys, step
):
    with monkeypatch.context() as patch:
        before_step(step, partial(signal.raise_signal, signal.SIGTERM), patch.setattr)
        with pytest.raises(SystemExit) as caught:
            train(tmp_path, training_arguments={})
    assert caught.value.code == 143 and last_step(tmp_path) == step
    message = f"SIGTERM: the run is saved at step {step} of 6; start it again to go on"
    assert message in capsys.readouterr().err
    train(tmp_path, training_arguments={})
    assert_equal_runs(tmp_path, whole)


def test_the_handler_of_sigterm_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_noted() as received:
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        with ThreadPoolExecutor() as pool:  # in another thread none can be handled
            pool.submit(sigterm_noted().__enter__).result()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("name", ["cibr.pt", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, name):
    stop_at(3, tmp_path)
    file = tmp_path / "checkpoint-2" / name
    assert file.exists()
    file.write_bytes(pickle.dumps(Crafted(tmp_path / "owned"), protocol=2))
    with pytest.raises(Exception, match="[Ww]eights.only"):
        train(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_that_was_cut_short_does_not_count(whole, tmp_path):
    stop_at(6, tmp_path)
    state = tmp_path / "checkpoint-5" / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:-10])
    assert last_step(tmp_path) == 4
    train(tmp_path)
    assert_equal_runs(tmp_path, whole)


def test_what_a_user_keeps_in_a_run_s_folder_stays(whole, tmp_path):
    stop_at(3, tmp_path)
    kept = [tmp_path / "checkpoint-1-mine" / "thesis", tmp_path / "thesis.part"]
    kept[0].parent.mkdir()
    for file in kept:
        file.write_text("a chapter")
    train(tmp_path)
    assert [file.read_text() for file in kept] == ["a chapter"] * 2
    assert not RunFolder(tmp_path).checkpoints()


def test_a_second_run_on_a_folder_is_refused_until_the_first_one_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_PATIENCE", 0.1)
    monkeypatch.chdir(tmp_path.parent)
    refused = pytest.raises(ValueError, match="another run is writing to output_dir .*: wait for")
    with RunFolder(tmp_path).locked(), RunFolder(tmp_path, writes=False).locked(), refused:
        train(tmp_path.name, epochs=1)  # the same folder, spelled in another way
    train(tmp_path, epochs=1)


def test_a_finished_run_is_loaded_and_one_of_another_configuration_refused(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", str(tmp_path))
    model, history = train(tmp_path / "out", epochs=1)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "checkpoint-2").mkdir()  # as a kill in the midst of its removal leaves it
    again, stored = train("~/out", epochs=1, micro_batch_size=3)  # which changes no weight
    assert "holds this run, finished: its model and history are loaded" in capsys.readouterr().err
    assert same(model, again) and not again.training and stored.equals(history)
    message = r"a finished run of another configuration: beta \(0.1 there, 0.2 here\)\. "
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "out", epochs=1, beta=0.2)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def checkpoint(folder, step):
    """A whole checkpoint of a run, with no more than its first and its last file."""
    place = folder / f"checkpoint-{step}"
    place.mkdir()
    (place / "cibr.pt").write_text("")
    (place / "trainer_state.json").write_text("{}")
    return str(place)


def test_the_tenth_checkpoint_is_newer_than_the_ninth(tmp_path):
    folder = RunFolder(tmp_path)
    saved = [checkpoint(tmp_path, step) for step in (10, 8, 9)]
    assert folder.checkpoints() == [*saved[1:], saved[0]]
    folder.remove_checkpoints(but=saved[:1])
    assert folder.checkpoints() == saved[:1]


def test_a_run_with_a_setting_that_is_no_longer_known_is_refused(tmp_path):
    run = RunFolder(tmp_path)
    run.write_record({}, {"beta": 0.1, "noise": 2})
    assert run.finished_history({"beta": 0.1}) is None  # it has nothing that could be lost
    checkpoint(tmp_path, 1)
    with pytest.raises(ValueError, match=r"configuration: noise \(2 there, None here\)\. "):
        run.finished_history({"beta": 0.1})
