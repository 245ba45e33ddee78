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
import small_runs
import torch
from helpers import Crafted, same
from processes import exit_code_of
from small_runs import before_step, forks, small_model, stop_at, train

from cibr import DualEncoder
from cibr.train import checkpoint, loop
from cibr.train.checkpoint import Progress, RunFolder, noted_signals
from cibr_book.experiments.training import WeightAverage


@pytest.fixture(autouse=True)
def every_step(monkeypatch):
    """Saves at every step, and computes on one thread, as the processes of these tests do."""
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", -1)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def run(folder, arrange=None):
    """A run in a process, whose end `arrange` may see to."""
    loop._CHECKPOINT_SECONDS = -1
    if arrange:
        arrange()
    train(folder)


def last_step(folder):
    """The step of the newest checkpoint."""
    return int(max(folder.glob("checkpoints/*.pt")).stem.removeprefix("step-"))


def assert_equal_runs(folder, whole):
    assert same(DualEncoder.from_pretrained(folder), DualEncoder.from_pretrained(whole))
    one, other = (pd.read_csv(place / "history.csv") for place in (folder, whole))
    columns = other.columns.drop("seconds")
    pd.testing.assert_frame_equal(one[columns], other[columns], check_exact=True)
    names = [path.name for path in folder.iterdir()]
    assert not [n for n in names if n.endswith(".part") or n.startswith(".") or n == "checkpoints"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    assert exit_code_of(run, folder) == 0
    return folder


RAFA = dict(penalty="rafa", contrastive="hycd", crop_scale=0.8)
RUNS = [  # settings, averages, seconds between checkpoints, and the step of the last one
    (dict(sample=True, micro_batch_size=3), dict(decay=0.9), -1, 4),
    (dict(penalty="mine"), {}, 600, 3),
    (RAFA, dict(decay=0.0, interpolation=0.3), -1, 4),
]


def without_image_head(config, pairs):
    """A model with other weights, which all come from the checkpoint then, and the teacher's."""
    model = small_model(config, pairs)
    torch.nn.init.zeros_(model.backbone.image_head[2].weight)
    return model


@forks
@pytest.mark.parametrize(("options", "average", "seconds", "step"), RUNS)
def test_resume_is_bit_equal(tmp_path, monkeypatch, options, average, seconds, step):
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", seconds)
    if average:
        options = options | {"additions": {"average": partial(WeightAverage, **average)}}
    train(tmp_path / "whole", **options)
    stop_at(5, tmp_path / "stopped", **options)
    assert last_step(tmp_path / "stopped") == step
    monkeypatch.setattr(small_runs, "small_model", without_image_head)
    train(tmp_path / "stopped", **options)
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


def test_kill_anywhere(whole, tmp_path):
    """SIGKILL at random moments, until a run has come through."""
    chance, seconds, n_killed = random.Random(0), 0.5, 0
    while n_killed < 6:
        folder = tmp_path / f"after {n_killed} kills"
        code = None
        while code != 0:
            code = exit_code_of(run, folder, timeout=chance.uniform(0.2, 1.0) * seconds)
            assert code in (0, -signal.SIGKILL)
            n_killed += code != 0
            seconds *= 1.2 if code else 0.5  # of a process, which depend on the machine
        assert_equal_runs(folder, whole)


def kill_at(name, time, is_after):
    """Kills the process before or after a file gets its name for the n-th time."""
    real, times = os.replace, []

    def replace(source, target):
        times.extend([1] * str(target).endswith(name))
        is_it = str(target).endswith(name) and len(times) == time
        if is_after or not is_it:
            real(source, target)
        if is_it:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace


SAVES = [("step-000000003.pt", 1), ("history.csv", 1), ("history.csv", 5)]  # 5: after the last step
SAVES += [("cibr.safetensors", 1), ("run.json", 1)]


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize(("name", "time"), SAVES)
def test_a_kill_in_the_middle_of_a_save_loses_at_most_that_save(
    whole, tmp_path, name, time, is_after
):
    kill = partial(kill_at, name, time, is_after)
    assert exit_code_of(run, tmp_path, kill) == -signal.SIGKILL
    assert last_step(tmp_path) >= 2
    train(tmp_path)
    assert_equal_runs(tmp_path, whole)


def full_before_step_4():
    """From then on the system refuses files of more than 50 kB, as a full disk does."""
    before_step(4, partial(resource.setrlimit, resource.RLIMIT_FSIZE, (50_000, 50_000)))


def test_a_full_disk_keeps_the_last_checkpoints(whole, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    assert exit_code_of(run, folder, full_before_step_4, log=log) == 1
    last = folder / "checkpoints" / "step-000000003.pt"
    assert "ValueError: cannot write" in log.read_text()
    assert f"the last good checkpoint is {str(last)!r}. Make room" in log.read_text()
    names = sorted(path.name for path in last.parent.iterdir())
    assert names == ["step-000000002.pt", "step-000000003.pt"]
    train(folder)
    assert_equal_runs(folder, whole)


@pytest.mark.parametrize(
    ("name", "error"), [("SIGTERM", SystemExit), ("SIGINT", KeyboardInterrupt)]
)
def test_signals_save_after_the_step_and_leave_with_a_message(
    whole, tmp_path, monkeypatch, capsys, name, error
):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_CHECKPOINT_SECONDS", 600)
        before_step(4, partial(signal.raise_signal, signal.Signals[name]), patch.setattr)
        with pytest.raises(error) as caught:
            train(tmp_path)
    assert getattr(caught.value, "code", 143) == 143
    file = str(tmp_path / "checkpoints" / "step-000000004.pt")
    message = f"{name}: the run is saved at step 4 of 6 in {file!r}; start it again to go on"
    assert message in capsys.readouterr().err and last_step(tmp_path) == 4
    train(tmp_path)
    assert_equal_runs(tmp_path, whole)


def test_signals_are_noted_and_their_handlers_restored():
    def handlers():
        return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    before = handlers()
    with noted_signals() as noted:
        signal.raise_signal(signal.SIGINT)
        assert noted == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):  # the second Ctrl-C
            signal.raise_signal(signal.SIGINT)
    assert handlers() == before
    thread = threading.Thread(target=noted_signals().__enter__)  # where none can be handled
    thread.start()
    thread.join()
    assert handlers() == before


def test_crafted_and_damaged_checkpoints_are_passed_over(tmp_path):
    run, part, loaded = RunFolder(tmp_path, {}), torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    good = run.save({"part": part}, Progress(10, 1))
    crafted = Crafted(tmp_path / "owned")
    torch.save({"model": crafted}, good.with_name("step-000000002.pt"))
    good.with_name("step-000000003.pt").write_bytes(pickle.dumps(crafted, protocol=2))
    good.with_name("step-000000004.pt").write_bytes(good.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="cannot be read and is passed over") as warned:
        progress = run.resume({"part": loaded}, Progress(10))
    assert progress.step == 1 and same(loaded, part) and len(warned) == 3
    assert not (tmp_path / "owned").exists()


def test_a_second_run_on_a_folder_is_refused_until_the_first_one_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_PATIENCE", 0.1)
    message = f"another run is writing to output_dir {str(tmp_path)!r}: wait for its end"
    other_process = RunFolder(tmp_path, {}, writes=False)  # of the same run
    refused = pytest.raises(ValueError, match=message)
    with RunFolder(tmp_path, {}).claimed(), other_process.claimed(), refused:
        train(tmp_path, epochs=1)
    train(tmp_path, epochs=1)
    assert not (tmp_path / ".lock").exists()


def test_a_finished_run_is_loaded_and_one_of_another_configuration_refused(tmp_path, capsys):
    model, history = train(tmp_path, epochs=1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    (tmp_path / "checkpoints").mkdir()  # as a kill between its emptying and its removal leaves it
    again, stored = train(tmp_path, epochs=1, micro_batch_size=3)  # which changes no weight
    assert "holds this run, finished: its model and history are loaded" in capsys.readouterr().err
    assert same(model, again) and not again.training and stored.equals(history)
    message = r"a finished run of another configuration: beta \(0.1 there, 0.2 here\)\. "
    with pytest.raises(ValueError, match=message):
        train(tmp_path, epochs=1, beta=0.2)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
