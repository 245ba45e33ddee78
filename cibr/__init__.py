"""CIBR: the Cross-modal Information Bottleneck for CLIP, as models, losses, metrics and a training loop."""

from cibr.data import Pairs, load_pairs
from cibr.evaluate import Evaluation, compare, evaluate
from cibr.losses import CIBRLoss, beta_at, clip_loss
from cibr.metrics import recall_at_k, retrieval_ranks, zeroshot_accuracy
from cibr.models import DualEncoder
from cibr.train import RunConfig, build_model, check_parameters, configure, fit, load_splits

__all__ = [
    "CIBRLoss",
    "DualEncoder",
    "Evaluation",
    "Pairs",
    "RunConfig",
    "beta_at",
    "build_model",
    "check_parameters",
    "clip_loss",
    "compare",
    "configure",
    "evaluate",
    "fit",
    "load_pairs",
    "load_splits",
    "recall_at_k",
    "retrieval_ranks",
    "zeroshot_accuracy",
]
