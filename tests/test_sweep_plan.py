"""A sweep's file says what it holds or what is wrong in it, and the command does what the file describes."""

import sys

import pytest
import sweep_work
from sweep_work import taken

from cibr.results import read_rows
from cibr.sweep import __main__ as command
from cibr.sweep import read_plan, run_id, sweeps_in

SWEEP = """
results: tables/rows.csv
work: sweep_work.fail_at_odd_until_mended
fixed: {log: LOG, model: tiny, i: 9}
arms:
  - {i: [0, 1], rate: [0.5, 1.0e-3]}
  - {i: [0, 2], rate: 0.5}
"""


@pytest.fixture
def sweep(tmp_path):
    """Writes the file of a sweep, the whole one by default, and gives its path."""

    def write(text=SWEEP):
        file = tmp_path / "sweep.yaml"
        file.write_text(text.replace("LOG", str(tmp_path / "log")))
        return file

    return write


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command here; gives its exit status and what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cibr.sweep", *map(str, arguments)])
        monkeypatch.setenv("TQDM_DISABLE", "1")
        try:
            status = command.main()
        except SystemExit as end:
            status = end.code
        return status, "".join(capsys.readouterr())

    return run


def settings(plan):
    return [(run["i"], run["rate"]) for run in plan.runs]


def test_arms_are_grids_over_the_fixed_settings_and_what_two_arms_share_counts_once(sweep, tmp_path):
    plan = read_plan(sweep())
    assert settings(plan) == [(0, 0.5), (0, 0.001), (1, 0.5), (1, 0.001), (2, 0.5)]
    assert all(run["model"] == "tiny" and run["log"] == str(tmp_path / "log") for run in plan.runs)
    assert plan.results == tmp_path / "tables" / "rows.csv"
    assert plan.function() is sweep_work.fail_at_odd_until_mended


def test_filters_narrow_a_sweep_and_shards_divide_it(sweep):
    plan = read_plan(sweep())
    assert settings(plan.only(["rate=0.5"])) == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert settings(plan.only(["rate=5.0e-1", "i=[0, 2.0]"])) == [(0, 0.5), (2, 0.5)]
    shards = [plan.shard(f"{i}/3").runs for i in (1, 2, 3)]
    assert [len(shard) for shard in shards] == [2, 2, 1]
    assert sorted(run_id(run) for shard in shards for run in shard) == sorted(map(run_id, plan.runs))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("results:", "result:", "unknown entry 'result', did you mean 'results'"),
        ("results: tables/rows.csv", "", "the entry 'results' is wanted"),
        ("work: sweep_work.fail_at_odd_until_mended", "work: 3", "the entry 'work' is wanted"),
        ("arms:", "fixed:", "arms is a list of settings"),
        ("fixed: {", "fixed: [", "no YAML"),
        ("model: tiny", "model: []", "axis 'model' has no value"),
        ("1.0e-3", "1e-3", "rate: YAML reads 1e-3 as a text; write it with a point"),
        ("rate: 0.5", "rate: .nan", "settings are finite numbers"),
        (SWEEP, "a text", "it holds the entries results, work, fixed, arms"),
    ],
)
def test_what_is_wrong_in_a_sweep_is_named_with_its_file(sweep, run, old, new, message):
    file = sweep(SWEEP.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        read_plan(file)
    assert "sweep.yaml" in str(error.value)
    status, said = run(file)
    assert status == 2 and "sweep.yaml" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "i"], "'i' is not SETTING=VALUE"),
        (["--only", "rat=0.5"], "'rat=0.5' is not SETTING=VALUE, did you mean 'rate'?"),
        (["--only", "rate=7"], "no run has rate=7"),
        (["--shard", "0/2"], "a shard is i/n with i from 1 to n"),
        (["--shard", "3/2"], "a shard is i/n with i from 1 to n"),
        (["--processes", "0"], "1 or more; got 0"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_done(sweep, run, tmp_path, arguments, message):
    status, said = run(sweep(), *arguments)
    assert status == 2 and message in said and taken(tmp_path / "log") == []


def test_work_and_files_that_are_not_there_are_named(sweep, run, tmp_path):
    status, said = run(sweep(SWEEP.replace("fail_at", "fall_at")))
    assert status == 2 and "work: 'sweep_work.fall_at_odd_until_mended' names no" in said
    status, said = run(tmp_path / "absent.yaml")
    assert status == 2 and "absent.yaml" in said


def test_the_command_does_what_is_missing_and_says_what_failed(sweep, run, tmp_path):
    file, log = sweep(), tmp_path / "log"
    status, said = run(file, "--dry-run", "--only", "i=[0, 2]")
    assert status == 0 and "0 done, 3 missing, 0 failed" in said and said.count("\nmissing ") == 3
    assert taken(log) == [] and not (tmp_path / "tables").exists()
    status, said = run(file, "--shard", "1/2")
    assert status == 1 and taken(log) == [0, 1, 2] and "2 done, 0 missing, 1 failed" in said
    assert "ArithmeticError: 1 is odd" in said
    status, said = run(file, "--only", "i=0")
    assert status == 0 and taken(log) == [0, 1, 2, 0] and "1 done, 1 missing, 0 failed" in said
    (tmp_path / "mended").touch()
    status, said = run(file)
    assert status == 1 and taken(log) == [0, 1, 2, 0, 1] and "4 done, 0 missing, 1 failed" in said
    status, said = run(file, "--retry")
    assert status == 0 and taken(log)[5:] == [1] and "5 done, 0 missing, 0 failed" in said
    assert set(read_rows(tmp_path / "tables" / "rows.csv")["status"]) == {"ok"}


def test_one_row_of_a_table_is_made_again_beside_it(sweep, run, tmp_path):
    file, again = sweep(), tmp_path / "again.csv"
    run(file, "--only", "i=[0, 2]")
    before = read_rows(tmp_path / "tables" / "rows.csv")
    status, said = run(file, "--run", before["run"][1], "--results", again)
    assert status == 0 and "again.csv: 1 done, 0 missing, 0 failed" in said
    columns = ["run", "configuration", "square"]
    assert read_rows(again)[columns].equals(before[columns].iloc[[1]].reset_index(drop=True))
    status, said = run(file, "--run", "0123456789ab")
    assert status == 2 and "no run of the sweep is called '0123456789ab'" in said


def test_the_sweeps_of_a_folder_are_known_by_their_files(sweep, tmp_path):
    file = sweep()
    assert {name: len(plan.runs) for name, plan in sweeps_in(tmp_path).items()} == {file.name: 5}


def test_an_interrupted_command_says_how_to_go_on(sweep, run, tmp_path):
    text = SWEEP.replace("fail_at_odd_until_mended", "interrupt_at_1")
    status, said = run(sweep(text))
    assert status == 130 and "the same command goes on" in said and "2 done, 3 missing, 0 failed" in said
