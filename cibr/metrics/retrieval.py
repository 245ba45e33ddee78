"""Retrieval metrics from ranks, in bounded memory, with ties counted against the model.

    rank(query) = number of incorrect items with <query, item> >= <query, best correct item> - e
    recall@k    = share of queries with a rank below k

The margin e is the rounding of a float32 sum of d products, 1.2e-7 (4 + sqrt(d)) of the cosine, so
collapsed embeddings, where everything ties, score 0 rather than 100 %. There are two protocols.
*Paired*: only an image's own captions are correct. *By label*: every item with the query's label is
correct, as in a loss with several positives.

`retrieval_ranks` is the one computation: `recall_hits` turns its ranks into a hit or a miss for
each query, whose means are what `recall_at_k` and `retrieval_recalls` return.

Source: Karpathy and Fei-Fei (2015) for the paired protocol of captioned photos.
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

    Args:
        image_ranks: of each image among the texts, [n].
        text_ranks: of each text among the images, [m].
        image_clusters: the cluster of each image, [n].
        text_clusters: the cluster of each text, [m].
        by_label: whether every item with the query's label is correct, or only an image's own
            captions.
    """

    image_ranks: Int[Tensor, " n"]
    text_ranks: Int[Tensor, " m"]
    image_clusters: Int[Tensor, " n"]
    text_clusters: Int[Tensor, " m"]
    by_label: bool


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
    return _means(recall_hits(ranks, ks))


def retrieval_recalls(
    image_embeddings: _Images,
    text_embeddings: _Texts,
    texts: Sequence[str],
    text_to_image: _PerText,
    labels: _PerImage | None = None,
    ks: _Ks = _KS,
) -> dict[str, float]:
    """Recall@k of a data set: `recall_at_k` if its images have no labels, else recall by label.

    `cibr.Pairs.retrieval_targets` returns the texts, indices and labels of a data set.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        texts: the m texts themselves; see `retrieval_ranks`.
        text_to_image: the index of each text's image [m].
        labels: the label of each image [n], or None.
        ks: the cut-offs; those above the size of the smaller gallery are left out.

    Returns:
        Recalls in [0, 1], named as those of `recall_at_k`, by label
        `{"image_to_text_label_recall@k": ..., "text_to_image_label_recall@k": ...}`.

    Raises:
        ValueError: as `retrieval_ranks`.
    """
    ranks = retrieval_ranks(image_embeddings, text_embeddings, text_to_image, labels, texts)
    return _means(recall_hits(ranks, ks))


def retrieval_ranks(
    image_embeddings: _Images,
    text_embeddings: _Texts,
    text_to_image: _PerText,
    labels: _PerImage | None = None,
    texts: Sequence[str] | None = None,
) -> Ranks:
    """Ranks of every query's best correct item, from 0.

    A rank is the number of incorrect items that are at least as similar, up to rounding. Without
    labels only an image's own texts are correct; with labels every item with the query's label is,
    as positives in training are.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        text_to_image: the index of each text's image [m].
        labels: the label of each image [n], equal for images that match the same texts; None if
            only an image's own texts are correct.
        texts: the m texts themselves. By label, a text that several images share is once in the
            gallery, so that a perfect model has rank 0 everywhere; None keeps all texts.

    Returns:
        The ranks; by label, those of texts are those of the distinct texts, in order.

    Raises:
        ValueError: an image without text, or embeddings that are not finite unit vectors.
    """
    check_unit_vectors(image_embeddings=image_embeddings, text_embeddings=text_embeddings)
    if labels is None:
        image_ranks, text_ranks = _paired_ranks(image_embeddings, text_embeddings, text_to_image)
        image_clusters = torch.arange(len(image_embeddings), device=text_to_image.device)
        return Ranks(image_ranks, text_ranks, image_clusters, text_to_image, by_label=False)
    text_labels = labels[text_to_image]
    if texts is not None:
        rows = _first_of_each_text(texts, text_labels)
        text_embeddings = text_embeddings[rows]
        text_labels = text_labels[rows]
    image_ranks = label_ranks(image_embeddings, labels, text_embeddings, text_labels)
    text_ranks = label_ranks(text_embeddings, text_labels, image_embeddings, labels)
    return Ranks(image_ranks, text_ranks, labels, text_labels, by_label=True)


def recall_hits(ranks: Ranks, ks: _Ks = _KS) -> dict[str, Float64[Tensor, " _"]]:
    """One number per query for each recall, which is their mean: 1 for a hit, else 0.

    Args:
        ranks: from `retrieval_ranks`.
        ks: the cut-offs; those above the smaller number of queries are left out.

    Returns:
        The hits of the image queries, [n], and of the text queries, [m], for each k, named as the
        recalls of `retrieval_recalls`.
    """
    largest_k = min(len(ranks.image_ranks), len(ranks.text_ranks))
    metric = "label_recall" if ranks.by_label else "recall"
    ranks_by_direction = {"image_to_text": ranks.image_ranks, "text_to_image": ranks.text_ranks}
    hits = {}
    for direction, direction_ranks in ranks_by_direction.items():
        for k in ks:
            if k <= largest_k:
                hits[f"{direction}_{metric}@{k}"] = (direction_ranks < k).double()
    return hits


