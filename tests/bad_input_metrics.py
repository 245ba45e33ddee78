"""Bad input to metrics and evaluation, and to the command line."""

import json
import math

import numpy as np
import torch
from helpers import noise_pairs

import cibr
from cibr import metrics
from cibr.cli import _parser, _settings
from cibr.evaluate import Evaluation, Predictions, Task, compare, evaluate, suite_tasks
from cibr.models import DualEncoder

EYE, OWN = torch.eye(12), torch.arange(12)
TEXTS, NUMBERS, _ = noise_pairs(12, 2).retrieval_targets()
CASES = []


def case(message, call, *args, **options):
    call = getattr(metrics, call) if isinstance(call, str) else call
    name = f"{call.__name__}: {message} {len(CASES)}"
    CASES.append((name, lambda: call(*args, **options), ValueError, message))


def broken(value, row=5):
    rows = torch.eye(12)
    rows[row, row] = value
    return rows


def ints(*values):
    return torch.tensor(values)


LABELS = dict(retrieval_ranks=[OWN], query_scores=[OWN, OWN], class_ranks=[OWN], predictions=[])
for call, labels in LABELS.items():
    for value in (math.nan, math.inf, 0.0):
        case("1 rows zero or not finite, first row 5", call, broken(value), EYE, *labels)
    case("1 rows zero or not finite, first row 5", call, EYE, broken(math.nan), *labels)
    case("1 rows not of unit length .normalise", call, EYE, broken(1.02), *labels)
for value in (EYE.numpy(), None, EYE.tolist(), EYE[0], EYE[:0]):
    case("image_embeddings is .*: pass a torch tensor", "recall_at_k", value, EYE, OWN)
    case("text_embeddings is .*: pass a torch tensor", "query_scores", EYE, value, OWN, OWN)
for value in (OWN.numpy(), None, OWN.float(), OWN > 3, OWN[:2], OWN[None]):
    case("text_to_image is .* 12 whole numbers", "recall_at_k", EYE, EYE, value)
    case("image_labels is .* 12 whole numbers", "query_scores", EYE, EYE, value, OWN)
    case("labels is .* 12 whole numbers", "class_ranks", EYE, EYE, value)
for ks in (5, "1", None, [1.5], [True], [0], [-1]):
    case("ks is .*: give a list of whole numbers from 1", "zeroshot_accuracy", EYE, EYE, OWN, ks)
    case("ks is .* from 1", "retrieval_recalls", EYE, EYE, TEXTS[:12], OWN, ks=ks)
    case("ks is .* from 1 to 12", "recall_at_k", EYE, EYE, OWN, ks)
case("ks is .* from 1 to 4", "recall_at_k", EYE[:4], EYE, OWN % 4, [5])
for own in (ints(0, 1, 1), ints(0, 1, 3), ints(-1, 1, 2)):
    case("for 3 images: .* no text", "retrieval_ranks", EYE[:3], EYE[:3], own)
case("'image_embeddings': 12, 'text_embeddings': 5", "retrieval_ranks", EYE, torch.eye(5), OWN[:5])
for labels in ((ints(0, 1, 7), ints(0, 1, 1)), (ints(0, 1, 1), ints(0, 7, 1))):
    case("1 labels, first 7, .* .0 to 1.", "query_scores", EYE[:3], EYE[:3], *labels)
for label in (-1, 3):
    case(f"first {label}, .* .0 to 2.", "class_ranks", EYE[:3], EYE[:3], ints(0, label, 2))
case("text_to_image is .* 12 whole numbers", "retrieval_recalls", EYE, EYE, TEXTS, NUMBERS, OWN)
case("first row 5", "class_embeddings", broken(0.0).reshape(3, 4, 12))
case("n >= 1", "class_embeddings", torch.ones(0, 2, 4))
for prompts in (EYE, None):
    case(
        "prompt_embeddings must be a torch tensor .classes, templates", "class_embeddings", prompts
    )
