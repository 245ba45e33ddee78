"""CLIP's population loss in a finite world, exact, and what theorem 1 of the book does to a tower.

For N pairs drawn independently, with scores s_ij = <u(x_i), w(t_j)> / temperature, the loss is

    L = E mean over i of [(log sum_j e^{s_ij} + log sum_j e^{s_ji}) / 2 - s_ii]

the sum of a batch's loss over all batches, times their probabilities. Images of one value of the
shared factor S differ in the image-only factor alone. The theorem replaces their embeddings by
their mean (`averaged`), whose loss is not higher, or by one of them (`representatives`), drawn at
random, whose loss is not higher on average.
`adversary` looks for towers for which it would.
"""

import itertools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn import functional as F

from cibr_book.worlds.exact import DiscreteWorld, ImageVectors, TextVectors, _check_positive

_LARGEST_BATCH = 4  # 250,000 batches in the default world, and 17 times as many with a fifth pair


class PopulationLoss:
    """CLIP's loss of two towers in a discrete world.

    Args:
        world: images and texts.
        batch_size: N, from 2 to 4; None for the limit of L - log N as N grows.

    Raises:
        ValueError: another batch size.
    """

    def __init__(self, world: DiscreteWorld, batch_size: int | None):
        if batch_size is not None and not 2 <= batch_size <= _LARGEST_BATCH:
            fix = "pass None for the limit of large batches"
            raise ValueError(f"batch_size must be 2 to {_LARGEST_BATCH}, got {batch_size}: {fix}")
        self.joint = world.joint
        self.batch_size = batch_size
        if batch_size is not None:
            self._images, self._texts, self._chances = _all_batches(world.joint, batch_size)

    def __call__(
        self,
        images: Float64[Tensor, "... n_images d"],
        texts: Float64[Tensor, "... n_texts d"],
        temperature: float,
    ) -> Float64[Tensor, "..."]:
        """The loss in nats, differentiable.

        Args:
            images: embeddings of all images, of one image tower or of several.
            texts: embeddings of all texts.
            temperature: of the softmax, positive.

        Returns:
            One value a tower; for the limit, minus the shared information that InfoNCE reports.

        Raises:
            ValueError: a temperature that is not positive.
        """
        _check_positive("temperature", temperature)
        scores = images @ texts.mT / temperature
        if self.batch_size is None:
            return self._limit(scores)
        # [..., batch, i, j]: image of pair i against text of pair j
        scores = scores[..., self._images[:, :, None], self._texts[:, None, :]]
        partitions = torch.logsumexp(scores, -1) + torch.logsumexp(scores, -2)
        own = scores.diagonal(dim1=-2, dim2=-1)
        return (partitions / 2 - own).mean(-1) @ self._chances

    def _limit(self, scores: Tensor) -> Tensor:
        of_image = self.joint.sum(1)
        of_text = self.joint.sum(0)
        over_texts = torch.logsumexp(scores + of_text.log(), -1) @ of_image
        over_images = torch.logsumexp(scores + of_image.log()[:, None], -2) @ of_text
        return (over_texts + over_images) / 2 - (self.joint * scores).sum((-2, -1))


def _all_batches(joint: Tensor, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images and texts [n_batches, N] of every batch up to its order, and their probabilities."""
    images, texts = joint.nonzero(as_tuple=True)
    cells = range(len(images))
    batches = torch.tensor(list(itertools.combinations_with_replacement(cells, batch_size)))
    repeats = F.one_hot(batches, len(images)).sum(1).double()
    orders = math.factorial(batch_size) / torch.lgamma(repeats + 1).sum(1).exp()
    chances = orders * joint[images, texts][batches].prod(1)
    return images[batches], texts[batches], chances


def averaged(world: DiscreteWorld, images: ImageVectors) -> ImageVectors:
    """E[u | S]: each image has the mean embedding of the images with its shared factor."""
    n_shared = int(world.shared.max()) + 1
    means = images.unflatten(0, (n_shared, -1)).mean(1)
    return means[world.shared]


def representatives(
    world: DiscreteWorld, images: ImageVectors
) -> Float64[Tensor, "n_choices n_images d"]:
    """All towers in which every image has the embedding of one image with its shared factor.

    The images of a shared factor are equally likely, so a choice at random is a mean over the
    first axis.
    """
    n_shared = int(world.shared.max()) + 1
    by_shared = images.unflatten(0, (n_shared, -1))  # [shared, image-only, d]
    each = torch.arange(by_shared.shape[1])
    choices = torch.cartesian_prod(*[each] * n_shared)
    return by_shared[torch.arange(n_shared), choices][:, world.shared]


def adversary(
    world: DiscreteWorld,
    loss: PopulationLoss,
    replace: Callable[[DiscreteWorld, ImageVectors], Tensor],
    dim: int,
    temperature: float,
    seed: int = 0,
    n_steps: int = 300,
) -> tuple[ImageVectors, TextVectors, float]:
    """Unit vectors that make a replacement of the image tower gain as little as possible.

    Gradient descent from random vectors on the fall of the loss, divided by the mean squared
    distance of images from the mean of their shared factor: without the division it would only
    shrink that distance.

    Args:
        world: images and texts.
        loss: of this world.
        replace: `averaged` or `representatives`, whose losses are averaged.
        dim: width of the embeddings.
        temperature: of the softmax.
        seed: of the initial vectors.
        n_steps: steps of Adam.

    Returns:
        Images [n_images, dim] and texts [n_texts, dim], and the least fall of the loss on the way,
        in nats: negative if the theorem were wrong.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n, dim) for n in world.joint.shape]
    free = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    free = [vectors.requires_grad_() for vectors in free]
    optimizer = torch.optim.Adam(free, lr=0.03)
    least = math.inf
    for _ in range(n_steps):
        images, texts = (F.normalize(vectors, dim=1) for vectors in free)
        replaced = loss(replace(world, images), texts, temperature).mean()
        fall = loss(images, texts, temperature) - replaced
        least = min(least, fall.item())
        spread = (images - averaged(world, images)).square().sum(1).mean()
        optimizer.zero_grad()
        (fall / spread).backward()
        optimizer.step()
    return images.detach(), texts.detach(), least
