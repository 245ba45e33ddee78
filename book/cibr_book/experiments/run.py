"""One run of the study: train a configuration and evaluate it."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch

import cibr
from cibr.evaluate import evaluate
from cibr.models import DualEncoder
from cibr.train import build_model, configure, load_splits
from cibr.train.config import SETTINGS
from cibr.utils import check_known
from cibr_book.experiments.corruptions import Corruption, corrupt
from cibr_book.experiments.tables import KAPPA_B

_KEPT = r"accuracy@1$|_recall@(?:1|5|10)$"
_LOSS_OPTIONS = ("kappa_e", "sample", "kappa_b", "critic_steps", "critic_rate")
_OF_RUN = ("corruption", "suites", "untouched", "mixed_precision")


def train_and_measure(settings: dict[str, Any], folder: str | Path) -> dict[str, float]:
    """Trains and evaluates one configuration.

    Args:
        settings: of `library_settings`; also `corruption`, the fields of a `Corruption`; `suites`,
            the suites of `cibr.evaluate`, none for a trial on validation recall only; and
            `untouched`, for the pretrained model without training.
        folder: for the trained model, its history and its predictions.

    Returns:
        `validation_*` recalls and `last_*` values of the last epoch; `<suite>/<set>/<metric>`. For
        an untouched model only the scores of the suites.
    """
    config = configure(output_dir=str(folder), **library_settings(settings))
    if settings.get("untouched"):
        model, metrics = DualEncoder.from_pretrained(config.model), {}
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    else:
        train, validation, _ = load_splits(config)
        train = corrupt(train, Corruption(**settings.get("corruption", {})), config.seed)
        model = build_model(config, train)
        metrics = _from_history(cibr.fit(model, train, validation, config))
    for suite in settings.get("suites", []):
        rows = evaluate(model, suite, name=Path(folder).name, output_dir=str(folder)).rows
        kept = rows[rows["metric"].str.contains(_KEPT)]
        metrics |= {f"{suite}/{row.dataset}/{row.metric}": row.value for row in kept.itertuples()}
    return metrics


def library_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings, under the names that committed rows have, as `cibr.configure` takes them.

    Args:
        settings: of `cibr.configure`; also `kappa_e`, `sample` and the penalty's options, the
            `loss_options`; and `mixed_precision`, `bf16`. Those of a run alone are left out, and
            so is `validate_every`, which is part of the ids of committed runs: every epoch is
            validated. A penalty with a `kappa_e` and no `kappa_b` has the default of then, 10.

    Raises:
        ValueError: an unknown setting.
    """
    known = [*SETTINGS, *_LOSS_OPTIONS, *_OF_RUN, "validate_every"]
    for name in settings:
        check_known("setting", name, known)
    own = {"cca": False} | {name: settings[name] for name in SETTINGS if name in settings}
    options = {name: settings[name] for name in _LOSS_OPTIONS if name in settings}
    own["loss_options"] = settings.get("loss_options", {}) | options
    is_vmf = own.get("penalty", "vmf") in ("vmf", "crossfit")
    if is_vmf and "kappa_e" in own["loss_options"]:
        own["loss_options"] = {"kappa_b": KAPPA_B} | own["loss_options"]
    if own.get("model") == "frozen":  # the default when the sweeps were planned
        own = {"batch_size": 1024} | own
    if "mixed_precision" in settings:
        check_known("mixed_precision", settings["mixed_precision"], ["bf16"])
        own["bf16"] = True
    return own


def _from_history(history: pd.DataFrame) -> dict[str, float]:
    """Recalls, with their means over both directions, and terms of the last epoch of a history."""
    last = history.iloc[-1]
    metrics = {f"validation_{name}": last[name] for name in last.index if "_recall@" in name}
    for k in (1, 5, 10):
        both = [value for name, value in metrics.items() if name.endswith(f"_recall@{k}")]
        metrics |= {f"validation_recall@{k}": sum(both) / len(both)} if both else {}
    of_penalties = ["pair_cosine_distance", "residual_image_nats", "residual_text_nats"]
    kept = ["clip_loss", "penalty_excess", *of_penalties, "temperature"]
    metrics |= {f"last_{name}": last[name] for name in kept if name in last}
    return metrics | {"steps": last["step"], "training_seconds": last["seconds"]}
