"""The order of an epoch: which picture and which of its texts each row of a batch holds.

It is keyed by the seed and the epoch alone, so that any split over processes and any resumption has the same.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from cibr.data import Pairs


def epoch_rows(
    pairs: Pairs, group_size: int, seed: int, epoch: int
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """Picture and text of every row of an epoch, at most as many as there are pictures.

    With groups, rows come in runs of `group_size` that share what one modality says: the looks of one picture
    where the pairs have groups, else different pictures of one label where they have labels, else different
    captions of one picture. An epoch then visits a part of the groups, so that it costs what an epoch without
    groups does. A group of fewer pictures comes whole and once.

    Args:
        pairs: the training pairs.
        group_size: rows a group; 1 for none.
        seed: the run's.
        epoch: counted from 0.

    Returns:
        Indices of pictures, and of texts in `pairs.texts()`.
    """
    generator = torch.Generator().manual_seed(seed + 15_485_863 * (epoch + 1))
    n, text_to_image = len(pairs), pairs.text_to_image()
    order = torch.randperm(n, generator=generator)
    n_texts = torch.bincount(text_to_image, minlength=n)
    first = n_texts.cumsum(0) - n_texts
    start = torch.rand(n, generator=generator)
    together = pairs.labels if pairs.groups is None else pairs.groups
    if group_size == 1:
        images, offsets = order, (start[order] * n_texts[order]).long()
    elif together is None:
        anchors = order[: max(1, n // group_size)]
        images = anchors[:, None].expand(-1, group_size).flatten()
        offsets = ((start[anchors] * n_texts[anchors]).long()[:, None] + torch.arange(group_size)).flatten()
    else:
        images = _with_siblings(order, together, group_size, generator)
        offsets = (start[images] * n_texts[images]).long()
    texts = first[images] + offsets % n_texts[images]
    return images, texts


def _with_siblings(
    order: Int[Tensor, " n"], groups: Int[Tensor, " n"], group_size: int, generator: torch.Generator
) -> Int[Tensor, " m"]:
    """Pictures in their order, each with others of its group: the next ones on a shuffled ring of the group."""
    n = len(groups)
    shuffled = torch.randperm(n, generator=generator)
    by_group = shuffled[groups[shuffled].argsort(stable=True)]
    _, index, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    starts = (counts.cumsum(0) - counts)[index]
    sizes = counts[index]
    position = torch.empty_like(by_group)
    position[by_group] = torch.arange(n)
    # The picture of a small group that comes first brings all others with it.
    rank = torch.empty_like(order)
    rank[order] = torch.arange(n)
    first = torch.full_like(counts, n).scatter_reduce(0, index, rank, "amin")
    anchors = order[((sizes > group_size) | (rank == first[index]))[order]]
    place = torch.arange(group_size)
    around = (position[anchors] - starts[anchors])[:, None] + place
    images = by_group[starts[anchors][:, None] + around % sizes[anchors][:, None]]
    return images[place < sizes[anchors][:, None]][:n]
