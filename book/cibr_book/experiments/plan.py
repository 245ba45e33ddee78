"""Sweeps: a YAML file defines runs with ids, and their rows are collected into one table.

    results: ../mine.csv        # the table, relative to this file unless absolute
    fixed: {dataset: glyphs, model: tiny}
    conditions:
      glyphs, 10 % of the pairs:
        fixed: {corruption: {fraction: 0.1}}
        methods:
          - {method: CLIP, beta: 0, seed: [1, 2]}
          - {method: CIBR vMF, penalty: vmf, beta: [0.01, 0.1], seed: [1, 2]}

A list is an axis of a grid; a value that is itself a list is written as a nested list. Settings
that change together are one axis, `together: [{beta: 0.1, kappa_b: 10}, {beta: 0.2, kappa_b: 5}]`.
With `draw: 24` that many points of the grid are drawn at random. With `trials: other.yaml` each
method takes the settings of its best trial in that sweep or, with a list, in any of several, on
average over the trials' seeds, of the same condition or of that which `tuned_at` names, and waits
until all its trials have rows. With `at_once: 50` a notebook does that many runs.
`experiments/Snakefile` executes the runs; as a program this module adds their rows to the table.

Sweeps whose code is no longer here lie in `experiments/finished/`, byte for byte as they were in
`experiments/`, so their `results` are relative to the folder above. Its README has the three
commands that repeat a row by the code of its commit.
"""

import itertools
import json
import math
import pkgutil
import random
import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from cibr.utils import check_known, digest, write_atomically
from cibr_book.experiments.tables import read_table
from cibr_book.provenance import provenance

_ENTRIES = ("results", "work", "at_once", "trials", "fixed", "conditions")
_OF_CONDITION = ("fixed", "methods", "tuned_at")
_FINISHED = "finished"
_NAMES = ("method", "condition")  # a run's names, which do not affect its results
_WORK = "cibr_book.experiments.run.train_and_measure"


class _Plan(NamedTuple):
    """A sweep.

    Args:
        results: the CSV file of its rows.
        work: the function that executes a run, as a dotted name.
        runs: settings by run id.
        waiting: conditions and methods whose trials are incomplete.
        at_once: runs that one notebook does.
    """

    results: Path
    work: str
    runs: dict[str, dict[str, Any]]
    waiting: tuple[str, ...] = ()
    at_once: int = 1


def read_plan(file: str | Path, results: str | Path = "") -> _Plan:
    """Reads a sweep from a YAML file.

    Args:
        file: the YAML file.
        results: another table for its rows, relative to the current folder.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: an entry is unknown or missing, two runs are equal, or trials lack a method that
            the sweep names.
    """
    file = Path(file)
    entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name in entries:
        check_known(f"entry of {file}:", name, _ENTRIES)
    if not {"results", "conditions"} <= set(entries):
        raise ValueError(f"{file} needs the entries 'results' and 'conditions'")
    names = entries.get("trials", [])
    names = [names] if isinstance(names, str) else names
    trials = _read_trials([file.parent / name for name in names])
    runs: dict[str, dict[str, Any]] = {}
    waiting = []
    for condition, part in entries["conditions"].items():
        for name in part:
            check_known(f"entry of {condition!r} in {file}:", name, _OF_CONDITION)
        for method in part["methods"]:
            own = dict(method)
            like, score = own.pop("like", own.get("method", "")), own.get("choose", "")
            tuned_at = part.get("tuned_at", condition)
            best = _best_trial(*trials, tuned_at, like, score) if trials else {}
            if trials and best == {} and ("like" in method or "tuned_at" in part):
                what = f"{' or '.join(names)} has no {like!r} in {tuned_at!r}"
                raise ValueError(f"{file}: {what}, which {condition!r} names: correct the name")
            if best is None:
                waiting.append(f"{condition}: {own['method']}")
                continue
            axes = best | entries.get("fixed", {}) | part.get("fixed", {}) | own
            for settings in _points(axes, condition):
                run = _run_id(settings)
                if run in runs:
                    raise ValueError(f"{file}: two runs have the settings {settings}: drop one")
                runs[run] = settings | {"condition": condition}
    folder = file.resolve().parent
    if folder.name == _FINISHED:
        folder = folder.parent
    table = Path(results) if results else folder / entries["results"]
    work, at_once = entries.get("work", _WORK), entries.get("at_once", 1)
    return _Plan(table.resolve(), work, runs, tuple(waiting), at_once)


