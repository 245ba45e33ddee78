"""Residual information by critics: what `CIBRLoss` estimates with `mine` and with `club`.

Given x_v, z_v does not look at x_t, so I(Z_v;X_v|X_t) = I(Z_v;X_v) - I(Z_v;X_t). Here X is what the tower has
pooled before its head.

    mine    both terms by Donsker-Varadhan with critics of their own; a difference of lower bounds bounds nothing
    club    the first by CLUB, an upper bound while its q fits; from it goes log n - L_CLIP, a lower bound of
            I(Z_v;Z_t) and so of the second: an upper bound as far as q fits

The critics have an optimiser of their own, which lowers `critic_loss`; the encoders see them held fixed.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cibr.information import GaussianConditional, MovingAverage, SeparableCritic, mine_nats
from cibr.losses.contrastive import check_finite

CRITIC_ESTIMATORS = ("mine", "club")
DIM_HIDDEN = 128


class ResidualCritics(nn.Module):
    """Critics of both modalities on (z, pooled features).

    Source: Ji et al. (2025, arXiv 2503.24182) for MINE as estimator; Belghazi et al. (2018, arXiv 1801.04062) for
    MINE with its moving average (0.9); Cheng et al. (2020, arXiv 2006.12013) for CLUB. The critics are separable:
    all n^2 pairs of the batch are scored, and the mismatches among them are the samples of the marginals.

    Args:
        estimator: `mine` or `club`.
        dim: width of the embeddings.
        dim_image_pooled: width of the image tower's pooled features.
        dim_text_pooled: width of the text tower's pooled features.
    """

    def __init__(self, estimator: str, dim: int, dim_image_pooled: int, dim_text_pooled: int):
        super().__init__()
        self.estimator, self.dim = estimator, dim
        widths = {"image": dim_image_pooled, "text": dim_text_pooled}
        if estimator == "mine":
            pairs = [(z, x) for z in widths for x in widths]
            self.critics = nn.ModuleDict(
                {f"{z}_{x}": SeparableCritic(dim, widths[x], DIM_HIDDEN) for z, x in pairs}
            )
            self.averages = nn.ModuleDict({name: MovingAverage() for name in self.critics})
        else:
            self.critics = nn.ModuleDict({x: GaussianConditional(widths[x], dim, DIM_HIDDEN) for x in widths})

    def forward(
        self,
        z: dict[str, Float[Tensor, "n d"]],
        pooled: dict[str, Tensor],
        shared_nats: Float[Tensor, ""],
        update: bool = False,
    ) -> dict[str, Float[Tensor, ""]]:
        """Residual information of each modality.

        Args:
            z: embeddings of `image` and `text`, [n, d] each.
            pooled: pooled features of `image` and `text`, [n, p] and [n, q].
            shared_nats: a lower bound on I(Z_v;Z_t), of which `club` makes use.
            update: whether the moving averages take in this batch.

        Returns:
            Nats by `image` and `text`: an estimate for `mine`, which may be negative.
        """
        z, x = self._inputs(z, pooled)
        if self.estimator == "club":
            return {side: self.critics[side].club_nats(x[side], z[side]) - shared_nats for side in z}
        nats = {f"{a}_{b}": self._mine(f"{a}_{b}", z[a], x[b], update) for a in z for b in x}
        return {a: nats[f"{a}_{a}"] - nats[f"{a}_{b}"] for a, b in (("image", "text"), ("text", "image"))}

    def loss(self, z: dict[str, Float[Tensor, "n d"]], pooled: dict[str, Tensor]) -> Float[Tensor, ""]:
        """What the critics' optimiser lowers, for embeddings and features that are held fixed.

        Args:
            z: embeddings of `image` and `text`, [n, d] each.
            pooled: pooled features of `image` and `text`.

        Returns:
            Nats, a scalar: minus the sum of the bounds (`mine`), or of the log likelihoods of q (`club`).
        """
        z, x = self._inputs({k: v.detach() for k, v in z.items()}, {k: v.detach() for k, v in pooled.items()})
        if self.estimator == "club":
            return -sum(self.critics[side].log_likelihood(x[side], z[side]).mean() for side in z)
        return -sum(self._mine(f"{a}_{b}", z[a], x[b], update=True) for a in z for b in x)

    def _mine(self, name: str, z: Tensor, x: Tensor, update: bool) -> Float[Tensor, ""]:
        scores, average = self.critics[name](z, x), self.averages[name]
        return mine_nats(scores, average.update(scores) if update else average.read(scores))

    def _inputs(self, z: dict[str, Tensor], pooled: dict[str, Tensor]) -> tuple[dict, dict]:
        """Coordinates of about unit variance, whatever the widths; pooled features lead nowhere back."""
        for name, value in pooled.items():
            if value is None or value.ndim != 2 or len(value) != len(z[name]):
                got = "None" if value is None else list(value.shape)
                raise ValueError(
                    f"{name}_pooled must be [{len(z[name])}, p], one row a pair, for the estimator "
                    f"{self.estimator!r}, got {got}: pass what the tower pools before its head"
                )
        check_finite(**{f"{name}_pooled": value for name, value in pooled.items()})
        dtype = next(self.parameters()).dtype
        z = {name: value.to(dtype) * self.dim**0.5 for name, value in z.items()}
        return z, {name: F.layer_norm(v.detach().to(dtype), v.shape[1:]) for name, v in pooled.items()}


def held_fixed(critics: ResidualCritics, *inputs) -> dict[str, Float[Tensor, ""]]:
    """The critics' residuals, whose gradient goes to the embeddings and not to the critics."""
    fixed = {name: value.detach() for name, value in critics.named_parameters()}
    return torch.func.functional_call(critics, fixed, inputs)
