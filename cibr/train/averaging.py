"""Exponential moving average of a model's weights over the steps of training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cibr.models import DualEncoder


class WeightAverage:
    """The average of the weights after each step, in which one counts `decay` times as much as the next.

    These counts add up to one after any number of steps, as in Adam's correction, so that nothing of the random
    start is in it.

    Args:
        model: the model whose weights are averaged.
        decay: share of the average that a step keeps, in (0, 1).
    """

    def __init__(self, model: DualEncoder, decay: float):
        self.decay = decay
        self.average = {name: tensor.detach().clone() for name, tensor in model.own_state().items()}

    @torch.no_grad()
    def update(self, model: DualEncoder, step: int) -> None:
        """Takes in the weights after a step, counted from 0."""
        weight = (1 - self.decay) / (1 - self.decay ** (step + 1))
        for name, tensor in model.own_state().items():
            self.average[name].lerp_(tensor, weight)

    @torch.no_grad()
    def copy_to(self, model: DualEncoder) -> None:
        """Puts the average in the place of the model's weights."""
        for name, tensor in model.own_state().items():
            tensor.copy_(self.average[name])

    @contextmanager
    def applied(self, model: DualEncoder) -> Iterator[None]:
        """A context in which the model has the average, and after which it has its own weights again."""
        own = {name: tensor.detach().clone() for name, tensor in model.own_state().items()}
        self.copy_to(model)
        try:
            yield
        finally:
            model.load_state_dict(own, strict=False)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.average = dict(state)
