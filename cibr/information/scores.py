"""Estimates of mutual information from scores: pure functions of a matrix, in nats.

A critic gives every pair a number, scores[i, j] = T(x_i, y_j). The diagonal holds pairs drawn together, from P;
the rest holds mismatches, from the product of the marginals Q. With the critic T = log p(x,y) / p(x)p(y) each
function here tends to I(X;Y); they differ in what they do with a critic that is wrong or a batch that is small.

    InfoNCE    lower bound, also for a batch       never above log n
    NWJ        lower bound in expectation          variance grows like e^I
    DV         lower bound for endless samples     the log of a batch mean is too small: the value is too high
    SMILE      no bound                            the clipped e^T may miss most of the mean: too high
    plug-in    no bound                            as good as the critic is
    CLUB       upper bound for the true q(y|x)     none for a fitted one

Source: Poole et al. (2019, arXiv 1905.06922) for the family; the equation of each stands with it.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cibr.information.checks import check_finite, check_positive, check_scores

Scores = Float[Tensor, "n n"]


def mismatches(scores: Scores) -> Float[Tensor, " m"]:
    """The n (n - 1) scores off the diagonal: samples of Q."""
    n = len(scores)
    return scores.flatten()[1:].view(n - 1, n + 1)[:, :-1].flatten()


def log_mean_exp(values: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """log of the mean of e^values, without overflow."""
    return torch.logsumexp(values, 0) - math.log(len(values))


def nce_nats(scores: Scores) -> Float[Tensor, ""]:
    """InfoNCE: log n + E[log softmax over the candidates of the true one], both directions averaged.

    Source: van den Oord et al. (2018, arXiv 1807.03748), eq. 4 and section 2.3; Poole et al. (2019), section 2.3.
    Symmetric here, as CLIP's loss: `nce_nats(scores)` is log n - `clip_loss`.

    Args:
        scores: [n, n], diagonal from P.

    Returns:
        Nats, a scalar; a lower bound in expectation, and at most log n always.

    Raises:
        ValueError: scores that are not square, not finite, or of fewer than two pairs.
    """
    check_scores(scores)
    rows, columns = scores.log_softmax(1).diagonal(), scores.log_softmax(0).diagonal()
    return math.log(len(scores)) + (rows + columns).mean() / 2


def nwj_nats(scores: Scores) -> Float[Tensor, ""]:
    """Nguyen, Wainwright and Jordan: E_P[T] - E_Q[e^(T - 1)].

    Source: Nguyen et al. (2010, arXiv 0809.0853), section II, for the divergence of P from Q; Poole et al. (2019),
    section 2.2.

    Args:
        scores: [n, n], diagonal from P; the best critic is 1 + log p(x,y) / p(x)p(y).

    Returns:
        Nats, a scalar; a lower bound in expectation for every critic.

    Raises:
        ValueError: as `nce_nats`.
    """
    check_scores(scores)
    return scores.diagonal().mean() - torch.exp(log_mean_exp(mismatches(scores)) - 1)


def dv_nats(scores: Scores) -> Float[Tensor, ""]:
    """Donsker and Varadhan: E_P[T] - log E_Q[e^T].

    Source: Belghazi et al. (2018, arXiv 1801.04062), definition 3.1, from Donsker & Varadhan (1983). The mean
    over Q is taken over all mismatches of the batch, not over one permutation.

    Args:
        scores: [n, n], diagonal from P.

    Returns:
        Nats, a scalar; a lower bound as n grows. At small n an estimate that may lie above the information.

    Raises:
        ValueError: as `nce_nats`.
    """
    check_scores(scores)
    return scores.diagonal().mean() - log_mean_exp(mismatches(scores))


def mine_nats(scores: Scores, log_average: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Donsker-Varadhan in value, with the gradient that a moving average of E_Q[e^T] corrects.

    The gradient of log E_Q[e^T] divides by a batch mean and is biased; MINE divides by an average over steps.

    Source: Belghazi et al. (2018, arXiv 1801.04062), section 3.2, eq. 12.

    Args:
        scores: [n, n], diagonal from P.
        log_average: log of the moving average of E_Q[e^T], see `MovingAverage`.

    Returns:
        Nats, a scalar: the value of `dv_nats`.

    Raises:
        ValueError: as `nce_nats`.
    """
    value = dv_nats(scores)
    corrected = scores.diagonal().mean() - torch.exp(log_mean_exp(mismatches(scores)) - log_average.detach())
    return corrected + (value - corrected).detach()


