"""Configuration of a run: its settings, checked before training, and the defaults of a model.

Each setting is declared once, in `RunConfig`: its type, its default and, in the docstring, its
help. `configure` checks settings and fills in the defaults of the model.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from cibr.data import title_of
from cibr.losses.cibr import LOSS_OPTIONS, MAX_BETA, check_penalty
from cibr.models import check_model
from cibr.utils import check_known, check_number, project_root


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run. `configure` builds it, and fills in what is None.

    Args:
        dataset: a data set's name, a folder or a hub id.
        model: tiny (for glyphs), names (a start that knows names; for all else), frozen (heads
            over frozen towers), or a dual encoder to fine-tune, by folder or hub id.
        towers: a dual encoder of transformers, by folder or hub id, whose towers a frozen model
            has; by default it has two small ones.
        penalty: what is added to the contrastive loss: vmf, crossfit or mine.
        beta: weight of the penalty; 0 is CLIP.
        loss_options: options of CIBRLoss, such as kappa_e, sample and kappa_b.
        epochs: passes over the images.
        batch_size: pairs contrasted with each other.
        learning_rate: peak of the one-cycle schedule.
        temperature: temperature of the softmax over cosines, also of a pretrained CLIP.
        learn_temperature: train the temperature, too.
        weight_decay: AdamW's, applied to weight matrices only.
        dropout: probability of dropout, in heads and tiny text towers.
        seed: decides weights, order, captions, dropout and noise.
        output_dir: the run's folder; by default one under runs/.
        micro_batch_size: rows encoded at once; by default the whole batch.
        train_stages: stages of both towers of names that are trained, too, from their ends.
        cca: sum the scores of the trained head and of CCA, for frozen towers.
        cca_weight: weight of CCA's scores; the head's have 1.
        cca_ridge_image: CCA's ridge for images, in units of the mean variance of a feature; by
            default chosen from the training pairs, as is that for texts.
        cca_ridge_text: CCA's ridge for texts, in units of the mean variance of a feature.
        bf16: encoders compute in bfloat16, the loss in float32.
        save_steps: steps between two checkpoints; by default the fewest whole epochs with 200
            steps or more, but at most 500.
        log_with: a tracker of accelerate that also gets the history, such as tensorboard.
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
    train_stages: int = 0
    cca: bool | None = None
    cca_weight: float | None = None
    cca_ridge_image: float | None = None
    cca_ridge_text: float | None = None
    bf16: bool = False
    save_steps: int | None = None
    log_with: str | None = None


def _type_of(hint: Any) -> type:
    """int for `int | None`, dict for `dict[str, Any]`, and a plain type for itself."""
    if isinstance(hint, UnionType):
        [hint] = [option for option in get_args(hint) if option is not NoneType]
    return get_origin(hint) or hint


SETTINGS = {name: _type_of(hint) for name, hint in get_type_hints(RunConfig).items()}
_LARGE = 1e9
_RANGES = {  # lowest and highest value
    "beta": (0, MAX_BETA),
    "epochs": (1, _LARGE),
    "batch_size": (2, _LARGE),
    "learning_rate": (0, 1e3),
    "temperature": (0.01, 1e3),
    "weight_decay": (0, 1e3),
    "dropout": (0, 0.999),
    "seed": (0, 2**32 - 1),
    "micro_batch_size": (1, _LARGE),
    "train_stages": (0, _LARGE),
    "cca_weight": (1 / _LARGE, _LARGE),
    "cca_ridge_image": (1 / _LARGE, _LARGE),
    "cca_ridge_text": (1 / _LARGE, _LARGE),
    "save_steps": (1, _LARGE),
}

# Settings for photos, by model and number of photos, chosen on validation photos: those of `names`
# by `bench/names.py trials`, those of `frozen` by `bench/heads_cca.py trials`.
_HEADS_OF_FEW_PHOTOS = dict(
    epochs=80,
    batch_size=128,
    learning_rate=0.002,
    temperature=0.03,
    dropout=0.7,
    weight_decay=0.3,
    cca_weight=1.0,
)
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "names": {
        "few-photos": dict(
            epochs=40,
            batch_size=64,
            learning_rate=0.00003,
            temperature=0.14,
            dropout=0.1,
            weight_decay=0.0,
            cca_weight=0.25,
        ),
        "some-photos": dict(
            epochs=20,
            batch_size=128,
            learning_rate=0.0001,
            temperature=0.07,
            dropout=0.2,
            weight_decay=0.0,
            cca_weight=1.0,
        ),
        "many-photos": dict(
            epochs=5,
            batch_size=256,
            learning_rate=0.0003,
            temperature=0.07,
            dropout=0.0,
            weight_decay=0.0,
            cca_weight=1.0,
        ),
    },
    "frozen": {
        "few-photos": _HEADS_OF_FEW_PHOTOS,
        "some-photos": _HEADS_OF_FEW_PHOTOS,
        "many-photos": dict(
            epochs=80,
            batch_size=512,
            learning_rate=0.008,
            temperature=0.03,
            dropout=0.5,
            weight_decay=1.0,
            cca_weight=1.0,
        ),
    },
}
_MOST_PHOTOS = {"few-photos": 300, "some-photos": 1200}  # of a preset
# Chosen on validation.
_TINY = dict(
    epochs=20,
    batch_size=256,
    learning_rate=0.002,
    temperature=0.1,
    dropout=0.1,
    weight_decay=0.05,
)
# Chosen on validation.
_TINY_ON_GLYPHS = dict(
    epochs=5,
    batch_size=128,
    learning_rate=0.002,
    temperature=0.12,
    dropout=0.0,
    weight_decay=0.01,
)
# Of a pretrained dual encoder; untested.
_FINE_TUNING = dict(
    epochs=3,
    batch_size=64,
    learning_rate=0.00001,
    temperature=0.01,
    dropout=0.0,
    weight_decay=0.1,
)


def configure(preset: str | None = None, **parameters: Any) -> RunConfig:
    """Builds a checked configuration, filled in with the defaults of data set and model.

    Args:
        preset: tested settings for photos, `few-photos`, `some-photos` or `many-photos`, see
            `preset_for`; parameters override it. None: the defaults of the model, which are
            `many-photos` for names and frozen.
        **parameters: fields of `RunConfig`; None stands for the default. Without an `output_dir`
            the run gets a folder under `runs/`, named after its data, model, penalty, beta and
            seed.

    Raises:
        ValueError: an unknown parameter, preset, penalty or option (with the nearest known name), a
            value outside its range, or settings that do not go with the model.
        FileNotFoundError: an unknown model, with the nearest known name.
    """
    for name in parameters:
        check_known("parameter", name, SETTINGS)
    given = {name: _checked(name, value) for name, value in parameters.items() if value is not None}
    model = given.get("model") or _default_model(given, preset)
    check_model(model)
    config = RunConfig(**(_defaults_of(model, given, preset) | given | {"model": model}))
    check_penalty(config.penalty, config.loss_options.keys() - LOSS_OPTIONS)
    _check_towers(config)
    folder = config.output_dir or _default_folder(config)
    return replace(config, output_dir=str(Path(folder).expanduser()))


def _default_model(given: dict[str, Any], preset: str | None) -> str:
    is_of_glyphs = given.get("dataset", RunConfig.dataset) == "glyphs"
    if is_of_glyphs and preset is None:
        return "tiny"
    return "frozen" if "towers" in given else "names"


def _defaults_of(model: str, given: dict[str, Any], preset: str | None) -> dict[str, Any]:
    """The default settings of a model, or those of a preset.

    Raises:
        ValueError: an unknown preset, or one for a model that has none.
    """
    dataset = given.get("dataset", RunConfig.dataset)
    presets = PRESETS.get(model, {})
    if preset is not None:
        check_known("preset", preset, PRESETS["frozen"])
        if not presets:
            raise ValueError(f"{model} has no preset {preset}: leave it out")
    if presets:
        # Without CCA the start finds more of other people's photos; with it, more like one's own.
        has_cca = model == "frozen" or not (dataset == "photos" or given.get("train_stages"))
        return {"cca": has_cca} | presets[preset or "many-photos"]
    without_cca = {"cca": False}
    if model == "tiny":
        return without_cca | (_TINY_ON_GLYPHS if dataset == "glyphs" else _TINY)
    return without_cca | _FINE_TUNING


def _check_towers(config: RunConfig) -> None:
    """Raises ValueError for settings that need other towers than those of the model."""
    if config.towers and config.model != "frozen":
        raise ValueError("towers are those of a frozen model: set model to 'frozen'")
    if config.train_stages and config.model != "names":
        raise ValueError("train_stages are those of the towers of names: set model to 'names'")
    is_frozen = config.model in PRESETS and not config.train_stages
    if config.cca and not is_frozen:
        raise ValueError(
            "cca needs the features of frozen towers: set model to 'names' or 'frozen', without "
            "train_stages, or leave it out"
        )


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
    for preset, most in _MOST_PHOTOS.items():
        if n_photos <= most:
            return preset
    return "many-photos"
