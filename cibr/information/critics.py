"""Small critics: networks that score pairs, or that predict one side from the other."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cibr.information.checks import check_samples
from cibr.information.scores import club_nats, log_mean_exp, mismatches


def _mlp(dim_in: int, dim_hidden: int, dim_out: int) -> nn.Sequential:
    """Two hidden layers of rectified units."""
    if min(dim_in, dim_hidden, dim_out) < 1:
        raise ValueError(f"a network needs widths of at least 1, got {dim_in}, {dim_hidden} and {dim_out}")
    return nn.Sequential(
        nn.Linear(dim_in, dim_hidden),
        nn.ReLU(),
        nn.Linear(dim_hidden, dim_hidden),
        nn.ReLU(),
        nn.Linear(dim_hidden, dim_out),
    )


class SeparableCritic(nn.Module):
    """T(x, y) = <f(x), g(y)>: n^2 scores for the price of 2n rows through a network.

    Source: the separable critic of Poole et al. (2019, arXiv 1905.06922), section 4; and CLIP's own form.

    Args:
        dim_x: length of x.
        dim_y: length of y.
        dim_hidden: width of the hidden layers.
        dim_out: length of f(x) and g(y), a bound on the rank of the scores.
    """

    def __init__(self, dim_x: int, dim_y: int, dim_hidden: int = 64, dim_out: int = 32):
        super().__init__()
        self.f, self.g = _mlp(dim_x, dim_hidden, dim_out), _mlp(dim_y, dim_hidden, dim_out)

    def forward(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> Float[Tensor, "n n"]:
        """Scores [n, n], entry (i, j) for x_i beside y_j."""
        check_samples(x, y)
        return self.f(x) @ self.g(y).T


class JointCritic(nn.Module):
    """T(x, y) from both together: n^2 rows through a network, slower and not limited in rank.

    Source: the joint critic of Poole et al. (2019, arXiv 1905.06922), section 4.

    Args:
        dim_x: length of x.
        dim_y: length of y.
        dim_hidden: width of the hidden layers.
    """

    def __init__(self, dim_x: int, dim_y: int, dim_hidden: int = 64):
        super().__init__()
        self.net = _mlp(dim_x + dim_y, dim_hidden, 1)

    def forward(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> Float[Tensor, "n n"]:
        """Scores [n, n], entry (i, j) for x_i beside y_j."""
        check_samples(x, y)
        n = len(x)
        pairs = torch.cat([x[:, None].expand(n, n, -1), y[None].expand(n, n, -1)], dim=2)
        return self.net(pairs).squeeze(2)


class GaussianConditional(nn.Module):
    """q(y|x): a Gaussian with independent coordinates whose mean and variance a network predicts.

    Source: the variational network of Cheng et al. (2020, arXiv 2006.12013), section 3.2.

    Args:
        dim_x: length of x.
        dim_y: length of y.
        dim_hidden: width of the hidden layers.
    """

    LIMIT = 8.0  # of a log variance, approached smoothly: a variance of 0 would be an infinite density

    def __init__(self, dim_x: int, dim_y: int, dim_hidden: int = 64):
        super().__init__()
        self.net = _mlp(dim_x, dim_hidden, 2 * dim_y)

    def parameters_of(self, x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n e"], Float[Tensor, "n e"]]:
        """Means and log variances of q(y|x), [n, e] each."""
        mean, raw = self.net(x).chunk(2, dim=1)
        return mean, self.LIMIT * torch.tanh(raw / self.LIMIT)

    def log_likelihood(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> Float[Tensor, " n"]:
        """log q(y_i|x_i) in nats, [n]: its mean is what fitting q makes large."""
        check_samples(x, y)
        mean, log_variance = self.parameters_of(x)
        error = (y - mean) ** 2 * torch.exp(-log_variance)
        return -(error + log_variance + math.log(2 * math.pi)).sum(1) / 2

    def forward(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> Float[Tensor, "n n"]:
        """log q(y_j|x_i) in nats, [n, n]."""
        check_samples(x, y)
        mean, log_variance = self.parameters_of(x)
        precision = torch.exp(-log_variance)
        # sum over coordinates of (y - mean)^2 / variance, expanded so that no [n, n, e] is held
        error = precision @ (y**2).T - 2 * (mean * precision) @ y.T + (mean**2 * precision).sum(1, keepdim=True)
        constant = log_variance.sum(1, keepdim=True) + y.shape[1] * math.log(2 * math.pi)
        return -(error + constant) / 2

    def club_nats(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> Float[Tensor, ""]:
        """`cibr.information.club_nats` of a batch, in nats."""
        return club_nats(self(x, y))


class MovingAverage(nn.Module):
    """log of an exponentially weighted average of E_Q[e^T] over the steps of training, for `mine_nats`.

    It is a buffer: it is saved, resumed and moved with the module.

    Source: Belghazi et al. (2018, arXiv 1801.04062), section 3.2.

    Args:
        decay: weight of the past, in [0, 1).
    """

    def __init__(self, decay: float = 0.9):
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}: it is the weight of the past")
        self.decay = decay
        self.register_buffer("log_average", torch.tensor(0.0))
        self.register_buffer("n_updates", torch.tensor(0))

    def update(self, scores: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
        """Takes in a batch's mismatches and returns the log of the average."""
        now = log_mean_exp(mismatches(scores.detach())).to(self.log_average)
        if self.n_updates == 0:
            self.log_average.copy_(now)
        else:
            past, present = self.log_average + math.log(max(self.decay, 1e-30)), now + math.log(1 - self.decay)
            self.log_average.copy_(torch.logaddexp(past, present))
        self.n_updates += 1
        return self.log_average.clone()

    def read(self, scores: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
        """The log of the average as it stands; before the first update, that of this batch alone."""
        return self.log_average.clone() if self.n_updates else log_mean_exp(mismatches(scores.detach()))
