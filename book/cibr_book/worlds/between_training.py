"""Training in the world of `between_world`: many runs in one tensor program.

Two towers map the 64 inputs to 16 dimensions, linearly or through one hidden layer. `train` runs
several trials on several samples at once, with a leading axis for each. What is random depends on
the sample alone, so that trials are compared on the same batches, dropout masks and noise, and no
trial depends on its companions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cibr.losses.vmf import sample_vmf, vmf_mean_cosine
from cibr_book.worlds.between_world import Sample, Settings, closed_form, recall

DIM = 16
KAPPA_B = 10.0  # of the penalty's backward encoders, the library's default
_N_HIDDEN = 64
_BATCH_SIZE = 128
_CHECKPOINTS = (0.2, 0.4, 0.6, 0.8, 1.0)  # shares of the steps
_N_QUANTILES = 4096
_SMALLEST = 1e-37  # of a sum of exponentials in float32, so that its logarithm is finite

Layer = Float[Tensor, "2 trials samples _ _"]  # of both towers
Weights = list[Layer]
Start = Float[Tensor, "2 1 samples p d"]


def embed(
    weights: Sequence[Float[Tensor, "2 *runs _ _"]], inputs: Float[Tensor, "2 ... n _"]
) -> Float[Tensor, "2 ... n d"]:
    """Unit vectors of both towers for images and texts; no layer has a bias."""
    hidden = inputs
    for layer in weights[:-1]:
        hidden = torch.relu(hidden @ layer)
    return F.normalize(hidden @ weights[-1], dim=-1)


@dataclass(frozen=True)
class Trained:
    """Trained towers at the checkpoint of each run that is best on validation.

    Args:
        weights: layers of both towers, each [2, trials, samples, inputs, outputs].
        validation: recall at 1 of the kept checkpoints, [trials, samples].
    """

    weights: Weights
    validation: Float[Tensor, "trials samples"]


def train(
    samples: Sequence[Sample],
    trials: Sequence[Settings],
    hidden: bool = False,
    start: Start | None = None,
) -> Trained:
    """Trains every trial on every sample, with InfoNCE or the CIBR loss.

    AdamW with PyTorch's one-cycle rate; batches of 128 pairs, or all pairs if they are fewer. The
    checkpoint kept is the best on validation of five in the course of a run.

    Args:
        samples: with equally many training pairs.
        trials: `temperature`, `rate` (the largest of the cycle), `steps` (the same for all),
            `decay` (AdamW's), `dropout` (of the inputs), `beta` (of the penalty `vmf`),
            `kappa` (of the encoders' noise; infinite for none), and `width`, the number of outputs
            that do not start, and hence stay, at zero.
        hidden: whether each tower has a hidden layer of 64 units.
        start: the first weights of linear towers, see `start_at`; random ones if None.

    Returns:
        The trained towers.
    """
    n_steps = int(trials[0]["steps"])
    by_name = {name: _column([trial[name] for trial in trials]) for name in trials[0]}
    by_name["pull"] = KAPPA_B * by_name["beta"] * _mean_cosines(by_name["kappa"])
    first = _first_weights(samples, hidden, start)
    groups = []  # of the optimizer: each trial has its own weights, rate and decay
    for trial in trials:
        own = [layer.clone() for layer in first]
        own[-1] *= torch.arange(DIM) < trial["width"]
        own = [layer.requires_grad_() for layer in own]
        groups.append({"params": own, "lr": trial["rate"], "weight_decay": trial["decay"]})
    optimizer = torch.optim.AdamW(groups)
    rates = [trial["rate"] for trial in trials]
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=n_steps, cycle_momentum=False
    )
    draws = _Draws(samples, n_steps)
    weights = _together(groups)
    best = Trained(weights, torch.full((len(trials), len(samples)), -1.0))
    checkpoints = {round(share * n_steps) for share in _CHECKPOINTS}
    for step in range(n_steps):
        inputs = draws.batch(step)
        if by_name["dropout"].any():
            inputs = inputs * draws.kept(inputs.shape, by_name["dropout"])
        optimizer.zero_grad()
        _loss(embed(weights, inputs), by_name, draws).sum().backward()
        optimizer.step()
        cycle.step()
        weights = _together(groups)
        if step + 1 in checkpoints:
            best = _better(best, [layer.detach() for layer in weights], samples)
    return best


def _together(groups: Sequence[Mapping[str, Any]]) -> Weights:
    """The layers of all trials."""
    by_trial = [group["params"] for group in groups]
    return [torch.cat(layers, 1) for layers in zip(*by_trial, strict=True)]


def fit_closed_form(samples: Sequence[Sample], trials: Sequence[Settings]) -> Trained:
    """Ridge CCA of every sample at every setting of `closed_form`, without training.

    Returns:
        The maps, padded with zeros to the largest of the trials' dimensions, and their recall.
    """
    width = max(int(trial["dim"]) for trial in trials)
    by_trial = []
    for trial in trials:
        maps = torch.stack([closed_form(sample, trial) for sample in samples], 1)
        by_trial.append(F.pad(maps, (0, width - maps.shape[-1])))
    untested = torch.full((len(trials), len(samples)), -1.0)
    weights = [torch.stack(by_trial, 1)]
    return _better(Trained(weights, untested), weights, samples)


def start_at(samples: Sequence[Sample], settings: Settings) -> Start:
    """Linear towers that begin at ridge CCA, with as many of its directions as they have room."""
    settings = {**settings, "dim": min(settings["dim"], DIM)}
    (maps,) = fit_closed_form(samples, [settings]).weights
    return F.pad(maps, (0, DIM - maps.shape[-1]))


def _column(values: Sequence[float | int]) -> Float[Tensor, "trials 1 1 1"]:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


def _first_weights(samples: Sequence[Sample], hidden: bool, start: Start | None) -> Weights:
    """Weights of each sample's seed, [2, 1, samples, rows, columns], or the start, as large."""
    n_inputs = samples[0].train.shape[2]
    if start is not None:
        scale = start.square().mean((3, 4), keepdim=True).sqrt() * n_inputs**0.5
        return [start / scale]
    sizes = [(n_inputs, _N_HIDDEN), (_N_HIDDEN, DIM)] if hidden else [(n_inputs, DIM)]
    generators = [torch.Generator().manual_seed(sample.seed) for sample in samples]
    layers = []
    for rows, columns in sizes:
        drawn = [torch.randn(2, 1, rows, columns, generator=g) for g in generators]
        layers.append(torch.stack(drawn, 2) / rows**0.5)
    return layers


class _Draws:
    """Batches, dropout masks and encoder noise: a sample has its own, the same in all trials."""

    def __init__(self, samples: Sequence[Sample], n_steps: int):
        self.train = torch.stack([sample.train for sample in samples], 1)  # [2, samples, n, p]
        self.rows = torch.stack([_batches(sample, n_steps) for sample in samples], 1)
        self.of_masks = [torch.Generator().manual_seed(sample.seed + 1) for sample in samples]
        self.of_noise = [torch.Generator().manual_seed(sample.seed + 2) for sample in samples]

    def batch(self, step: int) -> Float[Tensor, "2 1 samples b p"]:
        rows = self.rows[step]
        return self.train[:, torch.arange(len(rows))[:, None], rows].unsqueeze(1)

    def kept(self, shape: Sequence[int], dropout: Tensor) -> Tensor:
        """Which inputs dropout keeps; their scale does not matter to towers without biases."""
        n_rows, n_inputs = shape[3:]
        drawn = [torch.rand(2, 1, n_rows, n_inputs, generator=g) for g in self.of_masks]
        return torch.stack(drawn, 2) >= dropout


def noisy(
    means: Float[Tensor, "2 trials samples b d"],
    kappas: Float[Tensor, " trials"],
    generators: Sequence[torch.Generator],
) -> Float[Tensor, "2 trials samples b d"]:
    """Von Mises-Fisher draws around mean directions.

    The cosine with the mean is taken at random from 4,096 draws of `sample_vmf`, sorted so that
    trials of similar concentration have similar noise; the rest is drawn anew.

    Args:
        means: unit vectors.
        kappas: concentration of each trial; infinite for no noise.
        generators: of each sample.
    """
    n_rows, dim = means.shape[3:]
    drawn = [torch.randn(2, 1, n_rows, dim, generator=g) for g in generators]
    places = [torch.randint(_N_QUANTILES, (2, n_rows), generator=g) for g in generators]
    tables = torch.stack([_cosines(kappa) for kappa in kappas.tolist()])
    along = tables[:, torch.stack(places, 1)].movedim(0, 1).unsqueeze(-1)
    noise = torch.stack(drawn, 2)
    tangent = F.normalize(noise - (noise * means).sum(-1, keepdim=True) * means, dim=-1)
    return along * means + (1 - along.square()).sqrt() * tangent


def _batches(sample: Sample, n_steps: int) -> Tensor:
    """The rows of each step, [n_steps, b]: every epoch is another order of the pairs."""
    n = sample.train.shape[1]
    size = min(_BATCH_SIZE, n)
    generator = torch.Generator().manual_seed(sample.seed)
    n_epochs = -(-n_steps // (n // size))
    orders = [torch.randperm(n, generator=generator) for _ in range(n_epochs)]
    return torch.cat([order[: n // size * size] for order in orders]).view(-1, size)[:n_steps]


@lru_cache
def _cosines(kappa: float) -> Float[Tensor, " quantiles"]:
    """Sorted cosines of von Mises-Fisher draws with their mean direction; 1 without noise."""
    if kappa == float("inf"):
        return torch.ones(_N_QUANTILES)
    pole = torch.eye(DIM)[:1].expand(_N_QUANTILES, -1)
    return sample_vmf(pole, kappa, torch.Generator().manual_seed(0))[:, 0].sort().values


def _loss(
    means: Float[Tensor, "2 trials samples b d"], settings: Mapping[str, Tensor], draws: _Draws
) -> Float[Tensor, "trials samples"]:
    """CIBR's loss of each run: InfoNCE in both directions, plus beta times the penalty `vmf`."""
    temperature = settings["temperature"]
    kappas = settings["kappa"].flatten()
    contrasted = noisy(means, kappas, draws.of_noise) if kappas.isfinite().any() else means
    images, texts = contrasted
    logits = (images / temperature) @ texts.mT
    # Cosines are at most 1, so the exponentials do not overflow, and one of them is enough.
    exponentials = torch.exp(logits - 1 / temperature)
    sums = [exponentials.sum(dim).clamp(min=_SMALLEST) for dim in (-1, -2)]
    log_sums = (sums[0].log() + sums[1].log()) / 2 + 1 / temperature[..., 0]
    contrast = (log_sums - logits.diagonal(dim1=-2, dim2=-1)).mean(-1)
    cosine = (means[0] * means[1]).sum(-1).mean(-1)
    return contrast + settings["pull"][..., 0, 0] * (1 - cosine)


def _mean_cosines(kappas: Tensor) -> Tensor:
    """A_d(kappa), 1 at infinity."""
    finite = vmf_mean_cosine(kappas.clamp(max=1e6), DIM).float()
    return torch.where(kappas.isfinite(), finite, 1.0)


@torch.no_grad()
def _better(best: Trained, weights: Weights, samples: Sequence[Sample]) -> Trained:
    """The better of two checkpoints of each run on validation; the earlier where they tie."""
    inputs = torch.stack([sample.validation for sample in samples], 1).unsqueeze(1)
    embeddings = embed(weights, inputs).flatten(1, 2).unbind(1)
    scores = torch.tensor([recall(each) for each in embeddings]).view_as(best.validation)
    is_better = scores > best.validation
    kept = [
        torch.where(is_better[..., None, None], new, old)
        for new, old in zip(weights, best.weights, strict=True)
    ]
    return Trained(kept, torch.where(is_better, scores, best.validation))
