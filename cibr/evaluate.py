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
from jaxtyping import Float
from tqdm import tqdm

from cibr import metrics
from cibr.data import Pairs, available_splits, load_pairs, photos
from cibr.metrics.intervals import cluster_values, group_balanced_values
from cibr.metrics.retrieval import recall_items
from cibr.metrics.zeroshot import accuracy_items
from cibr.models import DualEncoder
from cibr.models.dual_encoder import image_key
from cibr.models.features import embed_pairs, prepare
from cibr.utils import check_known, digest, write_atomically

_KEY = ["suite", "dataset", "kind", "metric"]  # of a row


class Task(NamedTuple):
    """One benchmark: a data set, the kind of task (`zero-shot` or `retrieval`), the split, and the
    group whose mean counts as one set.
    """

    dataset: str
    kind: str = "zero-shot"
    split: str = "test"
    group: str = ""

    @property
    def title(self) -> str:
        """The data set's name in tables, with the split if that is neither test nor validation."""
        name = Path(self.dataset).resolve().name.removeprefix("wds_")  # also of the folder `.`
        return name if self.split in ("test", "validation") else f"{name}/{self.split}"


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


def suite_tasks(suite: str | Sequence[Task]) -> tuple[Task, ...]:
    """The tasks of a suite, a name of `SUITES` or tasks.

    Raises:
        ValueError: an unknown suite or kind, with the known ones.
    """
    if isinstance(suite, str):
        check_known("suite", suite, SUITES)
        suite = SUITES[suite]
    for task in suite:
        check_known("kind of task", task.kind, ("zero-shot", "retrieval"))
    return tuple(suite)


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
    if not pairs.classnames:
        return (Task(dataset, "retrieval", split),)
    pairs.prompts()  # raises without templates
    return (Task(dataset, "zero-shot", split),)


class Score(NamedTuple):
    """One number an item, whose mean is the score, and the number of queries."""

    values: Float[np.ndarray, " _"]
    n: int


@dataclass(eq=False)
class Evaluation:
    """The results of a model on a suite.

    Args:
        model: the model's name in tables.
        suite: the suite's name in tables.
        scores: by task and metric.
        digests: of each task's images and texts; scores are comparable item by item where they are
            equal.
    """

    model: str
    suite: str
    scores: dict[Task, dict[str, Score]]
    digests: dict[Task, str]

    @property
    def rows(self) -> pd.DataFrame:
        """Tidy scores with the columns `model, suite, dataset, kind, metric, value, low, high` and
        `n`, the number of queries.

        Sets come first, then groups, such as the four styles of PACS, and all zero-shot sets, where
        a group counts as one set.
        """
        rows = []
        for key, score in _with_means(self).items():
            interval = metrics.proportion_interval(score.values)
            rows.append((self.model, self.suite, *key, *interval, score.n))
        return pd.DataFrame(rows, columns=["model", *_KEY, "value", "low", "high", "n"])


def _with_means(evaluation: Evaluation) -> dict[tuple[str, str, str], Score]:
    """Scores by data set, kind and metric: of sets, groups, and all zero-shot sets."""
    tables, groups = {}, {}
    for task, scores in evaluation.scores.items():
        tables[task.title, task.kind] = scores
        if task.kind == "zero-shot":
            groups.setdefault(task.group or task.title, []).append(scores)
    means = {name: _mean(members) for name, members in groups.items()}
    if len(means) > 1:
        means[f"mean of {len(means)}"] = _mean([*means.values()])
    tables |= {(name, "zero-shot"): scores for name, scores in means.items()}
    return {(*key, metric): table[metric] for key, table in tables.items() for metric in table}


def _mean(tables: list[dict[str, Score]]) -> dict[str, Score]:
    """The mean of several zero-shot sets' scores."""
    means = {}
    for metric in tables[0]:
        values = [table[metric].values for table in tables]
        sets = np.repeat(np.arange(len(values)), [len(of_set) for of_set in values])
        means[metric] = Score(group_balanced_values(np.concatenate(values), sets), len(sets))
    return means