def _read_trials(files: list[Path]) -> tuple[dict[str, dict], pd.DataFrame] | None:
    """The settings of trials by their ids, and the rows of the table that they share."""
    if not files:
        return None
    plans = [read_plan(file) for file in files]
    table = plans[0].results
    rows = read_table(table) if table.exists() else pd.DataFrame({"run": []})
    return {run: own for plan in plans for run, own in plan.runs.items()}, rows


def _best_trial(
    trials: dict[str, dict], rows: pd.DataFrame, condition: str, method: str, score: str
) -> dict[str, Any] | None:
    """The settings of a method's best trial in a condition, on validation only.

    The score is the mean of the six validation recalls or, if trials were evaluated on zero-shot
    sets, the mean of that and the accuracy on these; or the column `score`, which a method names by
    `choose`. A trial with several seeds counts by the mean over them; one that diverged with any of
    them is never the best.

    Returns:
        The settings without `seed` and `suites`, as axes of one value; empty for a method without
        trials; None while a trial has no row.
    """
    names = {"condition": condition, "method": method}
    runs = [run for run, settings in trials.items() if names.items() <= settings.items()]
    if not runs:
        return {}
    if not set(runs) <= set(rows["run"]):
        return None
    rows = rows.set_index("run").loc[runs]
    scores = rows[score] if score else rows[["validation", "zero-shot"]].mean(axis=1)
    but_for_the_seed = [_as_json(trials[run] | {"seed": 0}) for run in runs]
    scores = scores.groupby(but_for_the_seed).transform(lambda seeds: seeds.mean(skipna=False))
    if scores.isna().all():
        what = f"every trial of {method!r} in {condition!r} diverged"
        raise ValueError(f"{what}: give it smaller learning rates, or leave the method out")
    best = trials[scores.idxmax()]
    values = {n: [value] if isinstance(value, list) else value for n, value in best.items()}
    return {name: value for name, value in values.items() if name not in ("seed", "suites")}


def _points(axes: dict[str, Any], condition: str) -> list[dict[str, Any]]:
    """The settings of a method's runs: its grid, or as many points of it as `draw` says."""
    n_drawn = axes.pop("draw", 0)
    values = {name: axis if isinstance(axis, list) else [axis] for name, axis in axes.items()}
    for name, value in [(name, value) for name, axis in values.items() for value in axis]:
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value):
            raise ValueError(f"{name}: YAML reads {value!r} as text; write a point, as in 1.0e-3")
    points = _drawn(values, n_drawn, condition) if n_drawn else _grid(values)
    return [point | point.pop("together", {}) for point in points]


def _grid(values: dict[str, list]) -> list[dict[str, Any]]:
    """Every combination of the axes' values; the last axis changes fastest.

    Examples:
        >>> _grid({"beta": [0.0, 0.1], "seed": [0, 1], "model": ["tiny"]})[1]
        {'beta': 0.0, 'seed': 1, 'model': 'tiny'}
    """
    return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]


