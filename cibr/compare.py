"""Which recipe works on one's own pairs: heads over frozen towers, tuned alike and compared.

Every recipe is tuned on validation with the same number of trials. Its best trial is repeated with
several seeds and compared with CLIP heads on held-out images, paired by image and seed. Towers run
once and trained heads are kept: a killed comparison resumes, and a new one with the same folder and
pairs repeats nothing.
"""

import random
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from cibr._report import SEARCH, report
from cibr.data import Pairs, available_splits, load_pairs, sizes
from cibr.data.pairs import joined
from cibr.metrics import paired_difference, query_ranks, retrieval_recalls
from cibr.metrics.intervals import cluster_values
from cibr.metrics.retrieval import recall_items
from cibr.models import DualEncoder
from cibr.models.features import Inputs, embed_pairs, prepare, read_tensors
from cibr.train import WeightAverage, build_model, configure, load_splits
from cibr.train._callbacks import Bar
from cibr.train.self_training import with_pseudo_inputs
from cibr.train.trainer import CIBRTrainer, fit_cca, start_heads
from cibr.utils import check_known, check_number, digest, save_table, write_atomically

_LEAST = 50  # images for the comparison, and for validation
_DECAY = 0.95  # of averaged weights, per step
# Values of each setting; the first trial has the first of each.
_GRID = {
    "learning_rate": (0.004, 0.002, 0.008),
    "epochs": (80, 40, 160),
    "temperature": (0.05, 0.03, 0.08),
    "weight_decay": (1.0, 0.3, 3.0),
    "dropout": (0.6, 0.5, 0.7),
    "batch_size": (512, 256, 1024),
}
_START = _GRID | {
    "cca_ridges": tuple((x, y) for x in (10.0, 3.0, 30.0) for y in (1.0, 0.3, 3.0)),
    "learning_rate": (1e-4, 3e-5, 3e-4),
    "epochs": (20, 10, 40),
    "weight_decay": (0.3, 0.1, 1.0),
    "dropout": (0.4, 0.3, 0.6),
}
# Beside CLIP, and with many pairs, CCA is better with less of a ridge for the texts.
_RIDGES = tuple((x, y) for x in (10.0, 3.0, 30.0) for y in (1.0, 0.1, 0.3, 3.0))
_MARK = Path("heads", "of_cibr_compare")  # a folder with this file is a comparison's
_Values = dict[str, Float[np.ndarray, " n"]]


class Recipe(NamedTuple):
    """How heads are made.

    Args:
        about: in words.
        grid: values of `cibr.configure` settings; trials are drawn from them. Without `epochs` the
            heads are the CCA itself.
        averaged: whether the average of the weights over the steps is used.
        joined: instead of a grid, names of other recipes whose scores are summed; a repeated name
            uses two seeds.
    """

    about: str
    grid: Mapping[str, tuple]
    averaged: bool = False
    joined: tuple[str, ...] = ()


RECIPES = {  # the simplest first
    "CCA": Recipe("closed-form CCA, nothing is trained", {"cca_ridges": _RIDGES}),
    "CLIP": Recipe("heads trained with CLIP's loss", _GRID),
    "CLIP-averaged": Recipe("the average of their weights over the steps", _GRID, averaged=True),
    "CCA-start": Recipe("CLIP's loss, from the CCA", _START),
    "CCA-anchor": Recipe(
        "the same, held near the CCA",
        _START | {"penalty": ("anchor",), "kappa_e": (8192.0,), "beta": (0.3, 0.1, 1.0)},
    ),
    "self-training": Recipe(
        "the same as CCA-start, with unpaired images and texts that the CCA pairs",
        _START | {"learning_rate": (3e-4, 1e-4, 1e-3), "repeats": (3, 1, 10)},
    ),
    "CLIP+CCA": Recipe("summed scores of both; CCA is tuned anew", {}, joined=("CLIP", "CCA")),
    "CLIP+CLIP": Recipe("summed scores of two trainings", {}, joined=("CLIP", "CLIP")),
}
_WAYS = {SEARCH: "searching images by text", "image_to_text_mean": "finding texts for images"}


class Comparison(NamedTuple):
    """What `compare_recipes` found.

    Args:
        table: one row per recipe and recall: `recipe, metric, value`, its `difference` from that of
            CLIP heads with a 95 % interval `low, high` over images and seeds, in [0, 1], and
            `at_end`, the settings whose best value ends their range.
        winners: the recipe with the highest recall, of equals the simplest, by
            `text_to_image_mean` and `image_to_text_mean`.
        advice: the same in words, and the simplest that is not detectably worse.
    """

    table: pd.DataFrame
    winners: dict[str, str]
    advice: str


