"""A run that is killed, told to stop or out of space resumes to the weights of an undisturbed one,
bit for bit; its folder is for one run, and code in its files is not run.
"""

import os
import pickle
import random
import resource
import signal
import threading
from functools import partial

import pandas as pd
import pytest
import torch
from helpers import Crafted, same
from processes import finish, start
from small_runs import Stopped, before_step, train

import cibr_book.controls  # noqa: F401  # rafa and hycd
from cibr import DualEncoder
from cibr.train import checkpoint, loop
from cibr.train.checkpoint import (
    Progress,
    RunFolder,
    checkpoints,
    newest_checkpoint,
    noted_signals,
)
from cibr_book.training import WeightAverage


@pytest.fixture(autouse=True)
def every_step(monkeypatch):
    """Saves at every step, and computes on one thread, as the processes of these tests do."""
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", -1)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def run(folder, arrange, **options):
    """The exit code of a process with a run whose end `arrange` may see to."""
    return finish(start(_train, folder, arrange, **options))


def _train(folder, arrange=None):
    loop._CHECKPOINT_SECONDS = -1
    if arrange:
        arrange()
    train(folder)


def assert_equal_runs(folder, whole):
    assert same(DualEncoder.from_pretrained(folder), DualEncoder.from_pretrained(whole))
    histories = [
        pd.read_csv(place / "history.csv").drop(columns="seconds") for place in (folder, whole)
    ]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    names = [path.name for path in folder.iterdir()]
    assert not [n for n in names if n.endswith(".part") or n.startswith(".") or n == "checkpoints"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, None) == 0
    return folder


