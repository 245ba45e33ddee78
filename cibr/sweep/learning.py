"""The information plane over training, from the histories that runs leave, with one ruler for all arms.

Histories tell the residual at the concentration that a run trains with, so that those of arms with more or less
noise do not compare. Where it is the bound of `vmf` for the pairs themselves it is a function of their mean
cosine alone; that is solved for, and the residual told at `RULER`. Where it is another estimate (`gaussian`,
`mine`, `club`) or one of other centres (`siblings`, `prototype`, `crossfit`) it stays empty.
"""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cibr.information import vmf_fit_kappa, vmf_mean_cosine, vmf_residual_nats
from cibr.sweep.arms import DEFAULTS, KEY

RULER = 1024.0  # the concentration at which residuals are told
DIMS = {"frozen": 512, "tiny": 128}  # of the embeddings
OF_PAIRS = ("vmf", "noise", "cosine", "alignment_uniformity", "cyclip", "siglip")
N_EPOCHS = 15  # that are kept of a run, evenly spaced, the last among them
VALUES = ["step", "mi_lower_bound_nats", "residual_nats", "recall@1", "beta_now"]


def training_plane(arms: pd.DataFrame, runs: str | Path, say: Callable[[str], None] = print) -> pd.DataFrame:
    """Bounds on information and validation recall over the epochs, as means over seeds.

    Args:
        arms: from `cibr.sweep.arms.read_arms`.
        runs: the folder with a folder a run.
        say: gets a line for every run without a history.

    Returns:
        A row an arm and epoch: `setting, arm, beta, variant, epoch, step`; on training batches
        `mi_lower_bound_nats` and `residual_nats`, empty where it does not compare; `recall@1` of validation, mean
        of both directions; `beta_now`, the penalty's weight by then; `n_seeds`.
    """
    found = []
    for row in arms.to_dict("records"):
        file = Path(runs) / row["run"] / "history.csv"
        if not file.exists():
            say(f"{row['setting']}, {row['arm']}, seed {row['seed']}: no history in {file.parent}")
            continue
        found.append(
            _curve(pd.read_csv(file), json.loads(row["configuration"])).assign(**{k: row[k] for k in KEY})
        )
    columns = [*KEY, "epoch", *VALUES, "n_seeds"]
    if not found:
        return pd.DataFrame(columns=columns)
    groups = pd.concat(found, ignore_index=True).groupby([*KEY, "epoch"], sort=False)
    return groups[VALUES].mean().assign(n_seeds=groups.size()).reset_index()[columns]


def _curve(history: pd.DataFrame, settings: Mapping[str, Any]) -> pd.DataFrame:
    kept = np.unique(np.linspace(0, len(history) - 1, min(N_EPOCHS, len(history))).round().astype(int))
    history = history.iloc[kept]
    sides = [history[f"{side}_recall@1"] for side in ("image_to_text", "text_to_image")]
    bound = history.get("mi_lower_bound_nats", pd.Series(np.nan, history.index))
    return pd.DataFrame(
        {
            "epoch": history["epoch"],
            "step": history["step"],
            "mi_lower_bound_nats": bound,
            "residual_nats": _at_ruler(history["residual_image_nats"].to_numpy(), settings),
            "recall@1": sum(sides) / 2,
            "beta_now": history["beta"],
        }
    )


def _at_ruler(residual: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
    """Residuals of one run at the concentration `RULER`, NaN where they do not compare."""
    estimator, model, kappa = (settings.get(n, DEFAULTS[n]) for n in ("estimator", "model", "kappa_e"))
    if estimator not in OF_PAIRS or model not in DIMS:
        return np.full(len(residual), np.nan)
    own, cosines = _residuals(float(kappa), DIMS[model])
    at_ruler, _ = _residuals(RULER, DIMS[model])
    # The residual falls as the cosine rises, and interpolation wants what rises.
    found = np.interp(residual, own[::-1], cosines[::-1])
    return np.interp(found, cosines, at_ruler)


@lru_cache(maxsize=16)
def _residuals(kappa_e: float, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The fitted bound over the mean cosine of the pairs."""
    cosines = np.linspace(0, 1, 801)
    kappa_b = vmf_fit_kappa(vmf_mean_cosine(kappa_e, dim) * torch.from_numpy(cosines), dim)
    return vmf_residual_nats(torch.from_numpy(cosines), kappa_e, kappa_b, dim).numpy(), cosines
