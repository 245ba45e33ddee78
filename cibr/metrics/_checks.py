"""The one check of the metrics: a broken model is rejected, so that it never scores well."""

from torch import Tensor

_UNIT_TOLERANCE = 1e-2  # bfloat16 has three digits


def check_embeddings(**embeddings: Tensor) -> None:
    """Raises ValueError unless all are tensors [n, d] of finite unit vectors."""
    for name, rows in embeddings.items():
        lengths = rows.float().norm(dim=1)
        if not lengths.isfinite().all():
            raise ValueError(
                f"{name} is not finite: look for NaN in the model's weights and inputs"
            )
        if not len(rows) or ((lengths - 1).abs() > _UNIT_TOLERANCE).any():
            raise ValueError(
                f"{name} is empty or has rows that are not unit vectors: "
                "normalise them with torch.nn.functional.normalize(x, dim=1)"
            )
