"""Retrieval metrics by rank counting: exact, one pass over the similarities, ties counted against the model.

A query's rank is the number of wrong items at least as similar as its best right one. So collapsed embeddings,
where everything ties with everything, score 0 and never 100 %.

A row of similarities (a text to all images) holds its text's right image, so that texts are ranked while the row
is there. An image's texts are spread over rows, and its thresholds must be known before. They come from a narrow
band: texts sorted by image, a tile of them against their own images only, some per cent of the whole product. The
pass then reads the same entries again. Where kernels rounded one otherwise, a second pass takes the first one's
entries as thresholds: exact always, one pass nearly always.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cibr.metrics.ranking import (
    SMALLEST,
    check_embeddings,
    count_in_columns,
    count_in_rows,
    padded,
    similarity_tiles,
    spans,
)

BAND = 256  # texts at a time in the band


class RetrievalOutcomes(NamedTuple):
    """What every query found: the items that scores average and intervals resample.

    Ranks count wrong items from 0; average precision is in (0, 1] over all of a query's right items.
    """

    image_ranks: Int[Tensor, " n"]
    text_ranks: Int[Tensor, " m"]
    image_average_precisions: Float[Tensor, " n"]
    text_average_precisions: Float[Tensor, " m"]


def retrieval_ranks(
    image_embeddings: Float[Tensor, "n d"],
    text_embeddings: Float[Tensor, "m d"],
    text_to_image: Int[Tensor, " m"],
) -> tuple[Int[Tensor, " n"], Int[Tensor, " m"]]:
    """For every image and every text, how many wrong items are at least as similar as its best right one.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        text_to_image: the index of each text's image [m], in any order; every image has a text at least.

    Returns:
        Ranks of the images among texts [n] and of the texts among images [m], from 0.

    Raises:
        ValueError: shapes that do not fit, an image without text, embeddings that are not finite or zero.
    """
    _check(image_embeddings, text_embeddings, text_to_image)
    wrong, text_ranks = _counts(image_embeddings, text_embeddings, text_to_image, n_best=1)
    return wrong[0].long(), text_ranks.long()


def retrieval_outcomes(
    image_embeddings: Float[Tensor, "n d"],
    text_embeddings: Float[Tensor, "m d"],
    text_to_image: Int[Tensor, " m"],
) -> RetrievalOutcomes:
    """Rank and average precision of every query, in both directions.

    An image's average precision is the mean over its texts, best first, of k / (k + wrong texts at least as
    similar as the k-th). A text has one right image: 1 / (rank + 1).

    Source: Manning et al. (2008), Introduction to Information Retrieval, section 8.4; ties count against.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        text_to_image: the index of each text's image [m].

    Returns:
        Ranks from 0 and average precisions, of images [n] and texts [m].

    Raises:
        ValueError: as `retrieval_ranks`.
    """
    _check(image_embeddings, text_embeddings, text_to_image)
    n_texts = text_to_image.bincount(minlength=len(image_embeddings))
    wrong, text_ranks = _counts(image_embeddings, text_embeddings, text_to_image, n_best=int(n_texts.max()))
    k = torch.arange(1, len(wrong) + 1, device=wrong.device)[:, None]
    precisions = torch.where(k <= n_texts, k / (k + wrong), 0.0)
    return RetrievalOutcomes(wrong[0].long(), text_ranks.long(), precisions.sum(0) / n_texts, 1 / (text_ranks + 1))


def recall_at_k(
    image_embeddings: Float[Tensor, "n d"],
    text_embeddings: Float[Tensor, "m d"],
    text_to_image: Int[Tensor, " m"],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Recall@k of retrieval in both directions, any number of texts an image.

    Image to text is a hit when any of the image's texts is among the first k.

    Source: the protocol of Karpathy and Fei-Fei (2015) for captioned photos; ties count against the model.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        text_to_image: the index of each text's image [m].
        ks: the cut-offs.

    Returns:
        `{"image_to_text_recall@k": ..., "text_to_image_recall@k": ...}` in [0, 1].

    Raises:
        ValueError: as `retrieval_ranks`, or a k that is not between 1 and the gallery's size.
    """
    _check_ks(ks, len(image_embeddings), len(text_embeddings))
    return _recalls(*retrieval_ranks(image_embeddings, text_embeddings, text_to_image), ks)