RUNS = {  # with the seconds between checkpoints
    "vmf": (dict(sample=True, micro_batch_size=3), dict(decay=0.9), -1),
    "mine": (dict(penalty="mine"), None, 600),
    "rafa": (
        dict(penalty="rafa", contrastive="hycd", crop_scale=0.8),
        dict(decay=0.0, interpolation=0.3),
        -1,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_resume_is_bit_equal(tmp_path, monkeypatch, name):
    options, average, seconds = RUNS[name]
    additions = {"average": partial(WeightAverage, **average)} if average else {}
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", seconds)
    train(tmp_path / "whole", additions=additions, **options)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        before_step(5, patch=patch.setattr)
        train(tmp_path / "stopped", additions=additions, **options)
    assert newest_checkpoint(tmp_path / "stopped")[1]["progress"]["step"] == (
        4 if seconds < 0 else 3
    )
    train(tmp_path / "stopped", additions=additions, **options)
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


def test_kill_anywhere(whole, tmp_path):
    """SIGKILL at random moments, until a run has come through."""
    chance = random.Random(0)
    seconds, n_killed = 0.5, 0
    while n_killed < 6:
        folder = tmp_path / f"after {n_killed} kills"
        exit_code = None
        while exit_code != 0:
            exit_code = finish(start(_train, folder), chance.uniform(0.2, 1.0) * seconds)
            assert exit_code in (0, -signal.SIGKILL)
            n_killed += exit_code != 0
            seconds *= 1.2 if exit_code else 0.5
        assert_equal_runs(folder, whole)


def send(number):
    os.kill(os.getpid(), number)


def half_written():
    """Kills the process at its third checkpoint, of which a part is written."""
    real, n_saved = torch.save, []

    def save(state, file):
        real(state, file)
        n_saved.append(1)
        if len(n_saved) == 3:
            os.truncate(file, 20_000)
            send(signal.SIGKILL)

    torch.save = save


def kill_at(name, is_after):
    """Kills the process before or after a file gets its name."""
    real = os.replace

    def replace(source, target):
        is_it = str(target).endswith(name)
        if is_it and not is_after:
            send(signal.SIGKILL)
        real(source, target)
        if is_it:
            send(signal.SIGKILL)

    os.replace = replace


MOMENTS = {"half of a checkpoint": half_written}
for name in ("step-000000003.pt", "history.csv", "cibr.safetensors", "run.json"):
    MOMENTS[f"before {name}"] = partial(kill_at, name, False)
    MOMENTS[f"after {name}"] = partial(kill_at, name, True)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_in_the_middle_of_a_save_loses_at_most_that_save(whole, tmp_path, moment):
    assert run(tmp_path, MOMENTS[moment]) == -signal.SIGKILL
    assert newest_checkpoint(tmp_path)[1]["progress"]["step"] >= 2
    train(tmp_path)
    assert_equal_runs(tmp_path, whole)


def full_before_four():
    """From then on the system refuses files of more than 50 kB, as a full disk does."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (50_000, 50_000))
    before_step(4, limit)


def test_a_full_disk_keeps_the_last_checkpoints(whole, tmp_path):
    assert run(tmp_path / "run", full_before_four, log=tmp_path / "log") == 1
    log = (tmp_path / "log").read_text()
    assert "ValueError: cannot write" in log and "step-000000003.pt'. Make room" in log
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000000002.pt", "step-000000003.pt"]
    train(tmp_path / "run")
    assert_equal_runs(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [(signal.SIGTERM, SystemExit, 143), (signal.SIGINT, KeyboardInterrupt, None)],
)
def test_signals_save_after_the_step_and_leave_with_a_message(
    whole, tmp_path, monkeypatch, capsys, number, error, code
):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_CHECKPOINT_SECONDS", 600)
        before_step(4, partial(send, number), patch.setattr)
        with pytest.raises(error) as caught:
            train(tmp_path)
    assert getattr(caught.value, "code", None) == code
    newest = checkpoints(tmp_path)[-1]
    place = f"at step 4 of 6 in {str(newest)!r}; start it again to go on"
    assert f"{number.name}: the run is saved {place}" in capsys.readouterr().err
    assert newest.name == "step-000000004.pt"
    train(tmp_path)
    assert_equal_runs(tmp_path, whole)


def test_signals_are_noted_and_their_handlers_restored():
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.getsignal(number) for number in numbers]
    with noted_signals() as noted:
        signal.raise_signal(signal.SIGTERM)
        noted.clear()
        signal.raise_signal(signal.SIGINT)
        assert noted == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):  # the second Ctrl-C
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in numbers] == before
    thread = threading.Thread(target=lambda: noted_signals().__enter__())
    thread.start()
    thread.join()
    assert [signal.getsignal(number) for number in numbers] == before


class Part:
    """Stands for a model or an optimiser."""

    def state_dict(self):
        return {"good": True}


def test_crafted_and_damaged_checkpoints_are_passed_over(tmp_path):
    good = RunFolder(tmp_path, {}).save({"part": Part()}, Progress(10, 1))
    crafted = Crafted(tmp_path / "owned")
    torch.save({"model": crafted}, good.with_name("step-000000002.pt"))
    good.with_name("step-000000003.pt").write_bytes(pickle.dumps(crafted, protocol=2))
    good.with_name("step-000000004.pt").write_bytes(good.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="cannot be read and is passed over") as warned:
        file, state = newest_checkpoint(tmp_path)
    assert file == good and state["part"] == {"good": True} and len(warned) == 3
    assert not (tmp_path / "owned").exists()


def test_a_second_run_on_a_folder_is_refused_until_the_first_one_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_PATIENCE", 0.1)
    message = f"another run is writing to output_dir {str(tmp_path)!r}: wait for its end"
    with RunFolder(tmp_path, {}).claimed(), RunFolder(tmp_path, {}, writes=False).claimed():
        with pytest.raises(ValueError, match=message):
            train(tmp_path, epochs=1)
    train(tmp_path, epochs=1)
    assert not (tmp_path / ".lock").exists()


def test_a_finished_run_is_loaded_and_one_of_another_configuration_refused(tmp_path, capsys):
    model, history = train(tmp_path, epochs=1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    again, stored = train(tmp_path, epochs=1, micro_batch_size=3)  # which changes no weight
    assert "holds this run, finished: its model and history are loaded" in capsys.readouterr().err
    assert same(model, again) and not again.training and stored.equals(history)
    message = r"a finished run of another configuration: beta \(0.1 there, 0.2 here\)\. "
    with pytest.raises(ValueError, match=message):
        train(tmp_path, epochs=1, beta=0.2)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
