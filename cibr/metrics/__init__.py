"""Metrics of paired embeddings: retrieval, zero-shot classification, geometry, and bootstrap
intervals.

All are functions of tensors. Ties count against the model, and embeddings that are zero or not
finite are rejected, so a broken model never scores well.
"""

from cibr.metrics.intervals import bootstrap_interval, paired_difference
from cibr.metrics.retrieval import (
    QueryScores,
    distinct_texts,
    label_recall_at_k,
    query_scores,
    recall_at_k,
    retrieval_ranks,
    retrieval_recalls,
)
from cibr.metrics.zeroshot import (
    accuracy_parts,
    class_embeddings,
    class_ranks,
    predictions,
    zeroshot_accuracy,
)

__all__ = [
    "QueryScores",
    "accuracy_parts",
    "bootstrap_interval",
    "class_embeddings",
    "class_ranks",
    "distinct_texts",
    "label_recall_at_k",
    "paired_difference",
    "predictions",
    "query_scores",
    "recall_at_k",
    "retrieval_ranks",
    "retrieval_recalls",
    "zeroshot_accuracy",
]
