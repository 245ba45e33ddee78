"""What metrics and evaluation refuse: calls by the argument that errors name."""

import math
from functools import partial

import numpy as np
import torch

import cibr
from cibr import metrics
from cibr.metrics import mean_interval, paired_difference

EYE, OWN = torch.eye(12), torch.arange(12)
STRINGS = [str(i) for i in range(12)]


def broken(value):
    rows = torch.eye(12)
    rows[5, 5] = value
    return rows


def recall(image=EYE, text=EYE, own=OWN):
    return partial(metrics.recall_at_k, image, text, own)


def by_label(image=EYE, text=EYE, labels=OWN):
    return partial(metrics.retrieval_ranks, image, text, OWN, labels, STRINGS)


def ranks(image=EYE, classes=EYE, labels=OWN):
    return partial(metrics.class_ranks, image, classes, labels)


BAD = {
    "image_embeddings are not finite: look for NaN": [
        f(broken(value)) for f in (recall, by_label, ranks) for value in (math.nan, math.inf)
    ],
    "text_embeddings must be unit vectors": [
        f(text=broken(value)) for f in (recall, by_label) for value in (0.0, 1.02)
    ],
    "class_embeddings are not finite": [ranks(classes=broken(math.nan))],
    "prompt_embeddings are empty": [partial(metrics.class_embeddings, torch.ones(0, 2, 4))],
    "text_to_image must count images": [recall(own=OWN + 1), recall(own=OWN.clamp(max=5))],
    "labels has some that no item has": [ranks(labels=OWN + 1)],
    "seeds, items": [partial(paired_difference, np.ones((1, 3)), np.ones((2, 3)))],
    "length": [partial(mean_interval, np.ones(3), np.arange(2))],
}
CASES = [
    (f"metrics: {word} {i}", call, ValueError, word)
    for word, calls in BAD.items()
    for i, call in enumerate(calls)
]
CASES.append(("name", lambda: cibr.CIBRLos, AttributeError, "CIBRLos"))
