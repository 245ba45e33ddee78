"""Similarities in pieces and the counts behind every ranking: float32, bounded memory, ties never broken by size.

A piece of the product is compared while a core's cache still holds it, and a comparison writes 0 and 1 as floats,
whose sums are products with ones: several times faster than counting Booleans. Matrix kernels may round the same
pair otherwise in a matrix of other shape. So blocks are as alike as they can be: the last one reaches back rather
than being thin, and a side of fewer than `SMALLEST` rows is padded.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

BLOCK = 1024  # queries a product
BLOCK_ELEMENTS = 2**23  # similarities held at most (32 MiB), as long as a block has SMALLEST queries
TILE_ELEMENTS = 2**18  # similarities compared at a time (1 MiB): they fit a core's cache
SMALLEST = 64  # thinner products fall to other kernels


def check_embeddings(**embeddings: Tensor) -> None:
    """Refuses embeddings that are not [n, d] with one d, or have rows that are zero or not finite.

    Args:
        embeddings: tensors by the names that messages call them.

    Raises:
        ValueError: naming the argument and the first bad row.
    """
    shapes = " and ".join(f"{name} {tuple(e.shape)}" for name, e in embeddings.items())
    fit = all(e.ndim == 2 and len(e) for e in embeddings.values())
    if not fit or len({e.shape[-1] for e in embeddings.values()}) > 1:
        raise ValueError(f"{shapes} do not fit: give [n, d] and [m, d] with the same d, n and m at least 1")
    for name, side in embeddings.items():
        norms = side.float().norm(dim=1)
        bad = (~torch.isfinite(norms) | (norms == 0)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"{name} has {len(bad)} rows that are zero or not finite, first row {bad[0]}")


def padded(rows: Float[Tensor, "n d"]) -> Float[Tensor, "p d"]:
    """The rows as float32, followed by zero rows up to `SMALLEST`."""
    missing = SMALLEST - len(rows)
    return F.pad(rows.float(), (0, 0, 0, missing)) if missing > 0 else rows.float()  # padding copies


def spans(n: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Start, first new row and end of blocks that cover n rows; the last reaches back to be of full size."""
    for new in range(0, n, size):
        end = min(new + size, n)
        yield max(0, end - size), new, end


def similarity_tiles(
    queries: Float[Tensor, "n d"], gallery: Float[Tensor, "m d"]
) -> Iterator[tuple[slice, Float[Tensor, "t m"]]]:
    """The similarities of all queries to a gallery, in tiles of rows that are valid until the next one.

    Args:
        queries: [n, d].
        gallery: [m, d].

    Yields:
        The rows of a tile and their similarities [t, m], float32; every row comes once, in order.
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


def count_in_rows(tile: Float[Tensor, "t m"], thresholds: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """How many similarities of each row reach its threshold; exact as float32 up to 2^24."""
    reached = torch.ge(tile, thresholds[:, None], out=torch.empty_like(tile))
    return reached.mv(reached.new_ones(reached.shape[1]))


def count_in_columns(tile: Float[Tensor, "t m"], thresholds: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """How many similarities of each column reach its threshold; exact as float32 up to 2^24."""
    reached = torch.ge(tile, thresholds, out=torch.empty_like(tile))
    return reached.T.mv(reached.new_ones(len(reached)))


def own_ranks(queries: Float[Tensor, "n d"], gallery: Float[Tensor, "m d"], own: Tensor) -> Float[Tensor, " n"]:
    """For every query with one right item `own` [n], how many others of the gallery are at least as similar."""
    ranks = torch.empty(len(queries), device=queries.device)
    for rows, tile in similarity_tiles(queries, gallery):
        right = tile.gather(1, own[rows, None]).squeeze(1)
        ranks[rows] = count_in_rows(tile, right) - 1  # the right item reaches its own threshold
    return ranks
