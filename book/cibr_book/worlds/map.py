"""When does a bottleneck pay? A map over the number of pairs and the scale of the nuisance.

A world between the exact ones and photos: a finite number of Gaussian pairs, of which linear
encoders still have exact information. Image and text share 8 factors with correlation 0.95 and have
56 factors of their own, whose standard deviation is the nuisance scale; rotations mix them. Recall
is measured among 1,000 pairs.

`python -m cibr_book.worlds.map FILE` tunes every method in every cell, on draws of the data that
are not reported, and writes one row a seed; a rerun adds what is missing. The rows of
data/results/world_between.csv come from a longer search, in rounds around the best trial and beyond
the ends of a grid: their column `commit` names its code. `method_rows` makes a row again from its
settings.
"""

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float, Float64
from joblib import Parallel, delayed, parallel_config
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from cibr.losses.cca import canonical_maps, centred_moments
from cibr.utils import project_root, provenance, write_atomically
from cibr_book.intervals import mean_intervals
from cibr_book.worlds.gaussian import (
    GaussianWorld,
    gaussian_information_nats,
    gaussian_world,
    linear_encoder_nats,
)
from cibr_book.worlds.search import Trial, search
from cibr_book.worlds.training import Pair, Settings, Trained, Weights, embed, train

TABLE = project_root() / "data" / "results" / "world_between.csv"
CELL = ["pairs", "nuisance"]
KEY = [*CELL, "method"]
PAIRS = (64, 128, 256, 512, 1024, 2048, 4096)
NUISANCES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SEEDS = tuple(range(8))  # of the reported runs
_TUNING_SEEDS = (100, 101, 102)
_NOISES = (0.01, 0.1)  # variances at which information is reported
_N_SHARED = 8
_N_OWN = 56
_CORRELATION = 0.95
_DIM = 16
_BATCH_SIZE = 128
_N_GALLERY = 1000  # pairs that a recall is measured among
_N_TOGETHER = 8  # trials in one tensor program: more do not fit into the cache

