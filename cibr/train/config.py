"""A run's configuration: checked before anything long starts, with presets chosen on validation splits."""

import ast
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import pandas as pd
import torch

from cibr.data import Pairs, available_splits, load_pairs, resolve
from cibr.data.changes import add_shortcut, exchange_captions, keep_fraction
from cibr.data.pairs import Skips
from cibr.data.views import HELD_OUT_VIEW, VIEWS, seen_through, with_views
from cibr.data.wordings import WORDINGS
from cibr.losses import BASELINES, ESTIMATORS
from cibr.models import DualEncoder, model_kind
from cibr.names import nearest
from cibr.paths import project_root

# Chosen on validation recall alone; `python book/presets.py` searches around them.
PRESETS = {
    ("glyphs", "tiny"): dict(
        epochs=7, batch_size=256, learning_rate=3e-3, temperature=0.12, dropout=0.0, weight_decay=0.01
    ),
    ("*", "tiny"): dict(
        epochs=20, batch_size=256, learning_rate=2e-3, temperature=0.1, dropout=0.1, weight_decay=0.05
    ),
    ("*", "frozen"): dict(
        epochs=30, batch_size=1024, learning_rate=4e-3, temperature=0.05, dropout=0.4, weight_decay=1.0
    ),
    ("*", "clip"): dict(
        epochs=3, batch_size=64, learning_rate=1e-5, temperature=0.01, dropout=0.0, weight_decay=0.1
    ),
}


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. Build it with `configure`, which fills presets and checks.

    Args:
        dataset: a data set's name or a folder; see `cibr.load_pairs`.
        model: `tiny`, `frozen`, or a `CLIPModel` by folder or hub id.
        beta: weight of the penalty; 0 is CLIP.
        estimator: which bound of the residual information the penalty is, or a baseline of `cibr.losses`.
        epochs, batch_size, learning_rate, temperature, weight_decay: the optimisation (AdamW, one cycle).
        dropout: in the heads, and in the text tower of `tiny`.
        seed: of weights, order, captions, dropout and noise.
        output_dir: where the model, `history.csv` and the configuration go.
        micro_batch_size: rows that go through the encoders at once; 0 for the whole batch.
        learn_temperature: whether training moves the temperature.
        kappa_e, kappa_b: concentrations of the encoder's and the backward von Mises-Fisher distributions.
        text_weight, stop_gradient: the texts' share of the penalty, and whether only the encoder that is penalised
            moves; see `CIBRLoss`.
        group_size: rows of a batch that are pictures of one label, or captions of one picture; 1 for none.
        group_share: share of a batch's rows that come in such groups; see `cibr.train.order`.
        train_fraction, caption_noise: the share of the training pictures that is used, and the share of those
            that gets the captions of others.
        shortcut_word, shortcut_look, shortcut_wording, shortcut_exceptions: train on pairs that are as they are
            where the text has this word, and elsewhere in another look (and, if one is given, another wording),
            but for a share that comes both ways; see `cibr.data.changes`.
        trained_blocks: how many of the last blocks of the frozen image tower are trained too.
        views: train on each picture in other styles too, and validate on one that training does not show; see
            `cibr.data.views`.
        mixed_precision: `no`, or `bf16` for the encoders; the loss stays in float32.
        critic_steps: steps of the critics' own optimiser before each step (mine and club).
        checkpoint_every: steps between checkpoints within an epoch; 0 for one at the end of each epoch.
        on_non_finite: `stop` at a loss or gradient that is not finite, or `skip` that step and count it.
        on_error, max_skipped: what to do with unusable samples; see `cibr.load_pairs`.
        truncate_texts: cut texts that are longer than the model reads instead of refusing them.
    """

    dataset: str = "glyphs"
    model: str = "tiny"
    beta: float = 0.05
    estimator: str = "vmf"
    epochs: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
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
    stop_gradient: bool = False
    group_size: int = 1
    group_share: float = 1.0
    train_fraction: float = 1.0
    caption_noise: float = 0.0
    shortcut_word: str = ""
    shortcut_look: str = "negative"
    shortcut_wording: str = ""
    shortcut_exceptions: float = 0.05
    trained_blocks: int = 0
    views: bool = False
    mixed_precision: str = "no"
    critic_steps: int = 1
    checkpoint_every: int = 0
    on_non_finite: str = "stop"
    on_error: str = "raise"
    max_skipped: int = 0
    truncate_texts: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return asdict(self)

    def table(self) -> pd.DataFrame:
        """The settings as a table of one column, for a notebook; without the output folder."""
        settings = {name: value for name, value in self.to_dict().items() if name != "output_dir"}
        return pd.DataFrame({"value": {name: str(value) for name, value in settings.items()}})


def configure(**parameters: Any) -> RunConfig:
    """A checked configuration; 0 (or -1 for dropout and weight decay) means the preset of data set and model.

    Raises:
        ValueError: an unknown parameter, data set, model or estimator (with the nearest known name), or a
            value outside its range.
        FileNotFoundError: a model that is not there.
    """
    known = [field.name for field in fields(RunConfig)]
    for name in parameters:
        if name not in known:
            raise ValueError(f"unknown parameter {name!r}{nearest(name, known) or '.'} Known: {', '.join(known)}")
    config = RunConfig(**{name: _typed(name, value) for name, value in parameters.items()})
    source, kind = resolve(config.dataset), model_kind(config.model)
    penalties = (*ESTIMATORS, *BASELINES)
    if config.estimator not in penalties:
        raise ValueError(
            f"unknown estimator {config.estimator!r}{nearest(config.estimator, penalties) or '.'} "
            f"Known: {', '.join(penalties)}"
        )
    if config.estimator == "siblings" and config.group_size < 2:
        raise ValueError("the estimator 'siblings' compares rows of one group: set group_size to 2 or more")
    if config.group_share != 1 and config.group_size < 2:
        raise ValueError("group_share is the share of rows that come in groups: set group_size to 2 or more too")
    if config.trained_blocks and kind != "frozen":
        raise ValueError(f"trained_blocks is for model 'frozen'; {config.model!r} is trained whole: leave it at 0")
    preset = PRESETS.get((source.name, kind), PRESETS["*", kind])
    config = replace(config, **{k: v for k, v in preset.items() if getattr(config, k) == _PRESET[k]})
    if not config.output_dir:
        model = config.model.rstrip("/").split("/")[-1]
        name = f"{source.name}-{model}-{config.estimator}-beta{config.beta:g}-seed{config.seed}"
        config = replace(config, output_dir=str(project_root() / "runs" / name))
    _check_ranges(config)
    return config


_PRESET = dict(epochs=0, batch_size=0, learning_rate=0.0, temperature=0.0, dropout=-1.0, weight_decay=-1.0)

_RANGES = {
    "beta": (0, math.inf, "the penalty's weight is a finite number, 0 (plain CLIP) or more"),
    "epochs": (1, math.inf, "train for one epoch at least, or give 0 for the preset"),
    "batch_size": (2, math.inf, "a contrast needs two pairs at least, or give 0 for the preset"),
    "micro_batch_size": (0, math.inf, "rows at once through the encoders; 0 for the whole batch"),
    "learning_rate": (1e-12, 1e3, "give a positive number, or 0 for the preset"),
    "temperature": (0.01, 1e3, "CLIP keeps it at 0.01 or more; give 0 for the preset"),
    "dropout": (0, 0.99, "a probability below 1, or -1 for the preset"),
    "weight_decay": (0, 1e3, "0 or more, or -1 for the preset"),
    "seed": (0, 2**32 - 1, "a whole number from 0"),
    "kappa_e": (1e-3, 1e5, "a concentration between 1e-3 and 1e5"),
    "kappa_b": (1e-3, 1e5, "a concentration between 1e-3 and 1e5"),
    "text_weight": (0, 1, "the texts' share of the penalty; 0.5 in its definition"),
    "group_size": (1, 64, "rows of a batch that belong together; 1 for none"),
    "group_share": (0.01, 1, "the share of a batch's rows that come in groups"),
    "train_fraction": (1e-9, 1, "the share of the training pictures, above 0 and at most 1"),
    "caption_noise": (0, 1, "a share of the training pictures"),
    "shortcut_exceptions": (0, 1, "a share of the training pictures"),
    "trained_blocks": (0, 100, "last blocks of the frozen image tower; 0 for its heads alone"),
    "critic_steps": (1, 100, "one to five are usual"),
    "checkpoint_every": (0, math.inf, "a number of steps, or 0 for the end of each epoch"),
    "max_skipped": (0, math.inf, "a number of samples"),
}

_CHOICES = {
    "mixed_precision": ("no", "bf16"),
    "on_non_finite": ("stop", "skip"),
    "shortcut_look": tuple(VIEWS),
    "shortcut_wording": ("", *WORDINGS),
}


def _typed(name: str, value: Any) -> Any:
    """A parameter's value if its type is right; a whole number will do for a float."""
    wanted = type(getattr(RunConfig, name))
    if isinstance(value, bool) == (wanted is bool) and isinstance(
        value, (int, float) if wanted is float else wanted
    ):
        return wanted(value)
    raise ValueError(f"{name} is {value!r}, of type {type(value).__name__}: it is of type {wanted.__name__}")


