"""Processes for the tests, started from a clean server: no thread and no lock of pytest's is
inherited.
"""

import multiprocessing
import os
import socket
import sys
import warnings

import torch
from torch.multiprocessing import start_processes

PRELOADED = ["torch._dynamo", "accelerate.utils", "cibr.train.loop"]
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(PRELOADED)


def exit_code_of(function, *args, log=os.devnull, timeout=100):
    """Runs a module-level function in a process, which is killed if it takes longer.

    Its stderr is appended to `log`.
    """
    process = context.Process(target=_run, args=(function, args, log))
    process.start()
    process.join(timeout)
    process.kill()
    process.join()
    return process.exitcode


def _run(function, args, log):
    os.environ["TQDM_DISABLE"] = "1"
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as outside the tests
    with warnings.catch_warnings(action="ignore"):
        function(*args)


def run_together(n_processes, function, *args, timeout=100):
    """Runs a function in processes that find each other over gloo; an error in one is raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = port, n_processes, function, args
    processes = start_processes(_joined, given, n_processes, join=False, start_method="forkserver")
    ended = [processes.join(timeout) for _ in range(n_processes)]  # each waits for one more to end
    for process in processes.processes:
        process.kill()
    assert any(ended), f"the processes took longer than {timeout} seconds"


def _joined(rank, port, n_processes, function, args):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE=str(n_processes))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    _run(function, (*args, rank), os.devnull)
