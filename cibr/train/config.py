"""Configuration of a run, checked before training, with defaults by kind of model.

Each setting is declared once, in `RunConfig`: its type, default, help and range. `configure` checks
settings and fills in defaults, `load_splits` loads the pairs, `build_model` builds the model, and
`training_arguments` translates to transformers.
"""

import math
import os
import warnings
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from cibr.data import Pairs, available_splits, load_parts, title_of
from cibr.losses import PENALTIES
from cibr.losses.cibr import MAX_BETA, check_penalty
from cibr.models import DualEncoder, model_kind
from cibr.utils import check_known, check_number, project_root

_NAMES = ("epochs", "batch_size", "learning_rate", "temperature", "dropout", "weight_decay")


def _defaults(*values: Any, **others: Any) -> dict[str, Any]:
    """Values of the settings above, in that order, and of others by name."""
    return dict(zip(_NAMES, values, strict=True)) | others


# Settings by number of photos, chosen on validation photos: `bench/heads_cca.py trials`.
PRESETS: dict[str, dict[str, Any]] = {
    "few-photos": _defaults(80, 128, 0.002, 0.03, 0.7, 0.3, cca_ridges=(10.0, 0.3)),
    "many-photos": _defaults(80, 512, 0.008, 0.03, 0.5, 1.0, cca_ridges=(10.0, 1.0)),
}
_FEW = 1200  # photos at most
# Defaults by kind of model: of `tiny` chosen on validation, of `hub` untested.
_OF_KIND = {
    "tiny": _defaults(20, 256, 0.002, 0.1, 0.1, 0.05),
    "frozen": PRESETS["many-photos"],
    "hub": _defaults(3, 64, 0.00001, 0.01, 0.0, 0.1),
}
_TINY_ON_GLYPHS = _defaults(5, 128, 0.002, 0.12, 0.0, 0.01)
# Settings of earlier versions, and what stands for them.
_OLD_SETTINGS = {
    **dict.fromkeys(["penalty_options", "kappa_e", "sample"], "give loss_options"),
    **dict.fromkeys(["validate_every", "max_skipped"], "leave it out"),
    "cca_start": "heads + CCA, the default, is better",
}
_STEPS_APART = 200  # of two checkpoints, at least: heads take seconds for them
# Arguments of transformers that a run uses and no setting stands for.
_TRAINING_ARGUMENTS = ("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")
_TRAINING_ARGUMENTS += ("bf16", "use_cpu", "report_to", "run_name", "save_steps")


def _setting(
    default: Any, help_text: str, low: float | int = -math.inf, high: float | int = math.inf
) -> Any:
    """A field with its help and range; its default may lie outside, for a value to be filled in."""
    about = {"help": help_text, "low": low, "high": high}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class RunConfig:
    dataset: str = _setting("glyphs", "a data set's name, a folder or a hub id")
    model: str = _setting("", "tiny (for glyphs), frozen (for all else), or a model to fine-tune")
    towers: str = _setting("", "of a frozen model: a dual encoder; empty for two small ones")
    penalty: str = _setting("vmf", f"added to the contrastive loss: {', '.join(PENALTIES)}")
    beta: float = _setting(0.0, "weight of the penalty; 0 is CLIP", 0, MAX_BETA)
    loss_options: dict[str, Any] = _setting({}, "of CIBRLoss, such as kappa_e, sample and kappa_b")
    epochs: int = _setting(0, "passes over the images; 0 for the default of the model", 1)
    batch_size: int = _setting(0, "pairs contrasted; 0 for the default", 2)
    learning_rate: float = _setting(0.0, "peak of the schedule; 0 for the default", 0, 1e3)
    temperature: float = _setting(0.0, "also of a pretrained CLIP; 0 for the default", 0.01, 1e3)
    learn_temperature: bool = _setting(False, "train the temperature")
    weight_decay: float = _setting(-1.0, "of matrices; -1 for the default", 0, 1e3)
    dropout: float = _setting(-1.0, "in heads and tiny text towers; -1 for the default", 0, 0.999)
    seed: int = _setting(0, "of weights, order, captions, dropout and noise", 0, 2**32 - 1)
    output_dir: str = _setting("", "folder of the run; empty for one under runs/")
    micro_batch_size: int = _setting(0, "rows encoded at once; 0 for the whole batch", 1)
    cca: bool = _setting(True, "of a frozen model: average the scores of heads and of CCA")
    cca_ridges: tuple[float, float] = _setting(
        (0.0, 0.0), "of CCA, image and text, in mean variances; 0 for the default", 1e-9, 1e9
    )
    training_arguments: dict[str, Any] = _setting({}, "of transformers, such as report_to or bf16")


RunConfig.__doc__ = "Settings of a run. `configure` builds it and fills in defaults.\n\nArgs:"
for _field in fields(RunConfig):
    RunConfig.__doc__ += f"\n    {_field.name}: {_field.metadata['help']}."
SETTINGS = {f.name: f for f in fields(RunConfig)}
DEFAULTS = vars(RunConfig())


