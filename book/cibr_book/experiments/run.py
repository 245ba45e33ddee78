"""One run of the study: train a configuration and evaluate it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cibr.evaluate import evaluate
from cibr.models import DualEncoder
from cibr.train import build_model, configure, load_splits
from cibr.train.config import DEFAULTS
from cibr.utils import check_known
from cibr_book.experiments.corruptions import Corruption, corrupt
from cibr_book.experiments.shifts import shifted_recalls
from cibr_book.experiments.training import StudyTrainer, WeightAverage

KEPT = r"accuracy@1$|_recall@(?:1|5|10)$"
_LOSS_OPTIONS = ("kappa_e", "sample", "kappa_b", "critic_steps", "critic_rate")
_STUDY_SETTINGS = (
    *("corruption", "suites", "shifts", "untouched", "group_size"),
    *("feature_noise", "contrastive", "validate_every"),
    *("ema_decay", "interpolation", "mixed_precision", "cca_ridge_image", "cca_ridge_text", "ramp"),
)


def train_and_measure(settings: dict[str, Any], folder: str | Path) -> dict[str, float]:
    """Trains and evaluates one configuration.

    Args:
        settings: of `cibr.configure`; also `corruption`, the fields of a `Corruption`; `suites`,
            the suites of `cibr.evaluate`, none for a trial on validation recall only; `shifts`,
            whether to test on degraded photos too; `group_size`, of `grouped_rows`; `ema_decay` and
            `interpolation`, of `WeightAverage`; `feature_noise`, `contrastive`, `ramp` and
            `validate_every`, of `StudyTrainer`; `kappa_e`, `sample` and options of the penalty, of
            `cibr.CIBRLoss`; `mixed_precision`, `bf16`; `cca_ridge_image` and `cca_ridge_text`, the
            two of `cca_ridges`; and `untouched`, for the pretrained model without training.
        folder: for the trained model, its history and its predictions.

    Returns:
        `validation_*` recalls and `last_*` values of the last epoch;
        `<suite>/<set>/<metric>`; with `shifts` the results of `shifted_recalls`. For an untouched
        model only the scores of the suites.
    """
    suites = settings.get("suites", [])
    config = configure(output_dir=str(folder), **library_settings(settings))
    corruption = Corruption(**settings.get("corruption", {}))
    if settings.get("untouched"):
        model, metrics = DualEncoder.from_pretrained(config.model), {}
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    else:
        whole, validation, test = load_splits(config)
        train = corrupt(whole, corruption, config.seed)
        model = build_model(config, train)
        additions = training_additions(settings)
        trainer = StudyTrainer(model, config, train, validation, **additions)
        trainer.train()
        metrics = from_history(trainer.history)
        metrics |= shifted_recalls(model, test) if settings.get("shifts") else {}
    return metrics | suite_scores(model, suites, folder)


def suite_scores(model: DualEncoder, suites: Sequence[str], folder: str | Path) -> dict[str, float]:
    """Recalls and accuracies of a model on suites, `<suite>/<set>/<metric>`; predictions are
    written to the folder.
    """
    metrics = {}
    for suite in suites:
        rows = evaluate(model, suite, name=Path(folder).name, output_dir=str(folder)).rows
        kept = rows[rows["metric"].str.contains(KEPT)]
        metrics |= {f"{suite}/{row.dataset}/{row.metric}": row.value for row in kept.itertuples()}
    return metrics


def library_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of `cibr.configure` among those of a run of the study."""
    if "unpaired" in settings:
        raise ValueError("self-training has retired: repeat a committed row by `make again`")
    for name in settings:
        check_known("setting", name, [*DEFAULTS, *_LOSS_OPTIONS, *_STUDY_SETTINGS])
    own = {name: value for name, value in settings.items() if name in DEFAULTS}
    own["cca"] = False
    if own.get("model") == "frozen":
        own.setdefault("batch_size", 1024)  # the defaults when the sweeps were planned
        own.setdefault("cca_ridges", (3.0, 1.0))
    own["loss_options"] = {name: settings[name] for name in _LOSS_OPTIONS if name in settings}
    if "cca_ridge_image" in settings or "cca_ridge_text" in settings:
        image, text = settings.get("cca_ridge_image", 3.0), settings.get("cca_ridge_text", 1.0)
        own["cca_ridges"] = image, text
    if "mixed_precision" in settings:
        check_known("mixed_precision", settings["mixed_precision"], ["bf16"])
        own["training_arguments"] = {"bf16": True}
    return own


def training_additions(settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `StudyTrainer` beside those of `CIBRTrainer`."""
    names = ("group_size", "feature_noise", "contrastive", "validate_every")
    additions = {name: settings[name] for name in names if name in settings}
    additions["ramps"] = settings.get("ramp", True)
    decay, interpolation = settings.get("ema_decay", 0.0), settings.get("interpolation", 0.0)
    if decay or interpolation:
        additions["average"] = WeightAverage(decay, interpolation)
    return additions


def from_history(history: pd.DataFrame) -> dict[str, float]:
    """Recalls and terms of the last epoch of a history, as a row has them."""
    last = history.iloc[-1]
    metrics = {f"validation_{name}": last[name] for name in history if "_recall@" in name}
    for k in (1, 5, 10):
        metrics[f"validation_recall@{k}"] = last.filter(regex=f"_recall@{k}$").mean()
    of_penalties = ["pair_cosine_distance", "residual_image_nats", "residual_text_nats"]
    kept = ["clip_loss", "penalty_excess", *of_penalties, "temperature"]
    metrics |= {f"last_{name}": last[name] for name in kept if name in last}
    return metrics | {"steps": last["step"], "training_seconds": last["seconds"]}
