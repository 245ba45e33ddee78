"""Training sets made harder on purpose: fewer pairs, or captions that belong to other pictures."""

from dataclasses import replace

import torch

from cibr.data.pairs import Pairs


def keep_fraction(pairs: Pairs, fraction: float) -> Pairs:
    """A part of the pairs, the same for every seed of training; a smaller part lies within a larger one.

    Args:
        pairs: a training split.
        fraction: share of the pictures to keep, in (0, 1].

    Returns:
        The kept pairs in their order, two at least.

    Raises:
        ValueError: a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of pairs to keep is in (0, 1], got {fraction}")
    n_kept = min(len(pairs), max(2, round(fraction * len(pairs))))
    return pairs if n_kept == len(pairs) else pairs.subset(_order(len(pairs), 0)[:n_kept].sort().values)


def exchange_captions(pairs: Pairs, share: float) -> Pairs:
    """Gives a share of the pictures the captions of other pictures of that share, labels with them.

    Args:
        pairs: a training split.
        share: of the pictures whose captions change hands, in [0, 1].

    Returns:
        The pairs with the same pictures, captions and names; which ones change is the same for every seed.

    Raises:
        ValueError: a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of captions to exchange is in [0, 1], got {share}")
    chosen = _order(len(pairs), 1)[: round(share * len(pairs))]
    source = torch.arange(len(pairs))
    source[chosen] = chosen.roll(1)
    captions = [pairs.captions[i] for i in source.tolist()]
    return replace(pairs, captions=captions, labels=None if pairs.labels is None else pairs.labels[source])


def _order(n: int, seed: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))
