"""Configuration of a run, checked before training, with presets chosen on validation splits.

`configure` builds it, `load_splits` loads its pairs and `build_model` builds its model.
"""

import hashlib
import math
import warnings
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cibr.data import Pairs, available_splits, load_pairs, resolve
from cibr.data.pairs import Skips
from cibr.losses import PENALTIES
from cibr.models import DualEncoder, model_kind
from cibr.utils import check_known, runs_folder

# Hyper-parameters chosen on validation recall only, by data set and kind of model.
PRESET_NAMES = ("epochs", "batch_size", "learning_rate", "temperature", "dropout", "weight_decay")
PRESETS = {
    ("glyphs", "tiny"): (7, 256, 3e-3, 0.12, 0.0, 0.01),
    ("*", "tiny"): (20, 256, 2e-3, 0.1, 0.1, 0.05),
    ("*", "frozen"): (30, 1024, 4e-3, 0.05, 0.4, 1.0),
    ("*", "clip"): (3, 64, 1e-5, 0.01, 0.0, 0.1),
}
NOT_THE_RUN = ("output_dir", "checkpoint_every", "micro_batch_size")  # do not affect results


@dataclass(frozen=True)
class RunConfig:
    """Settings of a training run. Build it with `configure`, which fills in presets and checks the
    values.

    Args:
        dataset: name of a data set, a folder or a hub id; see `cibr.load_pairs`.
        model: `tiny`, `frozen`, or a model to fine-tune: a run's folder, or a dual encoder of
            transformers by folder or hub id, such as a `CLIPModel` or a `SiglipModel`.
        penalty: penalty added to the contrastive loss, one of `cibr.losses.PENALTIES`.
        beta: weight of the penalty; 0 is CLIP.
        sample: contrast samples of the encoders' distributions instead of their means.
        contrastive: contrastive loss, `clip`, `siglip`, or `hycd`, whose teacher is the initial
            model.
        epochs: passes over the training images; 0 for the preset.
        batch_size: pairs contrasted with each other; 0 for the preset.
        learning_rate: peak of AdamW's one-cycle schedule; 0 for the preset.
        warm_up: share of the steps in which the rate rises to its peak, from a 25th of it; then it
            falls to nearly 0, both along a cosine.
        image_tower_rate, text_tower_rate: learning rates of the towers, as multiples of
            `learning_rate`; at 0 a tower is frozen and runs in eval mode.
        temperature: temperature of the softmax over cosines; 0 for the preset.
        weight_decay: weight decay of AdamW, for matrices; -1 for the preset.
        dropout: dropout in the heads, and in the text encoder of `tiny`; -1 for the preset.
        seed: seed of weights, order, captions, dropout and noise.
        output_dir: folder for the model, `history.csv` and the configuration.
        micro_batch_size: rows encoded at once; 0 for the whole batch. It changes results only by
            rounding and the draws of dropout.
        learn_temperature: whether the temperature is trained.
        kappa_e, kappa_b: concentrations of the encoder's and the backward von Mises-Fisher
            distributions.
        text_weight: the texts' share of the penalty; see `CIBRLoss`.
        group_size: rows of a batch that belong together: renderings of one item if the pairs have
            groups, else images of one label, or else captions of one image; 1 for none.
        group_share: share of a batch's rows in such groups; see `cibr.train.sampler`.
        ramp: raise beta from 0 after a third of the training; otherwise it is constant.
        cca_start: initialise the heads over frozen towers with regularised CCA of the training
            pairs.
        cca_ridge_image, cca_ridge_text: ridges of CCA, also for `anchor`, times the mean variance
            of a feature.
        feature_noise: standard deviation of the noise on cached features in training, times the
            feature's own.
        ema_decay: decay of the moving average of the weights that is validated and saved; 0 for no
            average.
        interpolation: share of the initial weights in those that are validated and saved (WiSE-FT);
            0 for none. With `ema_decay` the rest is the moving average.
        crop_scale: smallest share of an image's area in random resized crops in training, 0.9 in
            open_clip; 1 for no crops.
        mixed_precision: `no`, or `bf16` for the encoders, overriding a launcher; the loss stays in
            float32.
        critic_steps: steps of the critics' optimiser before each step (`mine`).
        checkpoint_every: steps between checkpoints within an epoch; 0 for one at the end of each
            epoch.
        validate_every: epochs between validations; the last epoch is always validated.
        max_skipped: maximum number of skipped samples.
        truncate_texts: truncate texts longer than the model's context instead of raising.
    """

    dataset: str = "glyphs"
    model: str = "tiny"
    penalty: str = "vmf"
    beta: float = 0.05
    sample: bool = False
    contrastive: str = "clip"
    epochs: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    warm_up: float = 0.15
    image_tower_rate: float = 1.0
    text_tower_rate: float = 1.0
    temperature: float = 0.0
    dropout: float = -1.0
    weight_decay: float = -1.0
    seed: int = 0
    output_dir: str = ""
    micro_batch_size: int = 0
    learn_temperature: bool = False
    kappa_e: float = 1024.0
    kappa_b: float = 10.0
    text_weight: float = 0.5
    group_size: int = 1
    group_share: float = 1.0
    ramp: bool = True
    cca_start: bool = False
    cca_ridge_image: float = 3.0
    cca_ridge_text: float = 1.0
    feature_noise: float = 0.0
    ema_decay: float = 0.0
    interpolation: float = 0.0
    crop_scale: float = 1.0
    mixed_precision: str = "no"
    critic_steps: int = 1
    checkpoint_every: int = 0
    validate_every: int = 1
    max_skipped: int = 0
    truncate_texts: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return asdict(self)

    def table(self) -> pd.DataFrame:
        """The settings as a table of one column, without the output folder, for a notebook."""
        settings = {name: value for name, value in self.to_dict().items() if name != "output_dir"}
        return pd.DataFrame({"value": {name: str(value) for name, value in settings.items()}})


