"""One run of the ablation: a configuration is trained, evaluated and probed, for one row of metrics."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cibr.data import Pairs, load_pairs
from cibr.evaluate import evaluate
from cibr.models import DualEncoder
from cibr.paths import project_root
from cibr.sweep.diagnostics import (
    describe_embeddings,
    leakage,
    look_leakage,
    mixed_looks_recall,
    wording_leakage,
)
from cibr.sweep.runs import run_id
from cibr.train import RunConfig, build_model, configure, fit, load_splits

KEPT = ("accuracy@1", *(f"{d}_recall@{k}" for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)))
LEARNED = (0.1, 0.3)  # validation recall@10 whose first step is the speed of learning


def run_folder(settings: Mapping[str, Any]) -> str:
    """Where a run of the ablation keeps its model and the outcomes of single items."""
    return str(project_root() / "runs" / "ablation" / run_id(settings))


def train_and_evaluate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Trains one configuration and measures it.

    Args:
        settings: of `cibr.configure`; besides, `arm` names the run in tables, `label` adds words to the name of
            its setting, and `suites` lists the suites of `cibr.evaluate` that it is measured on, with none for a
            trial on validation recall alone.

    Returns:
        One row: `arm, dataset, estimator, beta, seed`; `validation_*` recalls after the last epoch;
        `<suite>/<set>/<metric>` for each suite; what `cibr.sweep.diagnostics` finds; `steps_to_*`;
        `training_seconds`.

    Raises:
        ValueError: as `configure`.
    """
    own = {name: value for name, value in settings.items() if name not in ("arm", "label", "suites")}
    config = configure(output_dir=run_folder(settings), **own)
    train, validation, test = load_splits(config)
    model = build_model(config, train)
    history = fit(model, train, validation, config)
    metrics = _from_history(history)
    if settings.get("suites"):
        metrics |= _measure(model, train, validation, test, config)
    for suite in settings.get("suites", ()):
        found = evaluate(model, suite, name=run_id(settings), output_dir=config.output_dir)
        kept = found.rows[found.rows["metric"].isin(KEPT)]
        metrics |= {f"{suite}/{r.dataset}/{r.metric}": r.value for r in kept.itertuples()}
    about = {name: getattr(config, name) for name in ("dataset", "estimator", "beta", "seed")}
    return {"arm": settings.get("arm", "")} | about | {k: float(f"{v:.6g}") for k, v in metrics.items()}


def _from_history(history: pd.DataFrame) -> dict[str, float]:
    last = history.iloc[-1]
    recalls = {name: last[name] for name in history if "_recall@" in name}
    metrics = {f"validation_{name}": value for name, value in recalls.items()}
    both = [f"{side}_recall@" for side in ("image_to_text", "text_to_image")]
    for k in (1, 5, 10):
        metrics[f"validation_recall@{k}"] = sum(last[f"{side}{k}"] for side in both) / 2
    at_10 = sum(history[f"{side}10"] for side in both) / 2
    for level in LEARNED:
        reached = history["step"][at_10 >= level]
        metrics[f"steps_to_recall@10_{level:g}"] = reached.iloc[0] if len(reached) else float("nan")
    kept = ("clip_loss", "penalty_excess", "residual_image_nats", "residual_text_nats", "temperature")
    metrics |= {f"last_{name}": last[name] for name in kept}
    return metrics | {"steps": last["step"], "training_seconds": last["seconds"]}


def _measure(
    model: DualEncoder, train: Pairs, validation: Pairs, test: Pairs, config: RunConfig
) -> dict[str, float]:
    described = {
        "train": describe_embeddings(model, train),
        "validation": describe_embeddings(model, validation),
    }
    found = {f"{split}_{name}": value for split, values in described.items() for name, value in values.items()}
    gap = found["train_mi_lower_bound_nats"] - found["validation_mi_lower_bound_nats"]
    # The glyphs' nuisance factors vary in training alone; what was changed about it is no part of the measure.
    probed = load_pairs("glyphs", "train") if config.dataset == "glyphs" else validation
    found |= {"train_test_gap_nats": gap} | leakage(model, probed)
    if config.shortcut_word and config.dataset != "glyphs":  # whose factors have the look
        found |= look_leakage(model, validation, config.shortcut_look)
        found |= mixed_looks_recall(model, test, config.shortcut_look)
    if config.shortcut_word and config.shortcut_wording:
        found |= wording_leakage(model, validation, config.shortcut_wording)
    return found
