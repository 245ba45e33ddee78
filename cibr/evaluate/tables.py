"""Tables of evaluations: scores with intervals, means over groups and suites, paired differences of models.

A group (the four styles of PACS) counts as one set; the suite's mean is over its zero-shot sets and groups, for
every score that all of them have. Intervals are 95 % bootstrap intervals over pictures; a comparison of several
seeds draws seeds again too. Medians have no paired difference.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from cibr.evaluate.outcomes import Outcome, Part, read_outcome
from cibr.evaluate.suites import suite_tasks
from cibr.metrics import bootstrap_interval, paired_difference


@dataclass(eq=False)
class Evaluation:
    """A model on a suite.

    Args:
        model: what tables call it.
        suite: a name of `SUITES`.
        outcomes: the results of single items, by the title of the set.
    """

    model: str
    suite: str
    outcomes: dict[str, Outcome]

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Tidy scores: `model, suite, dataset, kind, metric, value, low, high, n`; n counts queries."""
        found = []
        for score in scores(self.suite, self.outcomes):
            found.append(score.about | _difference([score.parts], None) | {"n": score.n})
        for title, outcome in self.outcomes.items():
            about = {"dataset": title, "kind": outcome.kind}
            for metric, (ranks, images) in outcome.median_ranks().items():
                value, low, high = bootstrap_interval(ranks, images, statistic=np.median)
                found.append(about | dict(metric=metric, value=value, low=low, high=high, n=len(ranks)))
        rows = pd.DataFrame(found)
        rows.insert(0, "suite", self.suite)
        rows.insert(0, "model", self.model)
        return rows

    def save(self, folder: Path) -> None:
        """Writes the rows, to a file of their kind if they are of one; the outcomes were kept set by set."""
        kinds = {outcome.kind for outcome in self.outcomes.values()}
        file = folder / (f"rows-{kinds.pop()}.csv" if len(kinds) == 1 else "rows.csv")
        part = file.with_name(f"{file.name}.part")
        self.rows.to_csv(part, index=False)
        part.replace(file)


def read_evaluation(output_dir: str | Path, suite: str, name: str) -> Evaluation:
    """What `evaluate` kept in a folder, without the model.

    Raises:
        FileNotFoundError: a set of the suite has no results there.
    """
    outcomes = {}
    for task in suite_tasks(suite):
        file = Path(output_dir) / suite / task.file
        stored = read_outcome(file)
        if stored is None:
            raise FileNotFoundError(f"{str(file)!r} is missing or damaged: evaluate the model on {suite!r} again")
        outcomes[task.title] = stored[0]
    return Evaluation(name, suite, outcomes)


@dataclass(frozen=True)
class Score:
    """A score of a set, a group or the suite: `about` has `dataset`, `kind` and `metric`."""

    about: dict[str, str]
    parts: list[Part]
    n: int


def scores(suite: str, outcomes: dict[str, Outcome]) -> Iterator[Score]:
    """All scores that are means over items: of each set, then of each group, then of the zero-shot sets."""
    tasks = [task for task in suite_tasks(suite) if task.title in outcomes]
    for task in tasks:
        outcome = outcomes[task.title]
        for metric, parts in outcome.parts().items():
            about = {"dataset": task.title, "kind": task.kind, "metric": metric}
            yield Score(about, parts, outcome.n_queries(metric))
    by_group: dict[str, list[Outcome]] = {}
    for task in tasks:
        if task.kind == "zero-shot":
            by_group.setdefault(task.group or task.title, []).append(outcomes[task.title])
    means = {name: _mean([o.parts() for o in members]) for name, members in by_group.items()}
    groups = {name: parts for name, parts in means.items() if len(by_group[name]) > 1}
    if len(means) > 1:
        groups[f"mean of {len(means)}"] = _mean(list(means.values()))
    for name, by_metric in groups.items():
        members = by_group.get(name) or [o for each in by_group.values() for o in each]
        for metric, parts in by_metric.items():
            about = {"dataset": name, "kind": "zero-shot", "metric": metric}
            yield Score(about, parts, sum(outcome.n_queries(metric) for outcome in members))


