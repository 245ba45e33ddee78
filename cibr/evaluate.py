"""Evaluation of models on suites of benchmarks, paired comparison of models, and published results.

A suite is a list of tasks: a name of `SUITES`, a YAML file, or `Task` objects. Results are saved
per data set, and a rerun resumes where it stopped. Zero-shot classification follows Radford et al.
(2021): a class is the renormalised mean of its prompts' unit vectors. Retrieval is paired (Karpathy
and Fei-Fei, 2015) or by label, according to `Pairs.paired`. Texts longer than the context are
truncated, as in both.

A score is a weighted sum of means over items, such as those of each class or data set. For its 95 %
bootstrap interval items are resampled within each mean, and with several seeds the seeds too. An
item is an image with its texts or, by label, everything with one label.
"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from cibr import metrics
from cibr.data import Pairs, available_splits, load_pairs, resolve
from cibr.metrics.retrieval import KS
from cibr.models import DualEncoder
from cibr.models.features import Digests, digest_model, embed_pairs, pixel_digests, prepare
from cibr.utils import nearest, write_atomically

KINDS = ("zero-shot", "retrieval")
DIRECTIONS = {"image_to_text": "image", "text_to_image": "text"}
ERRORS = (FileNotFoundError, ConnectionError, ValueError)

Parts = list[tuple[float, Float[np.ndarray, " _"]]]  # weight and values of each mean


class Task(NamedTuple):
    """One benchmark: a data set, the kind of task, the split, and the group whose mean counts as
    one set.
    """

    dataset: str
    kind: str = "zero-shot"
    split: str = "test"
    group: str = ""

    @property
    def title(self) -> str:
        """Its name in tables: the data set, with the split if it is neither test nor validation."""
        name = Path(self.dataset).name.removeprefix("wds_") or self.dataset
        return name if self.split in ("test", "validation") else f"{name}/{self.split}"

    @property
    def file(self) -> str:
        """The name of its file of results."""
        return f"{self.title.replace('/', '-')}-{self.kind}.safetensors"


Suite = str | Path | Sequence[Task]


_PAPER = "vtab-cifar10 vtab-cifar100 food101 vtab-caltech101 vtab-pets vtab-dtd vtab-eurosat"

# `characters` needs no download. The seven zero-shot sets of Ji et al. (2025) are not public; those
# of `paper` are our choice. Add a suite with `SUITES[name] = (Task(...), ...)`.
SUITES: dict[str, tuple[Task, ...]] = {
    "characters": (Task("glyphs", "retrieval"), Task("glyphs", "retrieval", "test_characters")),
    "paper": (
        *map(Task, _PAPER.split()),
        Task("mscoco_captions", "retrieval"),
        Task("flickr30k", "retrieval"),
    ),
}


def suite_tasks(suite: Suite, kinds: Sequence[str] = KINDS) -> tuple[Task, ...]:
    """The tasks of a suite, of all or some kinds.

    Args:
        suite: a name of `SUITES`; a YAML file, a list of mappings with `dataset` and optionally
            `kind`, `split` and `group`; or tasks.
        kinds: `zero-shot`, `retrieval` or both.

    Raises:
        ValueError: an unknown suite or kind (with the known ones), a YAML file that is not a list
            of tasks, no task of these kinds, or two tasks with one name.
    """
    if isinstance(suite, str) and suite in SUITES:
        tasks = SUITES[suite]
    elif not isinstance(suite, (str, Path)):
        tasks = tuple(suite)
    elif Path(suite).is_file():
        tasks = _read_suite(Path(suite))
    else:
        near = nearest(str(suite), SUITES) or "."
        raise ValueError(
            f"unknown suite {str(suite)!r}{near} Known: {', '.join(SUITES)}, or a YAML file of tasks"
        )
    for task in tasks:
        if not isinstance(task, Task) or task.kind not in KINDS:
            raise ValueError(
                f"{task} is no task: give Task(dataset, kind), the kind one of {', '.join(KINDS)}"
            )
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(
            f"kinds is {kinds!r}: give a list with {' or '.join(map(repr, KINDS))}, or both"
        )
    chosen = tuple(task for task in tasks if task.kind in kinds)
    twice = [task.file for task in chosen if sum(other.file == task.file for other in chosen) > 1]
    if twice or not chosen:
        what = f"two tasks named {twice[0]!r}" if twice else f"no {' or '.join(kinds)} set"
        raise ValueError(
            f"suite {suite_name(suite)!r} has {what}: give each set once, and one at least"
        )
    return chosen


def suite_name(suite: Suite) -> str:
    """The name of a suite in tables and folders: its own, the stem of its file, or `tasks` for a
    list.
    """
    return Path(suite).stem if isinstance(suite, (str, Path)) else "tasks"


def _read_suite(file: Path) -> tuple[Task, ...]:
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} is not YAML: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f"{str(file)!r} is no suite: give a list of tasks, such as '- dataset: flickr8k'"
        )
    for entry in entries:
        unknown = next((key for key in entry if key not in Task._fields), None)
        if unknown is not None or not isinstance(entry.get("dataset"), str):
            fault = (
                "no dataset"
                if unknown is None
                else f"a key {unknown!r}{nearest(unknown, Task._fields)}"
            )
            raise ValueError(
                f"task {entry} of {str(file)!r} has {fault}; a task has {', '.join(Task._fields)}"
            )
    return tuple(Task(**{key: str(value) for key, value in entry.items()}) for entry in entries)


def dataset_tasks(dataset: str) -> tuple[Task, ...]:
    """The tasks that a data set supports: zero-shot with class names and templates, retrieval with
    captions.

    Args:
        dataset: a name or a folder; see `cibr.load_pairs`. The test split is used, else validation,
            else train.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `cibr.load_pairs`; or class names without
            templates.
    """
    there = available_splits(dataset)
    split = next((name for name in ("test", "validation", "train") if name in there), "test")
    pairs = load_pairs(dataset, split)
    tasks = []
    if pairs.classnames and pairs.templates:
        tasks.append(Task(dataset, "zero-shot", split))
    if not pairs.classnames or not set(pairs.texts()) <= set(pairs.classnames):
        tasks.append(Task(dataset, "retrieval", split))
    if not tasks:
        pairs.prompts()  # raises with what is missing
    return tuple(tasks)


def load_task(task: Task, limit: int = 0, **options) -> Pairs:
    """Loads the pairs that `evaluate` uses for a task.

    Args:
        task: of a suite.
        limit: maximum number of images, drawn with a fixed seed (the first ones may be of one
            class); 0 for all.
        options: of `cibr.load_pairs`.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `cibr.load_pairs`.
    """
    pairs = load_pairs(task.dataset, task.split, **options)
    if not limit or limit >= len(pairs):
        return pairs
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    return pairs.subset(order[:limit].sort().values)


@dataclass(eq=False)
class Predictions:
    """A model's predictions on one data set, per item.

    Args:
        kind: `zero-shot`, `retrieval` (paired) or `retrieval by label`.
        items: for zero-shot `labels`, `predictions` and `ranks` [n], and `n_classes` []; for
            retrieval `image_ranks`, `image_average_precisions` and `image_units` [n], and the same
            for texts [m]. Ranks count from 0; units are the clusters of the bootstrap, an image
            with its texts or all items of a label.
        asked: a digest of the images and texts; predictions with equal digests are comparable item
            by item.
    """

    kind: str
    items: dict[str, Tensor]
    asked: str

    def parts(self) -> dict[str, tuple[Parts, int]]:
        """The scores that are means over items, by metric, each with the number of queries."""
        if self.kind == "zero-shot":
            ranks, labels, n_classes = (
                self.items[name] for name in ("ranks", "labels", "n_classes")
            )
            found = metrics.accuracy_parts(ranks, labels, int(n_classes))
            return {metric: (parts, len(labels)) for metric, parts in found.items()}
        smaller = min(len(self.items[f"{side}_ranks"]) for side in DIRECTIONS.values())
        found = {}
        for direction, side in DIRECTIONS.items():
            ranks = self.items[f"{side}_ranks"]
            values = {f"recall@{k}": ranks < k for k in KS if k <= smaller}
            values["mean_average_precision"] = self.items[f"{side}_average_precisions"]
            for name, each in values.items():
                parts = [
                    (1.0, _by_unit(each.double().numpy(), self.items[f"{side}_units"].numpy()))
                ]
                found[self._metric(direction, name)] = (parts, len(ranks))
        return found

    def medians(self) -> dict[str, dict[str, float]]:
        """Median ranks, from 1, with their intervals, by metric."""
        found = {}
        for direction, side in DIRECTIONS.items() if self.kind != "zero-shot" else ():
            ranks, units = (self.items[f"{side}_{name}"].numpy() for name in ("ranks", "units"))
            interval = metrics.bootstrap_interval(1.0 + ranks, units, statistic=np.median)
            row = dict(zip(("value", "low", "high"), interval, strict=True)) | {"n": len(ranks)}
            found[self._metric(direction, "median_rank")] = row
        return found

    def _metric(self, direction: str, name: str) -> str:
        return f"{direction}_{name}" if self.kind == "retrieval" else f"{direction}_label_{name}"


def _by_unit(values: Float[np.ndarray, " m"], units: np.ndarray) -> Float[np.ndarray, " u"]:
    """One number per unit, with the mean over queries as their mean.

    Their spread is, to first order, that of the mean over the queries of resampled units, a ratio,
    as units have unequal numbers of queries.
    """
    units = np.unique(units, return_inverse=True)[1]
    counts, mean = np.bincount(units), values.mean()
    return mean + (np.bincount(units, values) - mean * counts) / counts.mean()


@dataclass(eq=False)
class Evaluation:
    """The results of a model on a suite.

    Args:
        model: the model's name in tables.
        suite: the suite's name in tables.
        predictions: per item, by task.
    """

    model: str
    suite: str
    predictions: dict[Task, Predictions]

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Tidy scores: `model, suite, dataset, kind, metric, value, low, high, n`; n is the number
        of queries.
        """
        found = []
        for key, (parts, n) in self.scores().items():
            found.append(_about(key) | _difference([parts], None, "value") | {"n": n})
        for task, of_task in self.predictions.items():
            for metric, values in of_task.medians().items():
                found.append(_about((task.title, task.kind, metric)) | values)
        return pd.DataFrame([{"model": self.model, "suite": self.suite} | row for row in found])

    def scores(self) -> dict[tuple[str, str, str], tuple[Parts, int]]:
        """Scores that are means over items, by data set, kind and metric: of sets, groups, and all
        zero-shot sets.

        A group, such as the four styles of PACS, counts as one set.
        """
        found, members = {}, {}
        for task, of_task in self.predictions.items():
            parts = of_task.parts()
            found |= {(task.title, task.kind, metric): value for metric, value in parts.items()}
            members.setdefault((task.group or task.title, task.kind), []).append(parts)
        means = {key: _mean(each) for key, each in members.items()}
        several = {key: mean for key, mean in means.items() if len(members[key]) > 1}
        zero_shot = [mean for (_, kind), mean in means.items() if kind == "zero-shot"]
        if len(zero_shot) > 1:
            several[f"mean of {len(zero_shot)}", "zero-shot"] = _mean(zero_shot)
        return found | {
            (*key, metric): value for key, mean in several.items() for metric, value in mean.items()
        }


