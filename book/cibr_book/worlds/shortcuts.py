"""Shortcuts: what image and text share in training and validation, but not at test.

The towers of the map (`cibr_book.worlds.map`), with 8 shortcuts among the 56 factors that image and
text have of their own. `train_and_predict` is a run of experiments/threshold-map.yaml;
`train_and_measure` one of the earlier sweeps experiments/shortcut-map*.yaml.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from cibr.losses.cca import canonical_maps, centred_moments
from cibr.utils import project_root
from cibr_book.intervals import mean_intervals
from cibr_book.worlds.map import BATCH_SIZE, DIM, N_SHARED, Sample, draw_sample, fit, recalls
from cibr_book.worlds.threshold import fixed_length_gains, loss_gains
from cibr_book.worlds.training import KAPPA_B, Weights, embed

TABLE = project_root() / "data" / "results" / "shortcut_map.csv"
SHIFTS = {"kept": 1.0, "removed": 0.0, "reversed": -1.0}  # times the shortcut's correlation
_N_CLASSES = 200
_NO_RIDGE = 1e-9


def train_and_measure(settings: dict[str, Any], folder: str | Path) -> dict[str, float]:
    """Trains a method of the map on pairs with shortcuts and measures it under each shift.

    Args:
        settings: `pairs`; `shortcut`, the correlation of the shortcuts in training; `seed`, one or
            a list, of which the mean is taken; and hyper-parameters, those of a ridge CCA (`ridge`,
            `power`, `dim`) or of CLIP (see `cibr_book.worlds.training.Settings`), with `dose`, the
            penalty's weight of 1 - cos times the temperature (with noise, A_d(kappa) of that), in
            place of `beta`, and `hotter`, by which the temperature is multiplied. `choose` changes
            nothing.
        folder: unused: the towers are small enough to retrain.

    Returns:
        For each of `SHIFTS`, `<shift>/recall@1`, the mean of both directions among 1,000 pairs, and
        `<shift>/accuracy@1`, of 200 classes; and the recalls of validation pairs.
    """
    trial = dict(settings)
    n_pairs, shortcut, seeds = (trial.pop(name) for name in ("pairs", "shortcut", "seed"))
    trial.pop("choose", None)
    seeds = seeds if isinstance(seeds, list) else [seeds]
    if "hotter" in trial:
        trial["temperature"] *= trial.pop("hotter")
    if "dose" in trial:
        trial["beta"] = trial.pop("dose") / (KAPPA_B * trial["temperature"])
    samples = {
        shift: [draw_sample(n_pairs, 1.0, seed, sign * shortcut) for seed in seeds]
        for shift, sign in SHIFTS.items()
    }
    method = "ridge CCA" if "ridge" in trial else "CLIP"
    weights, _ = fit(samples["kept"], method, trial, {})
    measures = {}
    for shift, shifted in samples.items():
        on_validation = recalls(weights, [each.validation for each in shifted])
        on_test = recalls(weights, [each.test for each in shifted])
        accuracies = _accuracies(weights, shifted)
        measures[f"{shift}/validation_recall@1"] = float(on_validation.mean())
        measures[f"{shift}/recall@1"] = float(on_test.mean())
        measures[f"{shift}/accuracy@1"] = float(accuracies.mean())
    return measures


def train_and_predict(settings: dict[str, Any], folder: str | Path) -> dict[str, float]:
    """Trains CLIP's towers with a dose on pairs with shortcuts, beside what theory makes of them.

    The weights are those after the last step. The predictions know the training pairs alone: their
    canonical directions, as many as the towers are wide, with the gains of the limit of large
    batches and with those that minimise the loss of batches of unit vectors.

    Args:
        settings: `pairs`, `shortcut`, `seed`, `temperature`, `dose`, `rate` and `steps`.
        folder: unused: the towers are small enough to retrain.

    Returns:
        By `trained`, `limit` and `loss`, such as `trained/ratio`: the mean gain of shortcuts
        over that of the core, and recalls as of `train_and_measure`, where the shortcut is kept
        and where it is removed; and `squared_gains`, their sum in the limit.
    """
    n_pairs, seed, temperature = (settings[name] for name in ("pairs", "seed", "temperature"))
    shortcuts = {"kept": settings["shortcut"], "removed": 0.0}
    samples = {name: draw_sample(n_pairs, 1.0, seed, rho) for name, rho in shortcuts.items()}
    trial = {name: settings[name] for name in ("temperature", "rate", "steps")}
    trial["beta"] = settings["dose"] / (KAPPA_B * temperature)
    weights = {"trained": fit([samples["kept"]], "CLIP", trial, {}, keep_best=False)[0]}
    _, moments = centred_moments(*samples["kept"].train)
    maps = canonical_maps(moments, DIM, _NO_RIDGE, _NO_RIDGE)  # times the root of correlations
    rho = (maps[0] @ moments[2] * maps[1]).sum(1).sqrt()
    gains = {"limit": fixed_length_gains(rho, temperature, settings["dose"])}
    gains["loss"] = loss_gains(rho, temperature, settings["dose"], BATCH_SIZE)
    for name, own in gains.items():
        weights[name] = [[((own / rho).sqrt() * side.T).float()[None, None]] for side in maps]
    found = {"squared_gains": float(gains["limit"].square().sum())}
    for name, own in weights.items():
        found[f"{name}/ratio"] = _gain_ratio(own, samples["kept"])
        for shift, sample in samples.items():
            found[f"{name}/{shift}/recall@1"] = float(recalls(own, [sample.test]))
            on_validation = float(recalls(own, [sample.validation]))
            found[f"{name}/{shift}/validation_recall@1"] = on_validation
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


def _accuracies(weights: Weights, samples: Sequence[Sample]) -> Float[Tensor, " samples"]:
    """Accuracy of test images among 200 classes. Each is a text whose only own factors are the
    shortcuts, like the mean over many texts.
    """
    pairs = []
    for sample in samples:
        named = sample.world.mix_text[:, : 2 * N_SHARED]
        prompts = sample.test[1] @ (named @ named.T).float()
        pairs.append(torch.stack([sample.test[0], prompts]))
    means = embed(weights, tuple(torch.stack(pairs, 1)[:, None]))[:, 0]
    images, prompts = means.unflatten(2, (-1, _N_CLASSES))  # [samples, groups, classes, d]
    nearest = (images @ prompts.mT).argmax(-1)
    return (nearest == torch.arange(_N_CLASSES)).float().mean((1, 2))


def map_differences(rows: pd.DataFrame) -> pd.DataFrame:
    """Differences from tuned CLIP in points, paired by draw, with Student's intervals over draws.

    Args:
        rows: of the map's table; trials are left out.

    Returns:
        A row for each cell, method, dose, shift and score: `pairs, shortcut, method, dose, shift,
        score, mean, low, high, n`.
    """
    settings = pd.DataFrame([*rows["configuration"].map(json.loads)], rows.index)
    rows = rows.join(settings[["pairs", "shortcut", "dose"]])
    rows = rows[settings["choose"].notna()]
    scores = [f"{shift}/{score}@1" for shift in SHIFTS for score in ("recall", "accuracy")]
    keys = ["pairs", "shortcut", "seed", "measure"]
    long = rows.melt([*keys[:3], "method", "dose"], scores, "measure", "value")
    clip = long.loc[long["method"] == "CLIP", [*keys, "value"]]
    both = long[long["method"] != "CLIP"].merge(clip, on=keys, suffixes=("", "_clip"))
    both["difference"] = 100 * (both["value"] - both["value_clip"])
    both[["shift", "score"]] = both["measure"].str.split("/", expand=True).to_numpy()
    by = ["pairs", "shortcut", "method", "dose", "shift", "score"]
    return mean_intervals(both.fillna({"dose": 0.0}), by, "difference")
