"""A sweep does each run once, whatever fails, is killed or runs beside it."""

import json
import os
import signal
import threading

import numpy as np
import pytest
import sweep_work
from processes import finish, start
from sweep_work import runs_of, taken, wait_for

from cibr.results import append_row, provenance, read_rows
from cibr.sweep import grid, missing, run_id, run_sweep


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "rows.csv"


def test_a_grid_is_every_combination_in_the_order_of_nested_loops():
    expected = [{"a": a, "b": "x", "c": c, "d": [1, 2]} for a in (1, 2) for c in (3, 4, 5)]
    assert grid(a=(1, 2), b="x", c=range(3, 6), d=[[1, 2]]) == expected
    assert grid() == [{}]
    with pytest.raises(ValueError, match="axis 'b' has no value"):
        grid(a=[1], b=[])


def test_a_run_is_the_same_whatever_the_order_and_kind_of_its_numbers():
    one = {"a": 1, "b": {"x": [1, 2.5], "y": None}, "c": "1"}
    for same in (
        {"c": "1", "b": {"y": None, "x": (1.0, 2.5)}, "a": 1.0},
        {"a": np.int64(1), "b": {"x": [np.float32(1), np.float64(2.5)], "y": None}, "c": "1"},
    ):
        assert run_id(same) == run_id(one)
    others = [
        one | {"a": 2},
        one | {"c": 1},
        one | {"a": True},
        one | {"d": None},
        {"a": 1},
        one | {"a": 1 + 1e-15},
    ]
    assert len({run_id(run) for run in [one, *others]}) == len(others) + 1
    assert run_id(one | {"folder": "x"}, key=("a", "c")) == run_id({"c": "1", "a": 1.0}, key=("c", "a"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1}, {1: 2}, len])
def test_settings_that_cannot_be_told_apart_as_text_are_refused(value):
    with pytest.raises(ValueError, match="settings are finite numbers.*'a'"):
        run_id({"a": value})


def test_a_key_names_settings_that_are_there():
    with pytest.raises(ValueError, match="key names 'seed', which the run lacks"):
        run_id({"a": 1}, key=("a", "seed"))


def test_a_sweep_leaves_one_row_a_run_and_a_second_one_does_nothing(log, file):
    runs = runs_of(log, 3)
    assert missing(runs, file) == runs
    rows = run_sweep([*runs, dict(reversed(runs[1].items()))], file, sweep_work.square)
    assert rows["square"].tolist() == [0, 1, 4] and set(rows["status"]) == {"ok"} and (rows["seconds"] >= 0).all()
    assert [json.loads(text) for text in rows["configuration"]] == runs
    assert rows["run"].tolist() == [run_id(run) for run in runs]
    assert [json.loads(text) for text in rows["versions"]] == [provenance()["versions"]] * 3
    before = file.read_bytes()
    again = run_sweep([{"log": str(log), "i": float(i)} for i in (2, 0)], file, sweep_work.square)
    assert again["square"].tolist() == [4, 0]  # in the order that was asked for
    assert taken(log) == [0, 1, 2] and file.read_bytes() == before
    more = runs_of(log, 4)
    assert missing(more, file) == more[3:]
    assert len(run_sweep(more, file, sweep_work.square)) == 4 and taken(log) == [0, 1, 2, 3]
    assert len(run_sweep([], file, sweep_work.square)) == 0


def test_a_key_leaves_other_settings_out_of_what_a_run_is(log, file):
    run_sweep(runs_of(log, 2), file, sweep_work.square, key=("i",))
    moved = runs_of(str(log) + "-elsewhere", 3)
    assert missing(moved, file, key=("i",)) == moved[2:] and missing(moved, file) == moved