def evaluate(
    model: DualEncoder,
    suite: Suite,
    *,
    name: str,
    kinds: Sequence[str] = KINDS,
    limit: int = 0,
    batch_size: int = 256,
    output_dir: str | Path | None = None,
    max_skipped: int = 0,
) -> Evaluation:
    """Evaluates a model on all data sets of a suite.

    Args:
        model: the encoders, on the device to use.
        suite: a name of `SUITES`, a YAML file or a list of tasks; see `suite_tasks`.
        name: the model's name in tables.
        kinds: the kinds of tasks to run: `zero-shot`, `retrieval` or both.
        limit: maximum number of images per set, at least two, drawn with a fixed seed; 0 for all.
        batch_size: rows encoded at once.
        output_dir: folder for results, in a subfolder named after the suite. A set with results
            there, of the same weights, images, texts and limit, is not evaluated again.
        max_skipped: the number of unusable samples per set that may be left out.

    Returns:
        The evaluation, with `rows` of scores and the `predictions` per item.

    Raises:
        ValueError: an unknown suite, kind or set, a limit or batch_size out of its range, or an
            unusable sample (its set is named).
        OSError: the output folder cannot be created.
        FileNotFoundError: a file of a set is missing.
        ConnectionError: a file cannot be fetched from the hub.
    """
    tasks, title = suite_tasks(suite, kinds), suite_name(suite)
    whole = all(isinstance(number, int) for number in (limit, batch_size))
    if not whole or limit < 0 or limit == 1 or batch_size < 1:
        rule = "a limit is 0, for all images, or 2 or more, and a batch has a row at least"
        raise ValueError(f"limit is {limit!r} and batch_size {batch_size!r}: {rule}")
    for task in tasks:
        resolve(task.dataset)  # report a mistyped name before computing anything
    folder = None if output_dir is None else Path(output_dir) / title
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)  # fail now rather than after the first set
    digests, found = digest_model(model), {}
    with tqdm(tasks, desc=name, unit="set", delay=1) as bar:
        for task in bar:
            bar.set_postfix_str(task.title)
            try:
                pairs = load_task(task, limit, max_skipped=max_skipped)
                found[task] = _predict(model, task, pairs, batch_size, folder, digests)
            except ERRORS as error:
                kept = (
                    f". The sets before it are kept in {str(folder)!r}"
                    if folder is not None
                    else ""
                )
                message = f"{task.kind} on {task.title} of suite {title!r}: {error}{kept}"
                raise next(kind for kind in ERRORS if isinstance(error, kind))(message) from error
    evaluation = Evaluation(name, title, found)
    if folder is not None:
        file = folder / ("rows.csv" if len(kinds) > 1 else f"rows-{kinds[0]}.csv")
        write_atomically(file, lambda part: evaluation.rows.to_csv(part, index=False))
    return evaluation