_TYPES = {each.name: each.type for each in fields(RunConfig)}

_RANGES = {
    "beta": (0, 1e4, "the penalty's weight is 0 (plain CLIP) to 10,000; 0.001 to 10 are usual"),
    "epochs": (1, math.inf, "train for one epoch at least, or give 0 for the preset"),
    "batch_size": (2, math.inf, "a contrast needs two pairs at least, or give 0 for the preset"),
    "micro_batch_size": (0, math.inf, "rows at once through the encoders; 0 for the whole batch"),
    "learning_rate": (1e-12, 1e3, "give a positive number, or 0 for the preset"),
    "warm_up": (0, 0.99, "a share of the steps below 1; 0.1 is usual"),
    "image_tower_rate": (0, 100, "a multiple of learning_rate, or 0 for a frozen tower"),
    "text_tower_rate": (0, 100, "a multiple of learning_rate, or 0 for a frozen tower"),
    "temperature": (0.01, 1e3, "CLIP keeps it at 0.01 or more; give 0 for the preset"),
    "dropout": (0, 0.99, "a probability below 1, or -1 for the preset"),
    "weight_decay": (0, 1e3, "0 or more, or -1 for the preset"),
    "seed": (0, 2**32 - 1, "a whole number from 0"),
    "kappa_e": (1e-3, 1e5, "a concentration between 1e-3 and 1e5"),
    "kappa_b": (1e-3, 1e5, "a concentration between 1e-3 and 1e5"),
    "text_weight": (0, 1, "the texts' share of the penalty; 0.5 in its definition"),
    "group_size": (1, 64, "rows of a batch that belong together; 1 for none"),
    "group_share": (0.01, 1, "the share of a batch's rows that come in groups"),
    "cca_ridge_image": (1e-6, 1e6, "a multiple of the mean variance; 0.1 to 10 are usual"),
    "cca_ridge_text": (1e-6, 1e6, "a multiple of the mean variance; 0.1 to 10 are usual"),
    "feature_noise": (0, 100, "a multiple of each feature's deviation; 0.1 to 1 are usual"),
    "ema_decay": (
        0,
        0.99999,
        "the share that the average keeps a step, such as 0.99, or 0 for none",
    ),
    "interpolation": (
        0,
        0.999,
        "the share of the start's weights that is kept, below 1; 0.5 is usual, 0 is none",
    ),
    "crop_scale": (0.01, 1, "the smallest share of an image's area; 0.9 is usual, 1 is no crop"),
    "critic_steps": (1, 100, "one to five are usual"),
    "checkpoint_every": (0, math.inf, "a number of steps, or 0 for the end of each epoch"),
    "validate_every": (1, math.inf, "a number of epochs"),
}

_CHOICES = {
    "penalty": PENALTIES,
    "contrastive": ("clip", "siglip", "hycd"),
    "mixed_precision": ("no", "bf16"),
}


