"""When does a bottleneck pay? A map over the number of pairs and the scale of the nuisance.

`python -m cibr_book.worlds.between` tunes and trains every method in every cell of the world of
`between_world` and writes data/results/world_between.csv, one row a seed. A rerun adds only what is
missing. Methods are tuned cell by cell with equally many trials on draws of the data that are not
reported. Those that extend CLIP share its first trials, with their own hyper-parameters off, and
continue from the best of them, so that two methods do not differ by the luck of a search.

With `--place` it writes data/results/between_place.csv: where glyphs and photos lie on the map.
"""

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from time import process_time

import pandas as pd
from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from cibr.utils import project_root, provenance, write_atomically
from cibr_book.worlds.between_training import (
    DIM,
    Start,
    Trained,
    embed,
    fit_closed_form,
    start_at,
    train,
)
from cibr_book.worlds.between_tuning import Range, Settings, Tuning
from cibr_book.worlds.between_world import Pairs, Sample, draw_sample, exact_nats, recall

TABLE = project_root() / "data" / "results" / "world_between.csv"
PLACES = TABLE.with_name("between_place.csv")
PAIRS = (64, 128, 256, 512, 1024, 2048, 4096)
NUISANCES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SEEDS = tuple(range(8))  # of the reported runs
TUNING_SEEDS = (100, 101, 102)
NOISES = (0.01, 0.1)  # variances at which information is reported
KEY = ["pairs", "nuisance", "tower", "method"]
_N_AT_RANDOM = 32
_N_AROUND = 16  # trials of a round around the best
_N_FURTHER = 24  # first trials with a method's further hyper-parameters
_AT_CHANCE = 0.005  # validation recall below which a method has learned nothing
_LONG = {"steps": 1000, "dropout": 0}  # of further trials where it has not, but the closed form has
_N_TOGETHER = 8  # trials in one tensor program: more do not fit into the cache

