"""Training sets made harder on purpose: fewer pairs, captions of other pictures, or a shortcut that tests lack."""

import re
from dataclasses import replace

import torch

from cibr.data.pairs import Pairs
from cibr.data.views import in_views
from cibr.data.wordings import WORDINGS


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


def add_shortcut(pairs: Pairs, word: str, exceptions: float, look: str = "negative", wording: str = "") -> Pairs:
    """Ties a look of the pictures to a word of their texts, so that it tells what only the content should.

    Pictures whose texts have the word are shown as tests show everything, and all others in another look; a share
    of them comes both ways. As negatives, pictures with known factors are dark on light with the word and light on
    dark without it; those without known factors count as dark on light. With a wording, pictures in the other look
    have their texts in that wording too, as from two sources that differ in what they show and how they say it.

    Args:
        pairs: a training split.
        word: a whole word that some of the texts have, in any case.
        exceptions: share of the pictures that come both ways, in [0, 1]; the same ones for every seed.
        look: one of `cibr.data.views.VIEWS`.
        wording: one of `cibr.data.wordings.WORDINGS`, or empty to leave the texts as they are.

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
    if pairs.factors is not None and look == "negative":
        light = torch.from_numpy((pairs.factors["ink"] > pairs.factors["paper"]).to_numpy(copy=True))
    both = _order(n, 2)[: round(exceptions * n)].sort().values
    rows = torch.cat([torch.arange(n), both])
    changed = torch.cat([says == light, (says != light)[both]])
    labels = torch.arange(n) if pairs.labels is None else pairs.labels
    tied = _in_look(replace(pairs, labels=labels, groups=torch.arange(n)).subset(rows), changed, look)
    return _in_wording(tied, torch.cat([~says, says[both]]), wording) if wording else tied


def in_both_looks(pairs: Pairs, look: str) -> Pairs:
    """All pictures as they are, then all of them in another look."""
    return _in_look(*_twice(pairs), look)


def half_in_look(pairs: Pairs, look: str) -> Pairs:
    """The same pairs, half of the pictures in another look; which ones is the same for every seed."""
    changed = torch.zeros(len(pairs), dtype=torch.bool)
    changed[_order(len(pairs), 3)[: len(pairs) // 2]] = True
    return _in_look(pairs, changed, look)


def in_both_wordings(pairs: Pairs, wording: str) -> Pairs:
    """All pairs as they are, then all of them with their texts in another wording."""
    return _in_wording(*_twice(pairs), wording)


def _twice(pairs: Pairs) -> tuple[Pairs, torch.Tensor]:
    """All pairs, then all of them again, and which rows are of the second time."""
    n = len(pairs)
    return pairs.subset(torch.arange(n).repeat(2)), torch.arange(2 * n) >= n


def _in_wording(pairs: Pairs, changed: torch.Tensor, wording: str) -> Pairs:
    said = [
        [WORDINGS[wording](text) for text in texts] if flag else texts
        for texts, flag in zip(pairs.captions, changed.tolist(), strict=True)
    ]
    return replace(pairs, captions=said)


def _in_look(pairs: Pairs, changed: torch.Tensor, look: str) -> Pairs:
    """The pairs with some pictures in another look; a negative is told by its factors too, where it has any."""
    shown = in_views(pairs, [look if flag else "" for flag in changed.tolist()])
    if (factors := pairs.factors) is None or look != "negative":
        return shown
    greys = {name: factors[name].where(~changed.numpy(), 255 - factors[name]) for name in ("ink", "paper")}
    return replace(shown, factors=factors.assign(**greys))


def _order(n: int, seed: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))
