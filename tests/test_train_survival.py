"""A run that is killed, told to end or out of space goes on to the weights of an undisturbed one, bit for bit."""

import os
import random
import resource
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import noise_pairs
from processes import finish, start

from cibr import DualEncoder, fit
from cibr.models.tiny import train_tokenizer
from cibr.train import checkpoint, configure, guards, loop
from cibr.train.checkpoint import checkpoints, newest_checkpoint

PAIRS, HELD_OUT = noise_pairs(24, n_captions=3), noise_pairs(10, n_captions=2, split="validation")
STEPS = 18


def settings(folder, **options):
    run = dict(dropout=0.2, beta=0.1, epochs=6, batch_size=8, learning_rate=1e-3, learn_temperature=True)
    return configure(output_dir=str(folder), **(run | {"checkpoint_every": 1} | options))


def train(folder, prepare=None, **options):
    """A run of 18 steps that saves at each; `prepare` may arrange for its end."""
    config = settings(folder, **options)
    torch.manual_seed(config.seed)
    texts = PAIRS.texts()
    assert train_tokenizer(texts)
    model = DualEncoder.tiny(texts, dim=16, width=4, dropout=0.2, learn_variance=config.estimator == "gaussian")
    model.set_temperature(config.temperature, learn=True)
    if prepare:
        prepare(Path(folder))
    fit(model, PAIRS, HELD_OUT, config)


def run(folder, prepare=None, log=None, **options):
    return finish(start(_train, folder, prepare, options, log=log))


def _train(folder, prepare, options):
    train(folder, prepare, **options)


def weights(folder):
    return DualEncoder.from_pretrained(folder).state_dict()


def assert_equal_runs(folder, whole):
    expected, found = weights(whole), weights(folder)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    one, other = (pd.read_csv(f / "history.csv").drop(columns="seconds") for f in (whole, folder))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    left = {p.name for p in folder.iterdir() if p.suffix == ".part" or p.name.startswith(".")}
    assert not left and not (folder / "checkpoints").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run, and how long its process took."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder / "warm-up")  # the server imports
    started = time.monotonic()
    assert run(folder / "run") == 0
    return folder / "run", time.monotonic() - started


def die_after_step(n):
    """Ends the process, as SIGKILL does, before its step after the n-th that it takes."""
    real, taken = loop.contrastive_backward, []

    def backward(*args, **options):
        if len(taken) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        taken.append(1)
        return real(*args, **options)

    loop.contrastive_backward = backward


def die_after_five(folder):
    die_after_step(5)


@pytest.mark.parametrize(
    ("estimator", "every"), [("vmf", 0), ("gaussian", 2), ("mine", 2), ("club", 0), ("prototype", 2)]
)
def test_resume_is_bit_equal(tmp_path, estimator, every):
    options = dict(estimator=estimator, checkpoint_every=every, micro_batch_size=3)
    assert run(tmp_path / "whole", **options) == 0
    assert run(tmp_path / "killed", die_after_five, **options) == -signal.SIGKILL
    newest = checkpoints(tmp_path / "killed" / "checkpoints")[-1]
    assert newest.name == f"step-{4 if every else 3:09d}.pt"
    assert run(tmp_path / "killed", **options) == 0
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_kill_anywhere(whole, tmp_path):
    """SIGKILL at random moments, until a run has come through; every attempt that saves gets further."""
    undisturbed, seconds = whole
    chance, n_killed, n_runs, deadline = random.Random(0), 0, 0, time.monotonic() + 25
    while time.monotonic() < deadline:
        folder, process = tmp_path / f"run-{n_runs}", None
        while process is None or process.exitcode:
            process = start(train, folder)
            process.join(chance.uniform(0.2, 1.0) * seconds if time.monotonic() < deadline else 200)
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            n_killed += process.exitcode != 0
        assert_equal_runs(folder, undisturbed)
        n_runs += 1
    assert n_runs >= 2 and n_killed >= 5


def die_in(name, module, call):
    """Kills the process at the third call of a function that a save makes, halfway through where it writes."""
    real, n_calls = getattr(module, name), []

    def deadly(*args, **options):
        n_calls.append(1)
        if len(n_calls) == 3:
            call(real, *args, **options)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    setattr(module, name, deadly)


def half_written(folder):
    class Half:
        def __init__(self, stream):
            self.stream, self.room = stream, 20_000

        def write(self, data):
            self.stream.write(bytes(data)[: self.room])
            self.room -= len(data)
            if self.room < 0:
                self.stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return len(data)

        def flush(self):
            self.stream.flush()

    die_in("save", torch, lambda real, state, stream: real(state, Half(stream)))


def before_sync(folder):
    die_in("fsync", os, lambda real, handle: None)


def before_move(folder):
    die_in("replace", Path, lambda real, source, target: None)


def after_move(folder):
    die_in("_sync_folder", checkpoint, lambda real, folder: None)


def after_the_last_checkpoint(folder):
    real = loop.write_checkpoint

    def deadly(folder, step, state):
        real(folder, step, state)
        if step == STEPS:
            os.kill(os.getpid(), signal.SIGKILL)

    loop.write_checkpoint = deadly


def before_removal(folder):
    die_in("unlink", Path, lambda real, path, missing_ok: None)


def in_the_model_folder(folder):
    from cibr.models import saving

    saving._finish = lambda folder: os.kill(os.getpid(), signal.SIGKILL)


MOMENTS = [half_written, before_sync, before_move, after_move, before_removal]
MOMENTS += [after_the_last_checkpoint, in_the_model_folder]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_a_kill_in_the_middle_of_a_save_loses_at_most_that_save(whole, tmp_path, moment):
    assert run(tmp_path / "run", moment) == -signal.SIGKILL
    if moment is not in_the_model_folder:
        assert newest_checkpoint(tmp_path / "run" / "checkpoints")[1]["progress"]["step"] >= 1
    assert run(tmp_path / "run") == 0
    assert_equal_runs(tmp_path / "run", whole[0])


def full_after_three(folder):
    """From its fourth step on, no file of this process may grow beyond 50 kB: the system refuses, as a full disk
    does."""
    real, taken = loop.contrastive_backward, []

    def backward(*args, **options):
        taken.append(1)
        if len(taken) == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        return real(*args, **options)

    loop.contrastive_backward = backward


def test_full_disk_keeps_last(whole, tmp_path):
    assert run(tmp_path / "run", full_after_three, log=tmp_path / "log") == 1
    log = (tmp_path / "log").read_text()
    assert "ValueError: cannot write" in log and "step-000000003.pt'. Make room" in log
    left = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert sorted(left) == ["step-000000002.pt", "step-000000003.pt"]
    assert run(tmp_path / "run") == 0
    assert_equal_runs(tmp_path / "run", whole[0])


def terminated_at_four(folder):
    real, taken = loop.contrastive_backward, []

    def backward(*args, **options):
        taken.append(1)
        if len(taken) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **options)

    loop.contrastive_backward = backward


def test_sigterm_saves_at_the_next_step_and_leaves_with_a_message(whole, tmp_path):
    options = dict(checkpoint_every=0)
    assert run(tmp_path / "run", terminated_at_four, log=tmp_path / "log", **options) == guards.EXIT_CODE == 143
    assert "SIGTERM: the run is saved at step 4 of 18 in" in (tmp_path / "log").read_text()
    assert "start it again to go on" in (tmp_path / "log").read_text()
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-000000004.pt"
    assert run(tmp_path / "run", checkpoint_every=5) == 0  # how often a run saves does not change it
    assert_equal_runs(tmp_path / "run", whole[0])
