"""Committed rows are made again by the code and in the environment of their commit."""

import subprocess
import sys
from pathlib import Path

import pytest

from cibr.utils import digest
from cibr_book.experiments.again import find_row, repeat

CONSTRAINTS = "numpy==2.0\n"
PLAN = """
from types import SimpleNamespace
def read_plan(file):
    run = {"right.yaml": "aaaaaaaaaaaa", "later.yaml": "eeeeeeeeeeee"}.get(file.name)
    return SimpleNamespace(runs={run: {}})
"""
# In place of a run: a row with the number that the commit says.
SNAKEFILE = """
import json
rule all:
    run:
        assert config["sweep"].endswith(("/right.yaml", "/later.yaml")), config
        number = open("number.txt").read()
        with open(config["results"], "w") as table:
            print("run,commit,seed,recall,training_seconds,note", file=table)
            print(f"{config['only']},now,1,{number},7,text", file=table)
"""


def git(root, *arguments):
    named = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(root), *named, *arguments]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


@pytest.fixture
def root(tmp_path):
    """A repository with a table of a row that an older commit made, and its environment."""
    files = {
        "experiments/Snakefile": SNAKEFILE,
        "experiments/profiles/local/config.yaml": "cores: 1\n",
        "experiments/wrong.yaml": "",
        "experiments/right.yaml": "",
        "book/cibr_book/__init__.py": "",
        "book/cibr_book/plan.py": PLAN,
        "constraints.txt": CONSTRAINTS,
        "number.txt": "0.25",
        "data/results/other.csv": "name\nno run\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message=first")
    commit = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    rows = ["run,commit,seed,recall,training_seconds,note"]
    for run in ("aaaaaaaaaaaa", "dddddddddddd", "eeeeeeeeeeee"):
        rows.append(f"{run},{commit},1,0.2,5,text")
    rows.append(f"bbbbbbbbbbbb,{commit}+,1,0.2,5,text\n")
    (tmp_path / "data/results/table.csv").write_text("\n".join(rows))
    (tmp_path / "experiments/later.yaml").write_text("")
    (tmp_path / "number.txt").write_text("0.75")
    environment = tmp_path / ".again" / f"environment-{digest(CONSTRAINTS)[:12]}"
    environment.mkdir(parents=True)
    for part in Path(sys.prefix).iterdir():
        (environment / part.name).symlink_to(part)
    (environment / "made").touch()
    return tmp_path


def test_a_row_comes_from_the_code_of_its_commit_and_is_compared_number_by_number(root):
    for _ in range(2):  # the second time in the worktree of the first
        table = repeat("aaaaaaaaaaaa", root)
        assert table.index.tolist() == ["recall"]
        assert table.loc["recall"].tolist() == pytest.approx([0.2, 0.25, 0.05])
    assert (root / "number.txt").read_text() == "0.75"


def test_a_sweep_that_came_after_the_code_of_its_row_is_that_of_today(root):
    assert repeat("eeeeeeeeeeee", root).loc["recall", "again"] == 0.25
    with pytest.raises(ValueError, match="or of today, has the run dddddddddddd"):
        repeat("dddddddddddd", root)


def test_rows_that_are_unknown_or_of_uncommitted_code_are_refused(root):
    with pytest.raises(ValueError, match="no table in data/results has a row 'cccccccccccc'"):
        find_row("cccccccccccc", root)
    with pytest.raises(ValueError, match=r"bbbbbbbbbbbb of table.csv was made with uncommitted"):
        repeat("bbbbbbbbbbbb", root)
