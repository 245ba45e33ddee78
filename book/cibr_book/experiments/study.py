"""The measures, choices and claims of experiments/finetune.md, from the rows and hits of its runs.

A score is in per cent, a difference in points. Differences are paired by seed: both models were
trained on the same draw of photos, in the same batches.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from cibr.data.photos import CLASSES
from cibr.metrics import mean_interval, paired_difference
from cibr_book.experiments.hits import Hits
from cibr_book.experiments.tables import read_table

TABLE = "finetune.csv"
TRANSFER = "transfer"
ZERO_SHOT = "zero-shot"
CLAIMED_ZERO_SHOT = "zero-shot, claimed"
VALIDATION = "validation"
EQUAL = 0.5  # points within which two methods count as equal
PHOTOS = {
    "Flickr8k": "flickr8k",
    "Flickr8k, others": "flickr8k-unshipped",
    "MSCOCO": "coco-mini",
    "MSCOCO, fresh": "coco-fresh",
}
_SEVEN = [name.removeprefix("photos-") for name in CLASSES]
_CLAIMED = ["pacs-art_painting", "pacs-cartoon", "pacs-sketch", "flowers5", "dtd10"]
_SEARCH = [f"text_to_image_recall@{k}" for k in (1, 5, 10)]
_TEXT_RETRIEVAL = [f"image_to_text_recall@{k}" for k in (1, 5, 10)]
_ACCURACY = "accuracy@1"
_Scores = Float[np.ndarray, "seeds items"]


def _columns() -> dict[str, list[tuple[str, str]]]:
    """The sets and metrics whose mean is a measure, by its name."""
    found = {}
    for title, name in PHOTOS.items():
        found[f"search, {title}"] = [(name, metric) for metric in _SEARCH]
        found[f"text retrieval, {title}"] = [(name, metric) for metric in _TEXT_RETRIEVAL]
    found[TRANSFER] = [("coco-fresh", metric) for metric in _SEARCH + _TEXT_RETRIEVAL]
    found[ZERO_SHOT] = [(name, _ACCURACY) for name in _SEVEN]
    found[CLAIMED_ZERO_SHOT] = [(name, _ACCURACY) for name in _CLAIMED]
    for name in _SEVEN + _CLAIMED:
        found[name] = [(name, _ACCURACY)]
    return found


COLUMNS = _columns()


def read_rows(suites: str) -> pd.DataFrame:
    """The rows of the study that were measured on these suites, with `COLUMNS` in per cent and the
    `temperature` of their settings.

    Args:
        suites: `validation`, `curve` or `claims`.
    """
    rows = read_table(TABLE)
    settings = rows["configuration"].map(json.loads)
    rows = rows.assign(temperature=[own.get("temperature") for own in settings])
    rows = rows[[own["suites"] == suites for own in settings]]
    measures = {}
    for measure, parts in COLUMNS.items():
        columns = [f"{name}/{metric}" for name, metric in parts]
        if set(columns) <= set(rows):
            measures[measure] = 100 * rows[columns].mean(axis=1, skipna=False)
    kept = rows.drop(columns=[name for name in measures if name in rows])
    return pd.concat([kept, pd.DataFrame(measures)], axis=1)


# Trials


def rate_and_epochs(rows: pd.DataFrame, hits: Hits) -> dict[str, float]:
    """What the plan's rule takes of a grid of rates and epochs.

    Of the points within one standard error of the best, of the difference over photos, it is the
    one with the smallest rate, and then the fewest epochs.

    Args:
        rows: of the grid's trials.
        hits: of their validation photos.

    Returns:
        `learning_rate` and `epochs`.
    """
    settings = pd.DataFrame([*rows["configuration"].map(json.loads)], index=rows.index)
    by_point = rows.groupby([settings["learning_rate"], settings["epochs"]])
    scores = {point: _over_seeds(hits, of["run"]) for point, of in by_point}
    best = max(scores.values(), key=np.mean)
    near = []
    for point, score in scores.items():
        difference = best - score
        if difference.mean() <= stats.sem(difference):
            near.append(point)
    rate, epochs = min(near)
    return {"learning_rate": rate, "epochs": epochs}


def _over_seeds(hits: Hits, runs: pd.Series) -> np.ndarray:
    """The mean score of each validation photo over runs."""
    both = [_per_photo(hits, "validation", run, _SEARCH + _TEXT_RETRIEVAL) for run in runs]
    return np.mean(both, axis=0)


def best_trials(rows: pd.DataFrame) -> pd.DataFrame:
    """The best trial of each method in each condition, by its mean validation recall over seeds.

    Args:
        rows: of trials.

    Returns:
        `condition, method`; `n`, the number of settings tried; `validation`, in per cent; and the
        `settings` of the best as JSON, without its seed.
    """
    names = ["condition", "method"]
    points = rows.assign(settings=rows["configuration"].map(_without_seed))
    by_point = points.groupby([*names, "settings"], sort=False)[VALIDATION].mean().reset_index()
    by_method = by_point.groupby(names, sort=False)
    best = by_point.loc[by_method[VALIDATION].idxmax()].reset_index(drop=True)
    return best.assign(n=by_method.size().to_numpy())


def _without_seed(configuration: str) -> str:
    settings = json.loads(configuration)
    del settings["seed"]
    return json.dumps(settings)


# Claims


def differences(rows: pd.DataFrame, hits: Hits, measures: list[str]) -> pd.DataFrame:
    """Differences of every method from CLIP as tuned, in the same setting.

    Args:
        rows: of the claims' runs, from `read_rows`.
        hits: of these runs.
        measures: of `COLUMNS`.

    Returns:
        In points: `condition, method, measure, score`, in per cent; the mean `difference`, `low,
        high`, its 95 % interval over seeds, for fixed photos; and `photos_low, photos_high`, over
        seeds and photos.
    """
    table = []
    for condition, method, of_method, of_clip in _pairs_of_methods(rows):
        for measure in measures:
            seeds = of_method[measure] - of_clip[measure]
            difference, low, high = mean_interval(seeds.to_numpy())
            before = scores_of_items(hits, measure, of_clip["run"])
            after = scores_of_items(hits, measure, of_method["run"])
            mean, photos_low, photos_high = paired_difference(before, after)
            assert math.isclose(mean, difference, abs_tol=1e-2), "hits of other runs"
            names = (condition, method, measure, of_method[measure].mean())
            table.append((*names, difference, low, high, photos_low, photos_high))
    columns = ["condition", "method", "measure", "score"]
    columns += ["difference", "low", "high", "photos_low", "photos_high"]
    return pd.DataFrame(table, columns=columns)


def _pairs_of_methods(rows: pd.DataFrame) -> Iterator[tuple]:
    """Each method's runs and CLIP's in the same condition, by seed."""
    for condition, of in rows.groupby("condition", sort=False):
        by_method = {name: own.set_index("seed") for name, own in of.groupby("method", sort=False)}
        clip = by_method.pop("CLIP")
        for name, own in by_method.items():
            yield condition, name, own, clip.loc[own.index]


def claim_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The plan's claims: that a method differs from CLIP as tuned.

    Args:
        rows: of the claims' runs, from `read_rows`.

    Returns:
        `condition, method, measure`; the mean `difference` in points, with Student's 95 % interval
        over seeds `low, high`; `p_value`, of the two-sided exact sign-flip test over seeds, and
        `holm`, corrected over the claims; and the `outcome`: `gain` or `loss` at 5 %, or `not
        shown`. MINE's claims are `not shown`, without a test, if its best trial has no penalty.
    """
    claims = [("frozen", "vMF at 0.03"), ("stages", "vMF at 0.03"), ("frozen", "MINE")]
    found = {(condition, name): pair for condition, name, *pair in _pairs_of_methods(rows)}
    table = []
    for condition, method in claims:
        ours, clip = found[condition, method]
        for measure in (TRANSFER, CLAIMED_ZERO_SHOT):
            seeds = (ours[measure] - clip[measure]).to_numpy()
            p_value = 1.0 if (ours["beta"] == 0).all() else sign_flip_p(seeds)
            table.append((condition, method, measure, *mean_interval(seeds), p_value))
    columns = ["condition", "method", "measure", "difference", "low", "high", "p_value"]
    tests = pd.DataFrame(table, columns=columns)
    tests["holm"] = multipletests(tests["p_value"], method="holm")[1]
    signs = np.where(tests["difference"] > 0, "gain", "loss")
    tests["outcome"] = np.where(tests["holm"] < 0.05, signs, "not shown")
    return tests


