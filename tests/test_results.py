"""Rows: none lost, none doubled, whatever becomes of their writers; provenance that tells changed code."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from processes import finish, start

from cibr import results
from cibr.results import append_row, drop_rows, provenance, read_rows


def append_many(file, writer, n):
    for i in range(n):
        append_row(file, {"writer": writer, "i": i, f"only_{writer}": i / 7})


def append_until_killed(file):
    for i in range(10**9):
        append_row(file, {"i": i, "text": "x" * 20_000})


def test_rows_of_eight_processes_are_all_there_once_with_all_their_columns(tmp_path):
    file = tmp_path / "new folder" / "rows.csv"
    processes = [start(append_many, file, writer, 20) for writer in range(8)]
    assert [finish(p) for p in processes] == [0] * 8
    rows = read_rows(file)
    assert sorted(zip(rows["writer"], rows["i"], strict=True)) == [(w, i) for w in range(8) for i in range(20)]
    for writer in range(8):
        own = rows[rows["writer"] == writer]
        assert own[f"only_{writer}"].tolist() == [i / 7 for i in range(20)]
        assert rows[f"only_{writer}"].notna().sum() == 20
    assert sorted(p.name for p in file.parent.iterdir()) == ["rows.csv", "rows.csv.lock"]


def test_a_writer_killed_while_it_writes_leaves_whole_rows_and_a_free_file(tmp_path):
    file = tmp_path / "rows.csv"
    for attempt in range(5):
        process = start(append_until_killed, file)
        while not file.exists():
            time.sleep(0.01)
        time.sleep(0.05 + 0.017 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        assert finish(process) == -signal.SIGKILL
        rows = read_rows(file)
        assert rows["i"].tolist() == list(range(len(rows))) and (rows["text"] == "x" * 20_000).all()
        append_row(file, {"i": len(rows), "text": "y"})
        assert len(read_rows(file)) == len(rows) + 1
        file.unlink()


def test_a_write_that_fails_half_way_leaves_the_table_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "rows.csv"
    append_row(file, {"a": 1})
    before = file.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="rows.csv.*No space left.*make room"):
        append_row(file, {"a": 2})
    assert file.read_bytes() == before and not (tmp_path / "rows.csv.part").exists()


def test_values_are_read_back_as_they_were_written(tmp_path):
    file = tmp_path / "rows.csv"
    numbers = [0.1 + 0.2, 1e-310, -math.pi * 1e17, math.inf, float(np.nextafter(1.0, 2.0))]
    text = 'two\nlines, "quoted"'
    for number in numbers:
        row = {"x": number, "n": np.int64(3), "y": np.float64(number), "t": torch.tensor(0.5)}
        append_row(file, row | {"text": text, "yes": True, "none": None, "d": {"a": [1, None]}})
    append_row(file, {"x": math.nan})
    rows = read_rows(file)
    assert rows["x"].tolist()[:-1] == numbers == rows["y"].tolist()[:-1] and math.isnan(rows["x"].iloc[-1])
    assert rows["text"].tolist()[:-1] == [text] * 5 and set(rows["n"][:-1]) == {3} and set(rows["t"][:-1]) == {0.5}
    assert rows["none"].isna().all() and json.loads(rows["d"][0]) == {"a": [1, None]} and rows["yes"][0] is True


def test_columns_may_grow_and_earlier_cells_keep_their_text(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("a,b\n1.500,007")  # as somebody may have typed it, without a last line's end
    append_row(file, {"c": 2, "a": 1})
    assert file.read_text() == "a,b,c\n1.500,007,\n1,,2\n"


def test_a_commit_that_looks_like_a_number_stays_a_text(tmp_path):
    file = tmp_path / "rows.csv"
    for commit in ("123456789012", "12e456789012", "012345678901"):
        append_row(file, {"commit": commit, "run": commit})
    rows = read_rows(file)
    assert rows["commit"].tolist() == rows["run"].tolist() == ["123456789012", "12e456789012", "012345678901"]


def test_dropped_rows_are_gone_and_the_others_unchanged(tmp_path):
    file = tmp_path / "rows.csv"
    drop_rows(file, lambda row: True)
    assert not file.exists()
    for i in range(4):
        append_row(file, {"i": i, "x": i / 3})
    drop_rows(file, lambda row: row["i"] in ("1", "2"))
    assert read_rows(file)["x"].tolist() == [0.0, 1.0]


def test_a_link_stays_a_link(tmp_path):
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    append_row(real, {"a": 1})
    link.symlink_to(real)
    append_row(link, {"a": 2})
    assert link.is_symlink() and read_rows(real)["a"].tolist() == [1, 2]


@pytest.mark.parametrize("missing", ["nothing there", "empty"])
def test_a_file_without_rows_is_an_empty_table(tmp_path, missing):
    file = tmp_path / "rows.csv"
    if missing == "empty":
        file.touch()
    pd.testing.assert_frame_equal(read_rows(file), pd.DataFrame())
    append_row(file, {"a": 1})
    assert read_rows(file)["a"].tolist() == [1]


@pytest.mark.parametrize("text", ["a,b\n1,2\n1,2,3\n", "a,b\n1\n", 'a,b\n1,"2\n'])
def test_a_damaged_table_is_named_and_left_alone(tmp_path, text):
    file = tmp_path / "rows.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match="rows.csv', line .*mend it or move it away"):
        append_row(file, {"a": 1})
    assert file.read_text() == text


def test_unreadable_text_and_empty_rows_are_refused(tmp_path):
    file = tmp_path / "rows.csv"
    with pytest.raises(ValueError, match="rows.csv.*needs a cell"):
        append_row(file, {})
    assert not file.exists()
    file.write_bytes(b"a\n\xff\n")
    for use in (read_rows, lambda f: append_row(f, {"a": 1})):
        with pytest.raises(ValueError, match="rows.csv.*mend it or move it away"):
            use(file)


def test_provenance_marks_changed_code_but_neither_changed_results_nor_new_files(tmp_path, monkeypatch):
    def git(*arguments):
        call = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *arguments]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(results, "project_root", lambda: tmp_path)
    monkeypatch.setattr(results, "in_checkout", lambda: True)
    assert provenance()["commit"] is None  # no repository
    (tmp_path / "data" / "results").mkdir(parents=True)
    code, table = tmp_path / "code.py", tmp_path / "data" / "results" / "rows.csv"
    code.write_text("a = 1\n")
    table.write_text("a\n1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "Start")
    commit = git("rev-parse", "HEAD")[:12]
    assert provenance()["commit"] == commit
    table.write_text("a\n1\n2\n")
    (tmp_path / "new.py").touch()
    assert provenance()["commit"] == commit
    code.write_text("a = 2\n")
    assert provenance()["commit"] == commit + "+"


def test_provenance_has_the_versions_that_run():
    versions = provenance()["versions"]
    assert versions["torch"] == torch.__version__ or torch.__version__.startswith(versions["torch"])
    assert versions["numpy"] == np.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
