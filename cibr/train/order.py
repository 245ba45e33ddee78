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

    With groups, rows come in runs of `group_size` that share what one modality says: different pictures of one
    label where the pairs have labels, and otherwise different captions of one picture. An epoch then visits a
    part of the groups, so that it costs what an epoch without groups does. A group that has fewer members
    repeats them.

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
    anchors = order[: max(1, n // group_size)]
    place = torch.arange(group_size)
    if pairs.labels is None:
        images = anchors[:, None].expand(-1, group_size)
        offsets = (start[anchors] * n_texts[anchors]).long()[:, None] + place
    else:
        images = _with_siblings(anchors, pairs.labels, group_size, generator)
        offsets = (start[images] * n_texts[images]).long()
    texts = first[images] + offsets % n_texts[images]
    return images.flatten(), texts.flatten()


def _with_siblings(
    anchors: Int[Tensor, " m"], labels: Int[Tensor, " n"], group_size: int, generator: torch.Generator
) -> Int[Tensor, "m g"]:
    """Each anchor with other pictures of its label, drawn as the next ones on a shuffled ring of the label."""
    if group_size == 1:
        return anchors[:, None]
    shuffled = torch.randperm(len(labels), generator=generator)
    by_label = shuffled[labels[shuffled].argsort(stable=True)]
    _, counts = torch.unique(labels[by_label], return_counts=True)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    sizes = torch.repeat_interleave(counts, counts)
    position = torch.empty_like(by_label)
    position[by_label] = torch.arange(len(labels))
    at = position[anchors]
    around = (at - starts[at])[:, None] + torch.arange(group_size)
    return by_label[starts[at][:, None] + around % sizes[at][:, None]]
