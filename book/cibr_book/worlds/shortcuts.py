"""Shortcuts: what image and text share in training and validation, but not at test.

The towers of the map (`cibr_book.worlds.map`), with 8 shortcuts among the 56 factors that image and
text have of their own, beside what theory predicts of them: the runs of
experiments/threshold-map.yaml, and the claims of their plan, experiments/threshold.md.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cibr.models.cca import canonical_maps, centred_moments
from cibr.utils import project_root
from cibr_book.intervals import mean_intervals, outcomes
from cibr_book.worlds.map import BATCH_SIZE, DIM, N_SHARED, Sample, draw_sample, fit, recall
from cibr_book.worlds.threshold import fixed_length_gains, loss_gains
from cibr_book.worlds.training import Settings, Weights

TABLE = project_root() / "data" / "results" / "threshold_map.csv"
CELL = ["pairs", "shortcut"]
POINT = ["temperature", "beta"]
PREDICTIONS = ("limit", "loss")
CONDITION = 1.0  # squared gains, in sum, up to which the limit is expected to hold
IN_DISTRIBUTION, UNDER_SHIFT = (f"trained/{s}/validation_recall@1" for s in ("kept", "removed"))
_NO_RIDGE = 1e-9
_BETWEEN = 64  # points of a frontier between two temperatures


def train_and_predict(settings: dict[str, Any], folder: str | Path) -> dict[str, float]:
    """Trains towers with a penalty on pairs with shortcuts, beside what theory makes of them.

    The weights are those after the last step. The predictions know the training pairs alone: their
    canonical directions, as many as the towers are wide, with the gains of the limit of large
    batches and with those that minimise the loss of batches of unit vectors.

    Args:
        settings: `pairs`, `shortcut`, `seed`, `temperature`, `dose`, which is the penalty's
            beta, `rate` and `steps`.
        folder: unused: the towers are small enough to retrain.

    Returns:
        By `trained`, `limit` and `loss`, such as `trained/ratio`: the mean gain of shortcuts
        over that of the core, and recall@1 among 1,000 pairs of test and of validation, the mean of
        both directions, where the shortcut is kept and where it is removed; and
        `squared_gains`, their sum in the limit.
    """
    temperature, beta = float(settings["temperature"]), settings["dose"]
    shortcuts = {"kept": settings["shortcut"], "removed": 0.0}
    samples = {
        name: draw_sample(settings["pairs"], 1.0, settings["seed"], rho)
        for name, rho in shortcuts.items()
    }
    run = Settings(temperature, beta, rate=float(settings["rate"]))
    weights = {"trained": fit(samples["kept"], run, settings["steps"])}
    _, moments = centred_moments(*samples["kept"].train)
    maps = canonical_maps(moments, DIM, _NO_RIDGE, _NO_RIDGE)  # times the root of correlations
    rho = (maps[0] @ moments.cross * maps[1]).sum(1).sqrt()
    gains = {"limit": fixed_length_gains(rho, temperature, beta)}
    gains["loss"] = loss_gains(rho, temperature, beta, BATCH_SIZE)
    for name, own in gains.items():
        weights[name] = [[((own / rho).sqrt() * side.T).float()[None, None]] for side in maps]
    found = {"squared_gains": float(gains["limit"].square().sum())}
    for name, own in weights.items():
        found[f"{name}/ratio"] = _gain_ratio(own, samples["kept"])
        for shift, sample in samples.items():
            found[f"{name}/{shift}/recall@1"] = recall(own, sample.test)
            found[f"{name}/{shift}/validation_recall@1"] = recall(own, sample.validation)
    return found


def _gain_ratio(weights: Weights, sample: Sample) -> float:
    """The mean gain of the shortcuts over that of the core, in the score of linear towers."""
    image, text = (
        stretch @ side[-1][0, 0].double()
        for stretch, side in zip(sample.stretch, weights, strict=True)
    )
    world = sample.world
    gains = (world.mix_image.T @ image @ text.T @ world.mix_text).diagonal()
    return float(gains[N_SHARED : 2 * N_SHARED].mean() / gains[:N_SHARED].mean())


def map_rows() -> pd.DataFrame:
    """The runs of the map, with `CELL` and `POINT` as columns."""
    rows = pd.read_csv(TABLE)
    settings = pd.DataFrame([*rows["configuration"].map(json.loads)], rows.index)
    points = settings.rename(columns={"dose": "beta"})[[*CELL, *POINT]]
    return rows.drop(columns="beta").join(points)


def best_points(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    """The runs of each cell at the temperature and beta of its highest mean score.

    Args:
        rows: from `map_rows`, of the points to choose from.
        score: a column.
    """
    means = rows.groupby([*CELL, *POINT])[score].mean()
    best = pd.DataFrame([*means.groupby(CELL).idxmax()], columns=[*CELL, *POINT])
    return rows.merge(best)


def claim_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """Claims 1 and 2 of the plan, as from `cibr_book.intervals.outcomes`; of rows at one
    temperature a cell, claim 1 alone.

    Args:
        rows: from `map_rows`, of one plan.
    """
    rows = rows[(rows["pairs"] == 1024) & (rows["shortcut"] > 0)]
    of_clip = best_points(rows[rows["beta"] == 0], IN_DISTRIBUTION)
    chosen = rows.merge(of_clip[[*CELL, "temperature"]].drop_duplicates())
    removed = 100 * chosen.set_index(["shortcut", "beta", "seed"])["trained/removed/recall@1"]
    claims = []
    for shortcut, sign in {0.7: 1, 0.8: 1, 0.9: 1, 0.99: -1}.items():
        by_beta = removed[shortcut].unstack()
        for beta in by_beta.index[1:]:
            gain = sign * (by_beta.loc[beta] - by_beta.loc[0])
            claims.append((f"correlation {shortcut}", f"beta {beta:g}", gain))
    if len(chosen) < len(rows):
        errors = [_error(rows, name, "ratio").groupby(rows["seed"]).mean() for name in PREDICTIONS]
        claims.append(("ratio of gains", "loss is nearer", errors[0] - errors[1]))
    return outcomes(claims)


def prediction_errors(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean absolute errors of both predictions, in ratios of gains and in points of recall.

    Args:
        rows: from `map_rows`.

    Returns:
        A row by `pairs`, `holds`, whether the limit's condition does, and `measure`: the errors of
        `limit` and `loss`, and `n` runs.
    """
    parts = []
    for name, scale in {"ratio": 1, "kept/recall@1": 100, "removed/recall@1": 100}.items():
        errors = {of: scale * _error(rows, of, name) for of in PREDICTIONS}
        holds = rows["squared_gains"] < CONDITION
        parts.append(rows[["pairs"]].assign(holds=holds, measure=name, n=1, **errors))
    means = dict.fromkeys(PREDICTIONS, "mean") | {"n": "sum"}
    return pd.concat(parts).groupby(["pairs", "holds", "measure"]).agg(means).reset_index()