def _check_ranges(config: RunConfig) -> None:
    for name, (low, high, rule) in _RANGES.items():
        value = getattr(config, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"{name} is {value}: {rule}")
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"{name} is {getattr(config, name)!r}: it is {' or '.join(map(repr, choices))}")
    Skips("", config.on_error, config.max_skipped)  # refuses what does not fit


def check_parameters(namespace: dict[str, Any], known: str) -> dict[str, Any]:
    """The parameters of a notebook; papermill only logs a name that it does not know, this refuses it.

    Call it in the first cell after the parameters, with `globals()` and the known names. What papermill
    injected is read from the cells that ran (its cell starts with `# Parameters`), so the call can be repeated.

    Args:
        namespace: the notebook's globals.
        known: the known parameters, separated by white space.

    Returns:
        The known parameters with their values.

    Raises:
        ValueError: papermill set a name that is none of them; the message has the nearest known name. Or a
            known one has no value.
    """
    names = known.split()
    injected = [source for source in namespace.get("In", []) if source.startswith("# Parameters")]
    for statement in (s for source in injected for s in ast.parse(source).body):
        for name in (t.id for t in getattr(statement, "targets", []) if isinstance(t, ast.Name)):
            if name not in names:
                raise ValueError(
                    f"unknown parameter {name!r}{nearest(name, names) or '.'} Known: {', '.join(names)}"
                )
    missing = [name for name in names if name not in namespace]
    if missing:
        raise ValueError(f"parameter {missing[0]!r} is not set: give it a default in the parameters cell")
    return {name: namespace[name] for name in names}


