"""The information plane of the discrete world: shared against residual information, by method.

`python -m cibr_book.worlds.plane` trains the networks of `train_discrete` by every method, all for
the same number of steps from the same initial weights, and measures I(Z_v;X_t) and I(Z_v;X_v|X_t)
of unit vectors with von Mises-Fisher noise of one concentration, kappa. It does so at two values
of kappa, for the same encoders; methods that train with noise do so at the first. The rows of the
method `optimum` are the best that any embedding of this width can do at that noise. The
table is data/results/information_plane.csv; it takes about ten minutes on one core, and a rerun
adds only what is missing. Seeds beyond the first eight count how often training with noise fails.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn import functional as F

from cibr.losses.penalties import _crossfitted_means
from cibr.losses.vmf import sample_vmf, vmf_mean_cosine
from cibr.utils import project_root, provenance, write_atomically
from cibr_book.worlds import exact as worlds

TABLE = project_root() / "data" / "results" / "information_plane.csv"
KAPPAS = (20.0, 100.0)
TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5)
BETAS = (0.1, 0.3, 1.0, 3.0)
MINE_BETAS = (0.1, 0.3, 0.5, 0.7, 1.0)  # a run takes ten times as long
SEEDS = range(8)
MORE_SEEDS = range(8, 136)  # of training with noise, to count collapses
DIM = 8
N_STEPS = 300
KAPPA_E = KAPPAS[0]  # of the encoders in training
KAPPA_B = 10.0  # of the backward encoders, the default of `CIBRLoss`
BATCH_SIZE = 64
OPTIMUM_BETAS = (0.0, 0.1, 0.2, 1.0, 2.5, 3.0, 3.5, 6.0)
_N_STARTS = 3
_SETTINGS = ("method", "temperature", "beta", "n_steps")


@dataclass(frozen=True)
class Condition:
    """A method with its settings.

    Args:
        method: its name in figures.
        temperature: of the softmax.
        beta: weight of the penalty.
        n_steps: of training.
        objective: arguments of `CIBRLoss`; None for InfoNCE.
        seeds: of weights, pairs and noise.
    """

    method: str
    temperature: float = 0.05
    beta: float = 0.0
    n_steps: int = N_STEPS
    objective: Mapping[str, Any] | None = None
    seeds: Sequence[int] = SEEDS


def conditions() -> Iterator[Condition]:
    """All methods, each over temperatures or weights of the penalty; MINE takes longest."""
    noise = dict(sample=True, kappa_e=KAPPA_E)
    for method, objective in (("CLIP", None), ("noise only", noise)):
        for temperature in TEMPERATURES:
            yield Condition(method, temperature, objective=objective)
    penalties = {"CIBR vMF": {}, "CIBR vMF, sampled": noise}
    penalties["CIBR crossfit"] = {"penalty": "crossfit"}
    for (method, options), beta in itertools.product(penalties.items(), BETAS):
        objective = {"kappa_e": KAPPA_E, "beta": beta} | options
        yield Condition(method, beta=beta, objective=objective)
    for method, objective in (("CLIP", None), ("noise only", noise)):
        yield Condition(method, n_steps=4 * N_STEPS, objective=objective)
    for method in ("CIBR vMF", "CIBR vMF, sampled"):
        objective = {"kappa_e": KAPPA_E, "beta": BETAS[-1]} | penalties[method]
        yield Condition(method, beta=BETAS[-1], n_steps=4 * N_STEPS, objective=objective)
    yield Condition("noise only", objective=noise, seeds=MORE_SEEDS)
    for beta in BETAS:
        objective = {"kappa_e": KAPPA_E, "beta": beta} | noise
        yield Condition("CIBR vMF, sampled", beta=beta, objective=objective, seeds=MORE_SEEDS)
    for beta in MINE_BETAS:
        objective = {"kappa_e": KAPPA_E, "beta": beta, "penalty": "mine"}
        yield Condition("CIBR MINE", beta=beta, objective=objective)


def train_together(
    world: worlds.DiscreteWorld, chosen: Sequence[Condition], seeds: Sequence[int] = SEEDS
) -> Float64[Tensor, "conditions seeds n_images d"]:
    """`worlds.train_discrete` of many runs in one program, in a tenth of the time.

    Without noise, a run is the same as there; with noise, it draws others.

    Args:
        world: images and texts.
        chosen: conditions of one number of steps, without MINE.
        seeds: of weights and pairs; runs of one seed have equal initial networks and equal batches.

    Returns:
        Unit vectors of all images.
    """
    inputs = worlds.one_hot_factors(world)
    layers = _initial_layers(inputs, len(chosen), seeds)
    parameters = [layer for side in layers for layer in side]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.Generator().manual_seed(seeds[0])
    chances = world.joint.flatten()
    every = torch.arange(len(seeds))[:, None]
    for _ in range(chosen[0].n_steps):
        drawn = [torch.multinomial(chances, BATCH_SIZE, True, generator=g) for g in generators]
        pairs = torch.stack(drawn)
        rows = pairs // world.joint.shape[1], pairs % world.joint.shape[1]
        embedded = [_embed(x, side) for x, side in zip(inputs, layers, strict=True)]
        image, text = (z[:, every, i] for z, i in zip(embedded, rows, strict=True))
        optimizer.zero_grad()
        _losses(chosen, image, text, noise).sum().backward()
        optimizer.step()
    with torch.no_grad():
        return _embed(inputs[0], layers[0])


def _initial_layers(
    inputs: Sequence[Tensor], n_conditions: int, seeds: Sequence[int]
) -> list[list[Tensor]]:
    """Weights, biases and last weights [condition, seed, ...] of both networks."""
    with torch.random.fork_rng(devices=[]):
        nets = [worlds.initial_networks(inputs, DIM, seed) for seed in seeds]
    sides = []
    for side in (0, 1):
        by_seed = [list(pair[side].parameters()) for pair in nets]
        stacked = [torch.stack(layer).detach() for layer in zip(*by_seed, strict=True)]
        layers = [x.expand(n_conditions, *x.shape).clone().requires_grad_() for x in stacked]
        sides.append(layers)
    return sides


def _embed(x: Tensor, layers: Sequence[Tensor]) -> Tensor:
    first, bias, last = layers
    hidden = F.relu(x @ first.mT + bias[..., None, :])
    return F.normalize(hidden @ last.mT, dim=3)


def _losses(
    chosen: Sequence[Condition], image: Tensor, text: Tensor, generator: torch.Generator
) -> Float64[Tensor, "conditions seeds"]:
    """The CLIP loss, less log n, plus beta times the penalty, for embeddings of batches."""
    settings = [condition.objective or {} for condition in chosen]
    noisy = [i for i, setting in enumerate(settings) if setting.get("sample")]
    z_image, z_text = image.clone(), text.clone()
    for z, mean in ((z_image, image), (z_text, text)):
        if noisy:
            directions = mean[noisy].flatten(0, 2)
            z[noisy] = sample_vmf(directions, KAPPA_E, generator).view_as(mean[noisy])
    temperatures = image.new_tensor([condition.temperature for condition in chosen])
    scores = z_image @ z_text.mT / temperatures[:, None, None, None]
    partitions = torch.logsumexp(scores, 3) + torch.logsumexp(scores, 2)
    own = scores.diagonal(dim1=2, dim2=3)
    contrast = (partitions / 2 - own).mean(2)
    cosines = (image * text).sum(3).mean(2)
    crossed = [i for i, setting in enumerate(settings) if setting.get("penalty") == "crossfit"]
    if crossed:
        cosines = cosines.clone()
        cosines[crossed] = _crossfit_cosines(image[crossed], text[crossed])
    betas = image.new_tensor([condition.beta for condition in chosen])
    pull = KAPPA_B * vmf_mean_cosine(KAPPA_E, DIM)
    return contrast + betas[:, None] * pull * (1 - cosines)


def _crossfit_cosines(image: Tensor, text: Tensor) -> Float64[Tensor, "conditions seeds"]:
    """Mean cosine with the cross-fitted centres of the penalty `crossfit`, over both sides."""
    centres = torch.func.vmap(torch.func.vmap(partial(_crossfitted_means, labels=None)))
    of_image = (image * centres(text, image)).sum(3).mean(2)
    of_text = (text * centres(image, text)).sum(3).mean(2)
    return (of_image + of_text) / 2


def plane_rows(chosen: Sequence[Condition]) -> list[dict[str, Any]]:
    """Trains conditions of one number of steps and equal seeds, and measures them.

    Args:
        chosen: of `conditions`; those with MINE alone.

    Returns:
        Rows with the columns `method, temperature, beta, n_steps, seed, kappa`, and nats `shared,
        residual, nuisance`.
    """
    world, seeds = worlds.discrete_world(), chosen[0].seeds
    if chosen[0].method == "CIBR MINE":
        trained = [[_train_alone(world, c, seed) for seed in seeds] for c in chosen]
    else:
        trained = train_together(world, chosen, seeds)
    rows = []
    for condition, by_seed in zip(chosen, trained, strict=True):
        for seed, images in zip(seeds, by_seed, strict=True):
            about = {name: getattr(condition, name) for name in _SETTINGS} | {"seed": seed}
            for kappa in KAPPAS:
                nats = worlds.embedding_informations(world, images, kappa, seed)
                rows.append(about | {"kappa": kappa} | _named(nats))
    return rows


def _train_alone(
    world: worlds.DiscreteWorld, condition: Condition, seed: int
) -> worlds.ImageVectors:
    options = dict(seed=seed, objective=condition.objective, n_steps=condition.n_steps)
    return worlds.train_discrete(world, DIM, condition.temperature, BATCH_SIZE, **options)[0]


def _named(nats: dict[str, Any]) -> dict[str, float]:
    names = dict(shared="sufficiency", residual="residual_image", nuisance="nuisance_image")
    return {short: float(nats[f"{name}_nats"]) for short, name in names.items()}


def optimum_rows(kappa: float, betas: Sequence[float] = OPTIMUM_BETAS) -> list[dict[str, Any]]:
    """The embeddings that maximise I(Z_v;X_t) - beta I(Z_v;X_v|X_t) at a noise, for every beta.

    Embeddings of the shared factor alone suffice. As V is independent of S and of the text, with
    J the objective, J = (1 + beta) I(Z;X_t) - beta I(Z;X_v), and I(Z;X_t) <= I(Z;X_t|V) and
    I(Z;X_v) >= I(Z;S|V): so J is at most a mean over v of the objective of the embeddings with
    V = v. Ascent from several starts and from the optima of the other weights, all on the same
    draws of the noise, ascends once more; the best for each weight is measured on other draws.
    """
    world = worlds.discrete_world(n_image=1, n_text=1)
    generator = torch.Generator().manual_seed(0)
    shape = (_N_STARTS, len(world.joint), DIM)
    starts = list(F.normalize(torch.randn(shape, generator=generator).double(), dim=2))
    found = [ascend(world, start, beta, kappa) for beta in betas for start in starts]
    refined = []
    for beta in betas:
        best = max(found, key=lambda images: objective(world, images, beta, kappa).item())
        refined.append(ascend(world, best, beta, kappa))
    rows = []
    for beta in betas:
        best = max(refined, key=lambda images: objective(world, images, beta, kappa).item())
        nats = worlds.embedding_informations(world, best, kappa, seed=1)
        rows.append({"method": "optimum", "beta": beta, "kappa": kappa} | _named(nats))
    return rows


def objective(
    world: worlds.DiscreteWorld, images: worlds.ImageVectors, beta: float, kappa: float
) -> worlds.Nats:
    """I(Z_v;X_t) - beta I(Z_v;X_v|X_t) of unit vectors at a noise, on fixed draws."""
    nats = worlds.sampled_informations(world, images, kappa)
    return nats["sufficiency_nats"] - beta * nats["residual_image_nats"]


def ascend(
    world: worlds.DiscreteWorld,
    images: worlds.ImageVectors,
    beta: float,
    kappa: float,
    n_steps: int = 300,
) -> worlds.ImageVectors:
    """Unit vectors after gradient ascent on `objective`, with a rate that falls to zero."""
    free = images.clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(n_steps):
        optimizer.zero_grad()
        (-objective(world, F.normalize(free, dim=1), beta, kappa)).backward()
        optimizer.step()
        schedule.step()
    return F.normalize(free.detach(), dim=1)


def main() -> None:
    """Makes the rows that the table lacks."""
    about = provenance()
    versions = dict(commit=about["commit"], torch=about["versions"]["torch"])
    columns = [*_SETTINGS, "seed", "kappa"]
    table = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=columns)
    kinds = itertools.groupby(
        conditions(), lambda c: (c.n_steps, c.seeds, c.method == "CIBR MINE" and c)
    )
    for job in [*(list(group) for _, group in kinds), *KAPPAS]:
        if isinstance(job, float):
            known = {"method": "optimum", "kappa": job}
        else:
            known = {name: getattr(job[-1], name) for name in _SETTINGS}
            known["seed"] = job[-1].seeds[0]
        if not (table[list(known)] == pd.Series(known)).all(axis=1).any():
            rows = optimum_rows(job) if isinstance(job, float) else plane_rows(job)
            table = _extended(table, rows, versions)
            print("made", known, flush=True)


def _extended(table: pd.DataFrame, rows: list[dict[str, Any]], versions: dict) -> pd.DataFrame:
    """The table with further rows, in the order of `conditions`, which is also written."""
    new = pd.DataFrame(rows).round(4).assign(**versions)
    table = pd.concat([table, new]) if len(table) else new
    ordered = dict.fromkeys(tuple(getattr(c, n) for n in _SETTINGS) for c in conditions())
    places = {settings: i for i, settings in enumerate(ordered)}
    settings = table[list(_SETTINGS)].itertuples(index=False, name=None)
    of_row = [places.get(row, len(places)) for row in settings]
    table = table.iloc[np.argsort(of_row, kind="stable")]
    write_atomically(TABLE, lambda part: table.to_csv(part, index=False))
    return table


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
