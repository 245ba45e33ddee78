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
from tqdm import tqdm

from cibr import metrics
from cibr.data import Pairs, available_splits, load_pairs, photos, title_of
from cibr.metrics.intervals import cluster_values, group_balanced_values
from cibr.metrics.zeroshot import accuracy_items
from cibr.models import DualEncoder
from cibr.models.dual_encoder import image_key
from cibr.models.inputs import embed_pairs, prepare
from cibr.utils import check_known, digest, write_atomically

_KEY = ["suite", "dataset", "kind", "metric"]  # of a row


class Task(NamedTuple):
    """One benchmark: a data set, its split, and the group whose mean counts as one set.

    It is zero-shot classification if the data set has class names, else retrieval.
    """

    dataset: str
    split: str = "test"
    group: str = ""

    @property
    def title(self) -> str:
        """The data set's name in tables, with the split if that is neither test nor validation."""
        name = title_of(self.dataset)
        return name if self.split in ("test", "validation") else f"{name}/{self.split}"


_PAPER = "vtab-cifar10 vtab-cifar100 food101 vtab-caltech101 vtab-pets vtab-dtd vtab-eurosat"
_PAPER += " mscoco_captions flickr30k"

# `characters` and `photos` need no download. The seven zero-shot sets of Ji et al. (2025) are not
# public; those of `paper` are our choice. Add a suite with `SUITES[name] = (Task(...), ...)`.
SUITES: dict[str, tuple[Task, ...]] = {
    "characters": (Task("glyphs"), Task("glyphs", "test_characters")),
    "photos": tuple(map(Task, (*photos.CLASSES, "photos", "photos-coco"))),
    "paper": tuple(map(Task, _PAPER.split())),
}


def suite_tasks(suite: str | Sequence[Task]) -> tuple[Task, ...]:
    """The tasks of a suite, a name of `SUITES` or tasks.

    Raises:
        ValueError: an unknown suite, with the known ones.
    """
    if not isinstance(suite, str):
        return tuple(suite)
    check_known("suite", suite, SUITES)
    return SUITES[suite]


def dataset_tasks(dataset: str) -> tuple[Task]:
    """The task of a data set.

    Args:
        dataset: a name or a folder; see `cibr.load_pairs`. Uses the test split, or validation.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `cibr.load_pairs`.
    """
    split = "test" if "test" in available_splits(dataset) else "validation"
    return (Task(dataset, split),)


@dataclass(eq=False)
class Evaluation:
    """The results of a model on a suite.

    Args:
        model: the model's name in tables.
        suite: the suite's name in tables.
        scores: one number an item, whose mean is the score, by data set, kind and metric: of sets
            first, then of groups, such as the four styles of PACS, and of all zero-shot sets, where
            a group counts as one set.
        chance: what guessing has on average, by the keys of `scores`: the recalls of a random
            order, and the accuracy of always naming the most frequent class.
        digests: of each data set's images and texts; scores are comparable item by item where they
            are equal.
    """

    model: str
    suite: str
    scores: dict[tuple[str, str, str], np.ndarray]
    chance: dict[tuple[str, str, str], float]
    digests: dict[tuple[str, str], str]

    @property
    def rows(self) -> pd.DataFrame:
        """Tidy scores with the columns `model, suite, dataset, kind, metric, value, low, high, n`,
        the number of items, and `chance`.
        """
        rows = []
        for key, values in self.scores.items():
            interval = metrics.proportion_interval(values)
            rows.append((self.model, self.suite, *key, *interval, len(values), self.chance[key]))
        columns = ["model", *_KEY, "value", "low", "high", "n", "chance"]
        return pd.DataFrame(rows, columns=columns)


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
        output_dir: a folder for this model's results: `rows.csv` goes into a subfolder named after
            the suite, after the only data set of a list, or `tasks`.

    Returns:
        The evaluation, with `rows` of scores.

    Raises:
        ValueError: an unknown suite, or a tenth of a set's samples that cannot be used (it is
            named).
        OSError: results cannot be written.
        FileNotFoundError: a file of a set is missing.
        ConnectionError: a file cannot be fetched from the hub.
    """
    tasks = suite_tasks(suite)
    of_tasks = tasks[0].title if len(tasks) == 1 else "tasks"
    evaluation = Evaluation(name, suite if isinstance(suite, str) else of_tasks, {}, {}, {})
    for task in tqdm(tasks, desc=name, unit="set", delay=1):
        _add(evaluation, model, load_pairs(task.dataset, task.split), task.title)
        if output_dir is not None:  # now: a later set may fail
            _write(evaluation, output_dir)
    group_of = {task.title: task.group or task.title for task in tasks}
    for metric in ("accuracy@1", "mean_per_class_accuracy"):
        sets_of_group: dict[str, list[tuple[np.ndarray, float]]] = {}
        for key, values in evaluation.scores.items():
            title, _, of_key = key
            if of_key == metric:
                scored = (values, evaluation.chance[key])
                sets_of_group.setdefault(group_of[title], []).append(scored)
        means = {group: _mean(sets) for group, sets in sets_of_group.items()}
        if len(means) > 1:
            means[f"mean of {len(means)}"] = _mean([*means.values()])
        for group, (values, chance) in means.items():
            evaluation.scores[group, "zero-shot", metric] = values
            evaluation.chance[group, "zero-shot", metric] = chance
    if output_dir is not None:
        _write(evaluation, output_dir)
    return evaluation


def _write(evaluation: Evaluation, output_dir: str | Path) -> None:
    folder = Path(output_dir) / evaluation.suite
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "rows.csv", partial(evaluation.rows.to_csv, index=False))


def _mean(sets: list[tuple[np.ndarray, float]]) -> tuple[np.ndarray, float]:
    """The mean of several zero-shot sets' scores and of their chances; a set counts as one."""
    scores, chances = zip(*sets, strict=True)
    of_set = np.repeat(np.arange(len(scores)), [len(values) for values in scores])
    return group_balanced_values(np.concatenate(scores), of_set), float(np.mean(chances))


