"""What the runs of the sweeps' tests do; in a module of its own, since processes import it by name."""

import os
import signal
import time
from pathlib import Path

import torch

from cibr.sweep import grid, run_sweep


def runs_of(log, n):
    return grid(i=range(n), log=str(log))


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def taken(log) -> list[int]:
    """Which runs were begun, in order, by all processes together."""
    return [int(line.split()[0]) for line in Path(log).read_text().splitlines()] if Path(log).exists() else []


def square(settings):
    with open(settings["log"], "a") as log:  # one short line: whole, whoever else writes
        log.write(f"{settings['i']} {os.getpid()}\n")
    return {"square": settings["i"] ** 2}


def nap(settings):
    time.sleep(0.2)
    return square(settings) | {"process": os.getpid()}


def fail_at_odd_until_mended(settings):
    result = square(settings)
    if settings["i"] % 2 and not Path(settings["log"], "..", "mended").resolve().exists():
        raise ArithmeticError(f"{settings['i']} is odd,\n  and long: {'x' * 1000}")
    return result


def hang_from_2_on_at_first(settings):
    first = settings["i"] not in taken(settings["log"])
    result = square(settings)
    if first and settings["i"] >= 2:
        time.sleep(600)
    return result | {"threads": torch.get_num_threads()}


def interrupt_at_1(settings):
    if settings["i"] == 1:
        raise KeyboardInterrupt
    return square(settings)


def let_another_command_do_all_but_0(settings):
    others = [dict(settings, i=i) for i in (1, 2)]
    run_sweep(others, settings["file"], square)
    return square(settings)


def die(settings):
    square(settings)
    os.kill(os.getpid(), signal.SIGKILL)


def name_a_column_of_the_sweep(settings):
    return {"seconds": 1.0}


def no_metrics(settings):
    return 3


def sweep(runs, file, work, n_processes):
    """A command of its own; fails unless its table is whole."""
    assert len(run_sweep(runs, file, work, n_processes)) == len(runs)
