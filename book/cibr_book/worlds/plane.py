"""The information plane of the discrete world: shared against residual information, by method.

The networks of `train_discrete` are trained by every method, for the same number of steps from the
same initial weights, and I(Z_v;X_t) and I(Z_v;X_v|X_t) are measured of unit vectors with von
Mises-Fisher noise of two concentrations, kappa; methods that train with noise do so at the first.
Rows of the method `optimum` are the best that any embedding of this width can do at a noise. Seeds
beyond the first eight count how often training with noise fails.

`python -m cibr_book.worlds.plane FILE` makes such a table. In data/results/information_plane.csv,
rows of methods that contrast samples were made with other draws of the noise, and those of `CIBR
MINE` by the library's loss, one run at a time; their column `commit` names the code.
"""

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from torch.nn import functional as F

from cibr.utils import project_root
from cibr_book.worlds.discrete import (
    DiscreteWorld,
    ImageVectors,
    Nats,
    discrete_world,
    embedding_informations,
    train_discrete,
)
from cibr_book.worlds.training import Settings

TABLE = project_root() / "data" / "results" / "information_plane.csv"
KAPPAS = (20.0, 100.0)
OPTIMUM_BETAS = (0.0, 0.1, 0.2, 1.0, 2.5, 3.0, 3.5, 6.0)
_TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5)
_BETAS = (0.1, 0.3, 1.0, 3.0)
_SEEDS = range(8)
_MORE_SEEDS = range(8, 136)  # of training with noise, to count collapses
_DIM = 8
_NOISE = {"kappa": KAPPAS[0], "sampled": True}
METHODS = {
    "CLIP": {},
    "noise only": _NOISE,
    "CIBR vMF": {"kappa": KAPPAS[0]},
    "CIBR vMF, sampled": _NOISE,
    "CIBR crossfit": {"kappa": KAPPAS[0], "crossfit": True},
}

Run = tuple[str, float, float]  # method, temperature, beta


def plane_rows(runs: Sequence[Run], seeds: Sequence[int], n_steps: int = 300) -> pd.DataFrame:
    """Trains methods of `METHODS` and measures the image tower.

    Args:
        runs: method, temperature and beta of each.
        seeds: of weights, pairs and noise.
        n_steps: of training.

    Returns:
        Rows with the columns `method, temperature, beta, n_steps, seed, kappa`, and nats `shared,
        residual, nuisance`.
    """
    world = discrete_world()
    settings = [Settings(temperature, beta, **METHODS[name]) for name, temperature, beta in runs]
    images, _ = train_discrete(world, settings, seeds, n_steps, _DIM)
    rows = []
    for (run, by_seed), kappa in product(zip(runs, images, strict=True), KAPPAS):
        for seed, embeddings in zip(seeds, by_seed, strict=True):
            nats = _measured(world, embeddings, kappa, seed)
            rows.append((*run, n_steps, seed, kappa, *nats.values()))
    names = ["method", "temperature", "beta", "n_steps", "seed", "kappa", *nats]
    return pd.DataFrame(rows, columns=names).round(4)


def _measured(
    world: DiscreteWorld, images: ImageVectors, kappa: float, seed: int
) -> dict[str, float]:
    nats = embedding_informations(world, images, kappa, seed)
    names = dict(shared="sufficiency", residual="residual_image", nuisance="nuisance_image")
    return {short: nats[f"{name}_nats"].item() for short, name in names.items()}


def optimum_rows(
    kappa: float, betas: Sequence[float] = OPTIMUM_BETAS, n_starts: int = 3
) -> pd.DataFrame:
    """The embeddings that maximise I(Z_v;X_t) - beta I(Z_v;X_v|X_t) at a noise, for every beta.

    Embeddings of the shared factor alone suffice. As V is independent of S and of the text, with
    J the objective, J = (1 + beta) I(Z;X_t) - beta I(Z;X_v), and I(Z;X_t) <= I(Z;X_t|V) and
    I(Z;X_v) >= I(Z;S|V): so J is at most a mean over v of the objective of the embeddings with
    V = v. Ascent from several starts and from the optima of the other weights, all on the same
    draws of the noise, ascends once more; the best for each weight is measured on other draws.
    """
    world = discrete_world(n_image=1, n_text=1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(n_starts, len(world.joint), _DIM, generator=generator)
    starts = F.normalize(drawn.double(), dim=2)
    found = [ascend(world, start, beta, kappa) for beta in betas for start in starts]
    refined = [ascend(world, _best(world, found, beta, kappa), beta, kappa) for beta in betas]
    rows = []
    for beta in betas:
        best = _best(world, refined, beta, kappa)
        nats = _measured(world, best, kappa, seed=1)
        rows.append({"method": "optimum", "beta": beta, "kappa": kappa} | nats)
    return pd.DataFrame(rows).round(4)


def _best(
    world: DiscreteWorld, candidates: Sequence[ImageVectors], beta: float, kappa: float
) -> ImageVectors:
    return max(candidates, key=lambda images: objective(world, images, beta, kappa).item())


def objective(world: DiscreteWorld, images: ImageVectors, beta: float, kappa: float) -> Nats:
    """I(Z_v;X_t) - beta I(Z_v;X_v|X_t) of unit vectors at a noise, on fixed draws."""
    nats = embedding_informations(world, images, kappa)
    return nats["sufficiency_nats"] - beta * nats["residual_image_nats"]


def ascend(
    world: DiscreteWorld, images: ImageVectors, beta: float, kappa: float, n_steps: int = 300
) -> ImageVectors:
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


def make_plane() -> pd.DataFrame:
    """All rows but those of MINE."""
    penalties = list(METHODS)[2:]
    runs = [(name, t, 0.0) for name in ("CLIP", "noise only") for t in _TEMPERATURES]
    runs += [(name, 0.05, beta) for name in penalties for beta in _BETAS]
    longer = [(name, 0.05, 3.0 * (name in penalties)) for name in list(METHODS)[:4]]
    noisy = [("noise only", 0.05, 0.0), *(("CIBR vMF, sampled", 0.05, beta) for beta in _BETAS)]
    parts = [plane_rows(runs, _SEEDS), plane_rows(longer, _SEEDS, n_steps=1200)]
    parts += [plane_rows(noisy, _MORE_SEEDS), *map(optimum_rows, KAPPAS)]
    return pd.concat(parts)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_plane().to_csv(Path(sys.argv[1]), index=False)