class _Entry(NamedTuple):
    """A recipe compared: values of every seed, the first seed's model, settings at an end."""

    values: list[_Values]
    model: DualEncoder
    at_end: str


class FeatureTrainer(CIBRTrainer):
    """A trainer on given features; it shows and saves nothing.

    Args:
        given: `Inputs` of training and, to validate, of validation.
        of_trainer: of `CIBRTrainer`.
    """

    def __init__(self, *of_trainer: Any, given: Sequence[Inputs], **named):
        self.given = given
        super().__init__(*of_trainer, *(part.pairs for part in given), **named)
        self.remove_callback(Bar)  # there is one over the trials

    def prepare_pairs(self, pairs: Pairs) -> Inputs:
        """The given features."""
        return self.given[pairs is not self.train_dataset]

    def save_model(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    _save_checkpoint = save_model


class _Beside(WeightAverage):
    """Averaged weights, which do not replace the model's own."""

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Nothing."""


class Bench:
    """Heads over frozen towers, trained on demand.

    Args:
        base: a model with the towers.
        train: features of the training pairs.
        validation: features of the validation pairs.
        folder: where trained heads are kept, and looked for first.
        unpaired: features of images and texts for self-training.
    """

    def __init__(
        self,
        base: DualEncoder,
        train: Inputs,
        validation: Inputs,
        folder: Path,
        unpaired: Inputs | None = None,
    ):
        self.base, self.train, self.validation = base, train, validation
        self.folder, self.unpaired = folder, unpaired
        self.data = [_content(train)]  # without and with what self-training adds
        if unpaired is not None:
            self.data.append(_content(train, unpaired))

    def heads(self, settings: dict[str, Any], seed: int) -> dict[str, dict[str, Tensor]]:
        """The weights of heads and, as `average`, their average over the steps."""
        data = self.data["repeats" in settings]
        name = digest(repr(("heads", data, sorted(settings.items()), seed)))[:16]
        file = self.folder / f"{name}.safetensors"
        flat = read_tensors(file)
        if not flat:
            states = self._trained(settings, seed)
            flat = {f"{k}/{n}": t.contiguous() for k in states for n, t in states[k].items()}
            write_atomically(file, partial(save_file, flat))
        states = {"own": {}, "average": {}}
        for key, tensor in flat.items():
            kind, name = key.split("/")
            states[kind][name] = tensor
        return states

    def _trained(self, settings: dict[str, Any], seed: int) -> dict[str, dict[str, Tensor]]:
        run = {"model": "frozen", "seed": seed, "beta": 0.0} | settings
        repeats = run.pop("repeats", 0)
        with TemporaryDirectory() as scratch:
            config = configure(**run, output_dir=scratch)
            torch.manual_seed(seed)
            model = self.model([{}], config.dropout)
            train, cca = self.train, None
            model.set_temperature(config.temperature, config.learn_temperature)
            if "cca_ridges" in settings:
                cca = fit_cca(train, model.dim, config.cca_ridges)
            if "epochs" not in settings:
                start_heads(model, cca)
                return {"own": model.own_weights()}
            if repeats:
                train = with_pseudo_inputs(train, self.unpaired, cca, repeats)
            n_rows = min(config.batch_size, len(train.pairs))
            config = replace(config, batch_size=n_rows, cca_start=cca is not None)
            average = _Beside(_DECAY)
            given = dict(given=[train], statistic=cca, callbacks=[average])
            FeatureTrainer(model, config, **given).train()
            return {"own": model.own_weights(), "average": average.average}

    def model(self, states: Sequence[dict[str, Tensor]], dropout: float = 0.0) -> DualEncoder:
        """A model whose score averages those of several heads; an empty state gives new heads."""
        model = self.base.with_new_heads(dropout, len(states))
        for i, state in enumerate(states):
            prefix = "_head." if len(states) == 1 else f"_head.{i}."
            own = {name.replace("_head.", prefix): tensor for name, tensor in state.items()}
            model.load_state_dict(own, strict=False)
        return model.eval()

    def recipe(self, name: str, best: Mapping[str, dict], seed: int) -> DualEncoder:
        """A recipe's model with a seed, from the best settings of each recipe; those of a sum, by
        its parts, default to the parts' own.
        """
        parts = RECIPES[name].joined or (name,)
        settings = (best.get(name) or best) if RECIPES[name].joined else best
        states = [
            self.heads(settings[part], seed + 1000 * parts[:i].count(part))
            for i, part in enumerate(parts)
        ]
        kinds = ["average" if RECIPES[part].averaged else "own" for part in parts]
        return self.model([state[kind] for state, kind in zip(states, kinds, strict=True)])

    def tuned(self, name: str, n_trials: int, best: Mapping[str, dict]) -> dict[str, Any]:
        """The settings of a recipe's best trial, by mean recall on validation with seed 0.

        Those of a sum are by part: its last part is tuned again, beside the best of the others.
        """
        *others, last = RECIPES[name].joined or (name,)
        fixed = {part: best[part] for part in others}
        tried = [fixed | {last: point} for point in draws(RECIPES[last].grid, n_trials)]
        scores = []
        for settings in tqdm(tried, desc=f"{name}: trials"):
            embedded = embed_pairs(self.recipe(name, settings, 0), self.validation)
            recalls = retrieval_recalls(*embedded, *self.validation.pairs.retrieval_targets())
            scores.append(sum(recalls.values()))
        chosen = tried[int(np.argmax(scores))]
        return chosen if RECIPES[name].joined else chosen[name]

    def entries(
        self, chosen: set[str], test: Inputs, n_trials: int, n_seeds: int
    ) -> dict[str, _Entry]:
        """The chosen recipes, each tuned, repeated and tested."""
        parts = chosen | {part for name in chosen for part in RECIPES[name].joined}
        # Trials of a recipe's sum with itself would be twice as many: it has the recipe's settings.
        tuned = [name for name in RECIPES if name in parts and len({*RECIPES[name].joined}) != 1]
        best: dict[str, dict] = {}
        for name in tuned:
            best[name] = self.tuned(name, n_trials, best)
        entries = {}
        for name in (name for name in RECIPES if name in chosen):
            seeds = tqdm(range(n_seeds), desc=f"{name}: seeds")
            models = [self.recipe(name, best, seed) for seed in seeds]
            values = [image_values(model, test) for model in models]
            of_grid = best[name] if RECIPES[name].grid else {}
            entries[name] = _Entry(values, models[0], _at_end(of_grid, RECIPES[name].grid))
        return entries


def _content(*parts: Inputs) -> str:
    pixels = [digest(x.numpy().tobytes()) for part in parts for x in (part.images, part.texts[0])]
    shown = [(part.pairs.captions, part.labels.tolist()) for part in parts]
    return digest(repr((shown, pixels)))


def draws(grid: Mapping[str, tuple], n: int) -> list[dict[str, Any]]:
    """Distinct points of a grid: the first values, then random ones; recipes with the same values
    of a setting try the same ones.
    """
    points: list[dict] = []
    for i in range(20 * n):
        point = {
            name: values[0] if i == 0 else random.Random(f"{i} {name}").choice(values)
            for name, values in grid.items()
        }
        if point not in points and len(points) < n:
            points.append(point)
    return points


def _at_end(settings: dict[str, Any], grid: Mapping[str, tuple]) -> str:
    """Names of the settings that have the lowest or highest value of their range."""
    names = []
    for name in (name for name in settings if len(grid[name]) > 1):
        values = np.reshape(grid[name], (len(grid[name]), -1))  # a pair of ridges is two ranges
        is_end = np.ravel(settings[name]) == np.array([values.min(0), values.max(0)])
        names += [name] if is_end.any() else []
    return ", ".join(names)


def image_values(model: DualEncoder, test: Inputs) -> _Values:
    """One number per image for every recall and for their means; its mean is the recall."""
    ranks = query_ranks(*embed_pairs(model, test), *test.pairs.retrieval_targets())
    values = {}
    for name, hits in recall_items(ranks.image_ranks, ranks.text_ranks).items():
        units = ranks.image_units if name.startswith("image") else ranks.text_units
        values[name] = cluster_values(hits.numpy(), units.numpy())
    for way in ("image_to_text", "text_to_image"):
        values[f"{way}_mean"] = np.mean([v for n, v in values.items() if n.startswith(way)], axis=0)
    return values | {"mean": (values["image_to_text_mean"] + values["text_to_image_mean"]) / 2}


def compare_recipes(
    dataset: str,
    output_dir: str | Path,
    *,
    recipes: Sequence[str] = (),
    pretrained: Sequence[str] = (),
    unpaired: str = "",
    n_trials: int = 8,
    n_seeds: int = 3,
    keep: str = "",
) -> Comparison:
    """Compares recipes on held-out images of a data set.

    Args:
        dataset: a name, a folder or a hub id. Its test split is held out, or else a tenth of its
            images, 50 to 1,000, by group.
        output_dir: for `compare.csv`, `compare.json`, `report.html`, the winner in search (text to
            image) or `keep` in `model/`, and all trained heads in `heads/`.
        recipes: names of `RECIPES`; by default all, self-training if there is `unpaired`. CLIP
            heads are always among them.
        pretrained: folders or hub ids of dual encoders: each is compared as it is, and with CLIP
            heads, CCA and their sum over its frozen features.
        unpaired: a data set whose training split pairs images and texts at random, for
            self-training: an image is never matched to a text of its row.
        n_trials: of each recipe.
        n_seeds: repetitions of the best trial.
        keep: a row of the table, such as `CLIP+CCA` or `<pretrained>: CLIP`, whose model is saved,
            and shown in the report, whichever wins.

    Raises:
        ValueError: an unknown recipe, a row to keep that is not compared, self-training without
            unpaired images, or too few images.
    """
    if isinstance(recipes, str) or isinstance(pretrained, str):
        raise ValueError("recipes or pretrained is a string: give a list of names")
    check_number("n_trials", n_trials, 1, 1000, whole=True)
    check_number("n_seeds", n_seeds, 1, 1000, whole=True)
    wanted = _wanted(list(recipes), unpaired)
    of_towers = {"": wanted} | {towers: {"CLIP", "CCA", "CLIP+CCA"} for towers in pretrained}
    if keep:
        rows = [_row(towers, name) for towers, names in of_towers.items() for name in sorted(names)]
        check_known("row to keep", keep, [*rows, *(_row(towers) for towers in pretrained)])
    folder = Path(configure(dataset=dataset, output_dir=str(output_dir)).output_dir)
    _check_free(folder)
    splits = compared_splits(dataset)
    print(f"cibr: {sizes(*splits)}", file=sys.stderr)
    left = None
    if unpaired:
        left = _not_held_out(load_pairs(unpaired), splits[1:])
    (folder / _MARK).parent.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()
    entries = _entries(of_towers, splits, left, folder / "heads", n_trials, n_seeds)
    found = _comparison(entries)
    name = keep or found.winners[SEARCH]
    _save(found, name, entries[name].model.to("cpu"), splits[2], folder)
    return found


def _entries(
    of_towers: Mapping[str, set[str]],
    splits: Sequence[Pairs],
    unpaired: Pairs | None,
    folder: Path,
    n_trials: int,
    n_seeds: int,
) -> dict[str, _Entry]:
    """The rows of the comparison: recipes of all towers, and pretrained models as they are."""
    bases = {
        towers: build_model(configure(model="frozen", towers=towers), splits[0])
        for towers in of_towers
    }  # all names are known before anything is trained
    device = "cuda" if torch.cuda.is_available() else "cpu"
    entries: dict[str, _Entry] = {}
    for towers, base in bases.items():
        chosen = of_towers[towers]
        if towers:
            model = DualEncoder.from_pretrained(towers).to(device)
            values = image_values(model, prepare(model, splits[2], device))
            entries[_row(towers)] = _Entry([values] * n_seeds, model, "")
        train, validation, test = (prepare(base, part, device) for part in splits)
        others = None
        if unpaired and "self-training" in chosen:
            others = prepare(base, unpaired, device)
        bench = Bench(base, train, validation, folder, others)
        for name, entry in bench.entries(chosen, test, n_trials, n_seeds).items():
            entries[_row(towers, name)] = entry
    return entries


def _row(towers: str, recipe: str = "") -> str:
    """The name of a row: of a recipe, also over a pretrained model's features, or of that model."""
    if not recipe:
        return f"{towers} as it is"
    return f"{towers}: {recipe}" if towers else recipe


def _check_free(folder: Path) -> None:
    """Refuses a folder with files of others: it is not ours to change."""
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and not (folder / _MARK).exists():
        what = f"output_dir {str(folder)!r} has other files, or is one"
        raise ValueError(f"{what}: choose another")


def _save(found: Comparison, name: str, model: DualEncoder, test: Pairs, folder: Path) -> None:
    """Writes the table, the winner and the report."""
    save_table(found.table, folder / "compare")
    shutil.rmtree(folder / "model.part", ignore_errors=True)
    model.save_pretrained(folder / "model.part")
    shutil.rmtree(folder / "model", ignore_errors=True)  # another kind of model has other files
    (folder / "model.part").rename(folder / "model")
    page = report(found.advice, found.table, name, model, prepare(model, test))
    write_atomically(folder / "report.html", partial(Path.write_text, data=page, encoding="utf-8"))


def _wanted(recipes: list[str], unpaired: str) -> set[str]:
    """The recipes to compare, of which CLIP heads are always one."""
    for name in recipes:
        check_known("recipe", name, RECIPES)
    if "self-training" in recipes and not unpaired:
        raise ValueError("self-training needs images and texts without pairs: give unpaired")
    return {"CLIP", *(recipes or RECIPES)} - ({"self-training"} if not unpaired else set())


def _not_held_out(unpaired: Pairs, held_out: Sequence[Pairs]) -> Pairs:
    """Unpaired images and texts without those that have a held-out text."""
    texts = {text for part in held_out for text in part.texts()}
    left = [i for i, own in enumerate(unpaired.captions) if not texts.intersection(own)]
    if len(left) < len(unpaired):
        what = f"{len(unpaired) - len(left)} of {unpaired.name} have texts of held-out images"
        warnings.warn(f"{what}: they are left out of self-training", stacklevel=3)
    if len(left) < 2:
        what = f"{unpaired.name} has {len(left)} images without texts of held-out images"
        raise ValueError(f"{what}: self-training needs two or more")
    return unpaired.subset(left)


def compared_splits(dataset: str) -> tuple[Pairs, Pairs, Pairs]:
    """Pairs for training, for validation and for the comparison.

    Without a test split, the validation split, which `cibr train` holds out, too, is for the
    comparison, and a tenth of the others, at most 1,000, for validation. Both have 50 images or
    more: those that they lack are held out.

    Raises:
        ValueError: too few images.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no test split")
        train, validation, test = load_splits(configure(dataset=dataset, model="frozen"))
    has_test = "test" in available_splits(dataset)
    n_images = len(train) + len(validation) + has_test * len(test)
    if n_images < 4 * _LEAST or len(test) < has_test * _LEAST:
        fix = f"give {4 * _LEAST} or more, and no test split of fewer than {_LEAST}"
        of_test = f", {len(test)} of them for testing" if has_test else ""
        raise ValueError(f"{train.name} has {n_images} images{of_test}: {fix}")
    try:
        if not has_test:
            train, test = _filled(train, replace(validation, split="test"), _LEAST)
            validation = validation.subset([])
            n_validation = max(_LEAST, min(1000, len(train) // 10))
        train, validation = _filled(train, validation, _LEAST if has_test else n_validation)
    except ValueError:  # there are too few groups
        train = train.subset([])
    if len(train) < _LEAST:
        what = f"{len(train)} images of {train.name} are left for training"
        raise ValueError(f"{what}, {_LEAST} are needed: give more, or smaller groups")
    return train, validation, test


def _filled(train: Pairs, part: Pairs, least: int) -> tuple[Pairs, Pairs]:
    """The training pairs and a held-out part, with some of them if it has too few."""
    if len(part) >= least:
        return train, part
    train, more = train.hold_out(least - len(part), part.split)
    return train, joined([part, more])


def _comparison(entries: Mapping[str, _Entry]) -> Comparison:
    """The table, winners and advice from the values of every recipe's seeds."""
    values = {
        name: {metric: np.stack([v[metric] for v in entry.values]) for metric in entry.values[0]}
        for name, entry in entries.items()
    }
    rows = []
    for name, own in values.items():
        for metric, recalls in own.items():
            interval = (0.0, 0.0, 0.0)
            if name != "CLIP":
                interval = paired_difference(values["CLIP"][metric], recalls)
            rows.append((name, metric, recalls.mean(), *interval, entries[name].at_end))
    columns = ["recipe", "metric", "value", "difference", "low", "high", "at_end"]
    table = pd.DataFrame(rows, columns=columns)
    recalls = table.pivot(index="recipe", columns="metric", values="value").loc[[*values]]
    winners = recalls[[*_WAYS]].round(9).idxmax().to_dict()  # rounding errors win nothing
    return Comparison(table, winners, _advice(winners, values, table))


def _advice(winners: dict[str, str], values: dict[str, dict], table: pd.DataFrame) -> str:
    points = 100 * table.set_index(["metric", "recipe"])[["difference", "low", "high"]]
    lines = []
    for metric, way in _WAYS.items():
        name, own = winners[metric], {recipe: of[metric] for recipe, of in values.items()}
        line = f"For {way} use {name}"
        if name != "CLIP":
            gain = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*points.loc[(metric, name)])
            line += f": {gain} points of recall from CLIP heads"
        equals = (n for n in own if n == name or paired_difference(own[n], own[name])[1] <= 1e-9)
        simplest = next(equals)
        if simplest != name:
            line += f"; not detectably better than {simplest}, which is simpler"
        lines.append(f"{line}.")
    return " ".join(lines)
