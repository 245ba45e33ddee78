"""Heads over frozen towers, trained on given features."""

from typing import Any

import torch

from cibr.models import DualEncoder
from cibr.models.heads import ResidualHead
from cibr.models.inputs import Inputs
from cibr.train import Training, configure


def trained_heads(
    base: DualEncoder, train: Inputs, settings: dict[str, Any], seed: int
) -> DualEncoder:
    """Heads over frozen towers, trained on given features; nothing is saved.

    Args:
        base: a model with the towers, which the heads share.
        train: features of the training pairs.
        settings: of `cibr.configure`.
        seed: of the initial weights, the order and dropout.
    """
    config = configure(**{"model": "frozen", "seed": seed, "beta": 0.0, **settings})
    torch.manual_seed(seed)
    dims = base.dim_image_pooled, base.dim_text_pooled
    model = DualEncoder(base.towers, ResidualHead(base.dim, *dims, config.dropout))
    model.set_temperature(config.temperature, config.learn_temperature)
    Training(model, config, train).run()
    return model.eval()
