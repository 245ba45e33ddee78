"""The one trainer of the small worlds: many runs of two towers in one tensor program.

`train` minimises, for every run (a `Settings`) and every seed, CLIP's loss plus

    beta kappa_b A_d(kappa_e) (1 - cos)

the bound `vmf` of `CIBRLoss` less its floor, or `crossfit` with other centres. Runs differ only in
their settings: weights, batches, dropout and noise depend only on the seed, so no run depends on
another. `train_discrete` and `train_gaussian` train on pairs drawn anew in every step,
`cibr_book.worlds.map` on a finite number.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cibr.losses.penalties import Crossfit, LossInputs
from cibr.losses.vmf import sample_vmf, vmf_mean_cosine

KAPPA_B = 10.0  # of the penalty's backward encoders, the library's default
_CHECKPOINTS = (0.2, 0.4, 0.6, 0.8, 1.0)  # shares of the steps
_N_QUANTILES = 4096

Weights = list[list[Float[Tensor, "_ seeds _ _"]]]  # of each side, its layers, [runs, ...]
Pair = tuple[Float[Tensor, "*#batch n _"], Float[Tensor, "*#batch m _"]]  # images and texts
Means = Float[Tensor, "2 runs seeds n d"]
Score = Float[Tensor, "runs seeds"]


@dataclass(frozen=True)
class Settings:
    """The objective and the optimisation of a run; the defaults are CLIP's.

    Args:
        temperature: of the softmax, positive.
        beta: weight of the penalty, 0 for none.
        kappa: concentration of the encoders, infinite without noise.
        sampled: whether samples of the encoders are contrasted instead of their means.
        crossfit: whether the penalty's centres are predicted from the batch's other pairs.
        rate: learning rate, the largest where it follows a cycle.
        decay: weight decay of AdamW.
        dropout: share of the inputs that are dropped.
    """

    temperature: float = 0.07
    beta: float = 0.0
    kappa: float = math.inf
    sampled: bool = False
    crossfit: bool = False
    rate: float = 0.01
    decay: float = 0.0
    dropout: float = 0.0


def train(
    first: Weights,
    batch: Callable[[int], Pair],
    settings: Sequence[Settings],
    seeds: Sequence[int],
    n_steps: int,
    length: str = "unit",
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
    one_cycle: bool = False,
    validate: Callable[[Weights], Score] | None = None,
) -> tuple[Weights, Score | None]:
    """Trains every run from every seed's first weights.

    Args:
        first: weights of each seed, [1, seeds, inputs, outputs].
        batch: takes a step and returns its pairs, of each seed.
        settings: one of each run.
        seeds: of dropout and noise.
        n_steps: of the optimizer.
        length: of the embeddings, as in `embed`.
        optimizer: AdamW, or another that takes a rate and a decay.
        one_cycle: whether the rate follows PyTorch's one-cycle schedule, or is constant.
        validate: returns the score of every run; the best of five checkpoints is kept, the earliest
            of equals.

    Returns:
        The weights of all runs, and their scores on validation, if there is one.
    """
    groups = []  # each run has its own weights, rate and decay
    for run in settings:
        own = [layer.clone().requires_grad_() for side in first for layer in side]
        groups.append({"params": own, "lr": run.rate, "weight_decay": run.decay})
    descent = optimizer(groups, lr=settings[0].rate)
    if one_cycle:
        rates = [run.rate for run in settings]
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            descent, rates, total_steps=n_steps, cycle_momentum=False
        )
    draws = _Draws(settings, seeds)
    checkpoints = [round(share * n_steps) for share in _CHECKPOINTS] if validate else []
    best = None
    for step in range(n_steps):
        inputs = draws.kept(batch(step))
        means = embed(_together(groups, first), inputs, length)
        descent.zero_grad()
        _losses(means, settings, draws.noise).sum().backward()
        descent.step()
        if one_cycle:
            cycle.step()
        if step + 1 in checkpoints:
            best = _better(best, _detached(_together(groups, first)), validate)
    return best or (_detached(_together(groups, first)), None)


def embed(weights: Weights, inputs: Pair, length: str = "unit") -> Means:
    """Embeddings of images and texts by linear towers or by towers with a hidden layer.

    Args:
        weights: each side has its last layer, after a hidden layer's weights and biases if there is
            one.
        inputs: of images and texts.
        length: `unit` for unit vectors; `mean` for linear maps of unit norm, whose embeddings of
            inputs of unit variance have mean squared length 1; `free`.
    """
    sides = []
    for layers, x in zip(weights, inputs, strict=True):
        if len(layers) == 3:
            x = torch.relu(x @ layers[0] + layers[1])
        last = layers[-1]
        if length == "mean":
            last = last / last.norm(dim=(-2, -1), keepdim=True)
        sides.append(x @ last)
    means = torch.stack(sides)
    return F.normalize(means, dim=-1) if length == "unit" else means


def _losses(
    means: Means, settings: Sequence[Settings], noise: Sequence[torch.Generator] = ()
) -> Score:
    """The loss of each run: InfoNCE in both directions, less log n, plus the penalty.

    Args:
        means: embeddings of a batch.
        settings: one of each run.
        noise: generators of each seed, for runs that contrast samples.
    """
    dim = means.shape[-1]
    temperature = means.new_tensor([run.temperature for run in settings]).view(-1, 1, 1, 1)
    kappas = [run.kappa if run.sampled else math.inf for run in settings]
    images, texts = _noisy(means, kappas, noise) if any(map(math.isfinite, kappas)) else means
    scores = (images / temperature) @ texts.mT
    partitions = (torch.logsumexp(scores, 3) + torch.logsumexp(scores, 2)) / 2
    contrast = (partitions - scores.diagonal(dim1=2, dim2=3)).mean(2)
    cosines = (means[0] * means[1]).sum(3).mean(2)
    crossed = [i for i, run in enumerate(settings) if run.crossfit]
    if crossed:
        cosines = cosines.index_copy(0, torch.tensor(crossed), _crossfit_cosines(means[:, crossed]))
    pulls = [KAPPA_B * run.beta * _mean_cosine(run.kappa, dim) for run in settings]
    return contrast + means.new_tensor(pulls)[:, None] * (1 - cosines)


def _noisy(means: Means, kappas: Sequence[float], noise: Sequence[torch.Generator]) -> Means:
    """Von Mises-Fisher draws around mean directions.

    The cosine with the mean is taken at random from 4,096 draws of `sample_vmf`, sorted so that
    runs of similar concentration have similar noise; the rest is drawn anew.

    Args:
        means: unit vectors.
        kappas: concentration of each run; infinite for no noise.
        noise: generators of each seed.
    """
    n, dim = means.shape[3:]
    drawn = [torch.randn(2, 1, n, dim, generator=g) for g in noise]
    places = [torch.randint(_N_QUANTILES, (2, n), generator=g) for g in noise]
    quantiles = torch.stack([_cosine_quantiles(kappa, dim) for kappa in kappas])
    along = quantiles[:, torch.stack(places, 1)].movedim(0, 1).unsqueeze(-1).to(means)
    directions = torch.stack(drawn, 2).to(means)
    across = directions - (directions * means).sum(-1, keepdim=True) * means
    return along * means + (1 - along.square()).sqrt() * F.normalize(across, dim=-1)


@lru_cache
def _cosine_quantiles(kappa: float, dim: int) -> Float[Tensor, " quantiles"]:
    """Sorted cosines of von Mises-Fisher draws with their mean direction; 1 without noise."""
    if kappa == math.inf:
        return torch.ones(_N_QUANTILES)
    pole = torch.eye(dim)[:1].expand(_N_QUANTILES, -1)
    return sample_vmf(pole, kappa, torch.Generator().manual_seed(0))[:, 0].sort().values


def _mean_cosine(kappa: float, dim: int) -> float:
    """A_d(kappa), 1 without noise."""
    return 1.0 if kappa == math.inf else vmf_mean_cosine(kappa, dim).item()


def _crossfit_cosines(means: Means) -> Score:
    """Mean cosine with the cross-fitted centres of the penalty `crossfit`, over both sides."""
    penalty = Crossfit()

    def cosine(image: Tensor, text: Tensor) -> Tensor:
        inputs = LossInputs(image, text, image, text, torch.ones(()), math.inf)
        return sum(penalty.cosines(inputs)) / 2

    return torch.func.vmap(torch.func.vmap(cosine))(*means)


class _Draws:
    """Dropout masks and noise: a seed has its own, the same in all runs."""

    def __init__(self, settings: Sequence[Settings], seeds: Sequence[int]):
        dropouts = [run.dropout for run in settings]
        self.dropout = torch.tensor(dropouts).view(-1, 1, 1, 1) if any(dropouts) else None
        self.masks = [torch.Generator().manual_seed(seed + 1) for seed in seeds]
        self.noise = [torch.Generator().manual_seed(seed + 2) for seed in seeds]

    def kept(self, inputs: Pair) -> Pair:
        """The inputs after dropout; unit vectors do not depend on their scale."""
        if self.dropout is None:
            return inputs
        drawn = [torch.rand(2, 1, *inputs[0].shape[2:], generator=g) for g in self.masks]
        kept = torch.stack(drawn, 2) >= self.dropout
        return tuple(x * mask for x, mask in zip(inputs, kept, strict=True))


def _together(groups: Sequence[dict], first: Weights) -> Weights:
    """The layers of all runs, from the optimizer's groups."""
    layers = iter([torch.cat(own) for own in zip(*(g["params"] for g in groups), strict=True)])
    return [[next(layers) for _ in side] for side in first]


def _detached(weights: Weights) -> Weights:
    return [[layer.detach() for layer in side] for side in weights]


def _better(
    best: tuple[Weights, Score] | None, weights: Weights, validate: Callable
) -> tuple[Weights, Score]:
    """The better of two checkpoints of each run; the earlier where they tie."""
    scores = validate(weights)
    if best is None:
        return weights, scores
    is_better = scores > best[1]
    kept = [
        [torch.where(is_better[..., None, None], new, old) for new, old in zip(*sides, strict=True)]
        for sides in zip(weights, best[0], strict=True)
    ]
    return kept, torch.where(is_better, scores, best[1])
