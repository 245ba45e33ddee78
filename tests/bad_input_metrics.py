"""Bad input to metrics, evaluation, the command line and figures."""

import json
import math

import numpy as np
import pandas as pd
import torch
from helpers import noise_pairs, picture

import cibr
from cibr.cli import _parser, _settings
from cibr.evaluate import Evaluation, Predictions, Task, compare, evaluate, suite_tasks
from cibr.metrics import (
    bootstrap_interval,
    class_embeddings,
    class_ranks,
    label_recall_at_k,
    paired_difference,
    predictions,
    query_scores,
    recall_at_k,
    retrieval_ranks,
    retrieval_recalls,
)
from cibr.models import DualEncoder
from cibr_book import plots
from cibr_book.geometry import alignment, linear_cka, modality_gap, mutual_knn, uniformity
from cibr_book.suites import published

EYE = torch.eye(12)


def case(name, message, call, *args, error=ValueError, **options):
    return name, lambda: call(*args, **options), error, message


def broken(value, row=5):
    rows = torch.eye(12)
    rows[row, row] = value
    return rows


def ints(*values):
    return torch.tensor(values)


CANCELLED = torch.cat(
    [torch.ones(1, 2, 4), torch.tensor([1.0, -3.0])[None, :, None].expand(1, 2, 4)]
)
OWN = torch.arange(12)
BY_ROW = {retrieval_ranks: [OWN], query_scores: [OWN, OWN], class_ranks: [OWN], predictions: []}
UNPAIRED = [  # shapes of a and b, weights
    ([], [], None, "the same data sets"),
    ([(2, 3)], [(1, 3)], None, "the same data sets"),
    ([(2, 3), (1, 3)], [(2, 3), (1, 3)], None, "the same seeds everywhere"),
    ([(1, 3)], [(1, 3)], [1, 1], r"weights \[1, 1\] for 1 data sets"),
    ([(1, 3)], [(1, 3)], [-1], "none below zero"),
    ([(1, 3)], [(1, 3)], [0], "none below zero"),
    ([(1, 0)], [(1, 0)], None, "b is empty"),
]
NO_INTERVAL = [
    ([1.0, np.nan], {}, "values is empty or has values that are not finite"),
    ([], {}, "values is empty"),
    ([1.0], {}, "1 items with 1 cluster labels in 1 clusters"),
    ([1.0, 2.0], {"clusters": np.zeros(2)}, "two clusters at least"),
    ([1.0, 2.0, 3.0], {"clusters": np.arange(2)}, "3 items with 2 cluster labels"),
    ([1.0, 2.0], {"statistic": np.max}, "give np.mean or np.median"),
]
INDICES = [
    (ints(0, 1, 1), "from 0 to 1 for 3 images: .* leave out those without a text"),
    (ints(0, 1, 3), "from 0 to 3 for 3 images: count images from 0"),
    (ints(-1, 1, 2), "from -1 to 2 for 3 images: count images from 0"),
    (ints(0, 1), r"text_to_image has shape \(2,\): give one a row, \(3,\)"),
]

METRICS = [
    *[case(f"{call.__name__}: NaN, infinity, zeros", "_embeddings has 1 rows .* row 5", call, *sides, *own)
      for call, own in BY_ROW.items()
      for sides in ((broken(math.nan), EYE), (EYE, broken(math.inf)), (broken(0.0), EYE))],
    case("retrieval: k of 0", "k=0 does not fit 12 images and 12 texts", recall_at_k, EYE, EYE, OWN, [0]),
    case("by label: k too large", "k=5 does not fit", label_recall_at_k, EYE, EYE[:4], *[ints(0)] * 2, [5]),
    *[case(f"text_to_image of {own.tolist()}", message, retrieval_ranks, EYE[:3], EYE[:3], own)
      for own, message in INDICES],
    case("no texts", "n and m at least 1", retrieval_ranks, EYE, EYE[:0], torch.zeros(0).long()),
    case("other dimensions", "with the same d", retrieval_ranks, EYE, torch.eye(5), torch.arange(5)),
    case("too few labels", r"image_labels has shape \(2,\)", query_scores, EYE, EYE, ints(0, 1), OWN),
    case("a label of images alone", "1 images have a label that the other side lacks, first label 7", query_scores,
         EYE[:3], EYE[:3], ints(0, 1, 7), ints(0, 1, 1)),
    case("a label of texts alone", "2 texts have a label that the other side lacks", query_scores,
         EYE[:3], EYE[:3], ints(0, 0, 0), ints(0, 1, 1)),
    case("too few texts of pairs", "text_to_image has shape", retrieval_recalls, noise_pairs(12, 2), EYE, EYE),
    *[case(f"zero-shot: label {label}", f"1 labels lie outside the classes, first {label} of image 1", class_ranks,
           EYE[:3], EYE[:3], ints(0, label, 2)) for label in (-1, 3)],
    case("zero-shot: too few labels", r"labels has shape \(2,\)", class_ranks, EYE[:3], EYE[:3], ints(0, 1)),
    case("a prompt of zeros", "first row 5", class_embeddings, broken(0.0).reshape(3, 4, 12)),
    case("prompts that cancel", "the prompts of class 1 cancel", class_embeddings, CANCELLED),
    case("no class", "one of each at least", class_embeddings, torch.ones(0, 2, 4)),
    *[case(f"{s.__name__}: not of unit length", "text_embeddings has norms up to 1 away from 1", s, EYE, 2 * EYE)
      for s in (alignment, modality_gap, mutual_knn)],
    *[case(f"{s.__name__}: {name}", message, s, EYE, texts)
      for s in (linear_cka, mutual_knn)
      for name, texts, message in (("collapsed", torch.ones(12, 12) / 12**0.5, "text_embeddings are equal"),
                                   ("unpaired", EYE[:11], "12 images but 11 texts"))],
    case("neighbours: k too large", "k=12 does not fit 12 pairs", mutual_knn, EYE, EYE, k=12),
    case("uniformity: one item", "pass at least two", uniformity, torch.eye(1)),
    *[case(f"interval: {message}", message, bootstrap_interval, np.array(values), **options)
      for values, options, message in NO_INTERVAL],
    *[case(f"difference: {message} {weights}", message, paired_difference,
           [np.ones(s) for s in a], [np.ones(s) for s in b], weights) for a, b, weights, message in UNPAIRED],
]  # fmt: skip


