"""What metrics and evaluation refuse: calls by the argument that errors name."""

import math
from functools import partial

import numpy as np
import torch

import cibr
from cibr import metrics
from cibr.metrics import mean_interval, paired_difference

EYE = torch.eye(12)
INDICES = torch.arange(12)
STRINGS = [str(i) for i in range(12)]


def eye_with(value):
    """Unit vectors, but for one number of one row."""
    rows = torch.eye(12)
    rows[5, 5] = value
    return rows


def paired(image=EYE, text=EYE, text_to_image=INDICES):
    return partial(metrics.recall_at_k, image, text, text_to_image)


def by_label(image=EYE, text=EYE, labels=INDICES):
    return partial(metrics.retrieval_ranks, image, text, INDICES, labels, STRINGS)


def zeroshot(image=EYE, classes=EYE, labels=INDICES):
    return partial(metrics.class_ranks, image, classes, labels)


BAD = {
    "image_embeddings are not finite: look for NaN": [
        metric(eye_with(value))
        for metric in (paired, by_label, zeroshot)
        for value in (math.nan, math.inf)
    ],
    "text_embeddings must be unit vectors": [
        metric(text=eye_with(value)) for metric in (paired, by_label) for value in (0.0, 1.02)
    ],
    "class_embeddings are not finite": [zeroshot(classes=eye_with(math.nan))],
    "prompt_embeddings are empty": [partial(metrics.class_embeddings, torch.ones(0, 2, 4))],
    "text_to_image must count images": [
        paired(text_to_image=INDICES + 1),
        paired(text_to_image=INDICES.clamp(max=5)),
    ],
    "some queries have a label that no item has": [zeroshot(labels=INDICES + 1)],
    "seeds, items": [partial(paired_difference, np.ones((1, 3)), np.ones((2, 3)))],
    "length": [partial(mean_interval, np.ones(3), np.arange(2))],
}
CASES = [
    (f"metrics: {word} {i}", call, ValueError, word)
    for word, calls in BAD.items()
    for i, call in enumerate(calls)
]
CASES.append(("name", lambda: cibr.CIBRLos, AttributeError, "CIBRLos"))
