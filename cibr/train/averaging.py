"""Weight averaging: an exponential moving average over the steps, interpolated with the initial
weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cibr.models import DualEncoder


class WeightAverage:
    """Exponential moving average of the weights after each step.

    It is bias-corrected as in Adam, so it does not contain the initial weights. With
    `interpolation`, the initial weights are then mixed in.

    Source: WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903), whose alpha is 1 - interpolation.

    Args:
        model: the model whose weights are averaged, before the first step.
        decay: decay of the average per step, in [0, 1); 0 for the weights after the last step.
        interpolation: share of the initial weights in the result, in [0, 1).
    """

    def __init__(self, model: DualEncoder, decay: float, interpolation: float = 0.0):
        self.decay, self.interpolation = decay, interpolation
        start = {name: tensor.detach().clone() for name, tensor in model.own_state().items()}
        self.start = start if interpolation else {}
        self.average = {name: tensor.clone() for name, tensor in start.items()} if decay else {}

    @torch.no_grad()
    def update(self, model: DualEncoder, step: int) -> None:
        """Adds the weights after a step, counted from 0."""
        weight, own = (1 - self.decay) / (1 - self.decay ** (step + 1)), model.own_state()
        for name, average in self.average.items():
            average.lerp_(own[name], weight)

    @torch.no_grad()
    def copy_to(self, model: DualEncoder) -> None:
        """Replaces the model's weights by the averaged ones."""
        for name, tensor in model.own_state().items():
            kept = self.average.get(name, tensor)
            tensor.copy_(kept.lerp(self.start[name], self.interpolation) if self.start else kept)

    @contextmanager
    def applied(self, model: DualEncoder) -> Iterator[None]:
        """A context in which the model has the averaged weights; its own are restored afterwards."""
        own = {name: tensor.detach().clone() for name, tensor in model.own_state().items()}
        self.copy_to(model)
        try:
            yield
        finally:
            model.load_state_dict(own, strict=False)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average | {f"start.{name}": tensor for name, tensor in self.start.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for (
            name,
            tensor,
        ) in self.state_dict().items():  # in place: a checkpoint is loaded on the CPU
            tensor.copy_(state[name])
