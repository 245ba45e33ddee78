"""What every function of this package asks of its input, worded once: shapes, numbers, probabilities."""

import torch
from torch import Tensor


def check_finite(name: str, value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} must be finite, and some entries are NaN or infinite: find what computed them")


def check_scores(scores: Tensor) -> None:
    """A square matrix of finite scores of at least two pairs."""
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(
            f"scores must be [n, n], entry (i, j) for x_i beside y_j, got {list(scores.shape)}: "
            "score every x of the batch against every y"
        )
    if len(scores) < 2:
        raise ValueError("scores hold one pair, and it takes at least two to compare a pair with a mismatch")
    check_finite("scores", scores)


def check_samples(x: Tensor, y: Tensor, least: int = 2) -> None:
    """Two tables of samples with one row a pair."""
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(
            f"x and y must be [n, d] and [n, e] with row i of one drawn with row i of the other, got "
            f"{list(x.shape)} and {list(y.shape)}: reshape single numbers to [n, 1]"
        )
    if len(x) < least:
        raise ValueError(f"x and y hold {len(x)} samples, and this takes at least {least}: draw more")
    check_finite("x", x)
    check_finite("y", y)


def check_distribution(name: str, p: Tensor) -> None:
    """Probabilities that sum to one over all entries."""
    check_finite(name, p)
    if bool((p < 0).any()) or abs(p.detach().sum().item() - 1) > 1e-8:
        raise ValueError(
            f"{name} must be probabilities that sum to 1, the sum is {p.detach().sum().item():.6g}: divide by it"
        )


def check_encoder(name: str, table: Tensor, n_rows: int) -> None:
    """A table of conditional probabilities, one distribution a row."""
    check_finite(name, table)
    if table.ndim != 2 or len(table) != n_rows:
        raise ValueError(f"{name} must be [{n_rows}, k], one distribution a row, got {list(table.shape)}")
    if bool((table < 0).any()) or bool(((table.detach().sum(1) - 1).abs() > 1e-8).any()):
        raise ValueError(f"each row of {name} must be probabilities that sum to 1: use a softmax over the codes")


def check_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")