def evaluate(
    model: DualEncoder,
    suite: str | Sequence[Task],
    *,
    name: str,
    output_dir: str | Path | None = None,
) -> Evaluation:
    """Evaluates a model on all data sets of a suite.

    Args:
        model: the encoders, on the device to use.
        suite: a name of `SUITES` or a list of tasks.
        name: the model's name in tables.
        output_dir: folder for this model's results; `rows.csv` goes into a subfolder named after
            the suite, after the only data set of a list, or `tasks`.

    Returns:
        The evaluation, with `rows` of scores.

    Raises:
        ValueError: an unknown suite, kind or set, or a tenth of a set's samples that cannot be used
            (it is named).
        OSError: results cannot be written.
        FileNotFoundError: a file of a set is missing.
        ConnectionError: a file cannot be fetched from the hub.
    """
    tasks = suite_tasks(suite)
    titles = {task.title for task in tasks}
    of_tasks = titles.pop() if len(titles) == 1 else "tasks"
    evaluation = Evaluation(name, suite if isinstance(suite, str) else of_tasks, {}, {})
    for task in tqdm(tasks, desc=name, unit="set", delay=1):
        _add(evaluation, model, task, load_pairs(task.dataset, task.split))
        if output_dir is not None:  # now: a later set may fail
            folder = Path(output_dir) / evaluation.suite
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "rows.csv", partial(evaluation.rows.to_csv, index=False))
    return evaluation


def evaluate_pairs(model: DualEncoder, pairs: Pairs, name: str) -> Evaluation:
    """Evaluates a model in retrieval on pairs that are loaded.

    Args:
        model: the encoders, on the device to use.
        pairs: with at least two that differ.
        name: the model's name in tables.
    """
    evaluation = Evaluation(name, pairs.name, {}, {})
    _add(evaluation, model, Task(pairs.name, "retrieval", pairs.split), pairs)
    return evaluation


def _add(evaluation: Evaluation, model: DualEncoder, task: Task, pairs: Pairs) -> None:
    """Adds a task's scores to an evaluation."""
    n_seen = sum(image_key(digest) in model.trained_on for digest in pairs.image_digests())
    if n_seen:
        warnings.warn(
            f"the model was trained on {n_seen:,} of the {len(pairs):,} images of {pairs.name} "
            f"{pairs.split}: its recall on others is in held_out/recall.csv of its run",
            stacklevel=3,
        )
    measure = _zero_shot if task.kind == "zero-shot" else _retrieval
    evaluation.scores[task] = measure(model, pairs)
    seen = pairs.captions, pairs.classnames, pairs.templates, pairs.image_digests()
    evaluation.digests[task] = digest(repr(seen))


def _zero_shot(model: DualEncoder, pairs: Pairs) -> dict[str, Score]:
    """Accuracies, with one number an image."""
    prompts = pairs.prompts()
    texts = [prompt for of_class in prompts for prompt in of_class]
    images, texts = embed_pairs(model, prepare(model, pairs, model.device, texts=texts), 256)
    classes = metrics.class_embeddings(texts.unflatten(0, (len(prompts), -1)))
    ranks = metrics.class_ranks(images, classes, pairs.labels)
    items = accuracy_items(ranks, pairs.labels)
    return {metric: Score(values, len(values)) for metric, values in items.items()}


def _retrieval(model: DualEncoder, pairs: Pairs) -> dict[str, Score]:
    """Recalls, with one number an image with its texts, or a label."""
    images, texts = embed_pairs(model, prepare(model, pairs, model.device), 256)
    ranks = metrics.query_ranks(images, texts, *pairs.retrieval_targets())
    if len(ranks.image_units.unique()) < 2:
        raise ValueError(f"all images of {pairs.name} match one another: retrieval needs two")
    name = "recall" if pairs.paired else "label_recall"
    scores = {}
    for metric, hits in recall_items(*ranks[:2], name=name).items():
        units = ranks.image_units if metric.startswith("image") else ranks.text_units
        scores[metric] = Score(cluster_values(hits.numpy(), units.numpy()), len(hits))
    return scores


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
        ValueError: different sets, images or texts, or numbers of seeds.
    """
    a, b = ([side] if isinstance(side, Evaluation) else list(side) for side in (a, b))
    for task, seen in a[0].digests.items():
        if any(evaluation.digests.get(task) != seen for evaluation in a + b):
            raise ValueError(f"a and b saw different images or texts of {task.title}")
    of_a, of_b = ([_with_means(evaluation) for evaluation in side] for side in (a, b))
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
