"""What the sections of the page *Evidence* share: whose rows are a plan's, and tables of text.

A section has the rows of its plan (`plan_rows`), where they come from (`provenance`) and its claims
(`claim_table`). A table of differences is `differences` as text, in one of two forms: `+1.0 [+0.5,
+1.5]`, see `cibr_book.experiments.tables.interval_text`, or `+1.0 ± 0.5`, from `plus_minus`.
"""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from cibr.utils import digest, project_root
from cibr_book.experiments.confirmation import IN_WORDS, best_trials
from cibr_book.experiments.tables import interval_text, p_text

_OUTCOMES = ["holds", "undecided", "contradicted"]
# Columns of the rows under the names of this page.
_WORDS = {"naming": "text retrieval", "recall on Flickr8k": "Flickr8k"}
_WORDS |= {"recall on coco-mini": "coco-mini", "search on coco-mini": "search, coco-mini"}


def plan_rows(rows: pd.DataFrame, plan: str) -> pd.DataFrame:
    """Rows that are all the runs of a plan, and nothing else.

    Args:
        rows: of a table.
        plan: the name of a file in experiments/ or experiments/finished/, which states the digest
            of its runs' ids.

    Raises:
        ValueError: the rows are others.
    """
    (file,) = (project_root() / "experiments").rglob(plan)
    text = file.read_text("utf-8")
    if digest("\n".join(sorted(rows["run"]))) not in text:
        raise ValueError(f"these {len(rows)} rows are not the runs of {plan}: select them all")
    return rows


def provenance(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Where rows come from: their number, seeds and commits, and how many commits have a `+`.

    Args:
        parts: rows by name, with `commit` and, if they have seeds, `seed`.
    """
    table = {}
    for name, rows in parts.items():
        commits = rows["commit"].astype(str)
        seeds = sorted(rows["seed"].dropna().astype(int).unique())
        ends = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
        n_commits = commits.str.removesuffix("+").nunique()
        table[name] = [f"{len(rows):,}", ends, n_commits, commits.str.endswith("+").sum()]
    columns = ["rows", "seeds", "commits", "rows with local changes (+)"]
    return pd.DataFrame.from_dict(table, orient="index", columns=columns)


def outcome_counts(families: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How many claims of each family hold, are undecided, and are contradicted.

    Args:
        families: tests with an `outcome`, one row a claim, by name.
    """
    counts = {name: tests["outcome"].value_counts() for name, tests in families.items()}
    table = pd.DataFrame(counts).T.reindex(columns=_OUTCOMES).fillna(0).astype(int)
    table.insert(0, "claims", table.sum(axis=1))
    return table.rename_axis(columns=None)


def claim_table(
    tests: pd.DataFrame, index: Sequence[str] = ("claim",), digits: int = 2
) -> pd.DataFrame:
    """Claims as text: outcome, difference with its interval, and the corrected p-value.

    Args:
        tests: from `cibr_book.intervals.outcomes`, or alike.
        index: the columns that name a claim.
        digits: of the differences.
    """
    texts = tests.assign(difference=interval_text(tests, digits), p=tests["holm"].map(p_text))
    table = texts.set_index([*index])[["outcome", "difference", "p"]]
    return table.rename(columns={"p": "p, Holm"})


def plus_minus(
    rows: pd.DataFrame, index: Sequence[str], columns: Sequence[str], digits: int = 2
) -> pd.DataFrame:
    """Differences as `+0.31 ± 0.17`, half of Student's 95 % interval, in the order of the rows.

    Args:
        rows: with `difference` or `mean`, and `low` and `high`.
        index: the columns that name a row.
        columns: those that name a column.
        digits: of the numbers.
    """
    rows = rows.rename(columns={"mean": "difference"}).replace(IN_WORDS)
    half = (rows["high"] - rows["low"]) / 2
    number = f"{{:+.{digits}f}}"
    texts = rows["difference"].map(number.format) + half.map(f" ± {{:.{digits}f}}".format)
    rows = rows.assign(text=texts.where(half.notna(), rows["difference"].map(number.format)))
    wide = rows.pivot(index=[*index], columns=[*columns], values="text")
    for axis, names in ((0, index), (1, columns)):
        order = rows[[*names]].drop_duplicates()
        keys = order[names[0]] if len(names) == 1 else pd.MultiIndex.from_frame(order)
        wide = wide.reindex(keys, axis=axis)
    return wide.fillna("").rename(columns=_WORDS)


def trial_table(trials: pd.DataFrame) -> pd.DataFrame:
    """The best trials: `n` trials, recall on `validation` in per cent, and what lies at its `ends`.

    Args:
        trials: as for `cibr_book.experiments.confirmation.best_trials`.
    """
    best = best_trials(trials).replace(IN_WORDS).set_index(["condition", "method"])
    best["ends"] = best["ends"].str.replace("_", " ")
    return best.round({"validation": 1})


def in_order(rows: pd.DataFrame, **values: Iterable) -> pd.DataFrame:
    """The rows that have the given values, sorted by them, in their order.

    Args:
        rows: of a table.
        values: of columns, by the column's name; the first sorts first.
    """
    places = {name: {value: i for i, value in enumerate(own)} for name, own in values.items()}
    for name, own in places.items():
        rows = rows[rows[name].isin(own)]
    return rows.sort_values([*places], key=lambda x: x.map(places[x.name]), kind="stable")
