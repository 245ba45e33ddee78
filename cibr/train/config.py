"""Configuration of a run, checked before training, with presets chosen on validation splits.

Each setting is declared once, in `RunConfig`: its type, range, default and help. The checks, the
command line and the reference derive from that. `configure` builds a configuration, `load_splits`
loads its pairs and `build_model` builds its model.
"""

import hashlib
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cibr.data import Pairs, available_splits, load_pairs, resolve
from cibr.losses import CONTRASTIVE, PENALTIES
from cibr.losses.cibr import MAX_BETA, check_options
from cibr.models import DualEncoder, model_kind
from cibr.utils import check_known, runs_folder

# Chosen on validation recall only, by kind of model; the card of a data set may have its own.
_PRESETS = {
    "tiny": dict(
        epochs=20,
        batch_size=256,
        learning_rate=2e-3,
        temperature=0.1,
        dropout=0.1,
        weight_decay=0.05,
    ),
    "frozen": dict(
        epochs=30,
        batch_size=1024,
        learning_rate=4e-3,
        temperature=0.05,
        dropout=0.4,
        weight_decay=1.0,
    ),
    "clip": dict(
        epochs=3,
        batch_size=64,
        learning_rate=1e-5,
        temperature=0.01,
        dropout=0.0,
        weight_decay=0.1,
    ),
}
_IMAGE_SIZE = 64  # px, of tiny models
NOT_THE_RUN = ("output_dir", "micro_batch_size")  # do not affect results


class RunConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    dataset: str = Field("glyphs", description="a data set's name, a folder or a hub id")
    model: str = Field(
        "tiny",
        description="tiny, frozen, or a model to fine-tune: a run's folder, or a dual encoder of "
        "transformers by folder or hub id, such as a CLIPModel or a SiglipModel",
    )
    penalty: str = Field("vmf", description="penalty added to the contrastive loss")
    penalty_options: dict[str, Any] = Field(
        default_factory=dict, description="options of the penalty, such as kappa_b or text_weight"
    )
    beta: float = Field(0.05, ge=0, le=MAX_BETA, description="weight of the penalty; 0 is CLIP")
    sample: bool = Field(False, description="contrast samples of the encoders, not their means")
    kappa_e: float = Field(
        1024.0, ge=1e-3, le=1e6, description="concentration of the encoders' vMF distributions"
    )
    contrastive: str = Field("clip", description="contrastive loss")
    epochs: int = Field(0, ge=0, description="passes over the images; 0 for the preset")
    batch_size: int = Field(
        0, ge=0, description="pairs contrasted with each other, 2 or more; 0 for the preset"
    )
    learning_rate: float = Field(
        0.0, ge=0, le=1e3, description="peak of AdamW's one-cycle schedule; 0 for the preset"
    )
    temperature: float = Field(
        0.0, ge=0, le=1e3, description="of the softmax, 0.01 or more; 0 for the preset"
    )
    learn_temperature: bool = Field(False, description="train the temperature")
    weight_decay: float = Field(
        -1.0, ge=-1, le=1e3, description="of AdamW, for matrices, 0 or more; -1 for the preset"
    )
    dropout: float = Field(
        -1.0, ge=-1, lt=1, description="in the heads and the tiny text tower; -1 for the preset"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, order, captions and noise")
    output_dir: str = Field("", description="folder of the run; empty for one under runs/")
    micro_batch_size: int = Field(
        0, ge=0, description="rows encoded at once, against memory; 0 for the whole batch"
    )
    cca_start: bool = Field(
        False, description="start the heads over frozen towers at regularised CCA of the pairs"
    )
    cca_ridges: tuple[float, float] = Field(
        (3.0, 1.0), strict=False, description="of CCA, image and text, times the mean variance"
    )
    feature_noise: float = Field(
        0.0, ge=0, le=100, description="noise on cached features, times their own deviation"
    )
    crop_scale: float = Field(
        1.0, gt=0, le=1, description="smallest share of an image in random crops; 1 for no crops"
    )
    validate_every: int = Field(1, ge=1, description="epochs between validations")
    max_skipped: int = Field(0, ge=0, description="unusable samples that may be left out")

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        between = {
            "batch_size": 0 < self.batch_size < 2,
            "temperature": 0 < self.temperature < 0.01,
            "dropout": -1 < self.dropout < 0,
            "weight_decay": -1 < self.weight_decay < 0,
            "cca_ridges": min(self.cca_ridges) <= 0,
        }
        for name in (name for name, is_out in between.items() if is_out):
            raise ValueError(_refusal(name, getattr(self, name), "out of its range"))
        return self


def _refusal(name: str, value: Any, reason: str) -> str:
    return f"{name} is {value!r}: {reason} ({RunConfig.model_fields[name].description})"


RunConfig.__doc__ = (
    "Settings of a run. Build it with `configure`, which fills in presets.\n\nArgs:\n"
)
RunConfig.__doc__ += "\n".join(
    f"    {name}: {field.description}." for name, field in RunConfig.model_fields.items()
)


def configure(**parameters: Any) -> RunConfig:
    """Builds a checked configuration, filled in with the presets of data set and model.

    Without an `output_dir` the run gets a folder under `runs/`, named after its main settings with
    a digest of the others that are not at their defaults.

    Raises:
        ValueError: an unknown parameter, data set, model, penalty or option (with the nearest known
            name), a value outside its range, or an output folder within the data.
    """
    for name in parameters:
        check_known("parameter", name, RunConfig.model_fields)
    try:
        config = RunConfig(**parameters)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            message = _refusal(first["loc"][0], first["input"], message)
        raise ValueError(message) from error
    check_known("penalty", config.penalty, PENALTIES)
    check_known("contrastive loss", config.contrastive, CONTRASTIVE)
    check_options(PENALTIES[config.penalty], config.penalty_options)
    source = resolve(config.dataset)
    kind = model_kind(config.model)
    _check_for_kind(config, kind)
    own = source.card.get("presets", {}).get(kind, {})
    preset = {name: own.get(name, value) for name, value in _PRESETS[kind].items()}
    defaults = RunConfig().model_copy(update=preset).model_dump()
    unset = {name: RunConfig.model_fields[name].default for name in preset}
    filled = {name: preset[name] for name in preset if getattr(config, name) == unset[name]}
    config = config.model_copy(update=filled)
    if not config.output_dir:
        folder = runs_folder() / _run_name(config, source.name, defaults)
        config = config.model_copy(update={"output_dir": str(folder)})
    place = Path(source.place).resolve()
    if source.place and place.is_dir() and Path(config.output_dir).resolve().is_relative_to(place):
        where = f"output_dir {config.output_dir!r} is within the data set's folder"
        raise ValueError(f"{where}: choose one outside")
    return config


def _check_for_kind(config: RunConfig, kind: str) -> None:
    if kind == "frozen":
        if config.crop_scale != 1:
            raise ValueError("crop_scale needs a tower that trains: leave it at 1 with 'frozen'")
        return
    settings = {
        f"penalty {config.penalty!r}": "statistic" in PENALTIES[config.penalty].built_from,
        "cca_start": config.cca_start,
        "feature_noise": config.feature_noise > 0,
    }
    for name in (name for name, is_set in settings.items() if is_set):
        raise ValueError(f"{name} reads features of frozen towers: set model to 'frozen'")


def _run_name(config: RunConfig, dataset: str, defaults: dict[str, Any]) -> str:
    model = config.model.rstrip("/").split("/")[-1]
    named = dict(penalty=config.penalty, beta=config.beta, seed=config.seed)
    named |= dict(model=model, dataset=dataset)
    settings = config.model_dump(exclude=set(NOT_THE_RUN))
    others = {k: v for k, v in settings.items() if v != named.get(k, defaults[k])}
    name = f"{dataset}-{model}-{config.penalty}-beta{config.beta:g}-seed{config.seed}"
    digest = hashlib.sha256(repr(sorted(others.items())).encode()).hexdigest()[:6]
    return f"{name}-{digest}" if others else name


def load_splits(config: RunConfig) -> tuple[Pairs, Pairs, Pairs]:
    """The training, validation and test pairs of a run.

    Without a validation split, a tenth of the training pairs, at most 1,000, is held out for it.
    Without a test split, the validation pairs are returned for it, with a warning; their `split`
    shows it.

    Raises:
        ValueError: an unusable sample, or a data set that is too small to be split.
        FileNotFoundError: a part of the data set is missing.
        ConnectionError: the data set cannot be fetched from the hub.
    """
    splits = available_splits(config.dataset)
    load = partial(load_pairs, config.dataset, max_skipped=config.max_skipped)
    train = load("train")
    if "validation" in splits:
        validation = load("validation")
    else:
        train, validation = _hold_out(train)
    if "test" in splits:
        return train, validation, load("test")
    reason = "no test split: the validation pairs, which choices may rest on, stand in for it"
    warnings.warn(f"{train.name} has {reason}", stacklevel=2)
    return train, validation, validation


def _hold_out(train: Pairs) -> tuple[Pairs, Pairs]:
    n_held_out = min(1000, len(train) // 10)
    if n_held_out < 1:
        fix = "give a validation split, or ten pairs, of which one is held out"
        raise ValueError(f"{train.name} has {len(train)} pairs and no validation split: {fix}")
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    validation = replace(train.subset(rows[:n_held_out].sort().values), split="validation")
    return train.subset(rows[n_held_out:].sort().values), validation


def build_model(config: RunConfig, train: Pairs) -> DualEncoder:
    """Builds or loads the model of a configuration; its seed sets the initial weights.

    Args:
        config: from `configure`.
        train: the training pairs, from whose texts a tiny model learns its tokenizer.

    Returns:
        The model, on the CPU.

    Raises:
        FileNotFoundError: the model, a tower, its tokenizer or its image preprocessing is missing.
        ValueError: a folder that is incomplete or damaged, or a model that is not a dual encoder.
    """
    torch.manual_seed(config.seed)
    if config.model == "tiny":
        own = resolve(config.dataset).card.get("presets", {}).get("tiny", {})
        size = own.get("image_size", _IMAGE_SIZE)
        model = DualEncoder.tiny(train.texts(), image_size=size, dropout=config.dropout)
    elif config.model == "frozen":
        model = DualEncoder.frozen(dropout=config.dropout)
    else:
        model = DualEncoder.from_pretrained(config.model)
    model.set_temperature(config.temperature, config.learn_temperature)
    return model
