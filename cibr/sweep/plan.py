"""A sweep in a YAML file: where its rows go, the function that does a run, and grids of settings.

results: ablation.csv              # beside this file, unless the path is absolute
work: cibr.sweep.train_and_evaluate
fixed: {dataset: glyphs, model: tiny}
arms:
  - {estimator: vmf, beta: [0.01, 0.1], seed: [0, 1, 2]}
  - {beta: 0.0, seed: [0, 1, 2]}
"""

import pkgutil
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cibr.names import nearest
from cibr.sweep.runs import as_json, by_id, grid, run_id

ENTRIES = ("results", "work", "fixed", "arms")
EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")  # which YAML 1.1 reads as text for want of a point


@dataclass(frozen=True)
class Plan:
    """A sweep as its file has it: `results` is the CSV file, `work` a dotted name, `runs` without repeats."""

    results: Path
    work: str
    runs: list[dict[str, Any]]

    def function(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """The function that `work` names.

        Raises:
            ValueError: there is none of that name.
        """
        try:
            return pkgutil.resolve_name(self.work)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"work: {self.work!r} names no function, as in package.module.function: {error}"
            ) from error

    def only(self, filters: Iterable[str]) -> "Plan":
        """The part of the plan whose settings have given values.

        Args:
            filters: `name=value` in YAML; of a list of values, `seed=[0, 1]`, any will do.

        Raises:
            ValueError: a filter without a name that some run has, or with values that none has.
        """
        runs = self.runs
        for text in filters:
            name, equals, value = text.partition("=")
            known = {setting for settings in self.runs for setting in settings}
            if not equals or name not in known:
                raise ValueError(f"{text!r} is not SETTING=VALUE{nearest(name, known)}; settings: {sorted(known)}")
            values = yaml.safe_load(value)
            wanted = {as_json({name: v}) for v in (values if isinstance(values, list) else [values])}
            runs = [run for run in runs if name in run and as_json({name: run[name]}) in wanted]
        if not runs:
            raise ValueError(f"no run has {' and '.join(filters)}")
        return Plan(self.results, self.work, runs)

    def run(self, name: str) -> "Plan":
        """The plan of one run, by its name in the tables.

        Raises:
            ValueError: it is no run of the plan.
        """
        runs = [run for run in self.runs if run_id(run) == name]
        if not runs:
            raise ValueError(f"no run of the sweep is called {name!r}; --dry-run shows the names of missing ones")
        return Plan(self.results, self.work, runs)

    def shard(self, text: str) -> "Plan":
        """Every n-th run from the i-th, by `i/n`; the n shards are the whole.

        Raises:
            ValueError: it is not two whole numbers, 1 <= i <= n.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"a shard is i/n with i from 1 to n, as in 2/4; got {text!r}")
        return Plan(self.results, self.work, self.runs[int(found[1]) - 1 :: int(found[2])])


def read_plan(file: str | Path) -> Plan:
    """Reads the YAML file of a sweep; each arm is a grid over the fixed settings, which it may override.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file; the entry that is wrong is named.
    """
    file = Path(file)
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
        return _plan(entries, file.resolve().parent)
    except yaml.YAMLError as error:
        raise ValueError(f"{str(file)!r} is no YAML: {error}") from error
    except ValueError as error:
        raise ValueError(f"{str(file)!r}: {error}") from error


def sweeps_in(folder: str | Path) -> dict[str, Plan]:
    """The plans of a folder by the names of their files.

    Raises:
        ValueError: a file that describes no sweep; it is named.
    """
    return {file.name: read_plan(file) for file in sorted(Path(folder).glob("*.yaml"))}


def _plan(entries: Any, folder: Path) -> Plan:
    if not isinstance(entries, dict):
        raise ValueError(f"it holds the entries {', '.join(ENTRIES)}")
    if unknown := [name for name in entries if name not in ENTRIES]:
        raise ValueError(
            f"unknown entry {unknown[0]!r}{nearest(str(unknown[0]), ENTRIES)}. Known: {', '.join(ENTRIES)}"
        )
    if absent := [name for name in ("results", "work") if not isinstance(entries.get(name), str)]:
        raise ValueError(f"the entry {absent[0]!r} is wanted, a text")
    fixed, arms = entries.get("fixed") or {}, entries.get("arms")
    if not isinstance(arms, list) or not arms or not all(isinstance(arm, dict) for arm in [fixed, *arms]):
        raise ValueError("arms is a list of settings, each one value or a list; fixed are settings")
    for arm in [fixed, *arms]:
        _check_numbers(arm)
    runs = [settings for arm in arms for settings in grid(**(fixed | arm))]
    return Plan(folder / entries["results"], entries["work"], list(by_id(runs).values()))


def _check_numbers(arm: dict[str, Any]) -> None:
    for name, axis in arm.items():
        for value in axis if isinstance(axis, list) else [axis]:
            if isinstance(value, str) and EXPONENT.fullmatch(value):
                raise ValueError(f"{name}: YAML reads {value} as a text; write it with a point, as in 1.0e-3")