def evaluate_pairs(model: DualEncoder, pairs: Pairs, name: str) -> Evaluation:
    """Evaluates a model on pairs that are loaded: zero-shot if they have class names, else in
    retrieval.

    Args:
        model: the encoders, on the device to use.
        pairs: with at least two that differ.
        name: the model's name in tables.

    Raises:
        ValueError: images that all match one another.
    """
    evaluation = Evaluation(name, pairs.name, {}, {}, {})
    _add(evaluation, model, pairs, pairs.name)
    return evaluation


def _add(evaluation: Evaluation, model: DualEncoder, pairs: Pairs, title: str) -> None:
    """Adds a set's scores to an evaluation."""
    n_seen = sum(image_key(digest) in model.trained_on for digest in pairs.image_digests())
    if n_seen:
        what = f"the model was trained on {n_seen:,} of the {len(pairs):,} images of {pairs.name}"
        warnings.warn(f"{what}: recall on others is in held_out/recall.csv", stacklevel=3)
    kind, measure = ("zero-shot", _zero_shot) if pairs.classnames else ("retrieval", _retrieval)
    scores, chance = measure(model, pairs)
    for metric, values in scores.items():
        evaluation.scores[title, kind, metric] = values
        evaluation.chance[title, kind, metric] = chance[metric]
    seen = pairs.captions, pairs.classnames, pairs.templates, pairs.image_digests()
    evaluation.digests[title, kind] = digest(repr(seen))


_Scores = tuple[dict[str, np.ndarray], dict[str, float]]  # one number an item, and chance


def _zero_shot(model: DualEncoder, pairs: Pairs) -> _Scores:
    """Accuracies, with one number an image, and those of the most frequent class."""
    prompts = pairs.prompts()
    texts = [prompt for of_class in prompts for prompt in of_class]
    images, texts = embed_pairs(model, prepare(model, pairs, texts=texts), 256)
    classes = metrics.class_embeddings(texts.unflatten(0, (len(prompts), -1)))
    ranks = metrics.class_ranks(images, classes, pairs.labels)
    scores = accuracy_items(ranks, pairs.labels)
    most_frequent = (pairs.labels != pairs.labels.mode().values).long()  # its rank is 0 for them
    guesses = accuracy_items(most_frequent, pairs.labels)
    return scores, {metric: float(values.mean()) for metric, values in guesses.items()}


def _retrieval(model: DualEncoder, pairs: Pairs) -> _Scores:
    """Recalls, with one number an image with its texts, or a label, and those of a random order."""
    image_embeddings, text_embeddings = embed_pairs(model, prepare(model, pairs), 256)
    texts, text_to_image, labels = pairs.retrieval_targets()
    ranks = metrics.retrieval_ranks(image_embeddings, text_embeddings, text_to_image, labels, texts)
    if len(ranks.image_clusters.unique()) < 2:
        raise ValueError(f"all images of {pairs.name} match one another: retrieval needs two")
    scores = {}
    for metric, hits in metrics.recall_hits(ranks).items():
        clusters = ranks.image_clusters if metric.startswith("image") else ranks.text_clusters
        scores[metric] = cluster_values(hits.numpy(), clusters.numpy())
    return scores, metrics.chance_recalls(ranks)


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
    for key, seen in a[0].digests.items():
        if any(evaluation.digests.get(key) != seen for evaluation in a + b):
            raise ValueError(f"a and b saw different images or texts of {key[0]}")
    rows = []
    for key, values in a[0].scores.items():
        x, y = (np.stack([of.scores[key] for of in side]) for side in (a, b))
        interval = metrics.paired_difference(x, y)
        means = float(x.mean()), float(y.mean())
        rows.append((a[0].suite, *key, *means, *interval, len(values), len(a)))
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
