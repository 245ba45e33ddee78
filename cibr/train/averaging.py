"""What is kept of a model's weights: a moving average over the steps, and a share of those it started from."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cibr.models import DualEncoder


class WeightAverage:
    """The average of the weights after each step, in which one counts `decay` times as much as the next.

    These counts add up to one after any number of steps, as in Adam's correction, so that nothing of the random
    start is in it. With `interpolation`, the weights that training started from are then mixed in.

    Source: WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903), whose alpha is 1 - interpolation.

    Args:
        model: the model whose weights are averaged, as training starts.
        decay: share of the average that a step keeps, in [0, 1); 0 for the weights after the last step.
        interpolation: share of the start in what is kept, in [0, 1).
    """

    def __init__(self, model: DualEncoder, decay: float, interpolation: float = 0.0):
        self.decay, self.interpolation = decay, interpolation
        start = {name: tensor.detach().clone() for name, tensor in model.own_state().items()}
        self.start = start if interpolation else {}
        self.average = {name: tensor.clone() for name, tensor in start.items()} if decay else {}

    @torch.no_grad()
    def update(self, model: DualEncoder, step: int) -> None:
        """Takes in the weights after a step, counted from 0."""
        weight, own = (1 - self.decay) / (1 - self.decay ** (step + 1)), model.own_state()
        for name, average in self.average.items():
            average.lerp_(own[name], weight)

    @torch.no_grad()
    def copy_to(self, model: DualEncoder) -> None:
        """Puts what is kept in the place of the model's weights."""
        for name, tensor in model.own_state().items():
            kept = self.average.get(name, tensor)
            tensor.copy_(kept.lerp(self.start[name], self.interpolation) if self.start else kept)

    @contextmanager
    def applied(self, model: DualEncoder) -> Iterator[None]:
        """A context in which the model has what is kept, and after which it has its own weights again."""
        own = {name: tensor.detach().clone() for name, tensor in model.own_state().items()}
        self.copy_to(model)
        try:
            yield
        finally:
            model.load_state_dict(own, strict=False)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average | {f"start.{name}": tensor for name, tensor in self.start.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():  # in place: a checkpoint is read to the CPU
            tensor.copy_(state[name])
