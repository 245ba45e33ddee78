"""A sweep over processes of its own: they share the cores, end with their parent, and a death is said."""

import os
import signal
import threading

import pytest
import sweep_work
from processes import context, finish, start
from sweep_work import runs_of, taken, wait_for

from cibr.results import read_rows
from cibr.sweep import engine, run_sweep


@pytest.fixture
def quick_start(monkeypatch):
    """Processes that need not import everything anew."""
    monkeypatch.setattr(engine, "CONTEXT", context)


def alive(log):
    """The processes that began a run and have a thread left; the first may end before others, which keep locks."""
    processes = {int(line.split()[1]) for line in log.read_text().splitlines()}
    return [p for p in processes if any(" Z " not in _stat(thread) for thread in _threads(p))]


def _threads(process):
    try:
        return [f"/proc/{process}/task/{thread}" for thread in os.listdir(f"/proc/{process}/task")]
    except OSError:
        return []


def _stat(thread):
    try:
        with open(f"{thread}/stat") as stream:
            return stream.read()
    except OSError:
        return " Z "


def test_processes_do_each_run_once(tmp_path, quick_start):
    log, file = tmp_path / "log", tmp_path / "rows.csv"
    before = dict(os.environ)
    rows = run_sweep(runs_of(log, 10), file, sweep_work.nap, n_processes=2)
    assert sorted(taken(log)) == list(range(10)) and rows["square"].tolist() == [i * i for i in range(10)]
    assert len(set(rows["process"])) == 2 and os.getpid() not in set(rows["process"])
    assert dict(os.environ) == before and alive(log) == []


@pytest.fixture
def interruptible():
    """Ctrl-C raises, even where a shell has started pytest in the background and told it to ignore that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("quick_start", "interruptible")
def test_an_interrupted_sweep_leaves_no_process_and_the_next_does_only_what_is_missing(tmp_path):
    log, file = tmp_path / "log", tmp_path / "rows.csv"
    runs, work = runs_of(log, 4), sweep_work.hang_from_2_on_at_first

    def interrupt():
        wait_for(lambda: taken(log)[2:] in ([2, 3], [3, 2]) and len(read_rows(file)) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(runs, file, work, n_processes=2)
    assert alive(log) == []
    assert run_sweep(runs, file, work)["square"].tolist() == [0, 1, 4, 9] and taken(log)[4:] == [2, 3]


def test_processes_that_die_are_said_and_their_runs_are_missing(tmp_path, quick_start):
    log, file = tmp_path / "log", tmp_path / "rows.csv"
    with pytest.raises(RuntimeError, match=r"3 of 3 runs are missing.*\[-9, -9\].*fewer processes"):
        run_sweep(runs_of(log, 3), file, sweep_work.die, n_processes=2)
    assert not file.exists()
    assert len(run_sweep(runs_of(log, 3), file, sweep_work.square)) == 3


@pytest.mark.slow
def test_a_killed_sweep_takes_its_processes_along_and_the_next_does_only_what_is_missing(tmp_path):
    log, file = tmp_path / "log", tmp_path / "rows.csv"
    runs, work = runs_of(log, 5), sweep_work.hang_from_2_on_at_first
    command = start(sweep_work.sweep, runs, file, work, 2, environment={"OMP_NUM_THREADS": "64"})
    wait_for(lambda: {0, 1, 2, 3} == set(taken(log)) and len(read_rows(file)) == 2)
    os.kill(command.pid, signal.SIGKILL)
    assert finish(command) == -signal.SIGKILL
    wait_for(lambda: alive(log) == [])
    cores = len(os.sched_getaffinity(0))
    assert set(read_rows(file)["threads"]) == {max(1, cores // 2)}  # each had its share
    log.write_text(log.read_text() + "4 0\n")  # begun once, it hangs no more
    assert run_sweep(runs, file, work)["square"].tolist() == [0, 1, 4, 9, 16] and taken(log)[5:] == [2, 3, 4]