def retrieval_scores(
    image_embeddings: Float[Tensor, "n d"],
    text_embeddings: Float[Tensor, "m d"],
    text_to_image: Int[Tensor, " m"],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Recall@k, median rank and mean average precision in both directions.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        text_to_image: the index of each text's image [m].
        ks: the cut-offs.

    Returns:
        `recall_at_k`'s scores, then `<direction>_median_rank` (from 1, the mean of the two middle ones where
        their number is even) and `<direction>_mean_average_precision` in (0, 1].

    Raises:
        ValueError: as `recall_at_k`.
    """
    _check_ks(ks, len(image_embeddings), len(text_embeddings))
    found = retrieval_outcomes(image_embeddings, text_embeddings, text_to_image)
    scores = _recalls(found.image_ranks, found.text_ranks, ks)
    for direction, ranks in (("image_to_text", found.image_ranks), ("text_to_image", found.text_ranks)):
        scores[f"{direction}_median_rank"] = ranks.double().quantile(0.5).item() + 1
    scores["image_to_text_mean_average_precision"] = found.image_average_precisions.double().mean().item()
    scores["text_to_image_mean_average_precision"] = found.text_average_precisions.double().mean().item()
    return scores


def _recalls(image_ranks: Tensor, text_ranks: Tensor, ks: Sequence[int]) -> dict[str, float]:
    ranks = {"image_to_text": image_ranks, "text_to_image": text_ranks}
    return {f"{name}_recall@{k}": (r < k).double().mean().item() for name, r in ranks.items() for k in ks}


def _counts(images: Tensor, texts: Tensor, text_to_image: Tensor, n_best: int) -> tuple[Tensor, Tensor]:
    """Wrong texts that reach an image's n_best best own ones [n_best, n], and the ranks of the texts [m]."""
    images, texts = images.float(), texts.float()
    own = _own_of_band(images, texts, text_to_image)
    for _ in range(2):  # the second pass finds what the first one did: the same products of the same shape
        thresholds = _best_own(own, text_to_image, len(images), n_best)
        found, wrong, text_ranks = _pass(images, texts, text_to_image, thresholds)
        if torch.equal(found, own):
            break
        own = found
    return wrong, text_ranks


def _own_of_band(images: Tensor, texts: Tensor, text_to_image: Tensor) -> Tensor:
    """Each text's similarity to its image [m], from products of sorted texts and the few images they have."""
    order, images = text_to_image.argsort(stable=True), padded(images)
    own = texts.new_empty(len(texts))
    for start, _, end in spans(len(texts), BAND):
        rows = order[start:end]
        first, last = int(text_to_image[rows[0]]), int(text_to_image[rows[-1]])
        first = min(first, len(images) - SMALLEST)
        near = texts[rows] @ images[first : max(last + 1, first + SMALLEST)].T
        own[rows] = near.gather(1, text_to_image[rows, None] - first).squeeze(1)
    return own


def _best_own(own: Tensor, text_to_image: Tensor, n: int, n_best: int) -> Tensor:
    """The n_best largest own similarities of every image, best first [n_best, n]; infinite where it has fewer."""
    order = own.argsort(descending=True)
    order = order[text_to_image[order].argsort(stable=True)]
    image = text_to_image[order]
    n_texts = image.bincount(minlength=n)
    place = torch.arange(len(own), device=own.device) - (n_texts.cumsum(0) - n_texts)[image]
    best, kept = own.new_full((n_best, n), torch.inf), place < n_best
    best[place[kept], image[kept]] = own[order[kept]]
    return best


def _pass(
    images: Tensor, texts: Tensor, text_to_image: Tensor, thresholds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Own similarities [m], texts not of an image that reach its thresholds [k, n], ranks of the texts [m]."""
    own, text_ranks = texts.new_empty(len(texts)), texts.new_empty(len(texts))
    reached = torch.zeros_like(thresholds)
    for rows, tile in similarity_tiles(texts, images):
        own[rows] = right = tile.gather(1, text_to_image[rows, None]).squeeze(1)
        text_ranks[rows] = count_in_rows(tile, right) - 1  # the right image reaches its own threshold
        for counts, threshold in zip(reached, thresholds, strict=True):
            counts += count_in_columns(tile, threshold)
    for counts, threshold in zip(reached, thresholds, strict=True):  # own texts are not wrong ones
        counts.scatter_add_(0, text_to_image, -(own >= threshold[text_to_image]).float())
    return own, reached, text_ranks


def _check_ks(ks: Sequence[int], n: int, m: int) -> None:
    for k in ks:
        if not 1 <= k <= min(n, m):
            raise ValueError(
                f"k={k} does not fit a gallery of {n} images and {m} texts: k is at least 1 and at most the "
                "smaller of the two"
            )


def _check(images: Tensor, texts: Tensor, text_to_image: Tensor) -> None:
    check_embeddings(image_embeddings=images, text_embeddings=texts)
    if text_to_image.shape != (len(texts),):
        raise ValueError(
            f"text_to_image has shape {tuple(text_to_image.shape)}: give one image index a text, ({len(texts)},)"
        )
    if text_to_image.min() < 0 or text_to_image.max() >= len(images):
        raise ValueError(f"text_to_image must lie in 0..{len(images) - 1}, the indices of the images")
    without = len(images) - len(text_to_image.unique())
    if without:
        raise ValueError(f"{without} images have no text: leave them out, every image needs one at least")
