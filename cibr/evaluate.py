"""Evaluation of models on suites of benchmarks, and paired comparison of models.

A suite is a name of `SUITES` or a list of `Task` objects. Zero-shot classification follows Radford
et al. (2021): a class is the renormalised mean of its prompts' unit vectors. Retrieval is paired
(Karpathy and Fei-Fei, 2015) or by label, according to `Pairs.paired`. Texts longer than the context
are cut, with a warning that counts them.

A score is the mean of one number per item, even where classes or data sets have equal weight
(`cibr.metrics.intervals`). Its 95 % interval is Student's over items, at 0 and 1 Wilson's; with
several seeds, their variances add up. An item is an image with its texts or, by label, everything
with one label.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from cibr import metrics
from cibr.data import Pairs, available_splits, load_pairs, photos
from cibr.metrics.intervals import cluster_values, group_balanced_values
from cibr.metrics.retrieval import recall_items
from cibr.metrics.zeroshot import accuracy_items
from cibr.models import DualEncoder
from cibr.models.dual_encoder import image_key
from cibr.models.features import embed_pairs, prepare
from cibr.utils import check_known, check_number, digest, save_table, write_atomically

_KEY = ["suite", "dataset", "kind", "metric"]  # of a row


class Task(NamedTuple):
    """One benchmark: a data set, the kind of task, the split, and the group whose mean counts as
    one set.
    """

    dataset: str
    kind: str = "zero-shot"
    split: str = "test"
    group: str = ""

    @property
    def name(self) -> str:
        """The name of its data set in tables, also of the folder `.`."""
        return Path(self.dataset).resolve().name.removeprefix("wds_")

    @property
    def title(self) -> str:
        """Its name in tables, with the split if that is neither test nor validation."""
        return self.name if self.split in ("test", "validation") else f"{self.name}/{self.split}"

    @property
    def file(self) -> str:
        """The name of its file of results."""
        return f"{self.title.replace('/', '-')}-{self.kind}.safetensors"


_Suite = str | Sequence[Task]
_PAPER = "vtab-cifar10 vtab-cifar100 food101 vtab-caltech101 vtab-pets vtab-dtd vtab-eurosat"

# `characters` and `photos` need no download. The seven zero-shot sets of Ji et al. (2025) are not
# public; those of `paper` are our choice. Add a suite with `SUITES[name] = (Task(...), ...)`.
SUITES: dict[str, tuple[Task, ...]] = {
    "characters": (Task("glyphs", "retrieval"), Task("glyphs", "retrieval", "test_characters")),
    "photos": (
        *map(Task, photos.CLASSES),
        Task("photos", "retrieval"),
        Task("photos-coco", "retrieval"),
    ),
    "paper": (
        *map(Task, _PAPER.split()),
        Task("mscoco_captions", "retrieval"),
        Task("flickr30k", "retrieval"),
    ),
}


def suite_tasks(suite: _Suite) -> tuple[Task, ...]:
    """The tasks of a suite.

    Args:
        suite: a name of `SUITES`, or tasks.

    Raises:
        ValueError: an unknown suite or kind (with the known ones), no task, or two tasks with one
            name.
    """
    if isinstance(suite, str):
        if suite.endswith((".yaml", ".yml")):
            raise ValueError(f"{suite}: YAML suites are gone: add tasks to SUITES in a --plugin")
        check_known("suite", suite, SUITES)
    tasks = SUITES[suite] if isinstance(suite, str) else tuple(suite)
    for task in tasks:
        check_known("kind of task", task.kind, ("zero-shot", "retrieval"))
    files = [task.file for task in tasks]
    if not files or len(set(files)) < len(files):
        raise ValueError(f"a suite has {files}: give at least one task, and each data set once")
    return tasks


def _suite_name(suite: _Suite) -> str:
    """The name of a suite in tables and folders: its own, its only data set's, or `tasks`."""
    if isinstance(suite, str):
        return suite
    names = {task.name for task in suite}
    return names.pop() if len(names) == 1 else "tasks"


