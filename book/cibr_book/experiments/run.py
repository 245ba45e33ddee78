"""One run of the study: train a configuration, evaluate it, describe its embeddings."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cibr.data import Pairs, load_pairs
from cibr.evaluate import evaluate
from cibr.losses import clip_loss
from cibr.losses.vmf import vmf_fit_kappa, vmf_mean_cosine, vmf_residual_nats
from cibr.metrics.retrieval import retrieval_recalls
from cibr.models import DualEncoder
from cibr.models.features import embed_pairs, prepare
from cibr.train import RunConfig, build_model, configure, load_splits
from cibr.train.config import DEFAULTS
from cibr.utils import check_known
from cibr_book.embeddings.probes import coded, factor_codes, linear_leakage
from cibr_book.experiments.corruptions import Corruption, corrupt, half_in_style, in_both_styles
from cibr_book.experiments.shifts import shifted_recalls
from cibr_book.experiments.training import StudyTrainer, WeightAverage
from cibr_book.experiments.unpaired import with_unpaired

KEPT = r"accuracy@1$|_recall@(?:1|5|10)$"
# Pairs, equally many in training and validation, so that their bounds are comparable.
_N_DESCRIBED = 1000
_N_PROBED = 3000
_TEMPERATURE, _KAPPA = 0.07, 1024.0  # for reported information, the same for all runs
_PENALTY_OPTIONS = ("kappa_b", "critic_steps", "critic_rate")
_STUDY_SETTINGS = (
    *("corruption", "suites", "shifts", "unpaired", "untouched", "group_size", "group_share"),
    *("feature_noise", "contrastive"),
    *("ema_decay", "interpolation", "mixed_precision", "cca_ridge_image", "cca_ridge_text", "ramp"),
)
_PEOPLE = {"man", "woman", "boy", "girl", "child", "people"}
_PEOPLE |= {"men", "women", "boys", "girls", "children"}


def train_and_measure(settings: dict[str, Any], folder: str | Path) -> dict[str, float]:
    """Trains and evaluates one configuration.

    Args:
        settings: of `cibr.configure`; also `corruption`, the fields of a `Corruption`; `suites`,
            the suites of `cibr.evaluate`, none for a trial on validation recall only; `shifts`,
            whether to test on degraded photos too; `unpaired`, with `self_training: true` and
            `repeats` for self-training on the pairs that a corruption leaves out; `group_size` and
            `group_share`, of `grouped_rows`; `ema_decay` and `interpolation`, of `WeightAverage`;
            `feature_noise` and `contrastive`, of `StudyTrainer`; `mixed_precision`, `bf16`;
            `cca_ridge_image` and `cca_ridge_text`, the two of `cca_ridges`; and `untouched`, for
            the pretrained model without training.
        folder: for the trained model, its history and its predictions.

    Returns:
        `validation_*` recalls and `last_*` values of the last epoch; `steps_to_*`;
        `<suite>/<set>/<metric>`; with suites also the results of `measure`, with `shifts` those of
        `shifted_recalls`. For an untouched model only the scores of the suites.
    """
    suites, unpaired = settings.get("suites", []), settings.get("unpaired")
    config = configure(output_dir=str(folder), **library_settings(settings))
    corruption = Corruption(**settings.get("corruption", {}))
    if settings.get("untouched"):
        model, metrics = DualEncoder.from_pretrained(config.model), {}
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    else:
        train, validation, test = load_splits(config)
        train = corrupt(train, corruption, config.seed)
        model, cca = build_model(config, train), None
        if unpaired:
            train, cca = with_unpaired(model, config, corruption, **unpaired)
        additions = training_additions(settings)
        trainer = StudyTrainer(model, config, train, validation, statistic=cca, **additions)
        trainer.train()
        metrics = _from_history(trainer.history)
        metrics |= measure(model, train, validation, test, config, corruption) if suites else {}
        metrics |= shifted_recalls(model, test) if settings.get("shifts") else {}
    for suite in suites:
        rows = evaluate(model, suite, name=Path(folder).name, output_dir=str(folder)).rows
        kept = rows[rows["metric"].str.contains(KEPT)]
        metrics |= {f"{suite}/{row.dataset}/{row.metric}": row.value for row in kept.itertuples()}
    return metrics


def library_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of `cibr.configure` among those of a run of the study."""
    for name in settings:
        check_known("setting", name, [*DEFAULTS, *_PENALTY_OPTIONS, *_STUDY_SETTINGS])
    own = {name: value for name, value in settings.items() if name in DEFAULTS}
    options = {name: settings[name] for name in _PENALTY_OPTIONS if name in settings}
    if options:
        own["penalty_options"] = options
    if "cca_ridge_image" in settings or "cca_ridge_text" in settings:
        image, text = DEFAULTS["cca_ridges"]
        ridges = settings.get("cca_ridge_image", image), settings.get("cca_ridge_text", text)
        own["cca_ridges"] = ridges
    if settings.get("mixed_precision") == "bf16":
        own["training_arguments"] = {"bf16": True}
    return own