def sign_flip_p(differences: Float[np.ndarray, " n"]) -> float:
    """The two-sided p-value of a mean over all 2^n changes of the signs."""
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    return float(test.pvalue)


def equivalence(
    rows: pd.DataFrame, condition: str, methods: tuple[str, str], measure: str
) -> dict[str, float]:
    """Whether two methods are equal within half a point: two one-sided tests at 5 %.

    Args:
        rows: of the claims' runs, from `read_rows`.
        condition: of the runs.
        methods: the first minus the second.
        measure: of `COLUMNS`.

    Returns:
        In points: the mean `difference` with its 90 % interval over seeds, `low, high`, which is
        within half a point of 0 if they are equal, and the test's `p_value`.
    """
    of = rows[rows["condition"] == condition].set_index(["method", "seed"])[measure]
    seeds = DescrStatsW((of[methods[0]] - of[methods[1]]).dropna())
    low, high = seeds.tconfint_mean(alpha=0.1)
    p_value = seeds.ttost_mean(-EQUAL, EQUAL)[0]
    return {"difference": seeds.mean, "low": low, "high": high, "p_value": p_value}


# Predictions


def predictions(rows: pd.DataFrame) -> pd.DataFrame:
    """What the plan predicted of differences between two methods, and whether it came so.

    Args:
        rows: of the claims' runs, from `read_rows`.

    Returns:
        A row a comparison: the `prediction`, `condition, measure`, and the methods, `method` minus
        `other`; the mean `difference` in points, with Student's 95 % interval over seeds `low,
        high`; the bounds that were predicted, `least, most`; and `held`, whether the mean is
        within them. Where two methods were predicted to be equal, it has to be their 90 % interval.
    """
    ours, clip = "vMF at 0.03", "CLIP"
    table = []
    for condition, of in rows.groupby("condition", sort=False):
        methods = [name for name in of["method"].unique() if name not in (clip, "start")]
        table += [_predicted(of, "vMF gains in transfer", (ours, clip), TRANSFER, EQUAL, 1.5)]
        parts = "gap only at 0.03", ours
        table += [_predicted(of, "the gap is all of it", parts, TRANSFER, -EQUAL, EQUAL)]
        equal = equivalence(rows, condition, parts, TRANSFER)
        table[-1]["held"] = equal["low"] > -EQUAL and equal["high"] < EQUAL
        for whole in (ours, "gap only at 0.03"):
            pair = "contrast only at 0.03", whole
            if pair[0] in methods:
                table += [_predicted(of, "the contrast is less", pair, TRANSFER, -np.inf, 0.0)]
        if "anchor at 0.06" in methods:
            pair, measure = ("anchor at 0.06", ours), "text retrieval, MSCOCO, fresh"
            table += [_predicted(of, "an anchor loses texts", pair, measure, -np.inf, -EQUAL)]
        for name in methods:
            for measure in ("search, Flickr8k", "text retrieval, Flickr8k"):
                bounds = -EQUAL, EQUAL
                table += [_predicted(of, "little at home", (name, clip), measure, *bounds)]
        table += [_predicted(of, "zero-shot does not rise", (ours, clip), ZERO_SHOT, -np.inf, 0.0)]
        for name in methods:
            if name.startswith("CLIP at temperature"):
                pair = name, ours
                table += [_predicted(of, "no temperature does it", pair, TRANSFER, -np.inf, 0.0)]
    return pd.DataFrame(table)