def configure(**parameters: Any) -> RunConfig:
    """Builds a checked configuration; 0 (-1 for dropout and weight decay) is the preset of data set
    and model.

    Without an `output_dir` the run gets a folder under `runs/`, named after its main settings with
    a digest of the others that are not at their defaults.

    Raises:
        ValueError: an unknown parameter, data set, model or penalty (with the nearest known name),
            a value outside its range, or an output folder within the data.
    """
    for name in parameters:
        check_known("parameter", name, _TYPES)
    config = RunConfig(**{name: _typed(name, value) for name, value in parameters.items()})
    for name, known in _CHOICES.items():
        check_known(name, getattr(config, name), known)
    source, kind = resolve(config.dataset), model_kind(config.model)
    preset = dict(
        zip(PRESET_NAMES, PRESETS.get((source.name, kind), PRESETS["*", kind]), strict=True)
    )
    defaults = replace(RunConfig(), **preset).to_dict()
    filled = {
        name: value
        for name, value in preset.items()
        if getattr(config, name) == getattr(RunConfig, name)
    }
    config = replace(config, **filled)
    _check(config, kind)
    if not config.output_dir:
        config = replace(
            config, output_dir=str(runs_folder() / _run_name(config, source.name, defaults))
        )
    out = Path(config.output_dir).resolve()
    if (
        source.place
        and Path(source.place).is_dir()
        and out.is_relative_to(Path(source.place).resolve())
    ):
        raise ValueError(
            f"output_dir {config.output_dir!r} is within the data set's folder: choose one outside"
        )
    return config


def _run_name(config: RunConfig, dataset: str, defaults: dict[str, Any]) -> str:
    model = config.model.rstrip("/").split("/")[-1]
    named = dict(
        penalty=config.penalty, beta=config.beta, seed=config.seed, dataset=dataset, model=model
    )
    settings = {name: value for name, value in config.to_dict().items() if name not in NOT_THE_RUN}
    others = {k: v for k, v in settings.items() if v != named.get(k, defaults[k])}
    name = f"{dataset}-{model}-{config.penalty}-beta{config.beta:g}-seed{config.seed}"
    digest = hashlib.sha256(repr(sorted(others.items())).encode()).hexdigest()[:6]
    return f"{name}-{digest}" if others else name


def _typed(name: str, value: Any) -> Any:
    """A parameter's value if its type is right; integers are accepted as floats."""
    wanted = _TYPES[name]
    accepted = (int, float) if wanted is float else wanted
    if not isinstance(value, accepted) or isinstance(value, bool) != (wanted is bool):
        found = f"{value!r}, of type {type(value).__name__}"
        raise ValueError(f"{name} is {found}: it must be of type {wanted.__name__}")
    return wanted(value)


def _check(config: RunConfig, kind: str) -> None:
    for name, (low, high, rule) in _RANGES.items():
        value = getattr(config, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"{name} is {value}: {rule}")
    Skips(config.dataset, config.max_skipped)  # its checks, before anything is loaded
    if (config.penalty == "consistency" or config.group_share != 1) and config.group_size < 2:
        raise ValueError(
            "'consistency' and group_share are for rows in groups: set group_size to 2 or more"
        )
    for name in ("image_tower_rate", "text_tower_rate", "crop_scale"):
        if kind == "frozen" and getattr(config, name) != 1:
            raise ValueError(
                f"{name} is for towers that train, not those of model 'frozen': leave it at 1"
            )
    asked = {"penalty 'anchor'": config.penalty == "anchor", "cca_start": config.cca_start}
    for name, value in (asked | {"feature_noise": config.feature_noise}).items():
        if kind != "frozen" and value:
            raise ValueError(f"{name} reads features of frozen towers: set model to 'frozen'")


def load_splits(config: RunConfig) -> tuple[Pairs, Pairs, Pairs]:
    """The training, validation and test pairs of a run, with the training pairs corrupted as
    configured.

    Without a validation split, a tenth of the training pairs, at most 1,000, is held out for it.
    Without a test split, the validation pairs are returned for it, with a warning; their `split`
    shows it.

    Raises:
        ValueError: an unusable sample, or a data set that is too small to be split.
        FileNotFoundError: a part of the data set is missing.
        ConnectionError: the data set cannot be fetched from the hub.
    """
    there = available_splits(config.dataset)
    load = partial(load_pairs, config.dataset, max_skipped=config.max_skipped)
    train = load("train")
    train, validation = (train, load("validation")) if "validation" in there else _hold_out(train)
    test = load("test") if "test" in there else validation
    if test is validation:
        words = "no test split: the validation pairs, which choices may rest on, stand in for it"
        warnings.warn(f"{train.name} has {words}", stacklevel=2)
    return train, validation, test


def _hold_out(train: Pairs) -> tuple[Pairs, Pairs]:
    n_held_out = min(1000, len(train) // 10)
    if n_held_out < 1:
        raise ValueError(
            f"{train.name} has {len(train)} pairs and no validation split: it takes ten to make one"
        )
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
        size = 32 if train.name == "glyphs" else 64
        model = DualEncoder.tiny(train.texts(), image_size=size, dropout=config.dropout)
    elif config.model == "frozen":
        model = DualEncoder.frozen(dropout=config.dropout)
    else:
        model = DualEncoder.from_pretrained(config.model)
    model.set_temperature(config.temperature, config.learn_temperature)
    return model