def training_additions(settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `StudyTrainer` beside those of `CIBRTrainer`."""
    names = ("group_size", "group_share", "feature_noise", "contrastive")
    additions = {name: settings[name] for name in names if name in settings}
    decay, interpolation = settings.get("ema_decay", 0.0), settings.get("interpolation", 0.0)
    if decay or interpolation:
        additions["callbacks"] = [WeightAverage(decay, interpolation)]
    return additions


def _from_history(history: pd.DataFrame) -> dict[str, float]:
    last = history.iloc[-1]
    metrics = {f"validation_{name}": last[name] for name in history if "_recall@" in name}
    for k in (1, 5, 10):
        metrics[f"validation_recall@{k}"] = last.filter(regex=f"_recall@{k}$").mean()
    at_10 = history.filter(regex="_recall@10$").mean(axis=1)
    for level in (0.1, 0.3):
        reached = history["step"][at_10 >= level]
        metrics[f"steps_to_recall@10_{level:g}"] = reached.iloc[0] if len(reached) else math.nan
    kept = ["clip_loss", "penalty_excess", "residual_image_nats", "residual_text_nats"]
    metrics |= {f"last_{name}": last[name] for name in (*kept, "temperature") if name in last}
    return metrics | {"steps": last["step"], "training_seconds": last["seconds"]}


def measure(
    model: DualEncoder,
    train: Pairs,
    validation: Pairs,
    test: Pairs,
    config: RunConfig,
    corruption: Corruption,
) -> dict[str, float]:
    """Geometry and information of training and validation pairs, and the leakage of each factor.

    Returns:
        `train_*` and `validation_*` of `describe_embeddings`, `train_test_gap_nats`, the results of
        `leakage` and, if a style of photos was spuriously correlated with a word, the leakage of
        the style and recalls on test images half of which are in it.
    """
    metrics = {}
    for split, pairs in {"train": train, "validation": validation}.items():
        described = describe_embeddings(model, pairs)
        metrics |= {f"{split}_{name}": value for name, value in described.items()}
    bounds = [metrics[f"{split}_mi_lower_bound_nats"] for split in ("train", "validation")]
    metrics["train_test_gap_nats"] = bounds[0] - bounds[1]
    # The nuisance factors of glyphs vary only in the training split, here without the corruption.
    is_glyphs = config.dataset == "glyphs"
    metrics |= leakage(model, load_pairs("glyphs", "train") if is_glyphs else validation)
    if corruption.spurious_word and not is_glyphs:  # whose factors have the style
        style = corruption.spurious_style
        images, _ = _embed(model, in_both_styles(_sample(validation, _N_PROBED // 2), style))
        row, n = torch.arange(len(images)), len(images) // 2
        # Both styles of an image are on the same side of the probe's split.
        is_styled = (row >= n).long()
        metrics[f"leakage_image_{style}"] = linear_leakage(images, is_styled, row % n % 2 == 1)
        mixed = half_in_style(test, style)
        recalls = retrieval_recalls(*_embed(model, mixed), *mixed.retrieval_targets(), (1,))
        metrics |= {f"mixed_styles_{name}": value for name, value in recalls.items()}
    return metrics


def describe_embeddings(model: DualEncoder, pairs: Pairs) -> dict[str, float]:
    """Bounds in nats on at most 1,000 pairs, with one text per image.

    Returns:
        `mi_lower_bound_nats`, InfoNCE at the same temperature for all models; `residual_nats`, see
        the function.
    """
    images, texts = _embed(model, _sample(pairs, _N_DESCRIBED))
    bound = math.log(len(images)) - float(clip_loss(images, texts, 1 / _TEMPERATURE))
    residual = residual_nats(float((images * texts).sum(1).double().mean()), images.shape[1])
    return {"mi_lower_bound_nats": bound, "residual_nats": residual}


def residual_nats(mean_cosine: float, dim: int) -> float:
    """The vMF bound on the residual in nats, at concentration 1024, from the pairs' mean cosine.

    The backward encoder's concentration is the one that fits.
    """
    fitted = vmf_fit_kappa(vmf_mean_cosine(_KAPPA, dim) * mean_cosine, dim)
    return float(vmf_residual_nats(mean_cosine, _KAPPA, fitted, dim))


def leakage(model: DualEncoder, pairs: Pairs) -> dict[str, float]:
    """Information of a linear probe about each factor, as a share of the factor's entropy.

    Args:
        model: the encoders.
        pairs: glyphs, whose factors are known; or photos, with brightness, colourfulness and
            caption length as factors of one modality, and the mention of people as a shared factor.

    Returns:
        `leakage_image_<factor>` and `leakage_text_<factor>` for factors of one modality,
        `shared_image_<factor>` and `shared_text_<factor>` for shared ones, without factors that do
        not vary.
    """
    pairs = _sample(pairs, _N_PROBED)
    images, texts = _embed(model, pairs)
    embedded = {"image": images, "text": texts}
    held_out = torch.arange(len(pairs)) % 2 == 1
    return {
        name: linear_leakage(embedded[name.split("_")[1]], code, held_out)
        for name, code in coded(_factors(pairs)).items()
    }


def _factors(pairs: Pairs) -> dict[str, Any]:
    if pairs.factors is not None:
        table = pairs.factors
        names = ("typeface", "weight", "slant", "size", "x", "y")
        factors = {f"leakage_image_{name}": table[name] for name in names}
        factors["leakage_image_polarity"] = table["ink"] > table["paper"]
        factors["leakage_text_template"] = table["template"]
        codes = factor_codes(table)
        sides = [side for side in ("image", "text") if "category" in codes]
        return factors | {f"shared_{side}_category": codes["category"] for side in sides}
    pixels = [np.asarray(image.resize((16, 16)), dtype=float) for image in pairs.images()]
    words = [texts[0].lower().split() for texts in pairs.captions]
    values = {
        "leakage_image_brightness": [p.mean() for p in pixels],
        "leakage_text_length": [len(w) for w in words],
        "leakage_image_colourfulness": [p.std(axis=2).mean() for p in pixels],
    }
    ranks = pd.DataFrame(values).rank(method="first")
    thirds = {name: pd.qcut(ranks[name], 3, labels=False) for name in values}
    people = [bool(_PEOPLE & set(w)) for w in words]
    return thirds | {"shared_image_people": people, "shared_text_people": people}


def _sample(pairs: Pairs, n: int) -> Pairs:
    """At most n random pairs, the same for every model, each image with its first text."""
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    chosen = pairs.subset(order[:n])
    return replace(chosen, captions=[texts[:1] for texts in chosen.captions])


def _embed(model: DualEncoder, pairs: Pairs) -> tuple[Tensor, Tensor]:
    return embed_pairs(model, prepare(model, pairs, truncate=True))
