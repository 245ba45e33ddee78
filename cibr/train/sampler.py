"""The order of an epoch: the image and the caption of each row of a batch.

It depends only on the seed and the epoch, so it is the same for any number of processes and after a
resume.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from cibr.data import Pairs


def epoch_rows(
    pairs: Pairs, group_size: int, group_share: float, seed: int, epoch: int
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """Image and text of every row of an epoch, at most as many rows as there are images.

    With groups, rows come in runs of `group_size` with shared content: renderings of one image if
    the pairs have
    groups, else different images of one label if they have labels, else different captions of one
    image. An epoch then visits a part of the groups, so its cost does not change. A smaller group
    is included in full, once.

    With a share below 1, each run is followed by images in the order without groups, so every batch
    has about that share of its rows in groups. Groups are then repeated as needed, and smaller ones
    are left out.

    Args:
        pairs: the training pairs.
        group_size: rows per group; 1 for none.
        group_share: share of the rows in groups, in (0, 1].
        seed: of the run.
        epoch: counted from 0.

    Returns:
        Indices of images, and of texts in `pairs.texts()`, [rows] each.

    Raises:
        ValueError: a share below 1, and no group of `group_size` images.
    """
    generator = torch.Generator().manual_seed(seed + 15_485_863 * (epoch + 1))
    n, text_to_image = len(pairs), pairs.text_to_image()
    order = torch.randperm(n, generator=generator)
    n_texts = torch.bincount(text_to_image, minlength=n)
    first = n_texts.cumsum(0) - n_texts
    start = torch.rand(n, generator=generator)
    together = pairs.labels if pairs.groups is None else pairs.groups
    nth_text = torch.zeros_like(order)
    if group_size == 1:
        images = order
    elif together is None:
        images = order[: max(1, n // group_size)].repeat_interleave(group_size)
        nth_text = torch.arange(len(images)) % group_size
    else:
        images = _grouped(order, together, group_size, generator, whole=group_share < 1)
        nth_text = torch.zeros_like(images)
    if group_size > 1 and group_share < 1:
        if len(images) < group_size:
            raise ValueError(
                f"{pairs.name} has no group of {group_size} images: choose a smaller group_size"
            )
        every = round(group_size / group_share)
        images = _interleaved(images, order, group_size, every)
        nth_text = _interleaved(nth_text, torch.zeros_like(order), group_size, every)
    offsets = (start[images] * n_texts[images]).long() + nth_text
    return images, first[images] + offsets % n_texts[images]


def _grouped(
    order: Int[Tensor, " n"],
    groups: Int[Tensor, " n"],
    group_size: int,
    generator: torch.Generator,
    whole: bool,
) -> Int[Tensor, " m"]:
    """Images in their order, each followed by others of its group, the next ones in a cyclic
    shuffle of the group.

    With `whole`, images of groups smaller than `group_size` are left out.
    """
    n = len(groups)
    shuffled = torch.randperm(n, generator=generator)
    by_group = shuffled[groups[shuffled].argsort(stable=True)]
    _, index, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    starts = (counts.cumsum(0) - counts)[index]
    sizes = counts[index]
    position = torch.empty_like(by_group)
    position[by_group] = torch.arange(n)
    # The first image of a small group is followed by all others.
    rank = torch.empty_like(order)
    rank[order] = torch.arange(n)
    first = torch.full_like(counts, n).scatter_reduce(0, index, rank, "amin")
    anchors = order[((sizes > group_size) | (rank == first[index]))[order]]
    if whole:
        anchors = anchors[sizes[anchors] >= group_size]
    place = torch.arange(group_size)
    around = (position[anchors] - starts[anchors])[:, None] + place
    images = by_group[starts[anchors][:, None] + around % sizes[anchors][:, None]]
    images = images[place < sizes[anchors][:, None]]
    return images if whole else images[:n]


def _interleaved(
    runs: Int[Tensor, " m"], order: Int[Tensor, " n"], group_size: int, every: int
) -> Int[Tensor, " n"]:
    """As many rows as in the order: blocks of `every` rows, a run followed by rows of the order."""
    n = len(order)
    n_runs = max(1, n // every)
    runs = runs.view(-1, group_size)
    runs = runs[torch.arange(n_runs) % len(runs)]
    n_between = n_runs * (every - group_size)
    blocks = torch.cat([runs, order[:n_between].view(n_runs, -1)], dim=1).flatten()
    return torch.cat([blocks, order[n_between : n - len(blocks) + n_between]])[:n]