def _predicted(
    of: pd.DataFrame,
    prediction: str,
    methods: tuple[str, str],
    measure: str,
    least: float,
    most: float,
) -> dict[str, Any]:
    """A prediction of the first method minus the second, over the seeds that both have."""
    by_method = of.set_index(["method", "seed"])[measure].sort_index()
    seeds = (by_method[methods[0]] - by_method[methods[1]]).dropna()
    difference, low, high = mean_interval(seeds.to_numpy())
    return {
        "prediction": prediction,
        "condition": of["condition"].iloc[0],
        "measure": measure,
        "method": methods[0],
        "other": methods[1],
        "difference": difference,
        "low": low,
        "high": high,
        "least": least,
        "most": most,
        "held": least <= difference <= most,
    }


# The curve

CURVE = [
    "search, Flickr8k",
    "text retrieval, Flickr8k",
    ZERO_SHOT,
    "search, MSCOCO",
    "text retrieval, MSCOCO",
]
GEOMETRY = {
    "1 - cos": "flickr8k/pair_cosine_distance",
    "modality gap": "flickr8k/modality_gap",
    "brightness": "flickr8k/brightness",
    "colour": "flickr8k/colour",
    "residual information of images, nats": "flickr8k/residual_image_nats",
    "residual information of texts, nats": "flickr8k/residual_text_nats",
}