def _error(rows: pd.DataFrame, predicted: str, name: str) -> pd.Series:
    return (rows[f"{predicted}/{name}"] - rows[f"trained/{name}"]).abs()


def beyond_temperature(rows: pd.DataFrame, of: str = "trained") -> pd.DataFrame:
    """How much more is recalled with the penalty than by a temperature alone, without the shortcut.

    At equal recall with the shortcut: draw by draw, a run with the penalty is held against the
    highest recall without it, among all temperatures and what lies on lines between neighbours,
    that comes with as much recall of pairs with the shortcut as the run has; above all of these,
    against the temperature that has most. A point that in some draw lies below all of them is left
    out: a temperature outside the range might reach it.

    Args:
        rows: from `map_rows`.
        of: `trained`, or one of `PREDICTIONS`.

    Returns:
        A row by `CELL` and `POINT` with Student's interval over draws, in points.
    """
    names = [f"{of}/kept/recall@1", f"{of}/removed/recall@1"]
    parts = []
    for _, cell in rows.groupby([*CELL, "seed"]):
        alone = cell[cell["beta"] == 0].sort_values("temperature")[names].to_numpy()
        places = np.linspace(0, len(alone) - 1, _BETWEEN * (len(alone) - 1) + 1)
        kept, removed = (np.interp(places, np.arange(len(alone)), side) for side in alone.T)
        penalised = cell[cell["beta"] > 0]
        needed = penalised[names[0]].clip(upper=kept.max()).to_numpy()
        level = np.where(kept >= needed[:, None], removed, 0).max(1)
        excess = (100 * (penalised[names[1]] - level)).where(needed >= kept.min())
        parts.append(penalised.assign(excess=excess))
    table = pd.concat(parts)
    of_point = table.groupby([*CELL, *POINT])["excess"]
    return mean_intervals(
        table[of_point.transform("count") == of_point.transform("size")], [*CELL, *POINT], "excess"
    )