def suite_file(text, **options):
    def call(tmp_path):
        (tmp_path / "own.yaml").write_text(text)
        suite_tasks(tmp_path / "own.yaml", **options)

    return call


def settings_of(text):
    def call(tmp_path):
        (tmp_path / "config.json").write_text(text)
        _settings(_parser(True).parse_args(["train", str(tmp_path / "config.json")]))

    return call


def limited(**options):
    evaluate(DualEncoder.tiny(["a letter"], dim=8, width=4), "glyphs", name="m", **options)


def evaluated(asked):
    items = {"ranks": ints(0, 1), "labels": ints(0, 1), "n_classes": torch.tensor(2)}
    return Evaluation("m", "s", {Task("one"): Predictions("zero-shot", items, asked)})


def beside(texts):
    return lambda: plots.retrieval_gallery([picture(0)], [["z"]], texts, torch.ones(1, len(texts)))


NO_ROWS = pd.DataFrame({"dataset": ["a"], "metric": ["accuracy@5"]})
EVALUATE = [
    case("unknown name", "no attribute 'CIBRLos'.*CIBRLoss", lambda: cibr.CIBRLos, error=AttributeError),
    case("limit of 1", "limit is 1 .* or 2 or more", limited, limit=1),
    case("limit of ten", "limit is 'ten' and batch_size 256", limited, limit="ten"),
    case("batch size of 0", "a batch has a row at least", limited, batch_size=0),
    case("no such suite", "unknown suite 'glyph', did you mean 'glyphs'", suite_tasks, "glyph"),
    case("no such file", "or a YAML file of tasks", suite_tasks, "nowhere/own.yaml"),
    case("kinds as one word", "give a list with 'zero-shot' or", suite_tasks, "mini", "retrieval"),
    case("no set of a kind", "'paper-extras' has no retrieval set", suite_tasks, "paper-extras", ["retrieval"]),
    case("an unknown kind", "is no task: .* one of zero-shot, retrieval", suite_tasks, [Task("a", "probe")]),
    case("names for tasks", "a is no task", suite_tasks, ["a"]),
    case("a task twice", "two tasks named 'a-zero-shot", suite_tasks, [Task("x/a"), Task("y/a")]),
    ("suite: no YAML", suite_file("- {"), ValueError, "own.yaml' is not YAML"),
    ("suite: no list", suite_file("dataset: cats"), ValueError, "give a list of tasks, such as '- data"),
    ("suite: no dataset", suite_file("- kind: retrieval"), ValueError, "has no dataset; a task has dataset, kind"),
    ("suite: unknown key", suite_file("- {dataset: a, knd: b}"), ValueError, "'knd', did you mean 'kind'"),
    ("suite: unknown kind", suite_file("- {dataset: a, kind: zeroshot}"), ValueError, "is no task"),
    ("suite: empty", suite_file("[]"), ValueError, "suite 'own' has no zero-shot or retrieval set"),
    case("other images", "m and m saw other images or texts of one", compare, evaluated("x"), evaluated("y")),
    case("seeds that do not pair", "2 and 1 evaluations of s do not compare", compare, [evaluated("")] * 2,
         evaluated("")),
    case("no published results", "published.csv has no results of 'mine'; it has those of", published, "mine"),
    ("config: no JSON", settings_of("{"), ValueError, "config.json' is not JSON"),
    ("config: a list", settings_of(json.dumps([1])), ValueError, "holds no settings: give an object"),
    ("gallery: no caption", beside(["a"]), ValueError, "none of the captions of image 0 .* add 'z'"),
    case("forest: nothing", "none of the rows is accuracy@1 or a recall@1", plots.forest, NO_ROWS),
]  # fmt: skip
CASES = METRICS + EVALUATE
