"""Input checks of the metrics: a broken model is rejected by name, so that it never scores well."""

import torch
from torch import Tensor

from cibr.utils import check_tensors

_UNIT_TOLERANCE = 1e-2  # bfloat16 has three digits


def check_embeddings(**embeddings: Tensor) -> None:
    """Raises ValueError unless all are tensors [n, d] of finite unit vectors, with one d."""
    check_tensors(**embeddings)
    for name, rows in embeddings.items():
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"{name} has shape {list(rows.shape)}: pass [n, d] with n >= 1")
        lengths = rows.float().norm(dim=1)
        infinite = (~lengths.isfinite()).nonzero().flatten().tolist()
        if infinite:
            raise ValueError(
                f"{name} has {len(infinite)} rows that are not finite, first row {infinite[0]}: "
                "look for NaN in the model's weights and inputs"
            )
        off = ((lengths - 1).abs() > _UNIT_TOLERANCE).nonzero().flatten().tolist()
        if off:
            raise ValueError(
                f"{name} has {len(off)} rows that are not unit vectors, first row {off[0]}: "
                "normalise them with torch.nn.functional.normalize(x, dim=1)"
            )
    widths = {name: rows.shape[1] for name, rows in embeddings.items()}
    if len({*widths.values()}) > 1:
        raise ValueError(f"the dimensions differ: {widths}; embed both with one model")


def check_labels(name: str, labels: Tensor, n: int) -> None:
    """Raises ValueError unless labels or indices are a tensor of n whole numbers."""
    check_tensors(**{name: labels})
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != (n,):
        got = f"{labels.dtype} {list(labels.shape)}"
        raise ValueError(f"{name} is {got}: pass a tensor of {n} whole numbers")
