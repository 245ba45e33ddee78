"""Processes for the tests, started from a clean server: no thread and no lock of pytest's is inherited."""

import multiprocessing
import os
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch", "transformers", "accelerate", "cibr.train"])


def start(function, *args, environment: dict[str, str] | None = None, log: Path | None = None):
    """A process that runs a module-level function on one thread; what it says goes to the end of `log`."""
    process = context.Process(target=_run, args=(function, args, environment or {}, log))
    process.start()
    return process


def finish(process, timeout: float = 200) -> int | None:
    """The exit code of a process, which is killed if it takes longer."""
    process.join(timeout)
    process.kill()
    process.join()
    return process.exitcode


def _run(function, args, environment, log):
    os.environ.update(environment, TQDM_DISABLE="1")
    if log is not None:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(action="ignore"):
            function(*args)
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(
            error.code if isinstance(error, SystemExit) else 130 if isinstance(error, KeyboardInterrupt) else 1
        )
    os._exit(0)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def run_together(world: int, function, *args, log: Path | None = None, timeout: float = 200) -> list[int]:
    """Exit codes of `world` processes that find each other over gloo; one that fails ends the others, as a
    launcher does."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(world)}
    processes = [
        start(function, *args, environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, log=log)
        for rank in range(world)
    ]
    deadline = time.monotonic() + timeout
    while any(p.is_alive() for p in processes) and all(p.exitcode in (None, 0) for p in processes):
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    failed = [p.exitcode for p in processes if p.exitcode]
    for p in processes:
        if p.is_alive():
            p.kill()
        p.join()
    return failed or [p.exitcode for p in processes]