def chance_recalls(ranks: Ranks, ks: _Ks = _KS) -> dict[str, float]:
    """The recalls that a random order of the gallery has on average.

    Of T items, r of which are correct, none is among the first k with the probability
    C(T - r, k) / C(T, k).

    Args:
        ranks: from `retrieval_ranks`; only their clusters and numbers count.
        ks: the cut-offs, see `recall_hits`.

    Returns:
        Recalls in [0, 1], by the names of `recall_hits`.
    """
    chances = {}
    for name in recall_hits(ranks, ks):
        queries, gallery = ranks.text_clusters, ranks.image_clusters
        if name.startswith("image_to_text"):
            queries, gallery = ranks.image_clusters, ranks.text_clusters
        _, cluster = torch.cat([queries, gallery]).unique(return_inverse=True)
        n_correct = torch.bincount(cluster[len(queries) :])[cluster[: len(queries)]]
        is_missed = torch.ones(len(queries), dtype=torch.float64)
        for n_drawn in range(int(name.partition("@")[2])):
            n_left = len(gallery) - n_drawn
            is_missed *= (n_left - n_correct.cpu()).clamp(min=0) / n_left
        chances[name] = 1 - is_missed.mean().item()
    return chances


def label_ranks(
    queries: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    gallery: Float[Tensor, "m d"],
    gallery_labels: Int[Tensor, " m"],
) -> Int[Tensor, " n"]:
    """Ranks of queries for which every item with their label is correct; vectors are not checked.

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
        raise ValueError(
            "some queries have a label that no item has: every query needs a correct item"
        )
    gallery = gallery.float()
    ranks = torch.empty_like(labels, dtype=torch.long)
    for rows in _blocks(len(queries), row_size=len(gallery)):
        similarities = queries[rows].float() @ gallery.T  # [rows, m]
        is_correct = labels[rows, None] == gallery_labels
        best_correct = similarities.masked_fill(~is_correct, -torch.inf).amax(1)
        threshold = best_correct - _margin(gallery)
        incorrect = similarities.masked_fill_(is_correct, -torch.inf)
        ranks[rows] = _n_reaching(incorrect, threshold)
    return ranks


def _paired_ranks(
    images: _Images, texts: _Texts, text_to_image: _PerText
) -> tuple[_PerImage, _PerText]:
    """Ranks of images and of texts, both from one product, whose blocks are rows of texts."""
    images = images.float()
    texts = texts.float()
    image_of_text = text_to_image.long()
    n = len(images)
    if not torch.equal(image_of_text.unique(), torch.arange(n, device=image_of_text.device)):
        raise ValueError("text_to_image must count images from 0, each with at least one text")
    own_similarities = torch.cat(  # of each text with its own image, [m]
        [
            (texts[rows] * images[image_of_text[rows]]).sum(1)
            for rows in _blocks(len(texts), row_size=images.shape[1])
        ]
    )
    text_thresholds = own_similarities - _margin(images)
    # An image's threshold is the largest of its texts', which may lie in several of the blocks.
    image_thresholds = text_thresholds.new_full((n,), -torch.inf)
    image_thresholds.scatter_reduce_(0, image_of_text, text_thresholds, "amax")
    image_ranks = torch.zeros_like(image_thresholds, dtype=torch.long)
    text_ranks = torch.empty_like(text_thresholds, dtype=torch.long)
    for rows in _blocks(len(texts), row_size=n):
        similarities = texts[rows] @ images.T  # [rows, n]
        incorrect = similarities.scatter_(1, image_of_text[rows, None], -torch.inf)
        image_ranks += _n_reaching(incorrect.T, image_thresholds)
        text_ranks[rows] = _n_reaching(incorrect, text_thresholds[rows])
    return image_ranks, text_ranks


def _first_of_each_text(texts: Sequence[str], text_labels: _PerText) -> list[int]:
    """The rows of texts that have not occurred before with their label."""
    first_rows: dict[tuple[str, int], int] = {}
    for row, key in enumerate(zip(texts, text_labels.tolist(), strict=True)):
        first_rows.setdefault(key, row)
    return list(first_rows.values())


def _means(hits: dict[str, Float64[Tensor, " _"]]) -> dict[str, float]:
    return {name: values.mean().item() for name, values in hits.items()}


def _blocks(n: int, row_size: int) -> Iterator[slice]:
    """Slices of n rows, each with up to `_TILE` numbers if a row has `row_size` of them."""
    n_rows = max(1, _TILE // row_size)
    return (slice(start, start + n_rows) for start in range(0, n, n_rows))


def _margin(embeddings: Float[Tensor, "n d"]) -> float:
    """The largest difference, by rounding, of cosines that are equal."""
    dim = embeddings.shape[1]
    return torch.finfo(torch.float32).eps * (4 + dim**0.5)


def _n_reaching(values: Float[Tensor, "t m"], thresholds: Float[Tensor, " t"]) -> Int[Tensor, " t"]:
    """How many values in each row reach its threshold."""
    # Floats summed by a product with ones, exact to 2^24: several times faster than counting
    # Booleans.
    is_reached = torch.ge(values, thresholds[:, None], out=torch.empty_like(values))
    return is_reached.mv(is_reached.new_ones(is_reached.shape[1])).long()
