"""When does a threshold pay? A map over the number of pairs and the scale of the nuisance.

A world between the exact ones and photos: a finite number of Gaussian pairs; the information of
linear encoders is still exact. Image and text share 8 factors with correlation 0.95 and have 56
factors of their own, whose standard deviation is the nuisance scale.

Pairs: factors are standard normal before scaling. A random orthogonal matrix for each modality
rotates its 64, and one constant gives all numbers a mean square of 1. Recall is the mean over four
galleries of 1,000 test pairs.

Towers: one matrix a side, without bias, at first normal with variance 1/64; embeddings have unit
length.

Training: AdamW and the one-cycle rate, without momentum cycling, in batches of 128 pairs, or all if
there are fewer. Dropout acts on the inputs of both towers. Weights are scored on validation after
each fifth of the steps, and the best of the five are kept.

The penalty is 10 beta A(kappa) (1 - cos), with A = 1 where nothing is sampled; samples are von
Mises-Fisher draws around both embeddings. The ridge of CCA is in units of the mean variance, the
same on both sides; each side weights directions by a power of their correlation.

The rows of data/results/world_between.csv were tuned by the code of the commit that they name, in
rounds around the best trial and beyond the ends of a grid. Where towers were at chance in all first
trials but ridge CCA was not, they restarted with 1,000 steps. `method_rows` makes a row again from
its settings.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import pandas as pd
import torch
from jaxtyping import Float, Float64
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from cibr.losses.cca import canonical_maps, centred_moments
from cibr.utils import project_root
from cibr_book.intervals import mean_intervals
from cibr_book.worlds.gaussian import (
    GaussianWorld,
    gaussian_information_nats,
    gaussian_world,
    linear_encoder_nats,
)
from cibr_book.worlds.training import Pair, Settings, Weights, embed, train

TABLE = project_root() / "data" / "results" / "world_between.csv"
CELL = ["pairs", "nuisance"]
KEY = [*CELL, "method"]
SEEDS = tuple(range(8))  # of the reported runs
_NOISES = (0.01, 0.1)  # variances at which information is reported
N_SHARED = 8
_N_OWN = 56
_CORRELATION = 0.95
DIM = 16
BATCH_SIZE = 128
_N_GALLERY = 1000  # pairs that a recall is measured among
_DEFAULTS = {"temperature": 0.07, "rate": 1e-3, "steps": 300}  # of CLIP, untuned
# Methods that compete with tuned CLIP, the simplest last.
CONTENDERS = ("CIBR vMF", "CIBR vMF, sampled", "noise only", "CLIP, CCA start", "ridge CCA")
TIE = 0.5  # points of recall within which methods count as equally good

Trial = dict[str, float | int]  # hyper-parameters by name
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


def _exact_nats(
    sample: Sample, maps: Float[Tensor, "2 p d"], noise_variance: float
) -> dict[str, float]:
    """Exact information of two linear codes, scaled to mean squared length 1, in Gaussian noise.

    Args:
        sample: whose world it is.
        maps: of images and texts, z = x @ map; normalisation of z is left out.
        noise_variance: in each coordinate of both codes; 1 / variance corresponds to the
            concentration of a von Mises-Fisher encoder.

    Returns:
        Nats: `shared_nats` I(Z_v;Z_t), and means over both sides of `residual_nats`
        I(Z_v;X_v|X_t) and `nuisance_nats`, the part of it about a modality's own factors.
    """
    world = sample.world
    codes = sample.stretch @ maps.double()  # of the unit factors, [2, p, d]
    image, text = (code / code.norm() for code in codes)
    sides = [
        linear_encoder_nats(world, image.T, noise_variance),
        linear_encoder_nats(world.swapped, text.T, noise_variance),
    ]
    both = torch.block_diag(image, text)
    noise = noise_variance * torch.eye(both.shape[1], dtype=torch.float64)
    covariance = both.T @ world.covariance @ both + noise
    dim = image.shape[1]
    shared = gaussian_information_nats(covariance, range(dim), range(dim, 2 * dim))
    residual = sum(side["residual_image_nats"] for side in sides) / 2
    nuisance = sum(side["nuisance_image_nats"] for side in sides) / 2
    nats = {"shared_nats": shared, "residual_nats": residual, "nuisance_nats": nuisance}
    return {name: value.item() for name, value in nats.items()}


def _recall(embeddings: Float[Tensor, "2 n d"]) -> float:
    """Recall at 1 in both directions, the mean over galleries of 1,000 pairs; ties are misses."""
    hits = []
    for images, texts in zip(*(side.split(_N_GALLERY) for side in embeddings), strict=True):
        similarity = images @ texts.T
        own = similarity.diagonal().clone()
        similarity.fill_diagonal_(-2.0)
        hits += [own > similarity.amax(dim) for dim in (0, 1)]
    return torch.cat(hits).float().mean().item()


def _closed_form(sample: Sample, trial: Trial) -> Float[Tensor, "2 p d"]:
    """The maps of ridge CCA of the training pairs, z = x @ map.

    Args:
        sample: its training pairs are centred, although their mean in the world is zero.
        trial: `ridge`, of both sides, in units of the mean variance; `power` of the correlation
            that weighs a direction; `dim`, the number of directions.
    """
    _, moments = centred_moments(*sample.train)
    ridge = float(trial["ridge"])
    maps = canonical_maps(moments, int(trial["dim"]), ridge, ridge)
    # The library's maps have power 1/2, so that between them C_vt is the squared correlations.
    squared = (maps[0] @ moments[2] * maps[1]).sum(1).clamp(min=1e-12)
    weights = squared ** (trial["power"] / 2 - 0.25)
    return torch.stack([weights * side.T for side in maps]).float()


def fit(
    samples: Sequence[Sample], method: str, trial: Trial, cca: Trial, keep_best: bool = True
) -> tuple[Weights, Float[Tensor, "1 samples"] | None]:
    """Towers of a method for every sample, and their recall on validation.

    AdamW with PyTorch's one-cycle rate; batches of 128 pairs, or all pairs if they are fewer.

    Args:
        samples: with equally many training pairs.
        method: its name in the table.
        trial: its hyper-parameters.
        cca: those of ridge CCA, at which the `CLIP, CCA start` begins.
        keep_best: keep the best on validation of five checkpoints in the course of a run; otherwise
            the last weights, without a recall.
    """
    validate = partial(recalls, pairs=[sample.validation for sample in samples])
    if method == "ridge CCA":
        weights = [[side] for side in _closed_forms(samples, trial)]
        return weights, validate(weights)
    seeds = [sample.seed for sample in samples]
    n_inputs = samples[0].train.shape[2]
    if method == "CLIP, CCA start":
        maps = _closed_forms(samples, cca | {"dim": min(cca["dim"], DIM)})
        maps = F.pad(maps, (0, DIM - maps.shape[-1]))
        first = maps / (maps.square().mean((3, 4), keepdim=True).sqrt() * n_inputs**0.5)
    else:
        size = 2, 1, n_inputs, DIM
        drawn = [torch.randn(size, generator=torch.Generator().manual_seed(s)) for s in seeds]
        first = torch.stack(drawn, 2) / n_inputs**0.5
    trial = _DEFAULTS | trial
    n_steps = int(trial["steps"])
    pairs = torch.stack([sample.train for sample in samples], 1)  # [2, samples, n, p]
    rows = torch.stack([_batches(sample, n_steps) for sample in samples], 1)
    each = torch.arange(len(samples))[:, None]

    def batch(step: int) -> Pair:
        return tuple(pairs[:, None, each, rows[step]])

    named = {name: float(value) for name, value in trial.items() if name != "steps"}
    settings = Settings(**named, sampled=math.isfinite(trial.get("kappa", math.inf)))
    options = dict(one_cycle=True, validate=validate if keep_best else None)
    return train([[side] for side in first], batch, [settings], seeds, n_steps, **options)


def _closed_forms(samples: Sequence[Sample], trial: Trial) -> Float[Tensor, "2 1 samples p d"]:
    return torch.stack([_closed_form(sample, trial) for sample in samples], 1)[:, None]


def recalls(weights: Weights, pairs: Sequence[Sides]) -> Float[Tensor, "1 samples"]:
    """Recall at 1 of the towers of every sample on its pairs, the mean of both directions."""
    means = embed(weights, tuple(torch.stack(list(pairs), 1)[:, None]))
    return torch.tensor([[_recall(each) for each in means[:, 0].unbind(1)]])


def _batches(sample: Sample, n_steps: int) -> Tensor:
    """The rows of each step, [n_steps, b]: every epoch is another order of the pairs."""
    n = sample.train.shape[1]
    size = min(BATCH_SIZE, n)
    generator = torch.Generator().manual_seed(sample.seed)
    n_epochs = -(-n_steps // (n // size))
    orders = [torch.randperm(n, generator=generator) for _ in range(n_epochs)]
    return torch.cat([order[: n // size * size] for order in orders]).view(-1, size)[:n_steps]


def method_rows(
    pairs: int,
    nuisance: float,
    method: str,
    trial: Trial,
    cca: Trial | None = None,
    seeds: Sequence[int] = SEEDS,
) -> pd.DataFrame:
    """Runs a method with chosen hyper-parameters.

    Args:
        pairs: number of training pairs.
        nuisance: scale of the modalities' own factors.
        method: its name in the table.
        trial: its hyper-parameters.
        cca: those of ridge CCA, for the CCA start.
        seeds: of the data and the training.

    Returns:
        One row a seed: `KEY`, `seed`; recall at 1 in per cent, `test_recall` and
        `validation_recall`; the exact information by noise variance, such as
        `shared_nats_at_0.01`; and the `settings`.
    """
    samples = [draw_sample(pairs, nuisance, seed) for seed in seeds]
    weights, scores = fit(samples, method, trial, cca or {})
    (test_recalls,) = recalls(weights, [sample.test for sample in samples])
    rows = []
    for j, sample in enumerate(samples):
        maps = torch.stack([side[-1][0, j] for side in weights])
        row = dict(zip([*KEY, "seed"], (pairs, nuisance, method, sample.seed), strict=True))
        row["test_recall"] = 100 * test_recalls[j].item()
        row["validation_recall"] = 100 * scores[0, j].item()
        for noise in _NOISES:
            nats = _exact_nats(sample, maps, noise)
            row |= {f"{name}_at_{noise:g}": value for name, value in nats.items()}
        rows.append(row)
    return pd.DataFrame(rows).assign(settings=json.dumps(trial))


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
