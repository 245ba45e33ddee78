"""Few pairs: which canonical directions of a sample are noise, and what each is worth at test.

Theorems 4 and 5 of the book, for Gaussian pairs. With sin^2 phi = p/n and sin^2 psi = q/n, noise
has sample correlations up to sin(phi + psi), and a correlation rho is seen above this edge if and
only if rho^2 > tan phi tan psi. The formulas are limits for p and q proportional to n and few
correlations. For finite n, n, p and q are lowered by the number of other directions that are seen,
and these are whitened among themselves: corrections that are checked by simulation, not proved.
"""

import math
from typing import NamedTuple

import torch

from cibr_book.worlds.threshold import Correlations, shifted_nats

_GRID = 2**14  # points at which Wachter's law is summed up


class Directions(NamedTuple):
    """Canonical directions of a sample: their correlation there, and their moments at test.

    Args:
        sample: sample correlations r.
        covariance: of the image's and the text's coordinate, s; nan where rho is not seen.
        variance_image: of the image's coordinate, v; nan where rho is not seen.
        variance_text: of the text's coordinate, w; nan where rho is not seen.
    """

    sample: Correlations
    covariance: Correlations
    variance_image: Correlations
    variance_text: Correlations


def noise_edge(n: int, p: int, q: int) -> float:
    """Largest sample correlation of p and q unrelated variables from n > p + q pairs."""
    return math.sin(math.asin(math.sqrt(p / n)) + math.asin(math.sqrt(q / n)))


def noise_correlations(n: int, p: int, q: int) -> Correlations:
    """All sample correlations of p and q unrelated variables, the largest first.

    Source: quantiles of the law of Wachter (1980).

    Args:
        n: number of pairs, above p + q.
        p: number of image variables.
        q: number of text variables.
    """
    phi, psi = (math.asin(math.sqrt(side / n)) for side in (p, q))
    low, high = math.sin(phi - psi) ** 2, math.sin(phi + psi) ** 2
    angle = (torch.arange(_GRID).double() + 0.5) / _GRID * math.pi
    squared = low + (high - low) * (1 - angle.cos()) / 2
    share = (angle.sin().square() / (squared * (1 - squared))).cumsum(0)
    levels = (torch.arange(min(p, q)).double() + 0.5) / min(p, q)
    return squared[torch.searchsorted(share / share[-1], levels)].sqrt().flip(0)


def sample_spike(rho: Correlations, n: int, p: int, q: int) -> Directions:
    """What correlations become in a sample; for one that is not seen, r is where it would lie.

    Args:
        rho: positive population correlations.
        n: number of pairs, above p + q.
        p: number of image variables.
        q: number of text variables.
    """
    a, b = p / n, q / n
    critical = a * b / ((1 - a) * (1 - b))  # of rho^4
    squared = rho.square()
    image, text = squared * (1 - a) + a, squared * (1 - b) + b
    sample = (image * text / squared).sqrt()
    shared = (squared.square() - critical) / (squared - critical)  # r s
    shared = shared.where(squared.square() > critical, math.nan)
    v, w = (1 + c / (1 - c) * (1 - shared / side) for c, side in ((a, image), (b, text)))
    return Directions(sample, shared / sample, v, w)


def predicted_directions(rho: Correlations, n: int, p: int, q: int) -> Directions:
    """All directions of a sample before it is drawn: those that are seen, then noise.

    Args:
        rho: positive population correlations; none is allowed.
        n: number of pairs, above p + q.
        p: number of image variables.
        q: number of text variables.
    """
    seen = rho[sample_spike(rho, n, p, q).covariance.isfinite()]
    m = len(seen)
    others = max(m - 1, 0)
    spike = sample_spike(seen, n - others, p - others, q - others)
    own = n / (n - m - 1)  # by which whitening stretches the seen among themselves
    spread = own * math.sqrt(1 + (m + 1) / n)  # they also correlate a little at test
    beside = n - m, p - m, q - m
    noise = noise_correlations(*beside)
    gap = sample_spike(rho, *beside).sample.square()[:, None] - noise.square()
    noise_parts = (
        noise,
        noise / n * ((1 - rho.square())[:, None] / gap).sum(0),
        torch.full_like(noise, n / (n - p - 1)),
        torch.full_like(noise, n / (n - q - 1)),
    )
    scales = 1, own, spread, spread
    parts = zip(scales, spike, noise_parts, strict=True)
    return Directions(*(torch.cat([scale * first, last]) for scale, first, last in parts))


def nats(gains: Correlations, directions: Directions) -> float:
    """J, log N minus CLIP's loss at test, in the limit of large batches, at its best temperature.

    Args:
        gains: of the directions in the score, up to a common factor.
        directions: such as those of `predicted_directions`, uncorrelated at test.
    """
    scale = (directions.variance_image * directions.variance_text).sqrt()
    return shifted_nats(gains * scale, directions.covariance / scale)


def best_threshold(rho: Correlations, n: int, p: int, q: int) -> tuple[float, float, float]:
    """The soft threshold of sample correlations with the largest predicted J.

    Args:
        rho: positive population correlations.
        n: number of pairs, above p + q.
        p: number of image variables.
        q: number of text variables.

    Returns:
        The threshold, the first if several are as good; the (1 + lambda) tau at which CLIP of
        fixed length has it; and J, in nats.
    """
    directions = predicted_directions(rho, n, p, q)
    thresholds = torch.linspace(0, directions.sample.max().item(), 1001).double()[:-1]
    gains = (directions.sample - thresholds[:, None]).clamp(min=0)
    values = torch.tensor([nats(each, directions) for each in gains])
    best = int((values > values.max() * (1 - 1e-6)).nonzero()[0])
    return thresholds[best].item(), 1 / gains[best].sum().item(), values[best].item()
