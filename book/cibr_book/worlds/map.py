"""When does a threshold pay? A map over the number of pairs and the scale of the nuisance.

A world between the exact ones and photos: a finite number of Gaussian pairs. Image and text share 8
factors with correlation 0.95 and have 56 factors of their own, whose standard deviation is the
nuisance scale.

Pairs: factors are standard normal before scaling. A random orthogonal matrix for each modality
rotates its 64, and one constant gives all numbers a mean square of 1.

Towers: one matrix a side, without bias, at first normal with variance 1/64; embeddings have unit
length. Adam and the one-cycle rate, without momentum cycling, in batches of 128 pairs, or all if
there are fewer.

The rows of data/results/world_between.csv come from the code of the commits that they name: every
method was tuned in rounds around the best trial and beyond the ends of a grid, the best of five
checkpoints on validation kept, and information measured exactly.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import pandas as pd
import torch
from jaxtyping import Float, Float64
from scipy import stats
from torch import Tensor

from cibr.utils import project_root
from cibr_book.intervals import mean_intervals
from cibr_book.worlds.gaussian import GaussianWorld, gaussian_world
from cibr_book.worlds.training import Pair, Settings, Weights, embed, train

TABLE = project_root() / "data" / "results" / "world_between.csv"
CELL = ["pairs", "nuisance"]
KEY = [*CELL, "method"]
N_SHARED = 8
_N_OWN = 56
_CORRELATION = 0.95
DIM = 16
BATCH_SIZE = 128
_N_GALLERY = 1000  # pairs that a recall is measured among
# Methods that compete with tuned CLIP, the simplest last.
CONTENDERS = ("CIBR vMF", "CIBR vMF, sampled", "noise only", "CLIP, CCA start", "ridge CCA")
TIE = 0.5  # points of recall within which methods count as equally good

Sides = Float[Tensor, "2 n p"]  # images, then the texts that belong to them


@dataclass(frozen=True)
class Sample:
    """One draw of the world and of its pairs; make one with `draw_sample`.

    Args:
        world: with factors of unit variance.
        stretch: what scales its nuisance, x = stretch @ x', for images and for texts, [2, p, p].
        train: training pairs, [2, n, p].
        validation: 1,000 pairs for every choice.
        test: 4,000 pairs for the reported scores.
        seed: of the world and the pairs; also of the weights, batches and noise of training.
    """

    world: GaussianWorld
    stretch: Float64[Tensor, "2 p p"]
    train: Sides
    validation: Float[Tensor, "2 n_validation p"]
    test: Float[Tensor, "2 n_test p"]
    seed: int


@lru_cache(maxsize=32)
def draw_sample(n_pairs: int, nuisance: float, seed: int, shortcut: float = 0.0) -> Sample:
    """A world with its own rotations, and pairs from it, scaled to a mean squared entry of 1.

    Smaller training sets of a seed are parts of larger ones; validation and test pairs are the
    same, and the images whatever the shortcut.

    Args:
        n_pairs: number of training pairs.
        nuisance: standard deviation of a modality's own factors; shared ones have 1.
        seed: of the rotations and pairs.
        shortcut: correlation of the first 8 own factors of image and text.

    Returns:
        The sample.
    """
    world = gaussian_world([_CORRELATION] * N_SHARED, _N_OWN, _N_OWN, seed)
    first_own = slice(N_SHARED, 2 * N_SHARED)
    across = shortcut * world.mix_image[:, first_own] @ world.mix_text[:, first_own].T
    world.covariance[: len(across), len(across) :] += across
    world.covariance[len(across) :, : len(across)] += across.T
    scales = torch.cat([torch.ones(N_SHARED), torch.full((_N_OWN,), nuisance)]).double()
    scales = scales / scales.square().mean().sqrt()
    rotations = torch.stack([world.mix_image, world.mix_text])
    stretch = rotations * scales @ rotations.mT
    generator = torch.Generator().manual_seed(seed)
    sizes = [_N_GALLERY, 4 * _N_GALLERY, n_pairs]
    normal = torch.randn(sum(sizes), 2 * len(scales), generator=generator, dtype=torch.float64)
    sides = (normal @ torch.linalg.cholesky(world.covariance).T).split(len(scales), 1)
    pairs = (torch.stack(sides) @ stretch).float()
    validation, test, train = pairs.split(sizes, 1)
    return Sample(world, stretch, train, validation, test, seed)


def fit(sample: Sample, settings: Settings, n_steps: int) -> Weights:
    """CLIP's towers, with the penalty or without, after the last step.

    Args:
        sample: the training pairs, and the seed.
        settings: of the run.
        n_steps: of Adam with PyTorch's one-cycle rate.
    """
    generator = torch.Generator().manual_seed(sample.seed)
    n_inputs = sample.train.shape[2]
    first = torch.randn(2, 1, 1, n_inputs, DIM, generator=generator) / n_inputs**0.5
    rows = _batches(sample, n_steps)

    def batch(step: int) -> Pair:
        return tuple(sample.train[:, None, None, rows[step]])

    start = [[side] for side in first]
    return train(start, batch, [settings], n_steps, one_cycle=True)


def recall(weights: Weights, pairs: Sides) -> float:
    """Recall at 1 in both directions, the mean over galleries of 1,000 pairs; ties are misses."""
    hits = []
    means = embed(weights, tuple(pairs[:, None, None]))[:, 0, 0]
    for images, texts in zip(*(side.split(_N_GALLERY) for side in means), strict=True):
        similarity = images @ texts.T
        own = similarity.diagonal().clone()
        similarity.fill_diagonal_(-2.0)
        hits += [own > similarity.amax(dim) for dim in (0, 1)]
    return torch.cat(hits).float().mean().item()


def _batches(sample: Sample, n_steps: int) -> Tensor:
    """The rows of each step, [n_steps, b]: every epoch is another order of the pairs."""
    n = sample.train.shape[1]
    size = min(BATCH_SIZE, n)
    generator = torch.Generator().manual_seed(sample.seed)
    n_epochs = -(-n_steps // (n // size))
    orders = [torch.randperm(n, generator=generator) for _ in range(n_epochs)]
    return torch.cat([order[: n // size * size] for order in orders]).view(-1, size)[:n_steps]


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Differences in test recall from tuned CLIP, paired by seed.

    Args:
        rows: the map's table.

    Returns:
        A row per cell and method except CLIP: `pairs, nuisance, method`, the mean of the difference
        with Student's 95 % interval, `mean, low, high`, over `n` seeds; and for contenders the
        `p_value` of Student's test and the `q_value`, adjusted by Benjamini and Hochberg over all
        contenders and cells.
    """
    clip = rows.loc[rows["method"] == "CLIP", [*CELL, "seed", "test_recall"]]
    pairs = rows[rows["method"] != "CLIP"].merge(clip, on=[*CELL, "seed"], suffixes=("", "_clip"))
    pairs["difference"] = pairs["test_recall"] - pairs["test_recall_clip"]
    table = mean_intervals(pairs, KEY, "difference")
    differences = pairs.groupby(KEY, sort=False)["difference"]
    p_values = differences.agg(lambda x: stats.ttest_1samp(x, 0).pvalue if x.std() else math.nan)
    tested = table["method"].isin(CONTENDERS) & p_values.notna().to_numpy()
    table.loc[tested, "p_value"] = p_values[tested.to_numpy()].to_numpy()
    table.loc[tested, "q_value"] = stats.false_discovery_control(table.loc[tested, "p_value"])
    return table


def winners(table: pd.DataFrame) -> pd.DataFrame:
    """The best method of each cell: the simplest contender that gains over CLIP significantly and
    by half a point, and is within half a point of the largest gain; CLIP if there is none.

    Args:
        table: from `gains`.

    Returns:
        A row for each cell: `pairs, nuisance, method`, and `mean`, the gain, 0 for CLIP.
    """
    cells = table[CELL].drop_duplicates()
    better = table[(table["q_value"] < 0.05) & (table["mean"] >= TIE)]
    better = better[better["mean"] > better.groupby(CELL)["mean"].transform("max") - TIE]
    simplicity = better["method"].map(CONTENDERS.index)
    best = better.loc[simplicity.groupby([better[name] for name in CELL]).idxmax()]
    best = best[[*CELL, "method", "mean"]]
    return cells.merge(best, on=CELL, how="left").fillna({"method": "CLIP", "mean": 0.0})
