"""The one trainer of the small worlds: many runs of two towers in one tensor program.

`train` minimises, for every run (a `Settings`) and every seed, CLIP's loss plus

    beta (1 - cos) / temperature

the penalty `vmf` of `CIBRLoss`, as it is by default.
Runs differ only in their settings: weights and batches depend only on the seed, so no run depends
on another. `train_discrete` trains on pairs drawn anew in every step, `cibr_book.worlds.map` on a
finite number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Weights = list[list[Float[Tensor, "_ seeds _ _"]]]  # of each side, its layers, [runs, ...]
Pair = tuple[Float[Tensor, "*#batch n _"], Float[Tensor, "*#batch m _"]]  # images and texts
Means = Float[Tensor, "2 runs seeds n d"]


@dataclass(frozen=True)
class Settings:
    """The objective and the optimisation of a run; the defaults are CLIP's.

    Args:
        temperature: of the softmax, positive.
        beta: weight of the penalty, 0 for none.
        rate: learning rate, the largest where it follows a cycle.
    """

    temperature: float = 0.07
    beta: float = 0.0
    rate: float = 0.01


def train(
    first: Weights,
    batch: Callable[[int], Pair],
    settings: Sequence[Settings],
    n_steps: int,
    one_cycle: bool = False,
) -> Weights:
    """Trains every run from every seed's first weights by Adam.

    Args:
        first: weights of each seed, [1, seeds, inputs, outputs].
        batch: takes a step and returns its pairs, of each seed.
        settings: one of each run.
        n_steps: of the optimizer.
        one_cycle: whether the rate follows PyTorch's one-cycle schedule, or is constant.

    Returns:
        The weights of all runs.
    """
    groups = []  # each run has its own weights and rate
    for run in settings:
        own = [layer.clone().requires_grad_() for side in first for layer in side]
        groups.append({"params": own, "lr": run.rate})
    descent = torch.optim.Adam(groups)
    if one_cycle:
        rates = [run.rate for run in settings]
        cycle = torch.optim.lr_scheduler.OneCycleLR(descent, rates, n_steps, cycle_momentum=False)
    for step in range(n_steps):
        means = embed(_together(groups, first), batch(step))
        descent.zero_grad()
        losses(means, settings).sum().backward()
        descent.step()
        if one_cycle:
            cycle.step()
    return [[layer.detach() for layer in side] for side in _together(groups, first)]


def embed(weights: Weights, inputs: Pair) -> Means:
    """Unit vectors of images and texts by linear towers or by towers with a hidden layer.

    Args:
        weights: each side has its last layer, after a hidden layer's weights and biases if there is
            one.
        inputs: of images and texts.
    """
    sides = []
    for layers, x in zip(weights, inputs, strict=True):
        if len(layers) == 3:
            x = torch.relu(x @ layers[0] + layers[1])
        sides.append(x @ layers[-1])
    return F.normalize(torch.stack(sides), dim=-1)


def losses(means: Means, settings: Sequence[Settings]) -> Float[Tensor, "runs seeds"]:
    """The loss of each run: InfoNCE in both directions, less log n, plus the penalty.

    Args:
        means: embeddings of a batch.
        settings: one of each run.
    """
    images, texts = means
    temperature = means.new_tensor([run.temperature for run in settings]).view(-1, 1, 1, 1)
    scores = (images / temperature) @ texts.mT
    partitions = (torch.logsumexp(scores, 3) + torch.logsumexp(scores, 2)) / 2
    contrast = (partitions - scores.diagonal(dim1=2, dim2=3)).mean(2)
    cosines = (images * texts).sum(3).mean(2)
    pulls = means.new_tensor([run.beta / run.temperature for run in settings])
    return contrast + pulls[:, None] * (1 - cosines)


def _together(groups: Sequence[dict], first: Weights) -> Weights:
    """The layers of all runs, from the optimizer's groups."""
    layers = iter([torch.cat(own) for own in zip(*(g["params"] for g in groups), strict=True)])
    return [[next(layers) for _ in side] for side in first]