def _drawn(values: dict[str, list], n: int, condition: str) -> list[dict[str, Any]]:
    """Distinct random points of a grid.

    The value of an axis depends only on the condition, the number of the draw and the axis, so
    methods that share an axis in a condition try the same values.

    Raises:
        ValueError: the grid has fewer points.
    """
    size = math.prod(len({_canonical(value) for value in axis}) for axis in values.values())
    if n > size:
        raise ValueError(f"{condition}: draw is {n}, but the grid has {size} points: draw fewer")
    points: list[dict[str, Any]] = []
    numbers = itertools.count()
    while len(points) < n:
        draw = f"{condition} {next(numbers)}"
        point = {name: random.Random(f"{draw} {name}").choice(values[name]) for name in values}
        if point not in points:
            points.append(point)
    return points


def _run_id(settings: dict[str, Any]) -> str:
    """The id of a run: twelve hexadecimal digits of its settings, in any order; 1 equals 1.0.

    Examples:
        >>> _run_id({"beta": 1, "seed": 0}) == _run_id({"seed": 0, "beta": 1.0, "method": "CLIP"})
        True
    """
    return digest(_as_json(settings))[:12]


def _as_json(settings: dict[str, Any]) -> str:
    """Settings without the run's names, as canonical JSON."""
    return _canonical(_decisive(settings))


def _decisive(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _NAMES}


def _canonical(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def save_row(settings: dict[str, Any], file: str | Path, work: str) -> dict[str, Any]:
    """Executes a run and writes its row as JSON, and its model to the folder of the same name.

    Args:
        settings: of the run, with `method` and `condition`, its names in tables.
        file: the JSON file.
        work: the dotted name of a function from settings and folder to metrics.

    Returns:
        The row, with `run, method, condition, beta, seed, configuration, commit, versions,
        seconds` and the metrics, or the `error` of a run that diverged.
    """
    file = Path(file)
    row = {"run": _run_id(settings)}
    row |= {name: settings.get(name, "") for name in (*_NAMES, "beta", "seed")}
    row |= {"configuration": _as_json(settings)} | provenance()
    train = pkgutil.resolve_name(work)
    start = time.monotonic()
    try:
        metrics = train(_decisive(settings), file.with_suffix(""))
        results = {k: float(f"{v:.6g}") for k, v in metrics.items() if not math.isnan(v)}
    except FloatingPointError as diverged:
        results = {"error": str(diverged)}
    row |= {"seconds": round(time.monotonic() - start, 3)} | results
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda part: part.write_text(json.dumps(row), encoding="utf-8"))
    return row


def committed(results: Path) -> pd.DataFrame:
    """The rows of a table with every cell as text, so that rewriting it changes none."""
    if not results.exists():
        return pd.DataFrame({"run": []}, dtype=str)
    return pd.read_csv(results, dtype=str, keep_default_na=False)


def collect(plan: _Plan, folder: str | Path) -> int:
    """Adds the rows in a folder, `<run>.json`, that the plan's table lacks; returns their number.

    The table needs no lock: if two sweeps write it at once, rows may be lost, and the next call
    adds them again.
    """
    rows = committed(plan.results)
    files = [Path(folder) / f"{run}.json" for run in plan.runs if run not in set(rows["run"])]
    new = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    if new:
        cells = pd.DataFrame(new, dtype=object)
        cells = cells.map(lambda x: x if isinstance(x, str) else json.dumps(x), na_action="ignore")
        table = pd.concat([rows, cells], ignore_index=True).fillna("")
        plan.results.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(plan.results, lambda part: table.to_csv(part, index=False))
    return len(new)


def _main() -> None:
    """Collects the rows of a sweep and reports how many of its runs have none."""
    sweep, folder, *results = sys.argv[1:]
    plan = read_plan(sweep, *results)
    n_new = collect(plan, folder)
    n_missing = len(set(plan.runs) - set(committed(plan.results)["run"]))
    name = plan.results.name
    print(f"{name}: {n_new} new rows; {n_missing} of the {len(plan.runs)} runs have none")
    if plan.waiting:
        print(f"Waiting for all their trials: {'; '.join(plan.waiting)}")


if __name__ == "__main__":
    _main()
