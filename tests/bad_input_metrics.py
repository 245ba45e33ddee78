"""What metrics, evaluation and the command line refuse: calls by the argument that errors name."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch

import cibr
from cibr import metrics
from cibr.cli import _parser, _settings
from cibr.evaluate import Evaluation, Predictions, Task, difference, evaluate, suite_tasks
from cibr.metrics import mean_interval, paired_difference
from cibr.models import DualEncoder

EYE, OWN = torch.eye(12), torch.arange(12)
STRINGS = [str(i) for i in range(12)]
ONE = np.ones((1, 3))


def broken(value):
    rows = torch.eye(12)
    rows[5, 5] = value
    return rows


def ints(*values):
    return torch.tensor(values)


def recall(image=EYE, text=EYE, own=OWN, *ks):
    return partial(metrics.recall_at_k, image, text, own, *ks)


def by_label(image=EYE, text=EYE, own=OWN, labels=OWN):
    return partial(metrics.query_ranks, image, text, STRINGS[: len(text)], own, labels)


def ranks(image=EYE, classes=EYE, labels=OWN):
    return partial(metrics.class_ranks, image, classes, labels)


def evaluated(**options):
    model = DualEncoder.tiny(["a letter"], dim=8, width=4)
    return lambda: evaluate(model, "glyphs", name="m", **options)


def evaluation(asked):
    items = {"ranks": ints(0, 1), "labels": ints(0, 1)}
    return Evaluation("m", "s", {Task("one"): Predictions("zero-shot", items, asked)})


def of_file(name, text, read):
    def call(tmp_path):
        (tmp_path / name).write_text(text)
        read(tmp_path / name)

    return call


def settings(file):
    _settings(_parser("train").parse_args(["train", str(file)]))


BAD_ROWS = [broken(value) for value in (math.nan, math.inf, 0.0, 1.02)]
NO_ROWS = [EYE[0], EYE[:0], EYE.numpy()]
NO_LABELS = [OWN.float(), OWN > 3, OWN[:2], OWN[None]]
CANCELLED = torch.stack([torch.ones(2, 4), ints(1, -3)[:, None] * ints(1, 2, 3, 5) / 7])
BAD = {
    "not finite, first row 5: look for NaN": [
        f(broken(value))
        for f in (recall, by_label, ranks)
        for value in (math.nan, math.inf, -math.inf)
    ],
    "not unit vectors, first row 5: normalise": [recall(text=broken(x)) for x in (0.0, 1.02)],
    "image_embeddings is of type ndarray: pass a torch.Tensor": [recall(EYE.numpy())],
    "image_embeddings": [f(x) for f in (recall, by_label, ranks) for x in (*BAD_ROWS, *NO_ROWS)],
    "text_embeddings": [f(text=x) for f in (recall, by_label) for x in BAD_ROWS]
    + [recall(text=torch.eye(5), own=OWN[:5])],
    "class_embeddings": [ranks(classes=broken(math.nan)), ranks(classes=NO_ROWS[0])],
    "first row 5": [partial(metrics.class_embeddings, broken(0.0).reshape(3, 4, 12))],
    "prompt_embeddings": [partial(metrics.class_embeddings, torch.ones(0, 2, 4))],
    "class 1 cancel": [partial(metrics.class_embeddings, CANCELLED)],
    "text_to_image": [recall(own=x) for x in NO_LABELS]
    + [recall(EYE[:3], EYE[:3], own) for own in (ints(0, 1, 1), ints(0, 1, 3), ints(-1, 1, 2))]
    + [by_label(own=OWN[:2])],
    "labels": [f(labels=x) for f in (by_label, ranks) for x in NO_LABELS],
    "labels, first 7": [
        ranks(EYE[:3], EYE[:3], ints(0, 7, 2)),
    ],
    "ks": [recall(EYE, EYE, OWN, [k]) for k in (0, -1, 13)]
    + [partial(metrics.retrieval_recalls, EYE, EYE, STRINGS, OWN, ks=[0])],
    "values": [partial(mean_interval, x) for x in (np.array([1.0, np.nan]), np.array([]))],
    "cluster": [partial(mean_interval, np.ones(3), np.arange(2))],
    "seeds": [partial(paired_difference, a, ONE) for a in (ONE[0], ONE[:, :2], np.ones((2, 3)))],
    "b is empty": [partial(paired_difference, ONE[:, :0], ONE[:, :0])],
    "limit": [evaluated(limit=x) for x in (1, -1)],
    "batch_size": [evaluated(batch_size=x) for x in (0, 2.5)],
    "model to evaluate is of type str": [lambda: evaluate("clip-tiny", "glyphs", name="m")],
    "unknown suite": [partial(suite_tasks, "charactres")],
    "YAML suites are gone": [partial(suite_tasks, "own.yaml")],
    "give at least one": [partial(suite_tasks, [])],
    "unknown kind of task 'probe'": [partial(suite_tasks, [Task("a", "probe")])],
    "each data set once": [partial(suite_tasks, [Task("x/a"), Task("y/a")])],
    "different images": [
        partial(difference, [evaluation("x")] * len(asked), [*map(evaluation, asked)])
        for asked in ("y", "xy")
    ],
    "evaluations": [partial(difference, x, []) for x in ([], [evaluation("")] * 2)]
    + [partial(difference, evaluation(""), replace(evaluation(""), suite="t"))],
    "JSON object": [of_file("config.json", text, settings) for text in ("{", "[1]")],
}
CASES = [
    (f"metrics: {word} {i}", call, ValueError, word)
    for word, calls in BAD.items()
    for i, call in enumerate(calls)
]
CASES.append(("name", lambda: cibr.CIBRLos, AttributeError, "CIBRLos"))
