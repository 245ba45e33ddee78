"""MINE, the paper's estimator: residual information from critics trained alongside the encoders.

    I(Z_v; X_v | X_t) = I(Z_v; X_v) - I(Z_v; X_t),   as z_v is independent of x_t given x_v
    I(Z; X) >= E_P[T(z, x)] - log E_Q[e^T(z, x)]     for every critic T (Donsker and Varadhan)

P is the joint distribution and Q the product of its marginals. Here X is the tower's pooled
features, before the projection head, and each information has a critic of its own. A difference of
lower bounds is not a bound. `cibr.losses.penalties.Mine` holds and trains the critics; the encoders
see them frozen.

Source: Belghazi et al. (2018, arXiv 1801.04062) for MINE, Ji et al. (2025, arXiv 2503.24182) for
its use.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cibr.losses.clip import Scalar

_DECAY = 0.9  # of the moving average: the weight of the past


def mismatches(scores: Float[Tensor, "n n"]) -> Float[Tensor, " m"]:
    """The n (n - 1) scores off the diagonal: samples of the product of the marginals."""
    n = len(scores)
    # After the first entry, every row of n + 1 ends in a diagonal entry.
    return scores.flatten()[1:].view(n - 1, n + 1)[:, :-1].flatten()


def log_mean_exp(values: Float[Tensor, " m"]) -> Scalar:
    """Log of the mean of e^values, without overflow."""
    return torch.logsumexp(values, dim=0) - math.log(len(values))


class SeparableCritic(nn.Module):
    """Critic T(x, y) = <f(x), g(y)>: n^2 scores from 2n network evaluations.

    Source: the separable critic of Poole et al. (2019, arXiv 1905.06922), section 4; also the form
    of CLIP.

    Args:
        dim_x: width of x.
        dim_y: width of y.
        dim_hidden: width of the two hidden layers.
        dim_out: width of f(x) and g(y), a bound on the rank of the scores.
    """

    def __init__(self, dim_x: int, dim_y: int, dim_hidden: int = 64, dim_out: int = 32):
        super().__init__()
        self.f = _mlp(dim_x, dim_hidden, dim_out)
        self.g = _mlp(dim_y, dim_hidden, dim_out)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, which inputs must have."""
        return self.f[0].weight.dtype

    def forward(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> Float[Tensor, "n n"]:
        """Scores [n, n]; entry (i, j) is T(x_i, y_j)."""
        return self.f(x) @ self.g(y).T


def _mlp(dim_in: int, dim_hidden: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim_in, dim_hidden),
        nn.ReLU(),
        nn.Linear(dim_hidden, dim_hidden),
        nn.ReLU(),
        nn.Linear(dim_hidden, dim_out),
    )


class MineNats(nn.Module):
    """Donsker-Varadhan estimate E_P[T] - log E_Q[e^T], its gradient by a moving average.

    The gradient of log E_Q[e^T] divides by a batch mean and is biased; MINE divides by an
    exponential moving average over steps, a buffer that is saved with the module. The mean over Q
    is taken over all mismatched pairs of the batch, not over one permutation.

    Source: Belghazi et al. (2018, arXiv 1801.04062), section 3.2, eq. 12.
    """

    def __init__(self) -> None:
        super().__init__()
        # Log of the moving average of E_Q[e^T]; NaN until the first update.
        self.register_buffer("log_average", torch.tensor(math.nan))

    def forward(self, scores: Float[Tensor, "n n"], update_average: bool = False) -> Scalar:
        """The estimate from T(x_i, y_j), [n, n], n at least 2, whose diagonal is drawn from P.

        Args:
            scores: T(x_i, y_j), [n, n].
            update_average: first fold this batch into the moving average. Until then, the batch's
                own mean takes its place.

        Returns:
            Nats, a scalar; a lower bound as n grows, an estimate that may exceed the information
            at small n.
        """
        joint = scores.diagonal().mean()  # E_P[T]
        log_marginal = log_mean_exp(mismatches(scores))  # log E_Q[e^T]
        log_batch = log_marginal.detach().to(self.log_average)
        if update_average:
            self.log_average.copy_(self._moved_average(log_batch))
        log_average = torch.where(self.log_average.isnan(), log_batch, self.log_average)
        estimate = joint - log_marginal
        # Its gradient is E_P[dT] - E_Q[e^T dT] / average, MINE's.
        surrogate = joint - torch.exp(log_marginal - log_average)
        # Straight-through: the value of the estimate with the gradient of the surrogate.
        return surrogate + (estimate - surrogate).detach()

    def _moved_average(self, log_batch: Scalar) -> Scalar:
        """Log of the average after this batch, which the first batch sets."""
        past = self.log_average + math.log(_DECAY)
        present = log_batch + math.log(1 - _DECAY)
        return torch.where(self.log_average.isnan(), log_batch, torch.logaddexp(past, present))
