"""Which trial of each arm is the best on validation: what a final sweep trains with several seeds."""

import json

import pandas as pd

from cibr.sweep.engine import OK

NOT_CHOSEN = ("seed", "suites")  # settings of a run that no trial decides
VALIDATION = [f"validation_{side}_recall@{k}" for side in ("image_to_text", "text_to_image") for k in (1, 5, 10)]


def validation_scores(rows: pd.DataFrame) -> pd.Series:
    """The mean of recall@1, 5 and 10 in both directions on validation, of every run.

    Six recalls together move less by chance than one alone.
    """
    return rows[VALIDATION].mean(axis=1)


def best_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """The best trial of each arm by `validation_scores`.

    Args:
        trials: rows that a sweep of `train_and_evaluate` wrote, of one setting; failed ones do not count.

    Returns:
        A row an arm, in the order of the table: `arm`, `n_trials`, `validation_score` in [0, 1], and `settings`,
        the dictionary that it ran with, without its seed.

    Raises:
        ValueError: there is no good trial.
    """
    good = trials[trials["status"] == OK]
    if good.empty:
        raise ValueError("none of the trials has the status ok: run the sweep of trials first")
    good = good.assign(validation_score=validation_scores(good))
    best = good.loc[good.groupby("arm", sort=False)["validation_score"].idxmax()]
    n_trials = good.groupby("arm", sort=False).size()
    settings = [json.loads(text) for text in best["configuration"]]
    return pd.DataFrame(
        {
            "arm": best["arm"].to_numpy(),
            "n_trials": n_trials[best["arm"]].to_numpy(),
            "validation_score": best["validation_score"].to_numpy(),
            "settings": [{k: v for k, v in s.items() if k not in NOT_CHOSEN} for s in settings],
        }
    )
