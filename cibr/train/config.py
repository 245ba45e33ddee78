"""Configuration of a run, checked before training, with defaults by kind of model.

Each setting is declared once, in `RunConfig`: its type, range, default and help. The checks, the
command line and the reference derive from that. `configure` builds a configuration,
`training_arguments` maps it to transformers, `load_splits` loads its pairs and `build_model` builds
its model.
"""

import math
import numbers
import os
import warnings
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from cibr.data import Pairs, available_splits, load_parts, resolve
from cibr.losses import PENALTIES
from cibr.losses.cibr import MAX_BETA, arguments_of, check_penalty
from cibr.losses.clip import Number
from cibr.models import DualEncoder, model_kind
from cibr.utils import check_known, check_number, digest, project_root

# Settings by number of photos: the best trials for heads + CCA in recipes.csv, with 600 and 3,000.
PRESETS: dict[str, dict[str, Any]] = {
    "few-photos": dict(
        epochs=80,
        batch_size=1024,
        learning_rate=1e-3,
        temperature=0.12,
        dropout=0.5,
        weight_decay=1.0,
        cca_ridges=(10.0, 1.0),
    ),
    "many-photos": dict(
        epochs=80,
        batch_size=512,
        learning_rate=8e-3,
        temperature=0.03,
        dropout=0.4,
        weight_decay=0.3,
        cca_ridges=(3.0, 0.1),
    ),
}
_FEW = 1200  # photos at most
# Defaults by kind of model: of `tiny` chosen on validation, of `hub` untested.
_OF_KIND: dict[str, dict[str, Any]] = {
    "tiny": dict(
        epochs=20,
        batch_size=256,
        learning_rate=2e-3,
        temperature=0.1,
        dropout=0.1,
        weight_decay=0.05,
    ),
    "frozen": PRESETS["many-photos"],
    "hub": dict(
        epochs=3,
        batch_size=64,
        learning_rate=1e-5,
        temperature=0.01,
        dropout=0.0,
        weight_decay=0.1,
    ),
}
# Of a tiny model of a data set made by code, chosen on validation recall.
_TINY: dict[str, dict[str, Any]] = {
    "glyphs": dict(
        image_size=32,
        epochs=5,
        batch_size=128,
        learning_rate=2e-3,
        temperature=0.12,
        dropout=0.0,
        weight_decay=0.01,
    )
}
# What earlier versions had in place of these.
_OLD_PRESETS = {
    "very-few-pairs": "few-photos",
    "few-pairs": "few-photos",
    "many-pairs": "many-photos",
    "one-caption": "many-photos",
    "wrong-captions": "many-photos",
}
# Arguments of transformers that a run uses; others would change nothing, or break it.
_USED = {"adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "tf32", "use_cpu"}
_USED |= {"load_best_model_at_end", "metric_for_best_model", "greater_is_better", "save_steps"}
_USED |= {"report_to", "run_name", "project", "log_level", "log_level_replica", "debug"}
_USED |= {"push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision"}
_USED |= {"ddp_backend", "ddp_timeout", "full_determinism", "fsdp", "fsdp_config", "deepspeed"}
_USED |= {"restore_callback_states_from_checkpoint", "skip_memory_metrics", "accelerator_config"}
NOT_THE_RUN = {"output_dir", "micro_batch_size"}  # do not affect results
_IMAGE_SIZE = 64  # of a tiny model, in pixels
_TYPES = {float: numbers.Real, int: numbers.Integral, str: str | Path, tuple: list | tuple}


def _setting(
    default: Any, help_text: str, least: Number = -math.inf, most: Number = math.inf
) -> Any:
    """A field with its help and range; its default may lie outside, for a value to be filled in."""
    about = {"help": help_text, "least": least, "most": most}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class RunConfig:
    dataset: str = _setting("glyphs", "a data set's name, a folder or a hub id")
    model: str = _setting(
        "",
        "tiny, frozen (the default but for characters), or a run's folder or hub id to fine-tune",
    )
    towers: str = _setting(
        "", "of a frozen model: the folder or hub id of a dual encoder; empty for two small ones"
    )
    penalty: str = _setting("vmf", f"added to the contrastive loss: {', '.join(PENALTIES)}")
    penalty_options: dict[str, Any] = _setting({}, "of the penalty, such as kappa_b")
    beta: float = _setting(0.0, "weight of the penalty; 0 is CLIP", 0, MAX_BETA)
    sample: bool = _setting(False, "contrast samples of the encoders instead of their means")
    kappa_e: float = _setting(1024.0, "concentration of the assumed noise", 1e-3, 1e6)
    epochs: int = _setting(0, "passes over the images; 0 for the default of the model", 1)
    batch_size: int = _setting(0, "pairs contrasted; 0 for the default", 2)
    learning_rate: float = _setting(0.0, "peak of the schedule; 0 for the default", 0, 1e3)
    temperature: float = _setting(0.0, "also of a pretrained CLIP; 0 for the default", 0.01, 1e3)
    learn_temperature: bool = _setting(False, "train the temperature")
    weight_decay: float = _setting(-1.0, "of matrices; -1 for the default", 0, 1e3)
    dropout: float = _setting(
        -1.0, "in heads and a tiny model's text tower; -1 for the default", 0, 0.999
    )
    seed: int = _setting(0, "of weights, order, captions, dropout and noise", 0, 2**32 - 1)
    output_dir: str = _setting("", "folder of the run; empty for one under runs/")
    micro_batch_size: int = _setting(0, "rows encoded at once; 0 for the whole batch", 1)
    cca: bool = _setting(
        True, "of a frozen model: average the scores of the trained heads and of CCA"
    )
    cca_start: bool = _setting(False, "start heads over frozen towers at regularised CCA")
    cca_ridges: tuple[float, float] = _setting(
        (0.0, 0.0),
        "of CCA, image and text, in units of the mean variance; 0 for the default",
        1e-9,
        1e9,
    )
    validate_every: int = _setting(1, "epochs between validations", 1)
    training_arguments: dict[str, Any] = _setting(
        {}, "of transformers.TrainingArguments, such as report_to or bf16"
    )


RunConfig.__doc__ = "Settings of a run. `configure` builds it and fills in defaults.\n\nArgs:"
for _field in fields(RunConfig):
    RunConfig.__doc__ += f"\n    {_field.name}: {_field.metadata['help']}."
SETTINGS = {f.name: f for f in fields(RunConfig)}
DEFAULTS = vars(RunConfig())


def configure(preset: str = "", **parameters: Any) -> RunConfig:
    """Builds a checked configuration, filled in with the defaults of data set and model.

    Without an `output_dir` the run gets a folder under `runs/`, named after its main settings with
    a digest of the others that are not at their defaults.

    Args:
        preset: settings for photos, `few-photos` or `many-photos`, the default, see `preset_for`;
            parameters override it.
        **parameters: fields of `RunConfig`.

    Raises:
        ValueError: an unknown parameter, data set, penalty or option (with the nearest known name),
            a value outside its range, or an output folder within the data.
        FileNotFoundError: an unknown model, with the nearest known name.
    """
    for name in parameters:
        if name == "max_skipped":
            now = (
                "unusable samples, fewer than a tenth, are left out with a warning that counts them"
            )
            raise ValueError(f"max_skipped is gone: {now}")
        check_known("parameter", name, SETTINGS)
    if preset in _OLD_PRESETS:
        raise ValueError(f"the preset {preset!r} is gone: use {_OLD_PRESETS[preset]!r}")
    if preset:
        check_known("preset", preset, PRESETS)
        parameters = {"model": "frozen"} | PRESETS[preset] | parameters
    config = RunConfig(**{name: _checked(name, value) for name, value in parameters.items()})
    check_penalty(config.penalty, config.penalty_options)
    source = resolve(config.dataset)
    config = replace(config, model=config.model or ("tiny" if source.kind == "code" else "frozen"))
    kind = model_kind(config.model)
    if kind != "frozen" and (config.cca_start or "statistic" in arguments_of(config.penalty)):
        what = "cca_start and penalties with a statistic, such as 'anchor',"
        raise ValueError(f"{what} read features of frozen towers: set model to 'frozen'")
    if config.towers and kind != "frozen":
        raise ValueError("towers are those of a frozen model: set model to 'frozen'")
    of_kind = _OF_KIND[kind] | (_TINY.get(config.dataset, {}) if kind == "tiny" else {})
    unset = {name for name, value in vars(config).items() if value == DEFAULTS[name]}
    config = replace(config, **{name: of_kind[name] for name in of_kind if name in unset})
    folder = config.output_dir or runs_folder() / _run_name(config, source.name, of_kind)
    config = replace(config, output_dir=str(Path(folder).expanduser()))
    data = Path(source.place).resolve()
    if source.place and data.is_dir() and Path(config.output_dir).resolve().is_relative_to(data):
        where = f"output_dir {config.output_dir!r} is within the data set's folder"
        raise ValueError(f"{where}: choose one outside")
    return config


def _checked(name: str, value: Any) -> Any:
    """A value of the type of its setting, and in the range unless it is the default."""
    default, about = DEFAULTS[name], SETTINGS[name].metadata
    kind = type(default)
    is_valid = isinstance(value, _TYPES.get(kind, kind))
    is_valid &= isinstance(value, bool) == (kind is bool)
    rule = f"a {kind.__name__}, such as {default!r}"
    if is_valid and kind in (int, float, tuple) and value != default:
        parts = value if kind is tuple else (value,)
        is_valid = kind is not tuple or len(parts) == len(default)
        least, most = about["least"], about["most"]
        is_valid &= all(isinstance(x, numbers.Real) and least <= x <= most for x in parts)
        rule += f", from {least:g} to {most:g}"
    if not is_valid:
        raise ValueError(f"{name} is {value!r}: give {rule} ({about['help']})")
    return tuple(map(float, value)) if kind is tuple else kind(value)


def preset_for(n_photos: int) -> str:
    """The preset for a number of photos to train on."""
    return "few-photos" if n_photos <= _FEW else "many-photos"


def runs_folder() -> Path:
    """The default parent of output folders: ``$CIBR_RUNS``, or ``runs``."""
    return Path(os.environ.get("CIBR_RUNS") or project_root() / "runs").expanduser()


def _run_name(config: RunConfig, dataset: str, of_kind: dict[str, Any]) -> str:
    model = config.model.rstrip("/").split("/")[-1]
    name = f"{dataset}-{model}-{config.penalty}-beta{config.beta:g}-seed{config.seed}"
    named = dict(penalty=config.penalty, beta=config.beta, seed=config.seed)
    usual = DEFAULTS | of_kind | named | dict(model=model, dataset=dataset)
    settings = {n: value for n, value in vars(config).items() if n not in NOT_THE_RUN}
    others = sorted((n, value) for n, value in settings.items() if value != usual[n])
    return f"{name}-{digest(repr(others))[:6]}" if others else name


def training_arguments(config: RunConfig, n_pairs: int, validates: bool):
    """The `transformers.TrainingArguments` of a configuration: the one place that maps settings.

    Args:
        config: from `configure`.
        n_pairs: pairs for training, which cap the batch size.
        validates: whether there are pairs for validation.

    Raises:
        ValueError: an argument that a setting decides or that changes nothing, a negative
            max_grad_norm, or a batch that the processes cannot share equally.
    """
    from transformers import TrainingArguments  # takes seconds to import

    decided = dict(
        output_dir=str(Path(config.output_dir).absolute()),
        num_train_epochs=config.epochs,
        max_steps=-1,
        per_device_train_batch_size=1,  # known below
        gradient_accumulation_steps=1,  # `micro_batch_size` is exact
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        seed=config.seed,
        fp16=False,
        logging_strategy="epoch",
        save_strategy="epoch",
        eval_strategy="epoch" if validates else "no",
        logging_nan_inf_filter=False,  # what is not finite stops the run
        disable_tqdm=True,  # `callbacks.Bar` is in its place
    )
    defaults = dict(
        adam_beta2=0.98,  # as in CLIP
        metric_for_best_model="mean_recall",
        restore_callback_states_from_checkpoint=True,  # such as the patience of early stopping
        report_to="none",
        use_cpu=not torch.accelerator.is_available(),
        ddp_timeout=10_800,  # s, for the process that extracts a frozen tower's features
    )
    for name in config.training_arguments:
        if name in decided:
            fix = "set the setting that stands for it (see cibr.configure)"
            raise ValueError(f"training_arguments has {name!r}, which the run decides: {fix}")
        if name not in _USED:
            used = ", ".join(sorted(_USED))
            raise ValueError(f"training_arguments has {name!r}, which changes nothing: use {used}")
    arguments = TrainingArguments(**decided, **defaults | config.training_arguments)
    check_number("max_grad_norm", arguments.max_grad_norm or 0.0, 0)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process uses one GPU
    if arguments.device.type == "cpu":
        arguments._setup_devices = torch.device("cpu")  # torch 2.6 cannot load to "cpu:0"
    n_rows, n_processes = min(config.batch_size, n_pairs), arguments.world_size
    if n_rows < n_processes or (config.batch_size % n_processes and config.batch_size <= n_pairs):
        cannot = f"{n_processes} processes cannot share a batch of {n_rows} pairs equally"
        raise ValueError(f"{cannot}: give batch_size a multiple of their number, or use fewer")
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
        reason = "no test split: the validation pairs, which choices may rest on, stand in for it"
        warnings.warn(f"{train.name} has {reason}", stacklevel=2)
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
        size = _TINY.get(config.dataset, {}).get("image_size", _IMAGE_SIZE)
        model = DualEncoder.tiny(train.texts(), image_size=size, dropout=config.dropout)
    elif config.model == "frozen":
        given, of_towers = train.features, (config.towers, config.towers)
        if given is not None and (not config.towers or given.towers == of_towers):
            dims = given.images.shape[1], given.texts.shape[1]
            model = DualEncoder.frozen(*given.towers, dims_pooled=dims, dropout=config.dropout)
        else:
            model = DualEncoder.frozen(towers=config.towers, dropout=config.dropout)
    else:
        model = DualEncoder.from_pretrained(config.model)
    model.set_temperature(config.temperature, config.learn_temperature)
    return model