def dataset_tasks(dataset: str) -> tuple[Task, ...]:
    """The tasks that a data set supports: zero-shot with class names and templates, retrieval with
    captions.

    Args:
        dataset: a name or a folder; see `cibr.load_pairs`. Uses the test split, or validation.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `cibr.load_pairs`; or class names without
            templates.
    """
    splits = available_splits(dataset)
    split = "validation" if "validation" in splits and "test" not in splits else "test"
    pairs = load_pairs(dataset, split)
    tasks = []
    if pairs.classnames and pairs.templates:
        tasks.append(Task(dataset, "zero-shot", split))
    if not pairs.classnames or not set(pairs.texts()) <= set(pairs.classnames):
        tasks.append(Task(dataset, "retrieval", split))
    if not tasks:
        pairs.prompts()  # raises with what is missing
    return tuple(tasks)


def load_task(task: Task, limit: int = 0) -> Pairs:
    """Loads the pairs that `evaluate` uses for a task.

    Args:
        task: of a suite.
        limit: maximum number of images, drawn with a fixed seed (the first ones may be of one
            class); 0 for all.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `cibr.load_pairs`.
    """
    pairs = load_pairs(task.dataset, task.split)
    if not limit or limit >= len(pairs):
        return pairs
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    return pairs.subset(order[:limit].sort().values)


class Predictions(NamedTuple):
    """A model's predictions on one data set, per item.

    Args:
        kind: `zero-shot`, `retrieval` (paired) or `retrieval by label`.
        items: for zero-shot `labels`, `predictions` and `ranks` [n]; for retrieval `image_ranks`
            and `image_units` [n], and the same for texts [m]. Ranks count from 0; units are the
            clusters of an interval, an image with its texts or all items of a label.
        digest: of the images and texts; predictions with equal digests are comparable item by item.
    """

    kind: str
    items: dict[str, Tensor]
    digest: str


class _Score(NamedTuple):
    """One number an item, whose mean is the score, and the number of queries."""

    values: Float[np.ndarray, " _"]
    n: int


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

    @property
    def rows(self) -> pd.DataFrame:
        """Tidy scores with the columns `model, suite, dataset, kind, metric, value, low, high` and
        `n`, the number of queries.

        Sets come first, then groups, such as the four styles of PACS, and all zero-shot sets, where
        a group counts as one set.
        """
        rows = []
        for key, score in _scores(self).items():
            interval = metrics.proportion_interval(score.values)
            rows.append((self.model, self.suite, *key, *interval, score.n))
        return pd.DataFrame(rows, columns=["model", *_KEY, "value", "low", "high", "n"])


def _scores(evaluation: Evaluation) -> dict[tuple[str, str, str], _Score]:
    """Scores by data set, kind and metric: of sets, groups, and all zero-shot sets."""
    sets, groups = {}, {}
    for task, predictions in evaluation.predictions.items():
        scores = _task_scores(predictions)
        sets[task.title, task.kind] = scores
        if task.kind == "zero-shot":
            groups.setdefault(task.group or task.title, []).append(scores)
    means = {name: _mean(members) for name, members in groups.items()}
    if len(means) > 1:
        means[f"mean of {len(means)}"] = _mean([*means.values()])
    tables = sets | {(name, "zero-shot"): scores for name, scores in means.items()}
    return {(*key, metric): table[metric] for key, table in tables.items() for metric in table}


def _task_scores(predictions: Predictions) -> dict[str, _Score]:
    kind, items, _ = predictions
    if kind == "zero-shot":
        of_images = accuracy_items(items["ranks"], items["labels"])
        return {name: _Score(values, len(values)) for name, values in of_images.items()}
    name = "recall" if kind == "retrieval" else "label_recall"
    scores = {}
    for metric, hits in recall_items(items["image_ranks"], items["text_ranks"], name=name).items():
        units = items["image_units" if metric.startswith("image") else "text_units"]
        scores[metric] = _Score(cluster_values(hits.numpy(), units.numpy()), len(hits))
    return scores


