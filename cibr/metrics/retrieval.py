"""Retrieval metrics from exact ranks, in bounded memory, with ties counted against the model.

The rank of a query is the number of incorrect items at least as similar as its best correct one, so
collapsed embeddings, where everything ties, score 0 rather than 100 %. There are two protocols.
*Paired* (Karpathy and Fei-Fei, 2015): only an image's own captions are correct. *By label*: every
item with the query's label is correct, as in a loss with several positives.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

KS = (1, 5, 10)
BLOCK = 1024  # queries per product
BLOCK_ELEMENTS = (
    2**23
)  # most similarities in memory (32 MiB), as long as a block has SMALLEST queries
TILE_ELEMENTS = 2**18  # similarities compared at a time (1 MiB), to fit a core's cache
SMALLEST = 64  # thinner products use other kernels, which may round a pair differently
FEW = 8  # correct items per query up to which counting is faster than sorting
BAND = 256  # texts at a time in the band of own similarities


Images = Float[Tensor, "n d"]
Texts = Float[Tensor, "m d"]


class QueryScores(NamedTuple):
    """Rank and average precision of every query, which metrics average and intervals resample.

    Ranks count incorrect items, from 0; average precision is in (0, 1], over all correct items of a
    query.
    """

    image_ranks: Int[Tensor, " n"]
    text_ranks: Int[Tensor, " m"]
    image_average_precisions: Float[Tensor, " n"]
    text_average_precisions: Float[Tensor, " m"]


def recall_at_k(
    image_embeddings: Images,
    text_embeddings: Texts,
    text_to_image: Int[Tensor, " m"],
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """Recall@k of paired retrieval in both directions, with any number of captions per image.

    An image-to-text query is a hit if any of the image's captions is among the first k.

    Source: the protocol of Karpathy and Fei-Fei (2015) for captioned photos; ties count against the
    model.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        text_to_image: the index of each text's image [m], in any order; every image has at least
            one text.
        ks: the cut-offs.

    Returns:
        `{"image_to_text_recall@k": ..., "text_to_image_recall@k": ...}` in [0, 1].

    Raises:
        ValueError: shapes that do not fit, an image without text, embeddings that are not finite or
            zero, a k that is not between 1 and the smaller gallery's size.
    """
    _check_ks(ks, len(image_embeddings), len(text_embeddings))
    return _recalls(retrieval_ranks(image_embeddings, text_embeddings, text_to_image), ks, "recall")


def label_recall_at_k(
    image_embeddings: Images,
    text_embeddings: Texts,
    image_labels: Int[Tensor, " n"],
    text_labels: Int[Tensor, " m"],
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """Recall@k of retrieval by label in both directions: every item with the query's label is
    correct.

    A query is a hit if a correct item is among the first k. A text that is twice in the gallery
    counts as two
    incorrect items for images of other labels: give each text once, see `distinct_texts`.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        image_labels: the label of each image [n]; every label is also that of a text.
        text_labels: the label of each text [m]; every label is also that of an image.
        ks: the cut-offs.

    Returns:
        `{"image_to_text_label_recall@k": ..., "text_to_image_label_recall@k": ...}` in [0, 1].

    Raises:
        ValueError: as `recall_at_k`, or a label that only one side has.
    """
    _check_ks(ks, len(image_embeddings), len(text_embeddings))
    _check_labels(image_embeddings, text_embeddings, image_labels, text_labels)
    image_ranks, _ = _label_scores(image_embeddings, text_embeddings, image_labels, text_labels)
    text_ranks, _ = _label_scores(text_embeddings, image_embeddings, text_labels, image_labels)
    return _recalls((image_ranks, text_ranks), ks, "label_recall")


def retrieval_recalls(
    pairs, image_embeddings: Images, text_embeddings: Texts, ks: Sequence[int] = KS
) -> dict[str, float]:
    """Recall@k of pairs by their protocol: `recall_at_k` if `pairs.paired`, else
    `label_recall_at_k`.

    By label, positives in training are hits, and a text that several images share is once in the
    gallery, so a perfect model scores 1.

    Args:
        pairs: `cibr.data.Pairs`, with `paired`, `texts()`, `text_to_image()` and `match_labels()`.
        image_embeddings: unit vectors [n, d] of the pairs' images.
        text_embeddings: unit vectors [m, d] of all of `pairs.texts()`.
        ks: the cut-offs; those above the size of the smaller gallery are left out.

    Returns:
        Recalls in [0, 1], with the names of those two functions.

    Raises:
        ValueError: as those two functions.
    """
    if pairs.paired:
        kept = [k for k in ks if k <= min(len(image_embeddings), len(text_embeddings))]
        return recall_at_k(image_embeddings, text_embeddings, pairs.text_to_image(), kept)
    rows, text_labels = distinct_texts(pairs)
    kept = [k for k in ks if k <= min(len(image_embeddings), len(rows))]
    return label_recall_at_k(
        image_embeddings, text_embeddings[rows], pairs.match_labels(), text_labels, kept
    )


def distinct_texts(pairs) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"]]:
    """The texts of a gallery for retrieval by label: each string once per label.

    Args:
        pairs: `cibr.data.Pairs`.

    Returns:
        Indices into `pairs.texts()` [t], and the labels of these texts [t].
    """
    labels = pairs.match_labels()[pairs.text_to_image()]
    first: dict[tuple[int, str], int] = {}
    for row, key in enumerate(zip(labels.tolist(), pairs.texts(), strict=True)):
        first.setdefault(key, row)
    rows = torch.tensor(list(first.values()), dtype=torch.long)
    return rows, labels[rows]


def retrieval_ranks(
    image_embeddings: Images, text_embeddings: Texts, text_to_image: Int[Tensor, " m"]
) -> tuple[Int[Tensor, " n"], Int[Tensor, " m"]]:
    """Paired ranks: the number of incorrect items at least as similar as a query's best correct
    one.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        text_to_image: the index of each text's image [m].

    Returns:
        Ranks of the image queries [n] and of the text queries [m], from 0.

    Raises:
        ValueError: as `recall_at_k`.
    """
    _check_paired(image_embeddings, text_embeddings, text_to_image)
    images, texts = image_embeddings.float(), text_embeddings.float()
    # Captions of an image are spread over rows of the product, so its threshold must be known
    # before the pass.
    own = _own_of_band(images, texts, text_to_image)
    for _ in range(
        2
    ):  # a second pass only if the band's kernel rounded an entry differently; then it is exact
        best = own.new_full((len(images),), -torch.inf).scatter_reduce(
            0, text_to_image, own, "amax"
        )
        found, wrong, text_ranks = _pass(images, texts, text_to_image, best)
        if torch.equal(found, own):
            break
        own = found
    return wrong.long(), text_ranks.long()


def query_scores(
    image_embeddings: Images,
    text_embeddings: Texts,
    image_labels: Int[Tensor, " n"],
    text_labels: Int[Tensor, " m"],
) -> QueryScores:
    """Rank and average precision of every query, by label; paired if the labels are the indices of
    the images.

    Average precision is the mean over a query's correct items, best first, of k / (k + incorrect
    items at least as similar as the k-th). It takes several times as long as ranks alone.

    Source: Manning et al. (2008), Introduction to Information Retrieval, section 8.4; ties count
    against.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        image_labels: the label of each image [n], or `torch.arange(n)` for paired retrieval.
        text_labels: the label of each text [m], or the index of its image.

    Returns:
        Ranks from 0 and average precisions, of images [n] and texts [m].

    Raises:
        ValueError: as `label_recall_at_k`.
    """
    _check_labels(image_embeddings, text_embeddings, image_labels, text_labels)
    image_ranks, image_aps = _label_scores(
        image_embeddings, text_embeddings, image_labels, text_labels, True
    )
    text_ranks, text_aps = _label_scores(
        text_embeddings, image_embeddings, text_labels, image_labels, True
    )
    return QueryScores(image_ranks, text_ranks, image_aps, text_aps)


def similarity_tiles(
    queries: Float[Tensor, "n d"], gallery: Float[Tensor, "m d"]
) -> Iterator[tuple[slice, Float[Tensor, "t m"]]]:
    """The similarities of all queries to a gallery, in tiles of rows, each valid until the next
    one.

    Args:
        queries: [n, d].
        gallery: [m, d].

    Yields:
        The rows of a tile and their similarities [t, m], float32; each row once, in order.
    """
    n, m = len(queries), len(gallery)
    queries, gallery = padded(queries), padded(gallery)
    block = min(len(queries), BLOCK, max(SMALLEST, BLOCK_ELEMENTS // len(gallery)))
    tile = max(1, TILE_ELEMENTS // len(gallery))
    product = queries.new_empty(block, len(gallery))
    for start, new, end in spans(len(queries), block):
        torch.mm(queries[start:end], gallery.T, out=product)
        for first in range(new, min(end, n), tile):
            last = min(first + tile, end, n)
            yield slice(first, last), product[first - start : last - start, :m]


def count_reaching(
    tile: Float[Tensor, "t m"], thresholds: Float[Tensor, " t"]
) -> Float[Tensor, " t"]:
    """Number of similarities of each row at or above its threshold; as float32, exact up to 2^24."""
    # Floats summed by a product with ones: several times faster than counting Booleans.
    reached = torch.ge(tile, thresholds[:, None], out=torch.empty_like(tile))
    return reached.mv(reached.new_ones(reached.shape[1]))


def padded(rows: Float[Tensor, "n d"]) -> Float[Tensor, "p d"]:
    """The rows as float32, followed by zero rows up to `SMALLEST`."""
    missing = SMALLEST - len(rows)
    return (
        F.pad(rows.float(), (0, 0, 0, missing)) if missing > 0 else rows.float()
    )  # padding copies


def spans(n: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Start, first new row and end of blocks that cover n rows; the last overlaps to be of full
    size.
    """
    for new in range(0, n, size):
        end = min(new + size, n)
        yield max(0, end - size), new, end


