"""A run that is killed, told to end or out of space goes on to the weights of an undisturbed one,
bit for bit.
"""

import os
import random
import resource
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from processes import finish, start
from small_runs import train

from cibr import DualEncoder, utils
from cibr.models import io
from cibr.train import loop
from cibr.train.checkpoint import RunFolder, checkpoints, newest_checkpoint

STEPS = 18


def run(folder, arrange=None, log=None, **options):
    """The exit code of a run of 18 steps that saves at each; `arrange` may see to its end."""
    return finish(start(_train, folder, arrange, {"checkpoint_every": 1} | options, log=log))


def _train(folder, arrange, options):
    if arrange:
        arrange()
    train(folder, **options)


def assert_equal_runs(folder, whole):
    expected, found = (DualEncoder.from_pretrained(f).state_dict() for f in (whole, folder))
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
    started = time.monotonic()
    assert run(folder / "run") == 0
    return folder / "run", time.monotonic() - started


def before_step(n, act):
    """Acts in the process before its n-th step."""
    real, taken = loop.train_step, []

    def train_step(*args, **options):
        taken.append(1)
        if len(taken) == n:
            act()
        return real(*args, **options)

    loop.train_step = train_step


def send(number):
    os.kill(os.getpid(), number)


def die():
    send(signal.SIGKILL)


def die_before_six():
    before_step(6, die)


@pytest.mark.parametrize(
    ("penalty", "sample", "every"), [("vmf", True, 0), ("mine", False, 2), ("rafa", False, 0)]
)
def test_resume_is_bit_equal(tmp_path, penalty, sample, every):
    options = dict(
        penalty=penalty, sample=sample, checkpoint_every=every, micro_batch_size=3, epochs=3
    )
    options["ema_decay"] = 0.0 if every else 0.9
    if penalty == "rafa":
        options |= dict(
            contrastive="hycd", interpolation=0.3, crop_scale=0.8, text_tower_rate=0.0, ramp=False
        )
    assert run(tmp_path / "whole", **options) == 0
    assert run(tmp_path / "killed", die_before_six, **options) == -signal.SIGKILL
    assert checkpoints(tmp_path / "killed")[-1].name == f"step-{4 if every else 3:09d}.pt"
    assert run(tmp_path / "killed", **options) == 0
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_kill_anywhere(whole, tmp_path):
    """SIGKILL at random moments, until a run has come through; every attempt that saves gets
    further.
    """
    undisturbed, seconds = whole
    chance, n_killed, n_runs, deadline = random.Random(0), 0, 0, time.monotonic() + 8
    while time.monotonic() < deadline or not n_killed:
        folder, process, n_runs = tmp_path / f"run-{n_runs}", None, n_runs + 1
        while process is None or process.exitcode:
            process = start(_train, folder, None, {"checkpoint_every": 1})
            is_last = n_killed and time.monotonic() > deadline
            process.join(200 if is_last else chance.uniform(0.1, 1.0) * seconds)
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            n_killed += process.exitcode != 0
        assert_equal_runs(folder, undisturbed)


def die_in(name, module, call):
    """Kills the process at the third call of a function that a save makes, halfway through where it
    writes.
    """
    real, n_calls = getattr(module, name), []

    def deadly(*args, **options):
        n_calls.append(1)
        if len(n_calls) == 3:
            call(real, *args, **options)
            die()
        return real(*args, **options)

    setattr(module, name, deadly)


def half_written():
    die_in("save", torch, lambda real, state, file: real(state, file) or os.truncate(file, 20_000))


def before_sync():
    die_in("fsync", os, lambda real, handle: None)


def before_move():
    die_in("replace", Path, lambda real, source, target: None)


def after_move():
    die_in("_sync", utils, lambda real, folder: None)


def after_the_last_checkpoint():
    real = RunFolder.save

    def deadly(run, parts, at):
        real(run, parts, at)
        if at.step == STEPS:
            die()

    RunFolder.save = deadly


def in_the_model_folder():
    io._move_into_place = lambda folder: die()


MOMENTS = [
    half_written,
    before_sync,
    before_move,
    after_move,
    after_the_last_checkpoint,
    in_the_model_folder,
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_a_kill_in_the_middle_of_a_save_loses_at_most_that_save(whole, tmp_path, moment):
    assert run(tmp_path / "run", moment) == -signal.SIGKILL
    if moment is not in_the_model_folder:
        assert newest_checkpoint(tmp_path / "run")[1]["progress"]["step"] >= 1
    assert run(tmp_path / "run") == 0
    assert_equal_runs(tmp_path / "run", whole[0])


def full_before_four():
    """From then on no file of this process may grow beyond 50 kB: the system refuses, as a full
    disk does.
    """
    before_step(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)))


def test_full_disk_keeps_last(whole, tmp_path):
    assert run(tmp_path / "run", full_before_four, log=tmp_path / "log") == 1
    log = (tmp_path / "log").read_text()
    assert "ValueError: cannot write" in log and "step-000000003.pt'. Make room" in log
    left = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert sorted(left) == ["step-000000002.pt", "step-000000003.pt"]
    assert run(tmp_path / "run") == 0
    assert_equal_runs(tmp_path / "run", whole[0])


def terminated_before_four():
    before_step(4, lambda: send(signal.SIGTERM))


def interrupted_before_four():
    before_step(4, lambda: send(signal.SIGINT))


@pytest.mark.parametrize(
    ("arrange", "name", "code"),
    [(terminated_before_four, "SIGTERM", 143), (interrupted_before_four, "SIGINT", 1)],
)
def test_sigterm_and_ctrl_c_save_after_the_step_and_leave_with_a_message(
    whole, tmp_path, arrange, name, code
):
    assert run(tmp_path / "run", arrange, log=tmp_path / "log", checkpoint_every=0) == code
    log, newest = (tmp_path / "log").read_text(), checkpoints(tmp_path / "run")[-1]
    assert newest.name == "step-000000004.pt"
    assert (
        f"{name}: the run is saved at step 4 of 18 in {str(newest)!r}; start it again to go on"
        in log
    )
    assert (
        run(tmp_path / "run", checkpoint_every=5) == 0
    )  # how often a run saves does not change it
    assert_equal_runs(tmp_path / "run", whole[0])
