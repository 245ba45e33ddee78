"""Configuration of a run: its settings, checked before training, and the defaults of a model.

Each setting is declared once, in `RunConfig`: its type, its default and, in the docstring, its
help. `configure` checks settings and fills in the defaults of the model, `load_splits` loads the
pairs, and `build_model` builds the model.
"""

import os
import warnings
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch

from cibr.data import Pairs, available_splits, load_parts, title_of
from cibr.losses.cibr import MAX_BETA, check_penalty
from cibr.models import DualEncoder, check_model
from cibr.utils import check_known, check_number, project_root


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run. `configure` builds it, and fills in what is None.

    Args:
        dataset: a data set's name, a folder or a hub id.
        model: tiny (for glyphs), frozen (for all else), or a dual encoder to fine-tune, by folder
            or hub id.
        towers: of a frozen model: a dual encoder of transformers, by folder or hub id; by default
            two small towers.
        penalty: added to the contrastive loss: vmf, crossfit or mine.
        beta: weight of the penalty; 0 is CLIP.
        loss_options: of CIBRLoss, such as kappa_e, sample and kappa_b.
        epochs: passes over the images.
        batch_size: pairs contrasted with each other.
        learning_rate: peak of the one-cycle schedule.
        temperature: of the softmax over cosines, also of a pretrained CLIP.
        learn_temperature: train the temperature.
        weight_decay: of matrices.
        dropout: probability, in heads and tiny text towers.
        seed: of weights, order, captions, dropout and noise.
        output_dir: folder of the run; by default one under runs/.
        micro_batch_size: rows encoded at once; by default the whole batch.
        cca: of a frozen model: sum the scores of its heads and of CCA.
        cca_ridge_image: of CCA, in mean variances of an image feature.
        cca_ridge_text: of CCA, in mean variances of a text feature.
        bf16: encoders compute in bfloat16, the loss in float32.
        save_steps: steps between two checkpoints; by default 200 or more, at the end of an epoch,
            and at most 500.
        log_with: a tracker of accelerate that gets the history too, such as tensorboard.
    """

    dataset: str = "glyphs"
    model: str | None = None
    towers: str | None = None
    penalty: str = "vmf"
    beta: float = 0.0
    loss_options: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    temperature: float | None = None
    learn_temperature: bool = False
    weight_decay: float | None = None
    dropout: float | None = None
    seed: int = 0
    output_dir: str | None = None
    micro_batch_size: int | None = None
    cca: bool = True
    cca_ridge_image: float | None = None
    cca_ridge_text: float | None = None
    bf16: bool = False
    save_steps: int | None = None
    log_with: str | None = None


def _type_of(annotation: Any) -> type:
    """int for `int | None`, dict for `dict[str, Any]`."""
    if annotation in (str, int, float, bool):
        return annotation
    is_optional = type(None) in get_args(annotation)
    return get_args(annotation)[0] if is_optional else dict


SETTINGS = {setting.name: _type_of(setting.type) for setting in fields(RunConfig)}  # name: type
_RANGES = {  # lowest and highest value
    "beta": (0, MAX_BETA),
    "epochs": (1, 1e9),
    "batch_size": (2, 1e9),
    "learning_rate": (0, 1e3),
    "temperature": (0.01, 1e3),
    "weight_decay": (0, 1e3),
    "dropout": (0, 0.999),
    "seed": (0, 2**32 - 1),
    "micro_batch_size": (1, 1e9),
    "cca_ridge_image": (1e-9, 1e9),
    "cca_ridge_text": (1e-9, 1e9),
    "save_steps": (1, 1e9),
}

# Settings of frozen models by number of photos, chosen on validation photos:
# `bench/heads_cca.py trials`.
PRESETS: dict[str, dict[str, Any]] = {
    "few-photos": dict(
        epochs=80,
        batch_size=128,
        learning_rate=0.002,
        temperature=0.03,
        dropout=0.7,
        weight_decay=0.3,
        cca_ridge_image=10.0,
        cca_ridge_text=0.3,
    ),
    "many-photos": dict(
        epochs=80,
        batch_size=512,
        learning_rate=0.008,
        temperature=0.03,
        dropout=0.5,
        weight_decay=1.0,
        cca_ridge_image=10.0,
        cca_ridge_text=1.0,
    ),
}
_FEW = 1200  # photos at most
_TINY = dict(
    epochs=20,
    batch_size=256,
    learning_rate=0.002,
    temperature=0.1,
    dropout=0.1,
    weight_decay=0.05,
)  # chosen on validation
_TINY_ON_GLYPHS = dict(
    epochs=5,
    batch_size=128,
    learning_rate=0.002,
    temperature=0.12,
    dropout=0.0,
    weight_decay=0.01,
)  # chosen on validation
_FINE_TUNING = dict(
    epochs=3,
    batch_size=64,
    learning_rate=0.00001,
    temperature=0.01,
    dropout=0.0,
    weight_decay=0.1,
)  # of a pretrained dual encoder; untested


def configure(preset: str | None = None, **parameters: Any) -> RunConfig:
    """Builds a checked configuration, filled in with the defaults of data set and model.

    Args:
        preset: settings for photos, `few-photos` or `many-photos`, the default, see `preset_for`;
            parameters override it.
        **parameters: fields of `RunConfig`; None stands for the default. Without an `output_dir`
            the run gets a folder under `runs/`, named after its data, model, penalty, beta and
            seed.

    Raises:
        ValueError: an unknown parameter, penalty or option (with the nearest known name), or a
            value outside its range.
        FileNotFoundError: an unknown model, with the nearest known name.
    """
    for name in parameters:
        check_known("parameter", name, SETTINGS)
    parameters = {name: value for name, value in parameters.items() if value is not None}
    if preset is not None:
        check_known("preset", preset, PRESETS)
        parameters = {"model": "frozen"} | PRESETS[preset] | parameters
    config = RunConfig(**{name: _checked(name, value) for name, value in parameters.items()})
    check_penalty(config.penalty, config.loss_options.keys() - {"kappa_e", "sample"})
    if config.model is None:
        config = replace(config, model="tiny" if config.dataset == "glyphs" else "frozen")
    check_model(config.model)
    if config.towers and config.model != "frozen":
        raise ValueError("towers are those of a frozen model: set model to 'frozen'")
    defaults = _defaults_of(config)
    missing = [name for name in defaults if getattr(config, name) is None]
    config = replace(config, **{name: defaults[name] for name in missing})
    if config.output_dir is None:
        config = replace(config, output_dir=str(_default_folder(config)))
    return replace(config, output_dir=str(Path(config.output_dir).expanduser()))


def _defaults_of(config: RunConfig) -> dict[str, Any]:
    """The settings of a model that are not given."""
    if config.model == "frozen":
        return PRESETS["many-photos"]
    if config.model == "tiny":
        return _TINY_ON_GLYPHS if config.dataset == "glyphs" else _TINY
    return _FINE_TUNING


def _default_folder(config: RunConfig) -> Path:
    runs = Path(os.environ.get("CIBR_RUNS") or project_root() / "runs")
    data = title_of(config.dataset)
    model = Path(config.model).name
    return runs / f"{data}-{model}-{config.penalty}-beta{config.beta:g}-seed{config.seed}"


def _checked(name: str, value: Any) -> Any:
    """A value as the type of its setting.

    Raises:
        ValueError: it is of another type, outside its range, or an empty text.
    """
    expected = SETTINGS[name]
    if expected in (int, float):
        low, high = _RANGES[name]
        return expected(check_number(name, value, low, high, whole=expected is int))
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, expected):
        raise ValueError(f"{name} is {value!r}: give a {expected.__name__}")
    if value == "":
        raise ValueError(f"{name} is empty: give a text, or leave it out")
    return value


def preset_for(n_photos: int) -> str:
    """The preset for a number of photos to train on."""
    return "few-photos" if n_photos <= _FEW else "many-photos"


def load_splits(config: RunConfig) -> tuple[Pairs, Pairs, Pairs]:
    """The training, validation and test pairs of a run.

    Without a validation split, a tenth of the training images is held out for it, see
    `Pairs.hold_out`. Without a test split, the validation pairs are returned for it, with a
    warning; their `split` shows it.

    Raises:
        ValueError: a tenth of the samples or more that cannot be used, or nothing to hold out.
        FileNotFoundError: a part of the data set is missing.
        ConnectionError: the data set cannot be fetched from the hub.
    """
    has_test = "test" in available_splits(config.dataset)
    names = ["train", "validation", "test" if has_test else "validation"]
    train, validation, test = load_parts(config.dataset, names)
    if not has_test:
        message = f"{train.name} has no test split: the validation pairs stand in for it"
        warnings.warn(message, stacklevel=2)
    return train, validation, test


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
        size = 32 if config.dataset == "glyphs" else 64  # pixels
        model = DualEncoder.tiny(train.texts(), image_size=size, dropout=config.dropout)
    elif config.model == "frozen":
        model = _frozen(config, train)
    else:
        model = DualEncoder.from_pretrained(config.model)
    model.set_temperature(config.temperature, config.learn_temperature)
    return model


def _frozen(config: RunConfig, train: Pairs) -> DualEncoder:
    """Heads over frozen towers, which are not loaded where the pairs have features of them."""
    names = (config.towers, config.towers) if config.towers else ()
    features = train.features
    if features is None or (names and features.towers != names):
        return DualEncoder.frozen(*names, dropout=config.dropout)
    dims = features.images.shape[1], features.texts.shape[1]
    return DualEncoder.frozen(*features.towers, dims_pooled=dims, dropout=config.dropout)
