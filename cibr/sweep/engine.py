"""The engine of a sweep: processes that take what is missing, one row a run, no run twice.

Processes share nothing but files, so it is the same whether they are of one command or of several, on one machine
or on several with one file system: each takes the first run without a row whose lock is free, holds the lock for
the run's life, and writes the row before it lets go. The system frees the lock of a process that is killed.
"""

import multiprocessing
import os
import pkgutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from tqdm import tqdm

from cibr.results import append_row, drop_rows, provenance, read_rows
from cibr.sweep.runs import as_json, by_id, outcomes

Work = Callable[[dict[str, Any]], Mapping[str, Any]]

CONTEXT = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, but not what runs them
OK = "ok"
WRITTEN = ("run", "configuration", "status", "seconds", "commit", "versions")
LONGEST_ERROR = 500  # characters; the whole traceback is printed
PAUSE_SECONDS = 0.5  # between two looks at what other processes have finished
LAST_SECONDS = 60.0  # for a run that saves when it is told to end


def run_sweep(
    runs: Iterable[Mapping[str, Any]],
    file: str | Path,
    work: Work,
    n_processes: int = 1,
    key: Sequence[str] | None = None,
    retry: bool = False,
) -> pd.DataFrame:
    """Does the runs that a file lacks, and waits for those that other commands are doing.

    Args:
        runs: settings of each run, from `grid`; equal ones count once.
        file: the CSV file; locks lie in `<file>.locks`.
        work: turns settings into metrics; for several processes a function of a module, which each imports.
        n_processes: that work side by side, each on its share of the cores' threads; 1 works in this process.
        key: the settings that tell runs apart; all of them by default.
        retry: drops the rows of failed runs first, so that they are done again.

    Returns:
        The rows of these runs, in their order: `run`, `configuration` (JSON), `status` (`ok`, or the error's type
        and message), `seconds`, `commit`, `versions` (JSON) and the metrics.

    Raises:
        ValueError: settings that cannot name a run, work that processes cannot import, or a file that is no table
            of a sweep or cannot be written.
        RuntimeError: processes ended before the runs did, as when memory runs out.
    """
    if n_processes < 1:
        raise ValueError(f"n_processes is the number of processes, 1 or more; got {n_processes}")
    sweep = _Sweep(by_id(runs, key), Path(file).resolve(), work)
    if retry:
        drop_rows(file, lambda row: row.get("run") in sweep.runs and row.get("status") != OK)
    bar = tqdm(total=len(sweep.runs), initial=sweep.n_done(), desc=sweep.file.stem, unit="run", smoothing=0)
    with bar:
        if n_processes == 1:
            for _ in sweep.work_through():
                bar.update(sweep.n_done() - bar.n)
        else:
            _side_by_side(sweep, n_processes, bar)
    rows = read_rows(file)
    return rows.set_index("run").loc[list(sweep.runs)].reset_index() if sweep.runs else rows.iloc[:0]


@dataclass(frozen=True)
class _Sweep:
    """What every process knows: the runs by name, the file of their rows, and how one is done."""

    runs: dict[str, dict[str, Any]]
    file: Path
    work: Work

    def pending(self) -> list[str]:
        done = outcomes(self.file)
        return [run for run in self.runs if run not in done]

    def n_done(self) -> int:
        return len(self.runs) - len(self.pending())

    def work_through(self) -> Iterator[None]:
        """Takes free runs until every run has its row; yields after each, and while others hold what is left."""
        source = provenance()
        while pending := self.pending():
            if not any(self._take(run, source) for run in pending):
                time.sleep(PAUSE_SECONDS)
            yield

    def _take(self, run: str, source: dict[str, Any]) -> bool:
        """Does a run unless another process has it, or had it since we looked."""
        lock = self.file.with_name(f"{self.file.name}.locks") / f"{run}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=0):
                if run not in self.pending():
                    return False
                append_row(self.file, self._row(run, source))
        except Timeout:
            return False
        return True

    def _row(self, run: str, source: dict[str, Any]) -> dict[str, Any]:
        """The row of a run: its metrics, or its error."""
        start, status, metrics = time.monotonic(), OK, {}
        try:
            metrics = dict(self.work(dict(self.runs[run])))
            if taken := [name for name in WRITTEN if name in metrics]:
                raise ValueError(f"work returned {taken[0]!r}, a column that the sweep writes; rename it")
        except Exception as error:
            tqdm.write(traceback.format_exc())
            status, metrics = _in_words(error), {}
        seconds = round(time.monotonic() - start, 3)
        head = (run, as_json(self.runs[run]), status, seconds, source["commit"], source["versions"])
        return dict(zip(WRITTEN, head, strict=True)) | metrics


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_ERROR]


def _side_by_side(sweep: _Sweep, n_processes: int, bar: tqdm) -> None:
    """Starts processes and shows what they and others finish; none is left when this returns or raises."""
    _check_importable(sweep.work)
    started = []
    try:
        with _environment_of_each(n_processes):
            for _ in range(min(n_processes, len(sweep.pending()))):
                started.append(CONTEXT.Process(target=_worker, args=(sweep,)))
                started[-1].start()
        while alive := [process.sentinel for process in started if process.is_alive()]:
            connection.wait(alive, timeout=PAUSE_SECONDS)
            bar.update(sweep.n_done() - bar.n)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.join(LAST_SECONDS)
            process.kill()
    if pending := sweep.pending():
        codes = [process.exitcode for process in started]
        raise RuntimeError(
            f"{len(pending)} of {len(sweep.runs)} runs are missing, but the processes have ended, with exit codes "
            f"{codes}; -9 is often for want of memory: use fewer processes. The same call goes on from here"
        )


def _worker(sweep: _Sweep) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for _ in sweep.work_through():
            pass
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None  # the parent says it


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)  # a training saves on it


@contextmanager
def _environment_of_each(n_processes: int) -> Iterator[None]:
    """What processes inherit that start inside: a share of the threads, and no progress bars of their own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(max(1, cores // n_processes), int(os.environ.get("OMP_NUM_THREADS") or cores))
    before = dict(os.environ)
    os.environ.update(OMP_NUM_THREADS=str(threads), TQDM_DISABLE="1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _check_importable(work: Work) -> None:
    module, name = getattr(work, "__module__", "__main__"), getattr(work, "__qualname__", "")
    try:
        found = module != "__main__" and pkgutil.resolve_name(f"{module}:{name}") is work
    except (ImportError, AttributeError, ValueError):
        found = False
    if not found:
        raise ValueError(f"several processes need work that they can import, not {work!r}; put it in a module")