cancelled = torch.stack([torch.ones(2, 4), ints(1, -3)[:, None] * ints(1, 2, 3, 5) / 7])
case("the prompts of class 1 cancel", "class_embeddings", cancelled)

case("values is empty or not finite", "bootstrap_interval", np.array([1.0, np.nan]))
case("values is empty", "bootstrap_interval", np.array([]))
case("1 items but 1 cluster labels, 1 distinct", "bootstrap_interval", np.ones(1))
case("at least two clusters", "bootstrap_interval", np.ones(2), np.zeros(2))
case("3 items but 2 cluster labels", "bootstrap_interval", np.ones(3), np.arange(2))
case("give np.mean or np.median", "bootstrap_interval", np.ones(2), statistic=np.max)
one = [np.ones((1, 3))]
case("the same data sets", "paired_difference", [], [])
case("the same data sets", "paired_difference", [np.ones((2, 3))], one)
case("give .seeds, items", "paired_difference", [np.ones(3)], [np.ones(3)])
case("the same seeds everywhere", "paired_difference", *[[np.ones((2, 3)), np.ones((1, 3))]] * 2)
for weights in ([1, 1], [-1], [0], [math.nan], [math.inf]):
    case("weights are .* for 1 data sets: give one per", "paired_difference", one, one, weights)
case("b is empty", "paired_difference", *[[np.ones((1, 0))]] * 2)


def limited(**options):
    evaluate(DualEncoder.tiny(["a letter"], dim=8, width=4), "glyphs", name="m", **options)


def evaluated(asked):
    items = {"ranks": ints(0, 1), "labels": ints(0, 1), "n_classes": torch.tensor(2)}
    return Evaluation("m", "s", {Task("one"): Predictions("zero-shot", items, asked)})


for limit in (1, -1, "ten"):
    case("limit is .* give 0, for all images, or a number from 2", limited, limit=limit)
case("batch_size is 0: give a whole number from 1", limited, batch_size=0)
for suite in ("charactres", "nowhere/own.yaml"):
    case("unknown suite .a name or a YAML file of tasks. '.* Known: chara", suite_tasks, suite)
case("suite 'tasks' has .*: give at least one", suite_tasks, [])
case("unknown kind of task 'probe'. Known: zero-shot, retrieval", suite_tasks, [Task("a", "probe")])
case("'a' is not a task: give Task.dataset, kind.", suite_tasks, ["a"])
case("'a-zero-shot.* each data set once", suite_tasks, [Task("x/a"), Task("y/a")])
case("different images or texts of one: evaluate", compare, evaluated("x"), evaluated("y"))
case("2 and 1 evaluations of suites .'s'.: give", compare, [evaluated("")] * 2, evaluated(""))
case("0 and 0 evaluations", compare, [], [])


def file_case(message, name, text, read):
    """A case of a file with this text."""

    def call(tmp_path):
        (tmp_path / name).write_text(text)
        read(tmp_path / name)

    CASES.append((f"{name}: {text}", call, ValueError, message))


for text, message in {
    "- {": "own.yaml' is not a suite (.|\\n)*: give a YAML list",
    "dataset: cats": "is not a suite .* such as '- dataset: flickr8k'",
    "": "is not a suite",
    "- kind: retrieval": "is not a suite .*'dataset'.* some of dataset, kind, split, group",
    "- {dataset: a, knd: b}": "is not a suite .*'knd'",
    "- {dataset: a, kind: zeroshot}": "unknown kind of task 'zeroshot', did you mean 'zero-shot'",
    "[]": "suite 'own' has .*: give at least one",
}.items():
    file_case(message, "own.yaml", text, suite_tasks)


# The command line.
def settings(file):
    _settings(_parser(True).parse_args(["train", str(file)]))


file_case("config.json' is not JSON", "config.json", "{", settings)
file_case("must hold one JSON object", "config.json", json.dumps([1]), settings)
CASES.append(("name", lambda: cibr.CIBRLos, AttributeError, "no attribute 'CIBRLos'.*CIBRLoss"))
