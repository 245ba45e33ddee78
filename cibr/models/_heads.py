"""Heads of a `DualEncoder`, which project pooled features to the joint space."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def linear_head(dim_in: int, dim: int, dropout: float) -> nn.Sequential:
    """The head of a tiny model: LayerNorm, dropout and a linear map."""
    return nn.Sequential(
        nn.LayerNorm(dim_in), nn.Dropout(dropout), nn.Linear(dim_in, dim, bias=False)
    )


class ResidualHead(nn.Module):
    """The head over a frozen tower: a linear map and a residual layer, each after dropout, and a
    LayerNorm.
    """

    def __init__(self, dim_in: int, dim: int, dropout: float):
        super().__init__()
        self.linear = nn.Linear(dim_in, dim)
        self.residual = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, dim))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    @torch.no_grad()
    def start_at(self, mean: Float[Tensor, " p"], linear_map: Float[Tensor, "d p"]) -> None:
        """Initialises the head with a linear map of centred features and a zero residual layer."""
        self.linear.weight.copy_(linear_map)
        self.linear.bias.copy_(-linear_map @ mean)
        for parameter in self.residual[-1].parameters():
            parameter.zero_()

    def forward(self, pooled: Float[Tensor, "n p"]) -> Float[Tensor, "n d"]:
        x = self.linear(self.dropout(pooled))
        return self.norm(x + self.residual(x))


class JoinedHeads(nn.ModuleList):
    """Heads side by side, whose unit vectors are concatenated: cosines are means over the heads."""

    def forward(self, pooled: Float[Tensor, "n p"]) -> Float[Tensor, "n d"]:
        return torch.cat([F.normalize(head(pooled), dim=-1) for head in self], dim=-1)
