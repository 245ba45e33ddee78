"""Shortcuts: what image and text share in training and validation, but not at test.

The first part is theorem 3 of the book: the effect of a penalty, noise and weight decay on the
canonical correlations, and its value once the shortcut is gone. The second part trains the towers
of the map (`cibr_book.worlds.map`) with 8 shortcuts among the 56 factors that image and text have
of their own; `train_and_measure` is a run of the sweeps experiments/shortcut-map*.yaml.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cibr.utils import project_root
from cibr_book.intervals import mean_intervals
from cibr_book.worlds.map import N_SHARED, Sample, draw_sample, fit, recalls
from cibr_book.worlds.training import KAPPA_B, Weights, embed

Correlations = Float64[Tensor, " s"]
TABLE = project_root() / "data" / "results" / "shortcut_map.csv"
SHIFTS = {"kept": 1.0, "removed": 0.0, "reversed": -1.0}  # times the shortcut's correlation
_N_CLASSES = 200


def thresholded_gains(rho: Correlations, penalty: float = 0.0, noise: float = 0.0) -> Correlations:
    """Gains of the canonical directions at the optimum of CLIP's loss with a penalty and noise.

    Args:
        rho: canonical correlations in [0, 1].
        penalty: weight of the squared distance of paired embeddings, |u - w|^2 / (2 temperature);
            for unit vectors, the weight of 1 - cos times the temperature.
        noise: variance of the noise in each coordinate of the embeddings, over the temperature;
            weight decay of the same size does the same to white inputs.
    """
    return torch.clamp((1 + penalty) * rho - penalty - noise, min=0)


def fixed_length_gains(rho: Correlations, temperature: float, penalty: float = 0.0) -> Correlations:
    """The same for embeddings of mean squared length 1: a temperature also lowers correlations.

    Args:
        rho: canonical correlations in [0, 1], in any order.
        temperature: of the softmax; it bounds the sum of the gains by its inverse.
        penalty: weight of the squared distance of paired embeddings over 2 temperature.
    """
    scaled = (1 + penalty) * rho
    n_kept = torch.arange(1, len(rho) + 1)
    excess = scaled.sort(descending=True).values.cumsum(0) - 1 / temperature
    return torch.clamp(scaled - (excess / n_kept).max().clamp(min=0), min=0)


def shifted_nats(gains: Correlations, rho: Correlations) -> float:
    """log N minus CLIP's loss of a score, in the limit of large batches, at its best temperature.

    Args:
        gains: of the canonical directions in the score, up to a common factor.
        rho: correlations of these directions at test.
    """
    value = (gains * rho).sum().clamp(min=0) ** 2 / (2 * gains.square().sum())
    return float(torch.nan_to_num(value))


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
