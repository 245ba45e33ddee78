"""The study as a chapter shows it: its tables, what each arm is and ran with, every trial, and the commands."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cibr.results import read_rows
from cibr.sweep.arms import KEY, read_arms, setting_name, settings_in_words, tuned_baseline
from cibr.sweep.choice import validation_scores
from cibr.sweep.plan import Plan
from cibr.sweep.runs import run_id

TABLES = "ablation.csv", "ablation_differences.csv", "ablation_training.csv"

ARMS = {
    "CLIP": "the contrastive loss alone, temperature and dropout tuned",
    "CLIP in groups": "CLIP on batches that hold several captions (or pictures) of one item",
    "noise only": "CLIP on von Mises-Fisher samples of its embeddings; no penalty",
    "CLIP + cosine": "beta (1 - cosine) of each pair",
    "CLIP + alignment and uniformity": "beta (alignment + uniformity), Wang and Isola (2020)",
    "CyCLIP": "beta (cross-modal + in-modal cyclic consistency), Goel et al. (2022)",
    "SigLIP": "the sigmoid loss instead of the softmax, Zhai et al. (2023)",
    "CIBR vMF": "beta times the bound of von Mises-Fisher encoders; the other tower is the backward encoder",
    "CIBR Gaussian": "beta times the bound of Gaussian encoders with learned variances",
    "CIBR MINE": "beta times a difference of MINE estimates, the paper's choice",
    "CIBR CLUB": "beta times a CLUB estimate",
    "CIBR siblings": "vMF, the backward encoder centred on other captions or pictures of the same item",
    "CIBR prototypes": "vMF, the backward encoder centred on the running mean of an item's captions or pictures",
    "CIBR cross-fitted": "vMF, the backward encoder fitted on the other half of the batch",
}


class Study(NamedTuple):
    """The tables of an ablation: `read_arms`, `arm_differences` and `training_plane` as they were written."""

    arms: pd.DataFrame
    differences: pd.DataFrame
    curves: pd.DataFrame


def read_study(folder: str | Path) -> Study:
    """Reads the tables that a sweep and `book/ablation_tables.py` wrote.

    Raises:
        ValueError: one is missing, or the later ones are not of the first one's settings; the message says how to
            make them.
    """
    folder, how = Path(folder), "make the tables with python book/ablation_tables.py"
    if absent := [name for name in TABLES if not (folder / name).exists()]:
        raise ValueError(f"{str(folder / absent[0])!r} is missing: {how}, after a sweep of workflow/")
    arms = read_arms(folder / TABLES[0])
    later = []
    for name in TABLES[1:]:
        rows = read_later(folder / name)
        later.append(rows)
        if unknown := set(rows["setting"]) - set(arms["setting"]):
            raise ValueError(f"{name} has the setting {min(unknown)!r}, which {TABLES[0]} lacks: {how}")
    return Study(arms, *later)


def read_later(file: Path) -> pd.DataFrame:
    """A table that `book/ablation_tables.py` wrote; where there is no variant it is empty, as in `read_arms`."""
    rows = read_rows(file)
    return rows.assign(variant=rows["variant"].astype(object).fillna(""))


def defaults(arms: pd.DataFrame) -> pd.DataFrame:
    """What each arm ran with, as chosen on validation, with its mean validation score over seeds.

    Args:
        arms: from `read_arms`.

    Returns:
        A row an arm, beta and variant of each setting: `setting, arm, beta, settings` (in words), `validation`
        (the mean of six recalls, in per cent), `seeds`, and `tuned_clip`, whether others are compared with it.
    """
    found = []
    for setting, rows in arms.groupby("setting", sort=False):
        control = tuned_baseline(rows)
        for key, part in rows.groupby(KEY, sort=False):
            score = 100 * validation_scores(part).mean()
            row = {"setting": setting, "arm": key[1], "beta": key[2]}
            row |= {"settings": settings_in_words(part["configuration"].iloc[0]), "validation": score}
            found.append(row | {"seeds": part["seed"].nunique(), "tuned_clip": key == control})
    return pd.DataFrame(found)


def arm_commands(plans: Mapping[str, Plan], table: str) -> pd.DataFrame:
    """The command that makes each arm's rows of a table, from the plans that write to it.

    Args:
        plans: from `sweeps_in`, by the names of their files.
        table: the name of the CSV file.

    Returns:
        A row a sweep and arm: `sweep, arm, runs, command`.
    """
    found = []
    for file, plan in plans.items():
        names = [run.get("arm", "") for run in plan.runs] if plan.results.name == table else []
        for arm in dict.fromkeys(names):
            command = f'python -m cibr.sweep workflow/{file} --only "arm={arm}"'
            found.append({"sweep": file, "arm": arm, "runs": names.count(arm), "command": command})
    return pd.DataFrame(found, columns=["sweep", "arm", "runs", "command"])


def trial_log(files: Iterable[str | Path]) -> pd.DataFrame:
    """Every trial of the tables, in their order.

    Args:
        files: tables of trials; those that are not there count as empty.

    Returns:
        A row a trial: `setting, arm, settings` (in words), `validation` (the mean of six recalls, in per cent),
        `status`.
    """
    found = []
    for rows in filter(len, map(read_rows, files)):
        scored = rows.assign(validation=100 * validation_scores(rows))
        for row in scored.to_dict("records"):
            settings = json.loads(row["configuration"])
            words = {"setting": setting_name(settings), "arm": row["arm"]}
            words["settings"] = settings_in_words(row["configuration"])
            found.append(words | {name: row[name] for name in ("validation", "status")})
    return pd.DataFrame(found, columns=["setting", "arm", "settings", "validation", "status"])


def sweeps_of(rows: pd.DataFrame, plans: Mapping[str, Plan]) -> pd.Series:
    """The file of the sweep that each row's run is of, empty for a row that no plan has any more.

    Args:
        rows: with `run`.
        plans: from `sweeps_in`.
    """
    owner: dict[str, str] = {}
    for file, plan in plans.items():
        for settings in plan.runs:
            owner.setdefault(run_id(settings), file)
    return rows["run"].map(owner).fillna("")