def check_embeddings(**embeddings: Tensor) -> None:
    """Rejects embeddings that are not [n, d] with one d, or have rows that are zero or not finite.

    Args:
        embeddings: tensors, by their name in error messages.

    Raises:
        ValueError: naming the argument and the first bad row.
    """
    shapes = " and ".join(f"{name} {tuple(e.shape)}" for name, e in embeddings.items())
    fit = all(e.ndim == 2 and len(e) for e in embeddings.values())
    if not fit or len({e.shape[-1] for e in embeddings.values()}) > 1:
        raise ValueError(
            f"{shapes} do not fit: give [n, d] and [m, d] with the same d, n and m at least 1"
        )
    for name, side in embeddings.items():
        norms = side.float().norm(dim=1)
        bad = (~torch.isfinite(norms) | (norms == 0)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"{name} has {len(bad)} rows that are zero or not finite, first row {bad[0]}"
            )


def check_one_each(values: Tensor, rows: Tensor, name: str) -> None:
    """Raises ValueError unless there is one value per row."""
    if values.shape != (len(rows),):
        raise ValueError(f"{name} has shape {tuple(values.shape)}: give one a row, ({len(rows)},)")


def _recalls(ranks: tuple[Tensor, Tensor], ks: Sequence[int], name: str) -> dict[str, float]:
    sides = dict(zip(("image_to_text", "text_to_image"), ranks, strict=True))
    return {
        f"{side}_{name}@{k}": (r < k).double().mean().item()
        for side, r in sides.items()
        for k in ks
    }


