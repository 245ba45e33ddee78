"""A run and its twin at beta = 0: what one run of the penalty changes, and whether that is chance.

Twins share the photos, the seed and so every batch and every dropout mask; they differ in beta
alone. A difference between them has two sources of chance. Other photos would have been found: its
95 % interval over photos. Another draw of training photos and another seed would have led
elsewhere: how the same difference spreads over 16 seeds, stored in `twins.csv` for the default run
of book/train.ipynb. What one run found is called more than chance only if it is beyond both.

`python -m cibr_book.experiments.twins` measures the 16 seeds again, in two to three minutes.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats

import cibr
from cibr.data import Pairs, load_pairs
from cibr.evaluate import SUITES, Evaluation, evaluate, evaluate_pairs
from cibr.metrics import paired_difference
from cibr.models import DualEncoder
from cibr.models.inputs import embed_pairs, prepare
from cibr.train import RunConfig
from cibr.train.config import PRESETS, preset_for
from cibr.utils import check_number, digest, project_root
from cibr_book.experiments.tables import RESULTS

SPREAD = "twins.csv"
SEEDS = range(1, 17)
N_PHOTOS = 600  # of the book's 3,000, unless a number is given
BETA = 0.05
CHANCE = "no more than chance"
MORE = "more than chance"
ONE_SEED = "one seed: we cannot tell"
TITLES = {"photos": "Flickr8k", "photos-coco": "MSCOCO"}
BENCHMARK = {  # parameters of book/benchmarks.ipynb, whose differences over eight seeds are stored
    "beta": BETA,
    "n_photos": N_PHOTOS,
    "n_seeds": 1,
    "first_seed": 0,
    "epochs": None,
    "batch_size": None,
    "learning_rate": None,
    "temperature": None,
    "models": "",
    "suite": "photos",
    "differences": "",
}
Point = tuple[str, float]  # a penalty and its beta
Run = tuple[str, float, int]  # and a seed
_NOT_COMPARED = ("seed", "output_dir")  # the spread is over seeds


class Twins(NamedTuple):
    """The configurations of a run and of its twin.

    Args:
        config: of the run.
        clip_config: of the same run at beta = 0.
        n_photos: that both train on.
    """

    config: RunConfig
    clip_config: RunConfig
    n_photos: int

    @property
    def is_default(self) -> bool:
        """Whether the run differs from the default one in its seed alone, as those of the stored
        spread do.
        """
        default = plan(dataset="photos", model="names", n_photos=N_PHOTOS, beta=BETA)
        ours, theirs = asdict(self.config), asdict(default.config)
        is_alike = all(ours[name] == theirs[name] for name in ours if name not in _NOT_COMPARED)
        return is_alike and self.n_photos == N_PHOTOS


def plan(n_photos: int, beta: float, output_dir: str | None = None, **settings: Any) -> Twins:
    """The configurations of a run without CCA and of its twin, with the preset for its number of
    photos.

    Args:
        n_photos: to train on.
        beta: of the run; the twin's is 0.
        output_dir: a folder for both models, each in one of its own; by default one under `runs/`,
            named after the settings.
        settings: of `cibr.configure`, `dataset` and `model` among them.
    """
    has_presets = settings["model"] in PRESETS
    if has_presets:
        settings |= {"preset": preset_for(n_photos), "cca": False}
    folder = Path(output_dir) if output_dir else _default_folder(n_photos, beta, settings)
    config = cibr.configure(beta=beta, output_dir=str(folder / f"beta-{beta:g}"), **settings)
    settings |= {"penalty": "vmf"}  # at 0 all are CLIP, and this one trains nothing of its own
    clip_config = cibr.configure(beta=0.0, output_dir=str(folder / "beta-0"), **settings)
    return Twins(config, config if beta == 0 else clip_config, n_photos)


def _default_folder(n_photos: int, beta: float, settings: dict[str, Any]) -> Path:
    given = {name: value for name, value in settings.items() if value is not None}
    name = f"twins-{digest(repr((n_photos, beta, sorted(given.items()))))[:8]}"
    return Path(os.environ.get("CIBR_RUNS") or project_root() / "runs") / name


def photos_to_train(n_photos: int | None, train: Pairs) -> int:
    """The number of photos to train on: as given, or by default `N_PHOTOS` of the book's, and all
    of others.

    Raises:
        ValueError: fewer than ten, or more than there are.
    """
    if n_photos is None:
        return N_PHOTOS if train.name == "photos" else len(train)
    return int(check_number("n_photos", n_photos, 10, len(train), whole=True))


def drawn(pairs: Pairs, n_photos: int, seed: int) -> Pairs:
    """A draw of photos, all of them if there are no more."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(pairs), generator=generator)[:n_photos]
    return pairs.subset(rows.sort().values)


