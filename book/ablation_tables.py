"""Tables of the ablation's chapter from what its runs left: `python book/ablation_tables.py`.

Reads data/results/ablation.csv, one row a run, and the runs' folders, and writes beside it
  ablation_differences.csv  every arm against tuned CLIP of its setting, paired by picture, with 95 % intervals
  ablation_training.csv     bounds on information and validation recall over the epochs, means over seeds
What is missing is said and left out, so that it can be called while a sweep is under way; where the folders of an
arm's runs are gone altogether, what the tables said about that arm before stays.
"""

import argparse
from pathlib import Path

import pandas as pd

from cibr.paths import project_root
from cibr.sweep import arm_differences, read_arms, study, training_plane
from cibr.sweep.arms import KEY


def main() -> None:
    """Write both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = project_root()
    table = root / "data" / "results" / "ablation.csv"
    parser.add_argument("--table", type=Path, default=table, help="rows of the runs")
    runs = root / "runs" / "ablation"
    parser.add_argument("--runs", type=Path, default=runs, help="the runs' folders")
    parser.add_argument("--output", type=Path, help="folder; by default the table's")
    given = parser.parse_args()
    if not given.table.exists():
        parser.error(f"{str(given.table)!r} is missing: python -m cibr.sweep makes it")
    arms, output = read_arms(given.table), given.output or given.table.parent
    made = {
        "ablation_differences.csv": arm_differences(arms, given.runs, say=_say),
        "ablation_training.csv": training_plane(arms, given.runs, say=_say),
    }
    for name, rows in made.items():
        rows = with_earlier(rows, output / name, arms)
        write(rows, output / name)
        print(f"{name}: {len(rows):,} rows of {len(arms)} runs", flush=True)


def with_earlier(rows: pd.DataFrame, file: Path, arms: pd.DataFrame) -> pd.DataFrame:
    """The rows, and before them those of an earlier table whose arm is still in the study but not in them."""
    if not file.exists():
        return rows
    by = [*KEY, "against"] if "against" in rows else KEY
    earlier = study.read_later(file)
    of_study = _index(earlier, KEY).isin(_index(arms, KEY))
    made_again = _index(earlier, by).isin(_index(rows, by))
    return pd.concat([earlier[of_study & ~made_again], rows], ignore_index=True)


def _index(rows: pd.DataFrame, columns: list[str]) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(rows[columns])


def write(rows: pd.DataFrame, file: Path) -> None:
    """Write a table beside its place and move it there, numbers to five digits."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".csv.part")
    rows.to_csv(part, index=False, float_format="%.5g")
    part.replace(file)


def _say(line: str) -> None:
    print(f"left out: {line}", flush=True)


if __name__ == "__main__":
    main()