def compare(a: Evaluation | Sequence[Evaluation], b: Evaluation | Sequence[Evaluation]) -> pd.DataFrame:
    """Paired differences of two models on the same pictures, b - a, with 95 % intervals.

    Args:
        a: an evaluation, or one a seed.
        b: as many, on the same suite; those of one seed stand at the same place.

    Returns:
        A row a score: `suite, dataset, kind, metric, a, b, difference, low, high, n, n_seeds`.

    Raises:
        ValueError: other suites, other numbers of seeds, or a set on which other pictures or texts were shown.
    """
    a, b = ([x] if isinstance(x, Evaluation) else list(x) for x in (a, b))
    _check_comparable(a, b)
    suite, rows = a[0].suite, []
    columns = [[scores(suite, each.outcomes) for each in models] for models in (a, b)]
    for of_a, of_b in zip(zip(*columns[0], strict=True), zip(*columns[1], strict=True), strict=True):
        first = of_a[0]
        values = {name: np.mean([_value(s.parts) for s in of]) for name, of in (("a", of_a), ("b", of_b))}
        found = _difference([s.parts for s in of_b], [s.parts for s in of_a])
        found["difference"] = found.pop("value")
        rows.append({"suite": suite} | first.about | values | found | {"n": first.n, "n_seeds": len(a)})
    order = ["suite", "dataset", "kind", "metric", "a", "b", "difference", "low", "high", "n", "n_seeds"]
    return pd.DataFrame(rows)[order]


def short_names(*names: str) -> list[str]:
    """What tables and figures call models: the ends of their names, as long as it takes to tell them apart.

    Examples:
        >>> from cibr.evaluate import short_names
        >>> short_names("runs/plain/seed-0", "runs/penalty/seed-0")
        ['plain/seed-0', 'penalty/seed-0']
    """
    parts = [name.rstrip("/").split("/") for name in names]
    for n in range(1, max(map(len, parts))):
        ends = ["/".join(each[-n:]) for each in parts]
        if len(set(ends)) == len(set(names)):
            return ends
    return list(names)


def format_table(rows: pd.DataFrame, value: str = "value") -> pd.DataFrame:
    """Rows as a table to read, a data set a line and a metric a column, in per cent but for ranks."""

    def cell(row) -> str:
        scale, sign = 1 if "rank" in row["metric"] else 100, "+" if value == "difference" else ""
        mean, low, high = (scale * row[name] for name in (value, "low", "high"))
        return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"

    shown = rows.assign(cell=rows.apply(cell, axis=1))
    table = shown.pivot(index="dataset", columns="metric", values="cell").fillna("")
    return table.loc[rows["dataset"].unique(), rows["metric"].unique()]


def _mean(members: list[dict[str, list[Part]]]) -> dict[str, list[Part]]:
    """The mean of several sets' scores, of those scores that all have."""
    shared = [metric for metric in members[0] if all(metric in member for member in members)]
    return {
        metric: [Part(p.weight / len(members), p.values) for member in members for p in member[metric]]
        for metric in shared
    }


def _value(parts: list[Part]) -> float:
    return float(sum(part.weight * part.values.mean() for part in parts))


def _difference(b: list[list[Part]], a: list[list[Part]] | None) -> dict[str, float]:
    """The mean over seeds of b's score minus a's (minus nothing without a), with its interval."""
    weights = [part.weight for part in b[0]]
    of_b = [np.stack([seed[k].values for seed in b]) for k in range(len(weights))]
    of_a = [np.zeros_like(x) for x in of_b]
    if a is not None:
        of_a = [np.stack([seed[k].values for seed in a]) for k in range(len(weights))]
    found = paired_difference(of_a, of_b, weights=weights)
    return {"value": found["mean"], "low": found["low"], "high": found["high"]}


def _check_comparable(a: list[Evaluation], b: list[Evaluation]) -> None:
    suites = sorted({each.suite for each in a + b})
    if not a or len(a) != len(b) or len(suites) != 1:
        raise ValueError(
            f"{len(a)} and {len(b)} evaluations of {', '.join(suites) or 'no suite'} do not compare: "
            "give as many of each model, one a seed, all of one suite"
        )
    for each in a + b:
        for title in a[0].outcomes.keys() | each.outcomes.keys():
            asked = [e.outcomes[title].asked if title in e.outcomes else None for e in (a[0], each)]
            if asked[0] != asked[1]:
                raise ValueError(
                    f"{each.model} and {a[0].model} were not shown the same pictures and texts of {title}: "
                    "evaluate both with the same data and limit"
                )
