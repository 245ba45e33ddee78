"""When does a bottleneck pay? A map over the number of pairs and the scale of the nuisance.

`python -m cibr_book.between` tunes and trains every method in every cell of the world of
`between_world` and writes data/results/world_between.csv, one row a seed. A rerun adds only what is
missing. Methods are tuned cell by cell with equally many trials on draws of the data that are not
reported. Those that extend CLIP share its first trials, with their own knobs off, and continue from
the best of them, so that what differs between two methods is not the luck of a search.
"""

import argparse
import json
import math
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from time import process_time

import pandas as pd
from tqdm import tqdm

from cibr.utils import project_root, provenance, write_atomically
from cibr_book.between_training import Start, Trained, embed, fit_closed_form, start_at, train
from cibr_book.between_tuning import Ladder, Settings, Tuning
from cibr_book.between_world import Pairs, Sample, draw_sample, exact_nats, recall

TABLE = project_root() / "data" / "results" / "world_between.csv"
PAIRS = (64, 128, 256, 512, 1024, 2048, 4096)
NUISANCES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SEEDS = tuple(range(8))  # of the reported runs
TUNING_SEEDS = (100, 101, 102)
NOISES = (0.01, 0.1)  # variances at which information is reported
KEY = ["pairs", "nuisance", "tower", "method"]
_N_AT_RANDOM = 32
_N_AROUND = 16  # trials of a round around the best
_N_FURTHER = 24  # first trials with a method's further knobs
_N_TOGETHER = 8  # trials in one tensor program: more do not fit into the cache

# At a temperature of 16 the loss is linear in the cosines, so that higher ones change nothing, and
# at a rate of 1e-4 nothing is learned.
LADDERS = {
    "temperature": Ladder(
        (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 8, 16),
        (0.05, 3),
        high=True,
    ),
    "rate": Ladder(
        (1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2), (1e-3, 0.1), low=True
    ),
    "steps": Ladder((10, 30, 60, 125, 250, 500, 1000), (60, 250)),
    "decay": Ladder((0, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100), (0, 10), low=True),
    "dropout": Ladder((0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), (0, 0.7), low=True),
    "beta": Ladder((0, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30), (0.01, 3), low=True, off=0),
    "kappa": Ladder(
        (4, 8, 16, 32, 64, 128, 256, 512, math.inf), (16, 512), high=True, off=math.inf
    ),
    "ridge": Ladder((0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300), (0.01, 30)),
    "power": Ladder((0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6), (0, 2), low=True),
    "dim": Ladder((1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64), (4, 32), low=True, high=True),
}
_DEFAULTS = {"temperature": 0.07, "rate": 1e-3, "steps": 300, "decay": 0, "dropout": 0}
_DEFAULTS |= {"beta": 0, "kappa": math.inf}
_OF_CLIP = ("temperature", "rate", "steps", "decay", "dropout")


@dataclass(frozen=True)
class Method:
    """What is trained, and which of its knobs are tuned; the others keep their defaults.

    Args:
        knobs: names of the ladders of its first trials.
        further: those of the other trials, off in the first ones.
        hidden: whether its towers have a hidden layer.
        at_cca: whether its towers start at the cell's tuned CCA.
        longer: how many times as many steps it has as CLIP, whose settings it takes; 0 for settings
            of its own.
    """

    knobs: tuple[str, ...]
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
        name: of a method that has knobs.

    Returns:
        120 trials, or fewer for a method that has few settings.
    """
    method = METHODS[tower, name]
    first = _first_trials(cell, replace(method, further=()))
    tuning = first.with_knobs({knob: LADDERS[knob] for knob in method.further}, _N_FURTHER)
    for _ in range(2):
        tuning.try_around(_N_AROUND)
    return tuning


@lru_cache(maxsize=8)
def _first_trials(cell: Cell, method: Method) -> Tuning:
    samples = cell.samples(TUNING_SEEDS)
    start = _start(cell, samples) if method.at_cca else None

    def evaluate(trials: list[Settings]) -> list[float]:
        return _scores(method, samples, trials, start)

    tuning = Tuning({knob: LADDERS[knob] for knob in method.knobs}, evaluate)
    tuning.try_at_random(_N_AT_RANDOM)
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
    if not method.knobs:
        return {knob: _DEFAULTS[knob] for knob in _OF_CLIP}, None
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
    for places in by_steps.values():
        for first in range(0, len(places), _N_TOGETHER):
            together = places[first : first + _N_TOGETHER]
            fitted = _fit(method, samples, [trials[i] for i in together], start)
            for i, score in zip(together, fitted.validation.mean(1).tolist(), strict=True):
                scores[i] = score
    return scores


def _fit(
    method: Method, samples: Sequence[Sample], trials: Sequence[Settings], start: Start | None
) -> Trained:
    if "ridge" in method.knobs:
        return fit_closed_form(samples, trials)
    return train(samples, [_DEFAULTS | trial for trial in trials], method.hidden, start)


def method_rows(cell: Cell, tower: str, name: str) -> pd.DataFrame:
    """Tunes a method in a cell and runs it on the reported seeds.

    Args:
        cell: the number of pairs and the nuisance scale.
        tower: `linear` or `nonlinear`.
        name: of the method.

    Returns:
        One row a seed: `KEY`, `seed`; recall at 1 in per cent, `test_recall` and
        `validation_recall`; the exact information of linear towers, such as
        `shared_nats_at_0.01`, by noise variance; the chosen `settings`; the knobs on an edge,
        `edges`; the number of `trials`; and `seconds` of CPU time of the method in this cell.
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
        edges=" ".join(tuning.edges) if tuning else "",
        trials=len(tuning.scores) if tuning else 0,
        seconds=process_time() - begin,
    )


def _informations(sample: Sample, maps: Pairs) -> dict[str, float]:
    found = {}
    for noise in NOISES:
        nats = exact_nats(sample, maps, noise)
        found |= {f"{name}_at_{noise:g}": value for name, value in nats.items()}
    return found


def read_table(file: Path = TABLE) -> pd.DataFrame:
    """The rows of the map; none if there is no such file."""
    return pd.read_csv(file) if file.exists() else pd.DataFrame(columns=KEY)


def run(file: Path, cells: Sequence[Cell], n_processes: int = 2) -> None:
    """Adds the rows of cells that a table lacks, in processes of one thread each.

    Args:
        file: the table.
        cells: the cells.
        n_processes: how many cells are worked on at a time.
    """
    # What the processes read as they start: one thread, and memory that is kept, see Makefile.
    os.environ |= {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": str(2**30)}
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**30)}
    about = provenance()
    versions = {"commit": about["commit"], "torch": about["versions"]["torch"]}
    table = read_table(file)
    tasks = lacking(table, cells)
    with multiprocessing.get_context("spawn").Pool(n_processes) as pool:
        for rows in tqdm(pool.imap_unordered(_rows_of, tasks), total=len(tasks), smoothing=0):
            table = pd.concat([table, rows.round(3).assign(**versions)])
            write_atomically(file, lambda part, table=table: table.to_csv(part, index=False))


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
    parser = argparse.ArgumentParser(prog="python -m cibr_book.between", description=main.__doc__)
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS, help="training pairs")
    parser.add_argument("--nuisances", type=float, nargs="+", default=NUISANCES, help="scales")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--table", type=Path, default=TABLE, help="where the rows are written")
    options = parser.parse_args()
    cells = [Cell(*place) for place in product(options.pairs, options.nuisances)]
    run(options.table, cells, options.processes)


if __name__ == "__main__":
    main()