def _predict(
    model: DualEncoder,
    task: Task,
    pairs: Pairs,
    batch_size: int,
    folder: Path | None,
    digests: Digests,
) -> Predictions:
    """The stored predictions if they are of this model on these pairs, else new ones."""
    prompts = pairs.prompts() if task.kind == "zero-shot" else None
    kind = task.kind if prompts or pairs.paired else f"{task.kind} by label"
    labels = None if kind == "retrieval" else pairs.match_labels().tolist()
    shown = (
        kind,
        pairs.name,
        pairs.split,
        pairs.keys,
        prompts or pairs.captions,
        labels,
        pixel_digests(pairs),
    )
    asked = hashlib.sha256(repr(shown).encode()).hexdigest()
    identity = hashlib.sha256(f"{digests.model} {asked}".encode()).hexdigest()
    file = None if folder is None else folder / task.file
    stored = None if file is None else _read(file)
    if stored is not None:
        if stored[1] == identity:
            return stored[0]
        other = "another model" if stored[0].asked == asked else "other images or texts"
        warnings.warn(
            f"{str(file)!r} holds results of {other}: {task.title} is evaluated again", stacklevel=3
        )
    flat = None if prompts is None else [prompt for of_class in prompts for prompt in of_class]
    device = model.log_logit_scale.device
    inputs = prepare(model, pairs, truncate=True, device=device, texts=flat, digests=digests)
    images, texts = embed_pairs(model, inputs, batch_size)
    items = (
        _retrieve(pairs, images, texts)
        if prompts is None
        else _classify(pairs, images, texts, len(prompts))
    )
    found = Predictions(kind, {key: tensor.contiguous() for key, tensor in items.items()}, asked)
    if file is not None:
        about = {"kind": kind, "asked": asked, "identity": identity}
        write_atomically(file, lambda part: save_file(found.items, part, about))
    return found