def _mean(tables: list[dict[str, _Score]]) -> dict[str, _Score]:
    """The mean of several zero-shot sets' scores."""
    if len(tables) == 1:
        return tables[0]
    means = {}
    for metric in tables[0]:
        values = [table[metric].values for table in tables]
        sets = np.repeat(np.arange(len(values)), [len(of_set) for of_set in values])
        means[metric] = _Score(group_balanced_values(np.concatenate(values), sets), len(sets))
    return means


def evaluate(
    model: DualEncoder,
    suite: _Suite,
    *,
    name: str,
    limit: int = 0,
    batch_size: int = 256,
    output_dir: str | Path | None = None,
) -> Evaluation:
    """Evaluates a model on all data sets of a suite.

    Args:
        model: the encoders, on the device to use.
        suite: a name of `SUITES` or a list of tasks.
        name: the model's name in tables.
        limit: maximum number of images per set, at least two, drawn with a fixed seed; 0 for all.
        batch_size: rows encoded at once.
        output_dir: folder for this model's results; a subfolder named after the suite gets
            `rows.csv`, `rows.json` and the predictions of each set, in `Task.file`, a file of
            safetensors.

    Returns:
        The evaluation, with `rows` of scores and the `predictions` per item.

    Raises:
        ValueError: no model, an unknown suite, kind or set, a limit or batch_size out of its range,
            or a tenth of a set's samples that cannot be used (it is named).
        OSError: results cannot be written.
        FileNotFoundError: a file of a set is missing.
        ConnectionError: a file cannot be fetched from the hub.
    """
    if not isinstance(model, DualEncoder):
        raise ValueError(
            f"the model to evaluate is of type {type(model).__name__}: "
            "load one with DualEncoder.from_pretrained(name)"
        )
    if limit < 0 or limit == 1:
        raise ValueError(f"limit is {limit!r}: give 0, for all images, or a number from 2")
    check_number("batch_size", batch_size, 1, whole=True)
    evaluation = Evaluation(name, _suite_name(suite), {})
    tasks = suite_tasks(suite)
    for task in tasks:
        available_splits(task.dataset)  # a mistyped name is reported before anything is computed
    if output_dir is not None:
        _save(evaluation, Path(output_dir))
    for task in tqdm(tasks, desc=name, unit="set", delay=1):
        try:
            found = _predict(model, task, load_task(task, limit), batch_size)
        except ValueError as error:
            where = f"{task.kind} on {task.title} of suite {evaluation.suite!r}"
            raise ValueError(f"{where}: {error}") from error
        evaluation.predictions[task] = found
        if output_dir is not None:  # now: a later set may fail
            _save(evaluation, Path(output_dir))
    return evaluation


def _save(evaluation: Evaluation, output_dir: Path) -> None:
    """Writes the scores of an evaluation, and its last predictions."""
    folder = output_dir / evaluation.suite
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_table(evaluation.rows, folder / "rows")
        for task, predictions in list(evaluation.predictions.items())[-1:]:
            items = {name: tensor.contiguous() for name, tensor in predictions.items.items()}
            about = {"kind": predictions.kind, "digest": predictions.digest}
            write_atomically(folder / task.file, partial(save_file, items, metadata=about))
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"cannot write results to {str(folder)!r}: {error}; "
            "make room or choose another output_dir"
        ) from error


def evaluate_pairs(model: DualEncoder, pairs: Pairs, name: str) -> Evaluation:
    """Evaluates a model in retrieval on pairs that are loaded.

    Args:
        model: the encoders, on the device to use.
        pairs: with two that differ at least.
        name: the model's name in tables.
    """
    task = Task(pairs.name, "retrieval", pairs.split)
    return Evaluation(name, pairs.name, {task: _predict(model, task, pairs, 256)})


def _predict(model: DualEncoder, task: Task, pairs: Pairs, batch_size: int) -> Predictions:
    _warn_of_seen(model, pairs)
    if task.kind == "zero-shot":
        kind, shown = "zero-shot", pairs.prompts()
        items = _zero_shot_items(model, pairs, shown, batch_size)
    else:
        kind, shown = "retrieval" if pairs.paired else "retrieval by label", pairs.captions
        images, texts = embed_pairs(model, prepare(model, pairs, model.device), batch_size)
        items = metrics.query_ranks(images, texts, *pairs.retrieval_targets())._asdict()
        if len(items["image_units"].unique()) < 2:
            raise ValueError("all images match one another: retrieval needs two that differ")
    labels = None if kind == "retrieval" else pairs.match_labels().tolist()
    seen = (kind, pairs.name, pairs.split, pairs.keys, shown, labels, pairs.image_digests())
    return Predictions(kind, items, digest(repr(seen)))


