"""Heads over frozen towers, trained on given features."""

from collections.abc import Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import ProgressCallback

from cibr.data import Pairs
from cibr.models import DualEncoder
from cibr.models.features import Inputs
from cibr.train import configure
from cibr.train.trainer import CIBRTrainer


class FeatureTrainer(CIBRTrainer):
    """A trainer on given features; it shows and saves nothing.

    Args:
        of_trainer: of `CIBRTrainer`.
        given: `Inputs` of training and, to validate, of validation.
    """

    def __init__(self, *of_trainer: Any, given: Sequence[Inputs]):
        self.given = given
        super().__init__(*of_trainer, *(part.pairs for part in given))
        self.remove_callback(ProgressCallback)

    def prepare_pairs(self, pairs: Pairs) -> Inputs:
        """The given features."""
        return self.given[pairs is not self.train_dataset]

    def save_model(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    _save_checkpoint = save_model


def trained_heads(
    base: DualEncoder, train: Inputs, settings: dict[str, Any], seed: int
) -> DualEncoder:
    """Heads over frozen towers, trained on given features.

    Args:
        base: a model with the towers, which the heads share.
        train: features of the training pairs.
        settings: of `cibr.configure`.
        seed: of the initial weights, the order and dropout.
    """
    with TemporaryDirectory() as scratch:
        run = {"model": "frozen", "seed": seed, "beta": 0.0, "cca": False} | settings
        config = configure(**run, output_dir=scratch)
        torch.manual_seed(seed)
        model = base.over(base.towers, base.settings | {"dropout": config.dropout})
        model.set_temperature(config.temperature, config.learn_temperature)
        config = replace(config, batch_size=min(config.batch_size, len(train.pairs)))
        FeatureTrainer(model, config, given=[train]).train()
    return model.eval()