def load_splits(config: RunConfig) -> tuple[Pairs, Pairs, Pairs]:
    """The training, validation and test pairs of a run's data set.

    A set without a validation split gives a tenth of its training pairs, at most 1,000, for it. A set without
    a test split is tested on its validation pairs; their `split` says so.

    Raises:
        ValueError: an unusable sample, or a set that is too small to be split.
    """
    there = available_splits(config.dataset)
    options = dict(on_error=config.on_error, max_skipped=config.max_skipped)
    train = load_pairs(config.dataset, "train", **options)
    if "validation" in there:
        validation = load_pairs(config.dataset, "validation", **options)
    else:
        train, validation = _hold_out(train)
    test = load_pairs(config.dataset, "test", **options) if "test" in there else validation
    train = exchange_captions(keep_fraction(train, config.train_fraction), config.caption_noise)
    if config.shortcut_word:
        word, look, wording = config.shortcut_word, config.shortcut_look, config.shortcut_wording
        train = add_shortcut(train, word, config.shortcut_exceptions, look, wording)
    if config.views:
        train, validation = with_views(train), seen_through(validation, HELD_OUT_VIEW)
    return train, validation, test


def _hold_out(train: Pairs) -> tuple[Pairs, Pairs]:
    n_held_out = min(1000, len(train) // 10)
    if n_held_out < 1:
        raise ValueError(
            f"{train.name} has {len(train)} pairs and no validation split: it takes ten pairs to make one"
        )
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    validation = replace(train.subset(rows[:n_held_out].sort().values), split="validation")
    return train.subset(rows[n_held_out:].sort().values), validation


def build_model(config: RunConfig, train: Pairs) -> DualEncoder:
    """The model that a configuration names, with weights that its seed decides."""
    torch.manual_seed(config.seed)
    options = dict(dropout=config.dropout, learn_variance=config.estimator == "gaussian")
    if config.model == "tiny":
        size = 32 if train.name == "glyphs" else 64
        model = DualEncoder.tiny(train.texts(), image_size=size, **options)
    elif config.model == "frozen":
        model = DualEncoder.frozen(trained_blocks=config.trained_blocks, **options)
    else:
        del options["dropout"]
        model = DualEncoder.clip(config.model, **options)
    model.set_temperature(config.temperature, config.learn_temperature)
    return model
