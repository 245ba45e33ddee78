"""The order of an epoch: which image and which of its texts each row of a batch holds.

It is keyed by the seed and the epoch alone, so that it is the same for any number of processes and after a resume.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from cibr.data import Pairs


def epoch_rows(
    pairs: Pairs, group_size: int, group_share: float, seed: int, epoch: int
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """Image and text of every row of an epoch, at most as many as there are images.

    With groups, rows come in runs of `group_size` that share their content: the renderings of one image where the
    pairs have groups, else different images of one label where they have labels, else different captions of one
    image. An epoch then visits a part of the groups, so that it costs what an epoch without groups does. A group
    of fewer images comes whole and once.

    With a share below 1 each run is followed by images in the order without groups, so that all batches have about
    that share of their rows in groups. Groups are then repeated as often as that takes, but for those of fewer
    images, which are left out.

    Args:
        pairs: the training pairs.
        group_size: rows a group; 1 for none.
        group_share: share of the rows that come in groups, in (0, 1].
        seed: the run's.
        epoch: counted from 0.

    Returns:
        Indices of images, and of texts in `pairs.texts()`.

    Raises:
        ValueError: a share of the rows in groups, of images that have no group so large.
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
                f"{pairs.split} of {pairs.name} has no group of {group_size} images: choose a smaller group_size"
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
    """Images in their order, each with others of its group: the next ones on a shuffled ring of the group.

    Where only whole runs are wanted, images of smaller groups are left out.
    """
    n = len(groups)
    shuffled = torch.randperm(n, generator=generator)
    by_group = shuffled[groups[shuffled].argsort(stable=True)]
    _, index, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    starts = (counts.cumsum(0) - counts)[index]
    sizes = counts[index]
    position = torch.empty_like(by_group)
    position[by_group] = torch.arange(n)
    # The image of a small group that comes first brings all others with it.
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
    """As many rows as the order has: a run at the head of `every` rows, the order's own rows after it."""
    n = len(order)
    n_runs = max(1, n // every)
    runs = runs.view(-1, group_size)
    runs = runs[torch.arange(n_runs) % len(runs)]
    n_between = n_runs * (every - group_size)
    blocks = torch.cat([runs, order[:n_between].view(n_runs, -1)], dim=1).flatten()
    return torch.cat([blocks, order[n_between : n - len(blocks) + n_between]])[:n]
