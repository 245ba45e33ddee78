"""Metrics of paired embeddings: retrieval, zero-shot classification and intervals of means.

All are functions of tensors. Ties count against the model, and embeddings that are not finite unit
vectors are rejected, so a broken model never scores well.
"""

from cibr.metrics.intervals import mean_interval, paired_difference, proportion_interval
from cibr.metrics.retrieval import (
    Ranks,
    chance_recalls,
    recall_at_k,
    recall_hits,
    retrieval_ranks,
    retrieval_recalls,
)
from cibr.metrics.zeroshot import class_embeddings, class_ranks, zeroshot_accuracy

__all__ = [
    "Ranks",
    "chance_recalls",
    "class_embeddings",
    "class_ranks",
    "mean_interval",
    "paired_difference",
    "proportion_interval",
    "recall_at_k",
    "recall_hits",
    "retrieval_ranks",
    "retrieval_recalls",
    "zeroshot_accuracy",
]
