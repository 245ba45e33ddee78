"""Heads: the last part of a dual encoder, from the pooled features of its towers to a joint space.

A head projects images and texts; the model normalises what it returns. To add one, subclass `Head`
and register it in `cibr.models.HEADS` under the name that saved models will use.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_Pooled = Float[Tensor, "n p"]
_Vectors = Float[Tensor, "n d"]


class Head(nn.Module):
    """Projections of images and texts into one space.

    A subclass has two modules, `image` and `text`, or its own `project_images` and
    `project_texts`.

    Args:
        dim: dimension of the joint space.
        dim_image: dimension of the pooled features of images; None if there are none.
        dim_text: dimension of the pooled features of texts; None if there are none.
    """

    image: nn.Module
    text: nn.Module

    def __init__(self, dim: int, dim_image: int | None, dim_text: int | None):
        super().__init__()
        self.dim = dim
        self.dim_image = dim_image
        self.dim_text = dim_text

    def project_images(self, pooled: _Pooled) -> _Vectors:
        """Vectors of any length [n, dim] of the pooled features of images [n, dim_image]."""
        return self.image(pooled)

    def project_texts(self, pooled: _Pooled) -> _Vectors:
        """Vectors of any length [n, dim] of the pooled features of texts [n, dim_text]."""
        return self.text(pooled)

    def settings(self) -> dict[str, Any]:
        """The arguments that build the head again, as JSON can store them."""
        return {"dim": self.dim, "dim_image": self.dim_image, "dim_text": self.dim_text}


class _ProjectionHead(Head):
    """A projection of images and one of texts, of the same kind.

    Args:
        dim: see `Head`, as `dim_image` and `dim_text`.
        dropout: probability of dropout.
    """

    def __init__(self, dim: int, dim_image: int, dim_text: int, dropout: float):
        super().__init__(dim, dim_image, dim_text)
        self.dropout = dropout
        self.image = self._projection(dim_image)
        self.text = self._projection(dim_text)

    def _projection(self, dim_in: int) -> nn.Module:
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The arguments that build the head again, as JSON can store them."""
        return {**super().settings(), "dropout": self.dropout}


class LinearHead(_ProjectionHead):
    """LayerNorm, dropout and a linear map without a bias: the head of a tiny model.

    Args:
        dim: see `Head`, as `dim_image` and `dim_text`.
        dropout: probability of dropout.
    """

    def _projection(self, dim_in: int) -> nn.Module:
        linear = nn.Linear(dim_in, self.dim, bias=False)
        return nn.Sequential(nn.LayerNorm(dim_in), nn.Dropout(self.dropout), linear)


class ResidualHead(_ProjectionHead):
    """A linear map and a residual layer, each after dropout, and a LayerNorm: the head over frozen
    towers.

    Args:
        dim: see `Head`, as `dim_image` and `dim_text`.
        dropout: probability of dropout.
    """

    def _projection(self, dim_in: int) -> nn.Module:
        return _ResidualProjection(dim_in, self.dim, self.dropout)


class _ResidualProjection(nn.Module):
    def __init__(self, dim_in: int, dim: int, dropout: float):
        super().__init__()
        self.linear = nn.Linear(dim_in, dim)
        self.residual = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, dim))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, pooled: _Pooled) -> _Vectors:
        x = self.linear(self.dropout(pooled))
        return self.norm(x + self.residual(x))


class TransformersHead(Head):
    """The projections of a dual encoder of transformers, or identities where it has none.

    It is saved within the model of transformers, so it is not in `HEADS`.

    Args:
        image: of images.
        text: of texts.
        dim: dimension of the embeddings.
    """

    def __init__(self, image: nn.Module, text: nn.Module, dim: int):
        dim_image = getattr(image, "in_features", None)
        dim_text = getattr(text, "in_features", None)
        super().__init__(dim, dim_image, dim_text)
        self.image = image
        self.text = text


class SummedHead(Head):
    """Several heads whose scores are summed: a cosine is the weighted mean of theirs.

    The unit vectors of the heads lie side by side, each times the root of its weight.

    Args:
        heads: over the same pooled features.
        cosine_weights: of the heads, above 0; by default equal.
    """

    def __init__(self, heads: Sequence[Head], cosine_weights: Sequence[float] | None = None):
        dim = sum(head.dim for head in heads)
        super().__init__(dim, heads[0].dim_image, heads[0].dim_text)
        self.heads = nn.ModuleList(heads)
        self.cosine_weights = list(cosine_weights or [1.0] * len(heads))

    def project_images(self, pooled: _Pooled) -> _Vectors:
        """Weighted unit vectors of images, side by side, [n, dim]."""
        return self._side_by_side([head.project_images(pooled) for head in self.heads])

    def project_texts(self, pooled: _Pooled) -> _Vectors:
        """Weighted unit vectors of texts, side by side, [n, dim]."""
        return self._side_by_side([head.project_texts(pooled) for head in self.heads])

    def _side_by_side(self, vectors: list[Tensor]) -> _Vectors:
        pairs = zip(vectors, self.cosine_weights, strict=True)
        return torch.cat([weight**0.5 * F.normalize(x, dim=-1) for x, weight in pairs], dim=-1)