def evaluations(model: DualEncoder, test: Pairs, name: str) -> list[Evaluation]:
    """A model's scores: on the photos that come with the book, if it has their features, else on
    its own test pairs.

    Args:
        model: the encoders.
        test: of the data set that it was trained on.
        name: of the model.
    """
    if test.name == "photos":
        return [evaluate(model, SUITES["photos"], name=name)]
    own = [evaluate_pairs(model, test, name)]
    features = load_pairs("photos-coco", "test").features
    if model.towers.is_frozen and model.towers.names == features.towers:
        own.append(evaluate(model, SUITES["photos"], name=name))
    return own


def geometry(model: DualEncoder, test: Pairs) -> dict[str, float]:
    """How far test pairs are apart, and how far the means of both modalities are.

    Args:
        model: the encoders.
        test: pairs, with one text or several an image.

    Returns:
        `1 - cos`, its mean over pairs, and `gap`, the distance of the mean embeddings of the images
        and of the texts of the pairs.
    """
    images, texts = embed_pairs(model, prepare(model, test))
    images = images[test.text_to_image()]
    distance = 1 - (images * texts).sum(1).mean()
    gap = (images.mean(0) - texts.mean(0)).norm()
    return {"1 - cos": distance.item(), "gap": gap.item()}


def headline(evaluations: list[Evaluation]) -> dict[str, np.ndarray]:
    """The measures of a model by name, one number an item, whose mean is the score.

    They are zero-shot accuracy, the mean of the seven sets, and of each set of captions *search*
    (by text) and *text retrieval* (by image), the means of recall@1, 5 and 10.

    Args:
        evaluations: of one model, see `evaluations`.
    """
    found: dict[str, list[np.ndarray]] = {}
    for of in evaluations:
        for (title, kind, metric), values in of.scores.items():
            if kind == "zero-shot" and title.startswith("mean of") and metric == "accuracy@1":
                found["zero-shot accuracy"] = [values]
            elif kind == "retrieval":
                way = "search" if metric.startswith("text") else "text retrieval"
                name = f"{way} on {TITLES.get(title, title)}"
                found.setdefault(name, []).append(values)
    order = sorted(found, key=lambda name: (name.rpartition(" on ")[2], name))
    return {name: np.mean(found[name], axis=0) for name in order}


def findings(
    clip: list[Evaluation], cibr_: list[Evaluation], spread: pd.DataFrame | None
) -> pd.DataFrame:
    """What the penalty changed in one run, in points, by measure.

    Args:
        clip: evaluations of the twin at beta = 0.
        cibr_: of the run.
        spread: rows of `twins.csv`, if the run is of the kind that it holds; else None.

    Returns:
        A row for each of `headline`: `clip` and `cibr`, in per cent; `change`, with `low` and
        `high`, its 95 % interval over photos; `seeds_low` and `seeds_high`, between which 19 of 20
        further runs with other seeds change it, NaN without a spread; and the `verdict`.
    """
    before = headline(clip)
    after = headline(cibr_)
    rows = []
    for name, values in after.items():
        change, low, high = paired_difference(100 * before[name][None], 100 * values[None])
        seeds = (np.nan, np.nan)
        if spread is not None:
            seeds = seed_range(spread.loc[spread["measure"] == name, "difference"])
        rows.append(
            {
                "measure": name,
                "clip": 100 * before[name].mean(),
                "cibr": 100 * values.mean(),
                "change": change,
                "low": low,
                "high": high,
                "seeds_low": seeds[0],
                "seeds_high": seeds[1],
                "verdict": verdict((low, high), None if spread is None else seeds),
            }
        )
    return pd.DataFrame(rows).set_index("measure")


def changes(
    scores: Mapping[Run, dict[str, np.ndarray]], points: Sequence[Point], seeds: Iterable[int]
) -> pd.DataFrame:
    """Differences from CLIP, each seed against itself, with intervals over photos and seeds.

    Args:
        scores: of `headline`, by penalty, beta and seed.
        points: penalties with betas; the first is CLIP.
        seeds: of the runs.

    Returns:
        In points: `measure, penalty, beta, mean, low, high`, for every point but the first.
    """
    clip, *others = points
    rows = []
    for measure in next(iter(scores.values())):
        before = np.stack([100 * scores[*clip, seed][measure] for seed in seeds])
        for penalty, beta in others:
            after = np.stack([100 * scores[penalty, beta, seed][measure] for seed in seeds])
            mean, low, high = paired_difference(before, after)
            rows.append((measure, penalty, beta, mean, low, high))
    return pd.DataFrame(rows, columns=["measure", "penalty", "beta", "mean", "low", "high"])