def _classify(pairs: Pairs, images: Tensor, texts: Tensor, n_classes: int) -> dict[str, Tensor]:
    classes = metrics.class_embeddings(texts.unflatten(0, (n_classes, -1)))
    found = {"labels": pairs.labels, "predictions": metrics.predictions(images, classes)}
    found["ranks"] = metrics.class_ranks(images, classes, pairs.labels)
    return found | {"n_classes": torch.tensor(n_classes)}


def _retrieve(pairs: Pairs, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
    if pairs.paired:
        image_units, text_units = torch.arange(len(pairs)), pairs.text_to_image()
    else:
        rows, text_units = metrics.distinct_texts(pairs)
        texts, image_units = texts[rows], pairs.match_labels()
    if len(image_units.unique()) < 2:
        raise ValueError("all images match one another: retrieval needs two that differ")
    found = metrics.query_scores(images, texts, image_units, text_units)
    return found._asdict() | {"image_units": image_units, "text_units": text_units}


def _read(file: Path) -> tuple[Predictions, str] | None:
    """Stored predictions with their identity; None if the file is missing or damaged."""
    try:
        with safe_open(file, "pt") as stored:
            about = stored.metadata()
            items = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        return Predictions(about["kind"], items, about["asked"]), about["identity"]
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


def read_evaluation(output_dir: str | Path, suite: Suite, name: str) -> Evaluation:
    """Loads the results that `evaluate` saved in a folder, without the model.

    Raises:
        FileNotFoundError: the results of a set are missing or damaged.
    """
    found = {}
    for task in suite_tasks(suite):
        file = Path(output_dir) / suite_name(suite) / task.file
        stored = _read(file)
        if stored is None:
            raise FileNotFoundError(
                f"{str(file)!r} is missing or damaged: evaluate the model on its suite again"
            )
        found[task] = stored[0]
    return Evaluation(name, suite_name(suite), found)


def compare(
    a: Evaluation | Sequence[Evaluation], b: Evaluation | Sequence[Evaluation]
) -> pd.DataFrame:
    """Paired differences b - a of two models on the same images, with 95 % intervals; medians are
    left out.

    Args:
        a: an evaluation, or one per seed.
        b: the same number of evaluations on the same suite, with seeds in the same order.

    Returns:
        One row per score: `suite, dataset, kind, metric, a, b, difference, low, high, n, n_seeds`.

    Raises:
        ValueError: different suites, numbers of seeds, or images and texts of a set.
    """
    a, b = ([x] if isinstance(x, Evaluation) else list(x) for x in (a, b))
    _check_comparable(a, b)
    of_a, of_b = ([each.scores() for each in models] for models in (a, b))
    rows = []
    for key, (_, n) in of_a[0].items():
        parts_a, parts_b = ([scores[key][0] for scores in models] for models in (of_a, of_b))
        row = {"suite": a[0].suite} | _about(key)
        row |= {"a": np.mean(list(map(_value, parts_a))), "b": np.mean(list(map(_value, parts_b)))}
        rows.append(row | _difference(parts_b, parts_a, "difference") | {"n": n, "n_seeds": len(a)})
    return pd.DataFrame(rows)


def _about(key: tuple[str, str, str]) -> dict[str, str]:
    return dict(zip(("dataset", "kind", "metric"), key, strict=True))


def _check_comparable(a: list[Evaluation], b: list[Evaluation]) -> None:
    suites = sorted({each.suite for each in a + b})
    if not a or len(a) != len(b) or len(suites) != 1:
        found = f"{len(a)} and {len(b)} evaluations of {', '.join(suites) or 'no suite'}"
        raise ValueError(
            f"{found} do not compare: give as many of each model, one a seed, all of one suite"
        )
    for each in a + b:
        for task in a[0].predictions.keys() | each.predictions.keys():
            asked = [
                e.predictions[task].asked if task in e.predictions else None for e in (a[0], each)
            ]
            if asked[0] != asked[1]:
                rule = f"of {task.title}: evaluate both with the same data and limit"
                raise ValueError(f"{each.model} and {a[0].model} saw other images or texts {rule}")


def _mean(members: list[dict[str, tuple[Parts, int]]]) -> dict[str, tuple[Parts, int]]:
    """The mean of several data sets' scores, for the metrics that all of them have."""
    found = {}
    for metric in members[0]:
        if all(metric in member for member in members):
            parts = [(w / len(members), x) for member in members for w, x in member[metric][0]]
            found[metric] = (parts, sum(member[metric][1] for member in members))
    return found


def _value(parts: Parts) -> float:
    return float(sum(weight * values.mean() for weight, values in parts))


def _difference(b: list[Parts], a: list[Parts] | None, name: str) -> dict[str, float]:
    """The mean over seeds of b's score minus a's, or of b's score without a, with its interval."""
    stacked = [
        [np.stack([seed[k][1] for seed in side]) for k in range(len(b[0]))] for side in (b, a or b)
    ]
    of_a = [np.zeros_like(x) for x in stacked[0]] if a is None else stacked[1]
    found = metrics.paired_difference(of_a, stacked[0], weights=[weight for weight, _ in b[0]])
    low, high = (
        (found["low"], found["high"]) if a else (max(0.0, found["low"]), min(1.0, found["high"]))
    )
    return {name: found["mean"], "low": low, "high": high}


def short_names(*names: str) -> list[str]:
    """Short names of models for tables and figures: the shortest path suffixes that distinguish
    them.

    Examples:
        >>> from cibr.evaluate import short_names
        >>> short_names("runs/plain/seed-0", "runs/penalty/seed-0")
        ['plain/seed-0', 'penalty/seed-0']
    """
    parts = [name.rstrip("/").split("/") for name in names]
    for n in range(1, max(map(len, parts))):
        ends = ["/".join(each[-n:]) for each in parts]
        if len(set(ends)) == len(set(names)):
            return ends
    return list(names)


def format_table(rows: pd.DataFrame, value: str = "value") -> pd.DataFrame:
    """Rows as a table with one row per data set and one column per metric, in per cent except for
    ranks.
    """

    def cell(row) -> str:
        scale, sign = 1 if "rank" in row["metric"] else 100, "+" if value == "difference" else ""
        mean, low, high = (scale * row[name] for name in (value, "low", "high"))
        return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"

    shown = rows.assign(cell=rows.apply(cell, axis=1))
    table = shown.pivot(index="dataset", columns="metric", values="cell").fillna("")
    return table.loc[rows["dataset"].unique(), rows["metric"].unique()]
