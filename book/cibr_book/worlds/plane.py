"""The information plane of the discrete world: shared against residual information, by method.

Every method trains the networks of `train_discrete` for the same number of steps from the same
initial weights: one-hot factors, a hidden layer of 64 ReLU units and 8 outputs without biases, by
AdamW at a constant rate of 0.01 without weight decay, on 64 fresh pairs a step. Equal texts in a
batch are negatives. Methods with noise contrast one draw around each embedding of both towers; the
vMF penalty has kappa_b = 10. I(Z_v;X_t) and I(Z_v;X_v|X_t) are then measured for the image tower's
unit vectors with von Mises-Fisher noise of two concentrations, kappa, by 2,000 draws an image and
exact mixture densities; methods that train with noise use the first. Rows of the method `optimum`
are the best that any embedding of this width can do at a noise: vectors ascend I(Z_v;X_t) - beta
I(Z_v;X_v|X_t). Those that depend on the shared factor S alone suffice: as V is independent of S and
the text, I(Z_v;X_t) <= I(Z_v;X_t|V) and I(Z_v;X_v) >= I(Z_v;S|V), and the best single value of V
does no worse. Seeds beyond the first eight count how often training with noise fails.

`plane_rows` recomputes runs of data/results/information_plane.csv; those that contrast samples get
new noise. The rows of `CIBR MINE`, trained by the library's loss one run at a time, and of the
optimum, by gradient ascent, come from the code that the column `commit` names.
"""

from collections.abc import Sequence
from itertools import product

import pandas as pd

from cibr.utils import project_root
from cibr_book.worlds.discrete import discrete_world, embedding_informations, train_discrete
from cibr_book.worlds.training import Settings

TABLE = project_root() / "data" / "results" / "information_plane.csv"
KAPPAS = (20.0, 100.0)
_DIM = 8
_MEASURED = dict(shared="sufficiency", residual="residual_image", nuisance="nuisance_image")
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
            nats = embedding_informations(world, embeddings, kappa, seed)
            values = [nats[f"{name}_nats"].item() for name in _MEASURED.values()]
            rows.append((*run, n_steps, seed, kappa, *values))
    names = ["method", "temperature", "beta", "n_steps", "seed", "kappa", *_MEASURED]
    return pd.DataFrame(rows, columns=names).round(4)
