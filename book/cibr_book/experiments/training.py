"""Heads over frozen towers, trained on given features."""

from collections.abc import Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import ProgressCallback

from cibr.data import Pairs
from cibr.losses import RegularisedCCA
from cibr.models import DualEncoder
from cibr.models.features import Inputs
from cibr.train import configure
from cibr.train.trainer import CIBRTrainer, fit_cca


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
        settings: of `cibr.configure`; with `cca_ridges` training starts at CCA.
        seed: of the initial weights, the order and dropout.
    """
    with TemporaryDirectory() as scratch:
        run = {"model": "frozen", "seed": seed, "beta": 0.0, "cca": False} | settings
        config = configure(**run, output_dir=scratch)
        torch.manual_seed(seed)
        model = base.over(base.towers, base.settings | {"dropout": config.dropout})
        model.set_temperature(config.temperature, config.learn_temperature)
        if "cca_ridges" in settings:
            start_at_cca(model, fit_cca(train, model.dim, config.cca_ridges))
        config = replace(config, batch_size=min(config.batch_size, len(train.pairs)))
        FeatureTrainer(model, config, given=[train]).train()
    return model.eval()


@torch.no_grad()
def start_at_cca(model: DualEncoder, cca: RegularisedCCA) -> None:
    """Sets heads over frozen towers to the maps of a CCA, with a zero residual layer."""
    for head, mean, linear_map in (
        (model.image_head, cca.image_mean, cca.image_map),
        (model.text_head, cca.text_mean, cca.text_map),
    ):
        head.linear.weight.copy_(linear_map)
        head.linear.bias.copy_(-linear_map @ mean)
        for parameter in head.residual[-1].parameters():
            parameter.zero_()