def _zero_shot_items(
    model: DualEncoder, pairs: Pairs, prompts: list[list[str]], batch_size: int
) -> dict[str, Tensor]:
    if len(prompts) < 2:
        raise ValueError(f"{pairs.name} has one class: zero-shot classification needs two")
    texts = [prompt for of_class in prompts for prompt in of_class]
    inputs = prepare(model, pairs, model.device, texts=texts)
    images, texts = embed_pairs(model, inputs, batch_size)
    classes = metrics.class_embeddings(texts.unflatten(0, (len(prompts), -1)))
    return {
        "labels": pairs.labels,
        "predictions": (images @ classes.T).argmax(1),
        "ranks": metrics.class_ranks(images, classes, pairs.labels),
    }


def _warn_of_seen(model: DualEncoder, pairs: Pairs) -> None:
    """Warns of images that the model was trained on."""
    n_seen = sum(image_key(digest) in model.trained_on for digest in pairs.image_digests())
    if n_seen:
        warnings.warn(
            f"the model was trained on {n_seen:,} of the {len(pairs):,} images of {pairs.name} "
            f"{pairs.split}: what it recalls of others is in held_out/recall.csv of its run",
            stacklevel=3,
        )


def difference(
    a: Evaluation | Sequence[Evaluation], b: Evaluation | Sequence[Evaluation]
) -> pd.DataFrame:
    """Paired differences b - a of two models on the same images, with 95 % intervals.

    Args:
        a: an evaluation, or one per seed.
        b: the same number of evaluations on the same suite, with seeds in the same order.

    Returns:
        Scores with `suite, dataset, kind, metric, a, b, difference, low, high, n, n_seeds`.

    Raises:
        ValueError: different suites, numbers of seeds, or images and texts of a set.
    """
    a, b = ([side] if isinstance(side, Evaluation) else list(side) for side in (a, b))
    suites = {evaluation.suite for evaluation in a + b}
    if not a or len(a) != len(b) or len(suites) != 1:
        raise ValueError(
            f"{len(a)} and {len(b)} evaluations of suites {sorted(suites)}: "
            "give one evaluation per seed of each model, all of one suite"
        )
    digests = [{(task.title, p.digest) for task, p in e.predictions.items()} for e in a + b]
    different = set().union(*digests) - set.intersection(*digests)
    if different:
        title, _ = min(different)
        raise ValueError(
            f"a and b saw different images or texts of {title}: "
            "evaluate both with the same data and limit"
        )
    of_a, of_b = ([_scores(evaluation) for evaluation in side] for side in (a, b))
    rows = []
    for key, score in of_a[0].items():
        x, y = (np.stack([scores[key].values for scores in side]) for side in (of_a, of_b))
        interval = metrics.paired_difference(x, y)
        means = float(x.mean()), float(y.mean())
        rows.append((a[0].suite, *key, *means, *interval, score.n, len(a)))
    columns = [*_KEY, "a", "b", "difference", "low", "high", "n", "n_seeds"]
    return pd.DataFrame(rows, columns=columns)


def format_table(rows: pd.DataFrame, value: str = "value") -> pd.DataFrame:
    """Rows as a table in per cent, with one row per data set and one column per metric.

    Args:
        rows: of an evaluation or a comparison.
        value: the column to show, `value` or `difference`.
    """
    sign = "+" if value == "difference" else ""
    cell = f"{{:{sign}.1f}} [{{:{sign}.1f}}, {{:{sign}.1f}}]"
    cells = [cell.format(*row) for row in (100 * rows[[value, "low", "high"]]).to_numpy()]
    table = rows.assign(cell=cells).pivot(index="dataset", columns="metric", values="cell")
    return table.fillna("").loc[rows["dataset"].unique(), rows["metric"].unique()]