def configure(preset: str = "", **parameters: Any) -> RunConfig:
    """Builds a checked configuration, filled in with the defaults of data set and model.

    Args:
        preset: settings for photos, `few-photos` or `many-photos`, the default, see `preset_for`;
            parameters override it.
        **parameters: fields of `RunConfig`. Without an `output_dir` the run gets a folder under
            `runs/`, named after its data, model, penalty, beta and seed.

    Raises:
        ValueError: an unknown parameter, data set, penalty or option (with the nearest known name),
            or a value outside its range.
        FileNotFoundError: an unknown model, with the nearest known name.
    """
    for name in parameters:
        if name in _OLD_SETTINGS:
            raise ValueError(f"the setting {name} is gone: {_OLD_SETTINGS[name]}")
        check_known("parameter", name, SETTINGS)
    if preset:
        check_known("preset", preset, PRESETS)
        parameters = {"model": "frozen"} | PRESETS[preset] | parameters
    config = RunConfig(**{name: _checked(name, value) for name, value in parameters.items()})
    check_penalty(config.penalty, config.loss_options.keys() - {"kappa_e", "sample"})
    if not config.model:
        config = replace(config, model="tiny" if config.dataset == "glyphs" else "frozen")
    kind = model_kind(config.model)
    if config.towers and kind != "frozen":
        raise ValueError("towers are those of a frozen model: set model to 'frozen'")
    is_tiny_on_glyphs = kind == "tiny" and config.dataset == "glyphs"
    filled_in = _TINY_ON_GLYPHS if is_tiny_on_glyphs else _OF_KIND[kind]
    unset = [name for name in filled_in if getattr(config, name) == DEFAULTS[name]]
    config = replace(config, **{name: filled_in[name] for name in unset})

    runs = Path(os.environ.get("CIBR_RUNS") or project_root() / "runs")
    name = (
        f"{title_of(config.dataset)}-{Path(config.model).name}-{config.penalty}-beta{config.beta:g}"
    )
    folder = Path(config.output_dir or runs / f"{name}-seed{config.seed}").expanduser()
    return replace(config, output_dir=str(folder))


def _checked(name: str, value: Any) -> Any:
    """A value with the type of its setting, and in the range unless it is the default."""
    default, about = DEFAULTS[name], SETTINGS[name].metadata
    kind = type(default)
    if value == default and type(value) is kind:
        return value
    if kind in (int, float):
        return kind(check_number(name, value, about["low"], about["high"], whole=kind is int))
    if kind is tuple:
        parts = zip(value, default, strict=True)
        return tuple(check_number(name, part, about["low"], about["high"]) for part, _ in parts)
    value = str(value) if isinstance(value, Path) else value
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {value!r}: give a {kind.__name__}, {about['help']}")
    return value


def preset_for(n_photos: int) -> str:
    """The preset for a number of photos to train on."""
    return "few-photos" if n_photos <= _FEW else "many-photos"


def training_arguments(config: RunConfig, n_pairs: int, validates: bool):
    """The `transformers.TrainingArguments` of a configuration.

    Args:
        config: from `configure`.
        n_pairs: pairs for training, which cap the batch size.
        validates: whether there are pairs for validation.

    Raises:
        ValueError: an argument that a setting decides or that changes nothing, or a batch that the
            processes cannot share equally.
    """
    from transformers import TrainingArguments  # takes seconds to import

    for name in config.training_arguments:
        check_known("training argument", name, _TRAINING_ARGUMENTS)
    given = dict(adam_beta2=0.98, report_to="none", use_cpu=not torch.accelerator.is_available())
    n_rows = min(config.batch_size, n_pairs)
    n_steps = n_pairs // n_rows  # of an epoch
    given["save_steps"] = min(500, n_steps * math.ceil(_STEPS_APART / n_steps))
    arguments = TrainingArguments(
        output_dir=str(Path(config.output_dir).absolute()),
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        optim="adamw_torch_fused",
        seed=config.seed,
        logging_steps=n_steps,  # also between validations
        eval_strategy="steps" if validates else "no",
        save_total_limit=2,
        ddp_timeout=10_800,  # s, for the process that extracts a frozen tower's features
        logging_nan_inf_filter=False,  # what is not finite stops the run
        disable_tqdm=True,  # the bar of `trainer` is in its place
        **(given | config.training_arguments),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else several GPUs of a process are DataParallel
    if arguments.device.type == "cpu":  # with transformers 5.4, torch 2.6 cannot load to "cpu:0"
        arguments._setup_devices = torch.device("cpu")
    n_processes = arguments.world_size
    if n_rows < n_processes or (config.batch_size % n_processes and config.batch_size <= n_pairs):
        raise ValueError(f"{n_processes} processes cannot share {n_rows} pairs: change batch_size")
    arguments.per_device_train_batch_size = n_rows // n_processes
    return arguments


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
    given = train.features
    names = (config.towers, config.towers) if config.towers else ()
    if given is None or (names and given.towers != names):
        return DualEncoder.frozen(*names, dropout=config.dropout)
    dims = given.images.shape[1], given.texts.shape[1]
    return DualEncoder.frozen(*given.towers, dims_pooled=dims, dropout=config.dropout)