# At a temperature of 16 the loss is linear in the cosines, so that higher ones change nothing; at a
# rate of 1e-4 or in 10 steps nothing is learned; a dropout of 0.9 leaves six inputs of 64; and a
# ridge of 1e-4 is far below every shared variance.
RANGES = {
    "temperature": Range(
        (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 8, 16),
        (0.05, 3),
        high=True,
    ),
    "rate": Range(
        (1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
        (1e-3, 0.1),
        reach=2,
        low=True,
    ),
    "steps": Range(
        (10, 30, 60, 125, 250, 500, 1000, 2000, 4000, 8000), (60, 250), reach=1000, low=True
    ),
    "decay": Range((0, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100), (0, 10), low=True),
    "dropout": Range(
        (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), (0, 0.7), low=True, high=True
    ),
    "beta": Range((0, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30), (0.01, 3), low=True, off=0),
    "kappa": Range((4, 8, 16, 32, 64, 128, 256, 512, math.inf), (16, 512), high=True, off=math.inf),
    "width": Range((1, 2, 3, 4, 6, 8, 10, 12, DIM), (4, 12), low=True, high=True, off=DIM),
    "ridge": Range(
        (1e-4, 3e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
        (0.01, 30),
        low=True,
    ),
    "power": Range((0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6), (0, 2), low=True),
    "dim": Range((1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64), (4, 32), low=True, high=True),
}
DEFAULTS = {"temperature": 0.07, "rate": 1e-3, "steps": 300, "decay": 0, "dropout": 0}
DEFAULTS |= {"beta": 0, "kappa": math.inf, "width": DIM}
_OF_CLIP = ("temperature", "rate", "steps", "decay", "dropout")


@dataclass(frozen=True)
class Method:
    """What is trained, and which hyper-parameters are tuned; the others keep their defaults.

    Args:
        tuned: names of the hyper-parameters of its first trials.
        further: those of the other trials, off in the first ones.
        hidden: whether its towers have a hidden layer.
        at_cca: whether its towers start at the cell's tuned CCA.
        longer: how many times as many steps it has as CLIP, whose settings it takes; 0 for settings
            of its own.
    """

    tuned: tuple[str, ...]
    further: tuple[str, ...] = ()
    hidden: bool = False
    at_cca: bool = False
    longer: int = 0


CCA = ("linear", "ridge CCA")
METHODS = {
    CCA: Method(("ridge", "power", "dim")),
    ("linear", "CLIP, untuned"): Method(()),
    ("linear", "CLIP, rate and steps"): Method(("rate", "steps")),
    ("linear", "CLIP"): Method(_OF_CLIP),
    ("linear", "CLIP, 4 x the steps"): Method((), longer=4),
    ("linear", "CLIP, width"): Method(_OF_CLIP, ("width",)),
    ("linear", "CLIP, CCA start"): Method(_OF_CLIP, at_cca=True),
    ("linear", "noise only"): Method(_OF_CLIP, ("kappa",)),
    ("linear", "CIBR vMF"): Method(_OF_CLIP, ("beta",)),
    ("linear", "CIBR vMF, sampled"): Method(_OF_CLIP, ("beta", "kappa")),
    ("nonlinear", "CLIP"): Method(_OF_CLIP, hidden=True),
    ("nonlinear", "CIBR vMF"): Method(_OF_CLIP, ("beta",), hidden=True),
}
TOWERS = tuple(dict.fromkeys(tower for tower, _ in METHODS))


@dataclass(frozen=True)
class Cell:
    """A cell of the map.

    Args:
        pairs: number of training pairs.
        nuisance: scale of the modalities' own factors.
    """

    pairs: int
    nuisance: float

    def samples(self, seeds: Sequence[int]) -> list[Sample]:
        """A draw of the data for each seed."""
        return [draw_sample(self.pairs, self.nuisance, seed) for seed in seeds]


@lru_cache(maxsize=32)
def tune(cell: Cell, tower: str, name: str) -> Tuning:
    """Tunes a method in a cell on draws that are not reported.

    Args:
        cell: the number of pairs and the nuisance scale.
        tower: `linear` or `nonlinear`.
        name: of a method that is tuned.

    Returns:
        120 trials; fewer where all settings near the best have been tried; more where the best is
        on a boundary, and up to 64 more of towers that are at chance in the first 64, in a cell in
        which the closed form is not.
    """
    method = METHODS[tower, name]
    first = _first_trials(cell, replace(method, further=()))
    tuning = first.with_further({name: RANGES[name] for name in method.further}, _N_FURTHER)
    for _ in range(2):
        tuning.try_around(_N_AROUND)
    tuning.leave_boundary()
    return tuning


@lru_cache(maxsize=8)
def _first_trials(cell: Cell, method: Method) -> Tuning:
    samples = cell.samples(TUNING_SEEDS)
    start = _start(cell, samples) if method.at_cca else None

    def evaluate(trials: list[Settings]) -> list[float]:
        return _scores(method, samples, trials, start)

    tuning = Tuning({name: RANGES[name] for name in method.tuned}, evaluate)
    tuning.try_at_random(_N_AT_RANDOM)
    for _ in range(2):
        tuning.try_around(_N_AROUND)
    # All at chance there is no best to look around, so a search that has missed it starts again.
    trains = "steps" in method.tuned
    if trains and tuning.best_score < _AT_CHANCE <= tune(cell, *CCA).best_score:
        tuning.try_at_random(_N_AT_RANDOM, _LONG)
        if tuning.best_score >= _AT_CHANCE:
            for _ in range(2):
                tuning.try_around(_N_AROUND)
    return tuning


def _start(cell: Cell, samples: Sequence[Sample]) -> Start:
    return start_at(samples, tune(cell, *CCA).best)


def chosen(cell: Cell, tower: str, name: str) -> tuple[Settings, Tuning | None]:
    """The settings of a method in a cell, and the trials that chose them."""
    method = METHODS[tower, name]
    if method.longer:
        settings = dict(tune(cell, tower, "CLIP").best)
        settings["steps"] *= method.longer
        return settings, None
    if not method.tuned:
        return {name: DEFAULTS[name] for name in _OF_CLIP}, None
    tuning = tune(cell, tower, name)
    return tuning.best, tuning


def _scores(
    method: Method, samples: Sequence[Sample], trials: list[Settings], start: Start | None
) -> list[float]:
    """Mean validation recall of trials; those with equally many steps are trained together."""
    by_steps: dict[float, list[int]] = {}
    for i, trial in enumerate(trials):
        by_steps.setdefault(trial.get("steps", 0), []).append(i)
    scores = [0.0] * len(trials)
    for alike in by_steps.values():
        for first in range(0, len(alike), _N_TOGETHER):
            together = alike[first : first + _N_TOGETHER]
            fitted = _fit(method, samples, [trials[i] for i in together], start)
            for i, score in zip(together, fitted.validation.mean(1).tolist(), strict=True):
                scores[i] = score
    return scores


def _fit(
    method: Method, samples: Sequence[Sample], trials: Sequence[Settings], start: Start | None
) -> Trained:
    if "ridge" in method.tuned:
        return fit_closed_form(samples, trials)
    return train(samples, [DEFAULTS | trial for trial in trials], method.hidden, start)


def method_rows(cell: Cell, tower: str, name: str) -> pd.DataFrame:
    """Tunes a method in a cell and runs it on the reported seeds.

    Args:
        cell: the number of pairs and the nuisance scale.
        tower: `linear` or `nonlinear`.
        name: of the method.

    Returns:
        One row a seed: `KEY`, `seed`; recall at 1 in per cent, `test_recall` and
        `validation_recall`; the exact information of linear towers, such as
        `shared_nats_at_0.01`, by noise variance; the chosen `settings`; the hyper-parameters on a
        boundary, `at_boundary`; the number of `trials`; and `seconds` of CPU time of the method.
    """
    begin = process_time()
    method = METHODS[tower, name]
    settings, tuning = chosen(cell, tower, name)
    samples = cell.samples(SEEDS)
    start = _start(cell, samples) if method.at_cca else None
    fitted = _fit(method, samples, [settings], start)
    rows = []
    for i, sample in enumerate(samples):
        row = dict(zip(KEY, (cell.pairs, cell.nuisance, tower, name), strict=True))
        row["seed"] = sample.seed
        layers = [layer[:, 0, i] for layer in fitted.weights]
        row["test_recall"] = 100 * recall(embed(layers, sample.test))
        row["validation_recall"] = 100 * fitted.validation[0, i].item()
        if len(layers) == 1:
            row |= _informations(sample, layers[0])
        rows.append(row)
    return pd.DataFrame(rows).assign(
        settings=json.dumps(settings),
        at_boundary=" ".join(tuning.at_boundary) if tuning else "",
        trials=len(tuning.scores) if tuning else 0,
        seconds=process_time() - begin,
    )


def _informations(sample: Sample, maps: Pairs) -> dict[str, float]:
    found = {}
    for noise in NOISES:
        nats = exact_nats(sample, maps, noise)
        found |= {f"{name}_at_{noise:g}": value for name, value in nats.items()}
    return found


def run(file: Path, cells: Sequence[Cell], n_processes: int = 2) -> None:
    """Adds the rows of cells that a table lacks, in processes of one thread each.

    Args:
        file: the table.
        cells: the cells.
        n_processes: how many cells are worked on at a time.
    """
    # What the processes read as they start: memory is kept, see Makefile.
    os.environ |= {f"MALLOC_{name}_THRESHOLD_": str(2**30) for name in ("TRIM", "MMAP")}
    versions = _versions()
    table = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=KEY)
    tasks = lacking(table, cells)
    with parallel_config("loky", inner_max_num_threads=1):
        parallel = Parallel(n_processes, return_as="generator_unordered")
        made = parallel(delayed(_rows_of)(task) for task in tasks)
        for rows in tqdm(made, total=len(tasks), smoothing=0):
            table = pd.concat([table, rows.round(3).assign(**versions)])
            write_atomically(file, lambda part, table=table: table.to_csv(part, index=False))


def _versions() -> dict[str, str | None]:
    about = provenance()
    return {"commit": about["commit"], "torch": about["versions"]["torch"]}


Task = tuple[Cell, list[tuple[str, str]]]


def lacking(table: pd.DataFrame, cells: Sequence[Cell]) -> list[Task]:
    """The methods that each cell lacks, those of a tower together, as they share trials."""
    done = set(table[KEY].itertuples(index=False, name=None))
    tasks = []
    for cell, tower in product(cells, TOWERS):
        keys = [key for key in METHODS if key[0] == tower]
        keys = [key for key in keys if (cell.pairs, cell.nuisance, *key) not in done]
        if keys:
            tasks.append((cell, keys))
    return tasks


def _rows_of(task: Task) -> pd.DataFrame:
    cell, keys = task
    return pd.concat([method_rows(cell, *key) for key in keys])


def main() -> None:
    """Tune and train every method in every cell; a rerun adds what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m cibr_book.worlds.between", description=main.__doc__
    )
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS, help="training pairs")
    parser.add_argument("--nuisances", type=float, nargs="+", default=NUISANCES, help="scales")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--table", type=Path, default=TABLE, help="where the rows are written")
    parser.add_argument("--place", action="store_true", help="place glyphs and photos instead")
    options = parser.parse_args()
    if options.place:
        from cibr_book.worlds.between_place import places

        places().assign(**_versions()).to_csv(PLACES, index=False)
        return
    cells = [Cell(*place) for place in product(options.pairs, options.nuisances)]
    run(options.table, cells, options.processes)


if __name__ == "__main__":
    from cibr_book.worlds import between

    between.main()  # of the import, so that other processes find what it defines