def jsd_objective(scores: Scores) -> Float[Tensor, ""]:
    """E_P[-softplus(-T)] - E_Q[softplus(T)], whose best critic is log p(x,y) / p(x)p(y).

    A well-behaved gradient for a critic, and no information: at its best it is 2 JSD(P, Q) - 2 log 2.

    Source: Hjelm et al. (2019, arXiv 1808.06670), eq. 4.

    Args:
        scores: [n, n], diagonal from P.

    Returns:
        A scalar, at most 0.

    Raises:
        ValueError: as `nce_nats`.
    """
    check_scores(scores)
    return -F.softplus(-scores.diagonal()).mean() - F.softplus(mismatches(scores)).mean()


def plug_in_nats(scores: Scores) -> Float[Tensor, ""]:
    """E_P[T]: the information if T is the log ratio of densities, as a critic of `jsd_objective` tends to be.

    Args:
        scores: [n, n], diagonal from P.

    Returns:
        Nats, a scalar; no bound in either direction.

    Raises:
        ValueError: as `nce_nats`.
    """
    check_scores(scores)
    return scores.diagonal().mean()


def smile_nats(scores: Scores, clip: float = 5.0) -> Float[Tensor, ""]:
    """SMILE: Donsker-Varadhan with e^T clipped to [e^-clip, e^clip] under Q, which bounds its variance.

    Source: Song & Ermon (2020, arXiv 1910.06222), section 5. The critic is trained with `jsd_objective`, as
    theirs is.

    Args:
        scores: [n, n], diagonal from P.
        clip: tau > 0; without end it is `dv_nats`.

    Returns:
        Nats, a scalar; no bound.

    Raises:
        ValueError: as `nce_nats`, or a clip that is not positive.
    """
    check_scores(scores)
    check_positive("clip", clip)
    return scores.diagonal().mean() - log_mean_exp(mismatches(scores).clamp(-clip, clip))


def club_nats(log_q: Scores) -> Float[Tensor, ""]:
    """CLUB: E_P[log q(y|x)] - E_Q[log q(y|x)], an upper bound when q is the true conditional.

    Source: Cheng et al. (2020, arXiv 2006.12013), section 3.1, and 3.2 for a fitted q. The second mean leaves the
    diagonal out, theirs keeps it, which makes the value lower by a share of 1/n.

    Args:
        log_q: log q(y_j|x_i), [n, n].

    Returns:
        Nats, a scalar; for a fitted q an upper bound only while q is closer to p(x,y) than to p(x)p(y).

    Raises:
        ValueError: as `nce_nats`.
    """
    check_scores(log_q)
    return log_q.diagonal().mean() - mismatches(log_q).mean()


def residual_bound_nats(log_e: Float[Tensor, " n"], log_b: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """E[log e(z|x_v) - log b(z|x_t)] over samples, the upper bound on I(Z_v;X_v|X_t).

    Source: Fischer (2020, arXiv 2002.05379), section 2.3.

    Args:
        log_e: log density of each z under its own image's encoder, [n].
        log_b: log density of the same z under its text's backward encoder, [n].

    Returns:
        Nats, a scalar.

    Raises:
        ValueError: lengths that differ, fewer than two samples, entries that are not finite.
    """
    if log_e.shape != log_b.shape or log_e.ndim != 1 or len(log_e) < 2:
        raise ValueError(
            f"log_e and log_b must be [n] with n at least 2 and one entry a sample, got {list(log_e.shape)} and "
            f"{list(log_b.shape)}"
        )
    check_finite("log_e", log_e)
    check_finite("log_b", log_b)
    return (log_e - log_b).mean()