GRID = {
    "temperature": (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 8),
    "rate": (1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
    "steps": (30, 60, 125, 250, 500, 1000),
    "decay": (0, 0.03, 0.1, 0.3, 1, 3, 10),
    "dropout": (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    "beta": (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
    "kappa": (8, 16, 32, 64, 128, 256, 512),
    "ridge": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
    "power": (0, 0.25, 0.5, 0.75, 1, 1.5, 2),
    "dim": (4, 6, 8, 10, 12, 16, 24, 32),
}
_DEFAULTS = {"temperature": 0.07, "rate": 1e-3, "steps": 300}
_OF_CLIP = ("temperature", "rate", "steps", "decay", "dropout")
# What is tuned of each method; one that extends CLIP tunes `_FURTHER` as well.
METHODS = {
    "ridge CCA": ("ridge", "power", "dim"),
    "CLIP, untuned": (),
    "CLIP, rate and steps": ("rate", "steps"),
    "CLIP": _OF_CLIP,
    "CLIP, 4 x the steps": (),  # as CLIP chose
    "CLIP, CCA start": _OF_CLIP,
    "noise only": _OF_CLIP,
    "CIBR vMF": _OF_CLIP,
    "CIBR vMF, sampled": _OF_CLIP,
}
_FURTHER = {"noise only": ("kappa",), "CIBR vMF": ("beta",), "CIBR vMF, sampled": ("beta", "kappa")}
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


@lru_cache(maxsize=16)
def draw_sample(n_pairs: int, nuisance: float, seed: int) -> Sample:
    """A world with its own rotations, and pairs from it, scaled to a mean squared entry of 1.

    Smaller training sets of a seed are parts of larger ones; validation and test pairs are the
    same.

    Args:
        n_pairs: number of training pairs.
        nuisance: standard deviation of a modality's own factors; shared ones have 1.
        seed: of the rotations and pairs.

    Returns:
        The sample.

    Raises:
        ValueError: fewer than two pairs, or a nuisance scale that is not positive.
    """
    if n_pairs < 2 or not nuisance > 0:
        got = f"{n_pairs} pairs and nuisance scale {nuisance}"
        raise ValueError(f"a sample takes two pairs or more and a positive scale, got {got}")
    world = gaussian_world([_CORRELATION] * _N_SHARED, _N_OWN, _N_OWN, seed)
    scales = torch.cat([torch.ones(_N_SHARED), torch.full((_N_OWN,), nuisance)]).double()
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


def exact_nats(
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
    turned = replace(
        world,
        covariance=world.covariance[world.text + world.image][:, world.text + world.image],
        mix_image=world.mix_text,
        mix_text=world.mix_image,
    )
    sides = [
        linear_encoder_nats(world, image.T, noise_variance),
        linear_encoder_nats(turned, text.T, noise_variance),
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


def recall(embeddings: Float[Tensor, "2 n d"]) -> float:
    """Recall at 1 in both directions, the mean over galleries of 1,000 pairs; ties are misses."""
    hits = []
    for images, texts in zip(*(side.split(_N_GALLERY) for side in embeddings), strict=True):
        similarity = images @ texts.T
        own = similarity.diagonal().clone()
        similarity.fill_diagonal_(-2.0)
        hits += [own > similarity.amax(dim) for dim in (0, 1)]
    return torch.cat(hits).float().mean().item()


def closed_form(sample: Sample, trial: Trial) -> Float[Tensor, "2 p d"]:
    """The maps of ridge CCA of the training pairs, z = x @ map.

    Args:
        sample: whose training pairs, which have mean zero in the world, are centred anyway.
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


def fit(samples: Sequence[Sample], method: str, trials: Sequence[Trial], cca: Trial) -> Trained:
    """Fits every trial of a method on every sample, see `cibr_book.worlds.training.train`.

    AdamW with PyTorch's one-cycle rate; batches of 128 pairs, or all pairs if they are fewer. The
    checkpoint kept is the best on validation of five in the course of a run.

    Args:
        samples: with equally many training pairs.
        method: of `METHODS`.
        trials: hyper-parameters, all with equally many `steps`.
        cca: those of ridge CCA, at which the `CLIP, CCA start` begins.
    """
    seeds = [sample.seed for sample in samples]
    validate = partial(_recalls, pairs=[sample.validation for sample in samples])
    if method == "ridge CCA":
        maps = _maps(samples, trials, max(int(trial["dim"]) for trial in trials))
        weights = [[side] for side in maps]
        return Trained(weights, validate(weights))
    if method == "CLIP, CCA start":
        maps = _maps(samples, [cca | {"dim": min(cca["dim"], _DIM)}], _DIM)
        n_inputs = maps.shape[-2]
        first = maps / (maps.square().mean((3, 4), keepdim=True).sqrt() * n_inputs**0.5)
    else:
        size = 2, 1, samples[0].train.shape[2], _DIM
        drawn = [torch.randn(size, generator=torch.Generator().manual_seed(s)) for s in seeds]
        first = torch.stack(drawn, 2) / size[2] ** 0.5
    complete = [_DEFAULTS | trial for trial in trials]
    n_steps = int(complete[0]["steps"])
    pairs = torch.stack([sample.train for sample in samples], 1)  # [2, samples, n, p]
    rows = torch.stack([_batches(sample, n_steps) for sample in samples], 1)
    each = torch.arange(len(samples))[:, None]

    def batch(step: int) -> Pair:
        return tuple(pairs[:, None, each, rows[step]])

    settings = [_settings(trial) for trial in complete]
    options = dict(one_cycle=True, validate=validate)
    return train([[side] for side in first], batch, settings, seeds, n_steps, **options)


def _recalls(weights: Weights, pairs: Sequence[Sides]) -> Float[Tensor, "trials samples"]:
    means = embed(weights, tuple(torch.stack(list(pairs), 1)[:, None]))
    by_trial = means.transpose(0, 1)
    return torch.tensor([[recall(each) for each in run.unbind(1)] for run in by_trial])


def _maps(
    samples: Sequence[Sample], trials: Sequence[Trial], width: int
) -> Float[Tensor, "2 trials samples p width"]:
    """Closed forms, padded with zeros."""
    by_trial = []
    for trial in trials:
        maps = torch.stack([closed_form(sample, trial) for sample in samples], 1)
        by_trial.append(F.pad(maps, (0, width - maps.shape[-1])))
    return torch.stack(by_trial, 1)


def _batches(sample: Sample, n_steps: int) -> Tensor:
    """The rows of each step, [n_steps, b]: every epoch is another order of the pairs."""
    n = sample.train.shape[1]
    size = min(_BATCH_SIZE, n)
    generator = torch.Generator().manual_seed(sample.seed)
    n_epochs = -(-n_steps // (n // size))
    orders = [torch.randperm(n, generator=generator) for _ in range(n_epochs)]
    return torch.cat([order[: n // size * size] for order in orders]).view(-1, size)[:n_steps]


def _settings(trial: Trial) -> Settings:
    named = {name: float(value) for name, value in trial.items() if name != "steps"}
    return Settings(**named, sampled=math.isfinite(trial.get("kappa", math.inf)))


@lru_cache(maxsize=32)
def tune(pairs: int, nuisance: float, method: str) -> list[tuple[float, Trial]]:
    """Trials of a method in a cell on draws that are not reported, with their validation recall,
    the best one first; a single one without recall where nothing is tuned.
    """
    if method == "CLIP, 4 x the steps":
        best = tune(pairs, nuisance, "CLIP")[0][1]
        return [(math.nan, best | {"steps": 4 * best["steps"]})]
    if not METHODS[method]:
        return [(math.nan, dict(_DEFAULTS))]
    samples = [draw_sample(pairs, nuisance, seed) for seed in _TUNING_SEEDS]
    cca = tune(pairs, nuisance, "ridge CCA")[0][1] if method == "CLIP, CCA start" else {}

    def evaluate(trials: list[Trial]) -> list[float]:
        """Mean validation recall; trials with equally many steps are trained together."""
        scores = [0.0] * len(trials)
        for steps in {trial.get("steps") for trial in trials}:
            alike = [i for i, trial in enumerate(trials) if trial.get("steps") == steps]
            for first in range(0, len(alike), _N_TOGETHER):
                together = alike[first : first + _N_TOGETHER]
                fitted = fit(samples, method, [trials[i] for i in together], cca)
                for i, score in zip(together, fitted.scores.mean(1).tolist(), strict=True):
                    scores[i] = score
        return scores

    further = {name: GRID[name] for name in _FURTHER.get(method, ())}
    return search({name: GRID[name] for name in METHODS[method]}, evaluate, further)


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
        method: of `METHODS`.
        trial: its hyper-parameters.
        cca: those of ridge CCA, for the CCA start.
        seeds: of the data and the training.

    Returns:
        One row a seed: `KEY`, `seed`; recall at 1 in per cent, `test_recall` and
        `validation_recall`; the exact information by noise variance, such as
        `shared_nats_at_0.01`; and the `settings`.
    """
    samples = [draw_sample(pairs, nuisance, seed) for seed in seeds]
    fitted = fit(samples, method, [trial], cca or {})
    (recalls,) = _recalls(fitted.weights, [sample.test for sample in samples])
    rows = []
    for j, sample in enumerate(samples):
        maps = torch.stack([side[-1][0, j] for side in fitted.weights])
        row = dict(zip([*KEY, "seed"], (pairs, nuisance, method, sample.seed), strict=True))
        row["test_recall"] = 100 * recalls[j].item()
        row["validation_recall"] = 100 * fitted.scores[0, j].item()
        for noise in _NOISES:
            nats = exact_nats(sample, maps, noise)
            row |= {f"{name}_at_{noise:g}": value for name, value in nats.items()}
        rows.append(row)
    return pd.DataFrame(rows).assign(settings=json.dumps(trial))


def gains(rows: pd.DataFrame, value: str = "test_recall") -> pd.DataFrame:
    """Differences from tuned CLIP, paired by seed.

    Args:
        rows: the map's table.
        value: the column to compare.

    Returns:
        A row for each cell and method but CLIP: `pairs, nuisance, method`, the mean of the
        difference with Student's 95 % interval, `mean, low, high`, over `n` seeds; and for
        contenders the `q_value` of Student's test, adjusted by Benjamini and Hochberg over all of
        them and all cells.
    """
    clip = rows.loc[rows["method"] == "CLIP", [*CELL, "seed", value]]
    pairs = rows[rows["method"] != "CLIP"].merge(clip, on=[*CELL, "seed"], suffixes=("", "_clip"))
    pairs["difference"] = pairs[value] - pairs[f"{value}_clip"]
    table = mean_intervals(pairs, KEY, "difference")
    differences = pairs.groupby(KEY, sort=False)["difference"]
    p_values = differences.agg(lambda x: stats.ttest_1samp(x, 0).pvalue if x.std() else math.nan)
    tested = table["method"].isin(CONTENDERS) & p_values.notna().to_numpy()
    adjusted = stats.false_discovery_control(p_values[tested.to_numpy()])
    table.loc[tested, "q_value"] = adjusted
    return table


def winners(table: pd.DataFrame) -> pd.DataFrame:
    """The best method of each cell: of the contenders that gain over CLIP significantly and by half
    a point, the simplest that is within half a point of the largest gain; CLIP if there is none.

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


def _cell_rows(pairs: int, nuisance: float) -> pd.DataFrame:
    cca = tune(pairs, nuisance, "ridge CCA")[0][1]
    parts = []
    for method in METHODS:
        trials = tune(pairs, nuisance, method)
        rows = method_rows(pairs, nuisance, method, trials[0][1], cca)
        parts.append(rows.assign(trials=len(trials)))
    return pd.concat(parts)


def make_map(file: Path, n_processes: int = 2) -> None:
    """Adds the rows of the cells that a table lacks, in processes of one thread each."""
    # What the processes read as they start: memory is kept, see Makefile.
    os.environ |= {f"MALLOC_{name}_THRESHOLD_": str(2**30) for name in ("TRIM", "MMAP")}
    about = provenance()
    versions = {"commit": about["commit"], "torch": about["versions"]["torch"]}
    table = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=CELL)
    done = set(table[CELL].itertuples(index=False, name=None))
    cells = [cell for cell in product(PAIRS, NUISANCES) if cell not in done]
    with parallel_config("loky", inner_max_num_threads=1):
        parallel = Parallel(n_processes, return_as="generator_unordered")
        for rows in parallel(delayed(_cell_rows)(*cell) for cell in cells):
            table = pd.concat([table, rows.round(3).assign(**versions)])
            write_atomically(file, lambda part, table=table: table.to_csv(part, index=False))


if __name__ == "__main__":
    import cibr_book.worlds.map

    # Of the import, so that other processes find what it defines.
    cibr_book.worlds.map.make_map(Path(sys.argv[1]))