def _label_scores(
    queries: Tensor,
    gallery: Tensor,
    labels: Tensor,
    gallery_labels: Tensor,
    precisions: bool = False,
) -> tuple[Tensor, Tensor]:
    """Ranks [n] and, if requested, average precisions [n] of queries with several correct items."""
    ranks, found = queries.new_empty(len(queries), dtype=torch.float32), torch.zeros(len(queries))
    for rows, tile in similarity_tiles(queries, gallery):
        is_right = labels[rows, None] == gallery_labels
        right, wrong = (
            tile.masked_fill(~is_right, -torch.inf),
            tile.masked_fill(is_right, -torch.inf),
        )
        ranks[rows] = count_reaching(wrong, right.amax(1))
        if precisions:
            n_right = is_right.sum(1)
            best = right.topk(
                int(n_right.max())
            ).values  # best first, -inf after a query's last correct item
            if best.shape[1] <= FEW:
                n_wrong = torch.stack([count_reaching(wrong, threshold) for threshold in best.T], 1)
            else:
                n_wrong = tile.shape[1] - torch.searchsorted(
                    wrong.sort(1).values, best
                )  # ties count against
            k = torch.arange(1, best.shape[1] + 1, device=tile.device)
            found[rows] = (
                torch.where(k <= n_right[:, None], k / (k + n_wrong), 0.0).sum(1) / n_right
            ).cpu()
    return ranks.long(), found


