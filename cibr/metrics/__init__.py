"""Metrics of paired embeddings: retrieval, zero-shot classification and bootstrap intervals.

All are functions of tensors. Ties count against the model, and embeddings that are not finite unit
vectors are rejected, so a broken model never scores well.
"""

from cibr.metrics.intervals import bootstrap_interval, paired_difference
from cibr.metrics.retrieval import (
    query_scores,
    recall_at_k,
    retrieval_ranks,
    retrieval_recalls,
)
from cibr.metrics.zeroshot import class_embeddings, class_ranks, predictions, zeroshot_accuracy

__all__ = [
    "bootstrap_interval",
    "class_embeddings",
    "class_ranks",
    "paired_difference",
    "predictions",
    "query_scores",
    "recall_at_k",
    "retrieval_ranks",
    "retrieval_recalls",
    "zeroshot_accuracy",
]
