"""Retrieval metrics from ranks, in bounded memory, with ties counted against the model.

The rank of a query is the number of incorrect items at least as similar as its best correct one, up
to the rounding of a float32 sum of d products, 1.2e-7 (4 + sqrt(d)) of the cosine. So collapsed
embeddings, where everything ties, score 0 rather than 100 %. There are two protocols.
*Paired* (Karpathy and Fei-Fei, 2015): only an image's own captions are correct. *By label*: every
item with the query's label is correct, as in a loss with several positives.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from cibr.utils import check_unit_vectors

_KS = (1, 5, 10)
_TILE = 2**22  # numbers in memory at a time (16 MiB)

_Images = Float[Tensor, "n d"]
_Texts = Float[Tensor, "m d"]
_PerImage = Int[Tensor, " n"]
_PerText = Int[Tensor, " m"]
_Ks = Sequence[int]


class Ranks(NamedTuple):
    """Ranks of the n image and m text queries of a data set, from 0, and the cluster of each.

    Queries of one cluster are not independent: an image with its texts, or everything with one
    label.
    """

    image_ranks: _PerImage
    text_ranks: _PerText
    image_units: _PerImage
    text_units: _PerText


def recall_at_k(
    image_embeddings: _Images, text_embeddings: _Texts, text_to_image: _PerText, ks: _Ks = _KS
) -> dict[str, float]:
    """Recall@k of paired retrieval in both directions, with any number of captions per image.

    An image-to-text query is a hit if any of the image's captions is among the first k. Where
    several images share a text, only the embedding of an image's own copy is correct, and the
    others tie with it: use `retrieval_recalls`, which takes labels.

    Source: the protocol of Karpathy and Fei-Fei (2015) for captioned photos; ties count against the
    model.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        text_to_image: the index of each text's image [m], in any order; every image has at least
            one text.
        ks: the cut-offs; those above the size of the smaller gallery are left out.

    Returns:
        `{"image_to_text_recall@k": ..., "text_to_image_recall@k": ...}` in [0, 1].

    Raises:
        ValueError: an image without text, or embeddings that are not finite unit vectors.
    """
    ranks = retrieval_ranks(image_embeddings, text_embeddings, text_to_image)
    return {name: hits.mean().item() for name, hits in recall_items(*ranks, ks).items()}


def retrieval_recalls(
    image_embeddings: _Images,
    text_embeddings: _Texts,
    texts: Sequence[str],
    text_to_image: _PerText,
    labels: _PerImage | None = None,
    ks: _Ks = _KS,
) -> dict[str, float]:
    """Recall@k of a data set: `recall_at_k` if its images have no labels, else recall by label.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        texts: the m texts; see `query_ranks`.
        text_to_image: the index of each text's image [m].
        labels: the label of each image [n], or None.
        ks: the cut-offs, by default 1, 5 and 10; those above the size of the smaller gallery are
            left out.

    Returns:
        Recalls in [0, 1], named as those of `recall_at_k`, by label
        `{"image_to_text_label_recall@k": ..., "text_to_image_label_recall@k": ...}`.

    Raises:
        ValueError: as `query_ranks`.
    """
    ranks = query_ranks(image_embeddings, text_embeddings, texts, text_to_image, labels)[:2]
    items = recall_items(*ranks, ks, "recall" if labels is None else "label_recall")
    return {name: hits.mean().item() for name, hits in items.items()}


def recall_items(
    image_ranks: _PerImage, text_ranks: _PerText, ks: _Ks = _KS, name: str = "recall"
) -> dict[str, Float64[Tensor, " _"]]:
    """One number per query for each recall, which is their mean: 1 for a hit, else 0.

    Args:
        image_ranks: from `query_ranks` [n].
        text_ranks: the same of the texts [m].
        ks: the cut-offs; those above the smaller of n and m are left out.
        name: `recall` or `label_recall`.
    """
    fitting = [k for k in ks if k <= min(len(image_ranks), len(text_ranks))]
    items = {}
    for direction, ranks in (("image_to_text", image_ranks), ("text_to_image", text_ranks)):
        for k in fitting:
            items[f"{direction}_{name}@{k}"] = (ranks < k).double()
    return items


def query_ranks(
    image_embeddings: _Images,
    text_embeddings: _Texts,
    texts: Sequence[str],
    text_to_image: _PerText,
    labels: _PerImage | None = None,
) -> Ranks:
    """Ranks of a data set's queries: `retrieval_ranks` if its images have no labels, else by label.

    By label, every item with the query's label is correct, as positives in training are. A text
    that several images share is once in the gallery, so a perfect model has rank 0 everywhere.
    `cibr.Pairs.retrieval_targets` returns the texts, indices and labels of a data set.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        texts: the m texts themselves.
        text_to_image: the index of each text's image [m].
        labels: the label of each image [n], equal for images that match the same texts; None if
            only an image's own texts are correct.

    Returns:
        The ranks; by label, `text_ranks` are those of the distinct texts, in order.

    Raises:
        ValueError: as `recall_at_k`.
    """
    if labels is None:
        ranks = retrieval_ranks(image_embeddings, text_embeddings, text_to_image)
        return Ranks(*ranks, torch.arange(len(image_embeddings)), text_to_image)
    check_unit_vectors(image_embeddings=image_embeddings, text_embeddings=text_embeddings)
    text_labels = labels[text_to_image]
    first: dict[tuple[str, int], int] = {}  # each text once per label
    for row, key in enumerate(zip(texts, text_labels.tolist(), strict=True)):
        first.setdefault(key, row)
    rows = list(first.values())
    gallery, of_texts = text_embeddings[rows], text_labels[rows]
    image_ranks = label_ranks(image_embeddings, labels, gallery, of_texts)
    text_ranks = label_ranks(gallery, of_texts, image_embeddings, labels)
    return Ranks(image_ranks, text_ranks, labels, of_texts)


def retrieval_ranks(
    image_embeddings: _Images, text_embeddings: _Texts, text_to_image: _PerText
) -> tuple[_PerImage, _PerText]:
    """Paired ranks: the number of incorrect items at least as similar as a query's best correct
    one, up to rounding.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        text_to_image: the index of each text's image [m].

    Returns:
        Ranks of the image queries [n] and of the text queries [m], from 0.

    Raises:
        ValueError: as `recall_at_k`.
    """
    check_unit_vectors(image_embeddings=image_embeddings, text_embeddings=text_embeddings)
    images = image_embeddings.float()
    texts = text_embeddings.float()
    own = text_to_image.long()
    n = len(images)
    if not torch.equal(own.unique(), torch.arange(n, device=own.device)):
        raise ValueError("text_to_image must count images from 0, each with at least one text")
    # Captions of an image are spread over rows of the product, so its best one is found first.
    blocks = _blocks(len(texts), images.shape[1])
    parts = [(texts[rows] * images[own[rows]]).sum(1) for rows in blocks]
    text_best = torch.cat(parts)
    text_best -= _rounding(images)
    image_best = text_best.new_full((n,), -torch.inf).scatter_reduce(0, own, text_best, "amax")
    image_ranks = torch.zeros_like(image_best)
    text_ranks = torch.empty_like(text_best)
    for rows in _blocks(len(texts), n):
        tile = texts[rows] @ images.T
        tile.scatter_(1, own[rows, None], -torch.inf)
        image_ranks += _n_reaching(tile.T, image_best)
        text_ranks[rows] = _n_reaching(tile, text_best[rows])
    return image_ranks.long(), text_ranks.long()


def label_ranks(
    queries: _Images, labels: _PerImage, gallery: _Texts, gallery_labels: _PerText
) -> _PerImage:
    """Ranks of queries for which every item with their label is correct; inputs are not checked.

    Args:
        queries: unit vectors [n, d].
        labels: the label of each query [n].
        gallery: unit vectors [m, d].
        gallery_labels: the label of each item [m].

    Returns:
        Ranks [n], from 0.

    Raises:
        ValueError: a label that no item has.
    """
    if not torch.isin(labels, gallery_labels).all():
        raise ValueError("labels has some that no item has: every query needs a correct item")
    gallery = gallery.float()
    ranks = torch.empty_like(labels, dtype=torch.long)
    for rows in _blocks(len(queries), len(gallery)):
        tile = queries[rows].float() @ gallery.T
        is_correct = labels[rows, None] == gallery_labels
        best = tile.masked_fill(~is_correct, -torch.inf).amax(1) - _rounding(gallery)
        ranks[rows] = _n_reaching(tile.masked_fill_(is_correct, -torch.inf), best).long()
    return ranks


def _blocks(n: int, width: int) -> Iterator[slice]:
    """Slices of n rows, each with up to `_TILE` numbers if a row has `width` of them."""
    size = max(1, _TILE // width)
    return (slice(start, start + size) for start in range(0, n, size))


def _rounding(embeddings: Float[Tensor, "n d"]) -> float:
    """The largest difference of equal cosines; see the first paragraph."""
    return torch.finfo(torch.float32).eps * (4 + embeddings.shape[1] ** 0.5)


def _n_reaching(tile: Float[Tensor, "t m"], lowest: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """How many similarities in each row reach its threshold, exact to 2^24."""
    # Floats summed by a product with ones: several times faster than counting Booleans.
    reached = torch.ge(tile, lowest[:, None], out=torch.empty_like(tile))
    return reached.mv(reached.new_ones(reached.shape[1]))
