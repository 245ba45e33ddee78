"""The pairs and the model of a configuration."""

import warnings

import torch

from cibr.data import Pairs, available_splits, load_parts
from cibr.models import DualEncoder
from cibr.train.config import RunConfig


def load_splits(config: RunConfig) -> tuple[Pairs, Pairs, Pairs]:
    """The training, validation and test pairs of a run.

    Without a validation split, a tenth of the training images is held out for it, see
    `Pairs.hold_out`. Without a test split, the validation pairs are returned for it, with a
    warning; their `split` shows it.

    Raises:
        ValueError: a tenth of the samples or more are unusable, or there is nothing to hold out.
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
        ValueError: a folder that is incomplete or damaged, or a model that is not a dual encoder;
            an image tower that knows no names; stages to train from features without pictures.
    """
    torch.manual_seed(config.seed)
    if config.model == "tiny":
        size = 32 if config.dataset == "glyphs" else 64  # pixels
        model = DualEncoder.tiny(train.texts(), image_size=size, dropout=config.dropout)
    elif config.model == "names":
        model = _names(config, train)
    elif config.model == "frozen":
        model = _frozen(config, train)
    else:
        model = DualEncoder.from_pretrained(config.model)
    model.set_temperature(config.temperature, config.learn_temperature)
    return model


def _names(config: RunConfig, train: Pairs) -> DualEncoder:
    """A start that knows names, with the settings of its training."""
    if config.train_stages and train.load is None:
        raise ValueError(
            f"{train.name} has features and no pictures, so stages cannot be trained on it: give "
            "dataset a folder of photos, or leave train_stages out"
        )
    return DualEncoder.names(train_stages=config.train_stages, dropout=config.dropout)


def _frozen(config: RunConfig, train: Pairs) -> DualEncoder:
    """Heads over frozen towers, which are not loaded where the pairs have features of them."""
    names = (config.towers, config.towers) if config.towers else ()
    features = train.features
    if features is None or (names and features.towers != names):
        return DualEncoder.frozen(*names, dropout=config.dropout)
    dims = features.images.shape[1], features.texts.shape[1]
    return DualEncoder.frozen(*features.towers, dims_pooled=dims, dropout=config.dropout)