def compared(results: Mapping[str, list[Evaluation]], first: str) -> pd.DataFrame:
    """Differences of models from one of them, with intervals over items and seeds.

    Args:
        results: of each model, an evaluation a seed, in the same order.
        first: the model that the others are compared with.

    Returns:
        In points: `model, measure, mean, low, high`.
    """
    before = [headline([each]) for each in results[first]]
    rows = []
    for model, evaluations_of in results.items():
        after = [headline([each]) for each in evaluations_of]
        for measure in before[0] if model != first else ():
            one = np.stack([100 * each[measure] for each in before])
            other = np.stack([100 * each[measure] for each in after])
            mean, low, high = paired_difference(one, other)
            rows.append((model, measure, mean, low, high))
    return pd.DataFrame(rows, columns=["model", "measure", "mean", "low", "high"])


def changes_by_seed(
    values: Mapping[Run, Mapping[str, float]], clip: Point, others: Sequence[Point]
) -> pd.DataFrame:
    """Differences from CLIP of each seed: `measure, penalty, beta, seed, change`.

    Args:
        values: of each run by name.
        clip: the point that others are compared with.
        others: the other points.
    """
    rows = []
    for (penalty, beta, seed), of_run in values.items():
        if (penalty, beta) in others:
            for measure, value in of_run.items():
                change = value - values[*clip, seed][measure]
                rows.append((measure, penalty, beta, seed, change))
    return pd.DataFrame(rows, columns=["measure", "penalty", "beta", "seed", "change"])


def seed_range(differences: pd.Series) -> tuple[float, float]:
    """Between which 19 of 20 further runs differ, if differences are normal: Student's prediction
    interval.
    """
    n = len(differences)
    half_width = stats.t.ppf(0.975, n - 1) * differences.std() * (1 + 1 / n) ** 0.5
    return differences.mean() - half_width, differences.mean() + half_width


def verdict(photos: tuple[float, float], seeds: tuple[float, float] | None) -> str:
    """Whether a difference is more than chance: only if both intervals are on one side of 0.

    Args:
        photos: its 95 % interval over photos.
        seeds: see `seed_range`; None if this kind of run was not repeated.
    """
    if photos == (0, 0):
        return "no change"
    if seeds is None:
        return ONE_SEED
    is_gain = min(*photos, *seeds) > 0
    is_loss = max(*photos, *seeds) < 0
    return MORE if is_gain or is_loss else CHANCE


def spread_of(twins: Twins) -> pd.DataFrame | None:
    """The stored differences over 16 seeds, if they are of runs of this kind."""
    return pd.read_csv(RESULTS / SPREAD) if twins.is_default else None


def measure_spread(seeds: Iterable[int] = SEEDS) -> pd.DataFrame:
    """Twins of the default run for each seed: `seed, measure, clip, cibr, difference`, in per cent
    and points; those of `geometry` have their own units.
    """
    rows = []
    for seed in seeds:
        with TemporaryDirectory() as folder:
            settings = dict(dataset="photos", model="names", seed=seed)
            twins = plan(N_PHOTOS, BETA, output_dir=folder, **settings)
            train, _, test = cibr.load_splits(twins.config)
            pairs = drawn(train, N_PHOTOS, seed)
            clip = _measured(twins.clip_config, pairs, test)
            ours = _measured(twins.config, pairs, test)
        for measure, value in clip.items():
            row = {"seed": seed, "measure": measure, "clip": value, "cibr": ours[measure]}
            rows.append(row | {"difference": ours[measure] - value})
    return pd.DataFrame(rows)


def _measured(config: RunConfig, pairs: Pairs, test: Pairs) -> dict[str, float]:
    model = cibr.build_model(config, pairs)
    cibr.fit(model, pairs, None, config)
    scores = headline(evaluations(model, test, f"beta {config.beta:g}"))
    return {name: 100 * values.mean() for name, values in scores.items()} | geometry(model, test)


if __name__ == "__main__":
    measure_spread().to_csv(RESULTS / SPREAD, index=False, float_format="%.5g")