def _own_of_band(images: Tensor, texts: Tensor, text_to_image: Tensor) -> Tensor:
    """Each text's similarity to its own image [m], from products of texts sorted by image with
    their images.
    """
    order, images = text_to_image.argsort(stable=True), padded(images)
    own = texts.new_empty(len(texts))
    for start, _, end in spans(len(texts), BAND):
        rows = order[start:end]
        first, last = int(text_to_image[rows[0]]), int(text_to_image[rows[-1]])
        first = min(first, len(images) - SMALLEST)
        near = texts[rows] @ images[first : max(last + 1, first + SMALLEST)].T
        own[rows] = near.gather(1, text_to_image[rows, None] - first).squeeze(1)
    return own


def _pass(
    images: Tensor, texts: Tensor, text_to_image: Tensor, best: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Own similarities [m], ranks of the images [n] given their best own similarities, ranks of the
    texts [m].
    """
    own, text_ranks, reached = (
        texts.new_empty(len(texts)),
        texts.new_empty(len(texts)),
        torch.zeros_like(best),
    )
    for rows, tile in similarity_tiles(texts, images):
        own[rows] = right = tile.gather(1, text_to_image[rows, None]).squeeze(1)
        text_ranks[rows] = (
            count_reaching(tile, right) - 1
        )  # the correct image reaches its own threshold
        reached += count_reaching(tile.T, best)
    reached.scatter_add_(
        0, text_to_image, -(own >= best[text_to_image]).float()
    )  # own texts are not incorrect
    return own, reached, text_ranks


def _check_ks(ks: Sequence[int], n: int, m: int) -> None:
    for k in ks:
        if not 1 <= k <= min(n, m):
            raise ValueError(
                f"k={k} does not fit {n} images and {m} texts: it is from 1 to the smaller"
            )


def _check_paired(images: Tensor, texts: Tensor, text_to_image: Tensor) -> None:
    check_embeddings(image_embeddings=images, text_embeddings=texts)
    check_one_each(text_to_image, texts, "text_to_image")
    own = text_to_image.unique()
    if len(own) != len(images) or own[0] < 0 or own[-1] >= len(images):
        found = f"text_to_image holds {len(own)} indices from {own[0]} to {own[-1]} for {len(images)} images"
        raise ValueError(f"{found}: count images from 0, and leave out those without a text")


def _check_labels(images: Tensor, texts: Tensor, image_labels: Tensor, text_labels: Tensor) -> None:
    check_embeddings(image_embeddings=images, text_embeddings=texts)
    check_one_each(image_labels, images, "image_labels")
    check_one_each(text_labels, texts, "text_labels")
    for side, labels, others in (
        ("images", image_labels, text_labels),
        ("texts", text_labels, image_labels),
    ):
        alone = labels[~torch.isin(labels, others)].tolist()
        if alone:
            found = f"{len(alone)} {side} have a label that the other side lacks, first label {alone[0]}"
            raise ValueError(f"{found}: leave them out, every query needs a right item")