def over_beta(rows: pd.DataFrame, measures: list[str]) -> pd.DataFrame:
    """What each form of the penalty does at each beta, against CLIP of the same draw.

    Args:
        rows: of the curve's runs, from `read_rows`.
        measures: of `COLUMNS`, in per cent, or of `GEOMETRY`.

    Returns:
        `condition, method, temperature, beta, measure`; the mean `value` and the mean `difference`
        from beta 0 at the same temperature, with Student's 95 % interval over draws `low, high`;
        and `n`, the number of draws. At beta 0 the difference is 0.
    """
    rows = rows.rename(columns={column: name for name, column in GEOMETRY.items()})
    clip = rows[rows["beta"] == 0].set_index(["condition", "temperature", "seed"]).sort_index()
    if not clip.index.is_unique:
        raise ValueError("more than one run has beta 0 in one condition, temperature and draw")
    table = []
    names = ["condition", "method", "temperature", "beta"]
    for keys, of in rows.groupby(names, sort=False):
        before = clip.loc[(keys[0], keys[2])].loc[of["seed"]]
        for measure in measures:
            seeds = of[measure].to_numpy() - before[measure].to_numpy()
            value = of[measure].mean()
            difference, low, high = (0.0, 0.0, 0.0) if keys[3] == 0 else mean_interval(seeds)
            table.append((*keys, measure, value, difference, low, high, len(seeds)))
    columns = [*names, "measure", "value", "difference", "low", "high", "n"]
    return pd.DataFrame(table, columns=columns)


# Scores of items


def scores_of_items(hits: Hits, measure: str, runs: pd.Series) -> _Scores:
    """A number in per cent for each photo under each run, whose mean is the measure.

    A photo's number is the mean of its own query's hits and of those of its captions. Where a
    measure is the mean of several sets, each set has the same weight, whatever its size.

    Args:
        hits: of the runs.
        measure: of `COLUMNS`.
        runs: their ids.
    """
    by_set: dict[str, list[str]] = {}
    for name, metric in COLUMNS[measure]:
        by_set.setdefault(name, []).append(metric)
    n_items = {name: len(_per_photo(hits, name, runs.iloc[0], by_set[name])) for name in by_set}
    n_of_all = sum(n_items.values())
    scores = []
    for name, metrics in by_set.items():
        weight = n_of_all / (len(by_set) * n_items[name])
        of_set = [_per_photo(hits, name, run, metrics) for run in runs]
        scores.append(weight * np.array(of_set))
    return 100 * np.concatenate(scores, axis=1)


def _per_photo(hits: Hits, name: str, run: str, metrics: list[str]) -> np.ndarray:
    """The mean of hits over metrics of one set, a number a photo."""
    by_metric = hits.of_run(name, run)
    owners = hits.owners[name]
    found = []
    for metric in metrics:
        values = by_metric[metric].astype(float)
        if metric in _SEARCH:  # by text: a photo has several
            n_photos = owners.max() + 1
            values = np.bincount(owners, values) * n_photos / len(owners)
        found.append(values)
    return np.mean(found, axis=0)
