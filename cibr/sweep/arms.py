"""The rows of an ablation by setting and arm: what the runs share, what each arm chose, which row is tuned CLIP.

A *setting* is what all arms meet alike: the data, how many pairs of them, how many wrong captions, whether the
temperature moves. An *arm* is a loss under the optimisation that was tuned for it. Where an arm has several rows a
seed in one setting, as over beta, `beta` and `variant` keep them apart.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from cibr.results import read_rows
from cibr.sweep.choice import best_trials, validation_scores
from cibr.sweep.engine import OK
from cibr.train import RunConfig

BASELINE = "CLIP"
KEY = ["setting", "arm", "beta", "variant"]
ABOUT = ("arm", "seed", "suites")  # settings of a run that neither its setting nor its variant names
TUNED = [
    *("beta", "estimator", "kappa_e", "kappa_b", "text_weight", "stop_gradient"),
    *("group_size", "group_share", "critic_steps"),
    *("temperature", "dropout", "weight_decay", "learning_rate", "epochs", "batch_size"),
]
USUAL_MODEL = {"glyphs": "tiny", "flickr8k": "frozen"}
DEFAULTS = {field.name: field.default for field in fields(RunConfig)}


def read_arms(file: str | Path) -> pd.DataFrame:
    """The rows of runs that were measured on a suite, named by what they compare.

    Args:
        file: the CSV file of a sweep of `train_and_evaluate`.

    Returns:
        The rows whose status is `ok`, in their order, with `setting`, `variant` (what differs between rows of one
        arm in one setting, `beta` aside; empty where nothing does) and `suite`, the first suite of the run.

    Raises:
        ValueError: the file is no table of a sweep.
    """
    rows = read_rows(file)
    if not len(rows):
        return pd.DataFrame(columns=["run", "configuration", "status", "suite", *KEY, "seed"])
    if absent := {"run", "configuration", "status"} - set(rows):
        raise ValueError(f"{str(file)!r} is no table of a sweep: it lacks the columns {sorted(absent)}")
    settings = rows["configuration"].map(json.loads)
    measured = (rows["status"] == OK) & settings.map(lambda s: bool(s.get("suites")))
    rows, settings = rows[measured].reset_index(drop=True), settings[measured].tolist()
    rows["suite"] = [s["suites"][0] for s in settings]
    rows["setting"] = [setting_name(s) for s in settings]
    rows["arm"] = rows["arm"].fillna("")
    rows["variant"] = _variants(rows, settings)
    return rows.copy()  # in one piece: pandas warns of tables of many columns that grew one by one


def setting_name(settings: dict[str, Any]) -> str:
    """What a run's data are called in tables.

    Examples:
        >>> setting_name({"dataset": "flickr8k", "model": "frozen", "train_fraction": 0.1, "beta": 0.05})
        'flickr8k, 10 % of the pairs'
    """
    own = {
        name: value
        for name, value in settings.items()
        if name not in (*ABOUT, *TUNED) and value != DEFAULTS.get(name)
    }
    dataset = settings.get("dataset", DEFAULTS["dataset"])
    model = settings.get("model", DEFAULTS["model"])
    words = [dataset] if model == USUAL_MODEL.get(dataset, "frozen") else [dataset, f"model {model}"]
    tied = " and ".join(filter(None, (own.get("shortcut_look", "polarity"), own.get("shortcut_wording"))))
    for name, value in sorted(own.items()):
        if name in ("dataset", "model", "shortcut_look", "shortcut_wording"):
            continue
        words.append(
            {
                "train_fraction": lambda x: f"{100 * x:g} % of the pairs",
                "caption_noise": lambda x: f"{100 * x:g} % wrong captions",
                "learn_temperature": lambda x: "temperature learned",
                "shortcut_word": lambda x: f"{tied} tied to the word {x!r}",
                "shortcut_exceptions": lambda x: f"{100 * x:g} % exceptions",
                "trained_blocks": lambda x: f"last {x} blocks trained" if x > 1 else "last block trained",
                "views": lambda x: "pictures in several styles",
                "label": str,
            }.get(name, lambda x, name=name: _words(name, x))(value)
        )
    return ", ".join(words)


def tuned_baseline(rows: pd.DataFrame, arm: str = BASELINE) -> tuple | None:
    """The `KEY` of an arm's rows in one setting; of several, those with the best mean of validation recalls.

    Args:
        rows: of one setting, from `read_arms`.
        arm: the arm that others are compared with.

    Returns:
        Setting, arm, beta and variant, or None where the arm has no row.
    """
    of_arm = rows[rows["arm"] == arm]
    if not len(of_arm):
        return None
    return of_arm.assign(score=validation_scores(of_arm)).groupby(KEY)["score"].mean().idxmax()


def trials(rows: pd.DataFrame) -> pd.DataFrame:
    """How many validation trials each arm had, and the best of them by the rule of `best_trials`.

    Args:
        rows: of a table of trials, from `cibr.results.read_rows`.

    Returns:
        A row a setting and arm: `setting, arm, trials, failed, best` (the mean of six validation recalls, in
        [0, 1]) and `chosen`, the settings of the best trial.
    """
    named = rows.assign(setting=rows["configuration"].map(json.loads).map(setting_name))
    found = []
    for (setting, arm), group in named.groupby(["setting", "arm"], sort=False):
        n_good = int((group["status"] == OK).sum())
        row = {"setting": setting, "arm": arm, "trials": len(group), "failed": len(group) - n_good}
        row |= {"best": float("nan"), "chosen": ""}
        if n_good:
            best = best_trials(group).iloc[0]
            row |= {"best": best["validation_score"], "chosen": settings_in_words(json.dumps(best["settings"]))}
        found.append(row)
    return pd.DataFrame(found, columns=["setting", "arm", "trials", "failed", "best", "chosen"])


def _variants(rows: pd.DataFrame, settings: list[dict[str, Any]]) -> list[str]:
    """For each row the tuned settings, beta aside, in which rows of its setting and arm differ."""
    names = [name for name in TUNED if name != "beta"]
    found = [""] * len(rows)
    for group in rows.groupby(["setting", "arm"]).indices.values():
        values = {name: {json.dumps(settings[i].get(name)) for i in group} for name in names}
        differing = [name for name in names if len(values[name]) > 1]
        for i in group:
            found[i] = _together((name, settings[i][name]) for name in differing if name in settings[i])
    return found


def settings_in_words(configuration: str) -> str:
    """The tuned settings of a run's configuration in JSON.

    Examples:
        >>> settings_in_words('{"dataset": "glyphs", "estimator": "vmf", "beta": 0.1, "kappa_e": 512}')
        'beta 0.1, kappa e 512'
    """
    settings = json.loads(configuration)
    return _together((name, settings[name]) for name in TUNED if name in settings and name != "estimator")


def _together(named: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(_words(name, value) for name, value in named)


def _words(name: str, value: Any) -> str:
    shown: Callable[[Any], str] = "{:g}".format if type(value) in (int, float) else str
    return f"{name.replace('_', ' ')} {shown(value)}"