def test_a_failed_run_is_a_row_and_is_done_again_only_when_asked(log, file, capsys):
    runs, work = runs_of(log, 4), sweep_work.fail_at_odd_until_mended
    rows = run_sweep(runs, file, work)
    assert taken(log) == [0, 1, 2, 3]
    assert rows["status"][[0, 2]].tolist() == ["ok", "ok"] and rows["square"].isna().tolist() == [False, True] * 2
    assert (
        rows["status"][1].startswith("ArithmeticError: 1 is odd, and long: xxx") and len(rows["status"][1]) == 500
    )
    assert "in fail_at_odd_until_mended" in "".join(capsys.readouterr())
    (log.parent / "mended").touch()
    assert missing(runs, file) == [] and run_sweep(runs, file, work)["status"].tolist() == rows["status"].tolist()
    assert set(run_sweep(runs, file, work, retry=True)["status"]) == {"ok"}
    assert taken(log) == [0, 1, 2, 3, 1, 3] and len(read_rows(file)) == 4


def test_a_run_that_fails_again_at_once_is_done_once_a_retry(log, file):
    runs, work = runs_of(log, 2), sweep_work.fail_at_odd_until_mended
    run_sweep(runs, file, work)
    assert len(run_sweep(runs, file, work, retry=True)) == 2
    assert taken(log) == [0, 1, 1]


@pytest.mark.parametrize("name", ["name_a_column_of_the_sweep", "no_metrics"])
def test_work_that_returns_no_metrics_is_a_failed_run(log, file, name):
    (status,) = run_sweep(runs_of(log, 1), file, getattr(sweep_work, name))["status"]
    assert ("ValueError: work returned 'seconds'" if name.startswith("name") else "TypeError") in status


def test_an_interrupted_run_leaves_no_row_and_is_free_again(log, file):
    runs = runs_of(log, 3)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(runs, file, sweep_work.interrupt_at_1)
    assert missing(runs, file) == runs[1:]
    assert set(run_sweep(runs, file, sweep_work.square)["status"]) == {"ok"} and taken(log) == [0, 1, 2]


def test_two_commands_at_once_do_each_run_once_and_both_return_all(log, file):
    runs = runs_of(log, 6)
    commands = [start(sweep_work.sweep, order, file, sweep_work.nap, 1) for order in (runs, runs[::-1])]
    assert [finish(command) for command in commands] == [0, 0]
    assert sorted(taken(log)) == list(range(6))
    rows = read_rows(file)
    assert len(rows) == 6 and len(set(rows["process"])) == 2


def test_the_run_of_a_killed_command_is_taken_up_by_one_that_waits_for_it(log, file):
    runs, work = runs_of(log, 4), sweep_work.hang_from_2_on_at_first
    killed = start(sweep_work.sweep, runs, file, work, 1)
    wait_for(lambda: taken(log) == [0, 1, 2])
    before = read_rows(file)
    log.write_text(log.read_text() + "3 0\n")  # so that only the killed one hangs
    threading.Timer(1.0, os.kill, (killed.pid, signal.SIGKILL)).start()
    rows = run_sweep(runs, file, work)
    assert finish(killed) == -signal.SIGKILL
    assert taken(log) == [0, 1, 2, 3, 3, 2]  # 3 while 2 was held
    assert rows["square"].tolist() == [0, 1, 4, 9] and rows["seconds"][:2].tolist() == before["seconds"].tolist()


def test_the_bar_counts_what_other_commands_finish(log, file, capsys, monkeypatch):
    runs = grid(i=range(3), log=str(log), file=str(file))
    run_sweep(runs, file, sweep_work.let_another_command_do_all_but_0)
    assert "3/3" in capsys.readouterr().err and sorted(taken(log)) == [0, 1, 2]


def test_a_table_of_something_else_is_refused_and_left_alone(log, file):
    append_row(file, {"loss": 1.0})
    before = file.read_bytes()
    for retry in (False, True):
        with pytest.raises(ValueError, match="rows.csv' is no table of a sweep.*'loss'"):
            run_sweep(runs_of(log, 1), file, sweep_work.square, retry=retry)
    assert file.read_bytes() == before and taken(log) == []


def test_processes_and_their_work_are_checked_before_anything_starts(log, file):
    with pytest.raises(ValueError, match="n_processes.*1 or more; got 0"):
        run_sweep(runs_of(log, 1), file, sweep_work.square, n_processes=0)
    with pytest.raises(ValueError, match="work that they can import.*lambda"):
        run_sweep(runs_of(log, 1), file, lambda settings: {}, n_processes=2)
    assert not file.exists()
