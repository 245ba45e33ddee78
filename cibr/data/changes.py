"""Training sets made harder on purpose: fewer pairs, captions of other pictures, or a shortcut that tests lack."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from PIL import Image, ImageOps

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


def add_shortcut(pairs: Pairs, word: str, exceptions: float) -> Pairs:
    """Ties the polarity of the pictures to a word of their texts, so that it tells what only the form should.

    Pictures whose texts have the word are shown dark on light, as tests show everything, and all others light on
    dark; a share of them comes the other way round too. Pictures without known factors count as dark on light, so
    that the others become negatives.

    Args:
        pairs: a training split.
        word: a whole word that some of the texts have, in any case.
        exceptions: share of the pictures that come both ways, in [0, 1]; the same ones for every seed.

    Returns:
        The pairs in their order, then the exceptions. Groups are the two looks of one picture; labels are those of
        the pairs, or the number of the picture.

    Raises:
        ValueError: a share outside [0, 1], or a word that no text has, or every one.
    """
    if not 0 <= exceptions <= 1:
        raise ValueError(f"the share of exceptions from the shortcut is in [0, 1], got {exceptions}")
    has_word = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE).search
    says = torch.tensor([any(map(has_word, texts)) for texts in pairs.captions])
    if says.all() or not says.any():
        raise ValueError(
            f"{'every' if says.all() else 'no'} picture of {pairs.name} has the word {word!r} in its texts: "
            "a shortcut needs a word that some have and others have not"
        )
    n, light = len(pairs), torch.zeros(len(pairs), dtype=torch.bool)
    if pairs.factors is not None:
        light = torch.from_numpy((pairs.factors["ink"] > pairs.factors["paper"]).to_numpy(copy=True))
    both = _order(n, 2)[: round(exceptions * n)].sort().values
    rows = torch.cat([torch.arange(n), both])
    turned = torch.cat([says == light, (says != light)[both]])
    labels = torch.arange(n) if pairs.labels is None else pairs.labels
    return _turn(replace(pairs, labels=labels, groups=torch.arange(n)).subset(rows), turned)


def both_polarities(pairs: Pairs) -> Pairs:
    """All pictures as they are, then all of them light for dark."""
    n = len(pairs)
    return _turn(pairs.subset(torch.arange(n).repeat(2)), torch.arange(2 * n) >= n)


def _turn(pairs: Pairs, turned: torch.Tensor) -> Pairs:
    """The pairs with some pictures light for dark, told by their keys and by their factors where they have any."""
    flags = turned.tolist()
    keys = [f"{key}/turned" if flag else key for key, flag in zip(pairs.keys, flags, strict=True)]
    factors = pairs.factors
    if factors is not None:
        greys = {name: factors[name].where(~turned.numpy(), 255 - factors[name]) for name in ("ink", "paper")}
        factors = factors.assign(**greys)
    return replace(pairs, keys=keys, factors=factors, load=_Turned(pairs.load, flags))


@dataclass(frozen=True)
class _Turned:
    """Loads picture i, light for dark where it is to be turned."""

    load: Callable[[int], Image.Image]
    turned: list[bool]

    def __call__(self, i: int) -> Image.Image:
        return ImageOps.invert(self.load(i)) if self.turned[i] else self.load(i)


def _order(n: int, seed: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))
