"""A committed row again, by the code that made it: `make again ROW=331089841cc6`.

A row names its commit. This makes a worktree of it in `.again/`, an environment from its own
constraints, and there runs the row's sweep with that row alone. If the commit does not have the
sweep, since rows of its trials came after the code, today's has its settings. Data and models are
found as ever, by `$CIBR_DATA` and `$CIBR_MODELS`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from cibr.utils import digest, project_root

_FIRST_CONSTRAINTS = "80c9e59"  # of commits before there were any
# Prints the sweeps of a checkout that have a run, by the code of a commit; the module moved once.
_SWEEPS = """
import importlib, importlib.util, sys
from pathlib import Path
here = importlib.util.find_spec("cibr_book.experiments")
plan = importlib.import_module("cibr_book.experiments.plan" if here else "cibr_book.plan")
for file in sorted(Path(sys.argv[2], "experiments").glob("*.yaml")):
    if sys.argv[1] in plan.read_plan(file).runs:
        print(file)
"""


def find_row(run: str, root: Path) -> pd.Series:
    """The committed row of a run.

    Args:
        run: its id, twelve hexadecimal digits.
        root: of the checkout.

    Raises:
        ValueError: no table has the row, or its code was never committed.
    """
    for table in sorted((root / "data" / "results").glob("*.csv")):
        rows = pd.read_csv(table, dtype=str, keep_default_na=False)
        for _, row in rows[rows["run"] == run].iterrows() if "run" in rows else ():
            if row["commit"].endswith("+"):
                what = f"the row {run} of {table.name} was made with uncommitted changes"
                raise ValueError(f"{what} (its commit is {row['commit']}): choose another row")
            return row
    raise ValueError(f"no table in data/results has a row {run!r}: give the id of a run")


def repeat(run: str, root: Path) -> pd.DataFrame:
    """Makes a row again; what it prints on the way is the commit's own.

    Args:
        run: its id.
        root: of the checkout, with its history.

    Returns:
        For every number of the row, `committed`, `again` and their `difference`.

    Raises:
        ValueError: see `find_row`, or no sweep has this run.
        subprocess.CalledProcessError: git, pip or the run failed.
    """
    row = find_row(run, root)
    place = root / ".again" / row["commit"]
    if not (place / "experiments").exists():
        _git(root, "worktree", "add", "--force", "--detach", str(place), row["commit"])
    python = _environment(root, place)
    # The commit's code comes before what the environment has installed.
    variables = os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{place / 'book'}"}
    variables["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    how = dict(cwd=place, env=variables, check=True, text=True)
    for plans in (place, root):
        search = [python, "-c", _SWEEPS, run, plans]
        if found := subprocess.run(search, stdout=subprocess.PIPE, **how).stdout:
            break
    else:
        raise ValueError(f"no sweep of commit {row['commit']}, or of today, has the run {run}")
    for file in [place / "again.csv", *place.glob(f"runs/again/{run}*")]:
        file.unlink(missing_ok=True)
    command = [python, "-m", "snakemake", "-s", "experiments/Snakefile"]
    command += ["--profile", "experiments/profiles/local"]
    command += ["--config", f"sweep={found.splitlines()[0]}"]
    subprocess.run([*command, "results=again.csv", f"only={run}"], **how)
    again = pd.read_csv(place / "again.csv", dtype=str, keep_default_na=False).set_index("run")
    table = pd.DataFrame({"committed": row, "again": again.loc[run]})
    table = table.drop(["seed", "beta", "seconds", "training_seconds"], errors="ignore")
    table = table.apply(pd.to_numeric, errors="coerce").dropna()
    return table.assign(difference=table["again"] - table["committed"])


def _environment(root: Path, place: Path) -> Path:
    """The interpreter of an environment with a commit's constraints, which is made once."""
    if (place / "constraints.txt").exists():
        constraints = (place / "constraints.txt").read_text(encoding="utf-8")
    else:
        print(f"the commit has no constraints: those of {_FIRST_CONSTRAINTS} are taken")
        constraints = _git(root, "show", f"{_FIRST_CONSTRAINTS}:constraints.txt")
    folder = root / ".again" / f"environment-{digest(constraints)[:12]}"
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        print(f"making {folder} (a few minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        (folder / "constraints.txt").write_text(constraints, encoding="utf-8")
        install = [python, "-m", "pip", "install", "--quiet", "-c", folder / "constraints.txt"]
        subprocess.run([*install, "torch", "torchvision"], check=True)
        subprocess.run([*install, "--editable", f"{place}[dev]"], check=True)
        (folder / "made").touch()
    return python


def _git(root: Path, *arguments: str) -> str:
    git = ["git", "-C", str(root), *arguments]
    return subprocess.run(git, check=True, text=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("again: give the id of a row, make again ROW=331089841cc6")
    try:
        numbers = repeat(sys.argv[1], project_root())
    except (ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"again: {error}")
    print(numbers.to_string())
    print(f"largest difference: {numbers['difference'].abs().max():.3g}")
