"""A discrete world of images and texts in which every mutual information is a finite sum.

Encoders are tables p(z|x), or unit vectors with von Mises-Fisher noise of a stated concentration.
`PopulationLoss` is CLIP's loss of two towers in such a world, exact:

    L = E mean over i of [(log sum_j e^{s_ij} + log sum_j e^{s_ji}) / 2 - s_ii]

with scores s_ij = <u(x_i), w(t_j)> / temperature of N pairs drawn independently, the sum of a
batch's loss over all batches, times their probabilities. Images of one value of the shared factor S
differ in the image-only factor alone. Theorem 1 of the book replaces their embeddings by their mean
(`averaged`), whose loss is not higher, or by one of them (`representatives`), drawn at random,
whose loss is not higher on average. `adversary` looks for counterexamples.

Source: Cover & Thomas, Elements of Information Theory (2006), for the identities.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.special import xlogy

from cibr.losses.vmf import sample_vmf
from cibr_book.worlds.training import Pair, Settings, embed, train

Nats = Float64[Tensor, ""]
Joint = Float64[Tensor, "n_images n_texts"]
ImageTable = Float64[Tensor, "n_images k"]
TextTable = Float64[Tensor, "n_texts l"]
ImageVectors = Float64[Tensor, "n_images d"]
TextVectors = Float64[Tensor, "n_texts d"]
_DIM_HIDDEN = 64  # of the networks of `train_discrete`


def _entropy_nats(p: Float64[Tensor, "..."]) -> Nats:
    """Entropy of a finite distribution, -sum p log p.

    Args:
        p: probabilities of any shape, which sum to 1 over all entries.

    Returns:
        Nats, a scalar, differentiable.
    """
    # log 1 in place of log 0: the same value, and a finite gradient at probability zero.
    return -(p * torch.log(torch.where(p > 0, p, torch.ones_like(p)))).sum()


def information_nats(joint: Float64[Tensor, "a b *c"]) -> Nats:
    """I(A;B) of a joint distribution [a, b], or I(A;B|C) of one [a, b, c], by enumeration.

    H(A,C) + H(B,C) - H(A,B,C) - H(C) (Cover & Thomas, eq. 2.61); without C, its entropy is 0.
    """
    joint = joint[..., None] if joint.ndim == 2 else joint
    with_c = _entropy_nats(joint.sum(1)) + _entropy_nats(joint.sum(0))
    return with_c - _entropy_nats(joint) - _entropy_nats(joint.sum((0, 1)))


@dataclass(frozen=True)
class _DiscreteWorld:
    """Finite sets of images and texts with a known joint distribution; build one with
    `discrete_world`.

    Args:
        joint: p(x_v, x_t), [n_images, n_texts].
        shared: the shared factor of each image, [n_images].
        image_only: the factor of each image that no text mentions, [n_images].
        text_shared: the shared factor of each text, [n_texts].
        text_only: the factor of each text that no image shows, [n_texts].
    """

    joint: Joint
    shared: Int64[Tensor, " n_images"]
    image_only: Int64[Tensor, " n_images"]
    text_shared: Int64[Tensor, " n_texts"]
    text_only: Int64[Tensor, " n_texts"]


def discrete_world(
    confusions: Sequence[float] = (0.3, 0.05), n_image: int = 3, n_text: int = 2
) -> _DiscreteWorld:
    """A world whose shared factor has pairs of confusable values.

    A text has the wrong one of the shared values 2i and 2i + 1 with probability confusions[i], as a
    caption may call a wolf a husky. All factors are uniform and otherwise independent.

    Args:
        confusions: a probability in [0, 1/2] for each pair; the shared factor has twice as many
            values.
        n_image: number of values of the image-only factor.
        n_text: number of values of the text-only factor.

    Returns:
        A world with 2 len(confusions) n_image images and 2 len(confusions) n_text texts.
    """
    n_shared = 2 * len(confusions)
    wrong = torch.tensor(confusions, dtype=torch.float64).repeat_interleave(2)
    channel = torch.diag(1 - wrong)
    channel[range(n_shared), torch.arange(n_shared) ^ 1] += wrong  # p(s'|s)
    shared = channel / n_shared  # p(s, s')
    joint = shared[:, None, :, None].expand(n_shared, n_image, n_shared, n_text)
    images = torch.cartesian_prod(torch.arange(n_shared), torch.arange(n_image))
    texts = torch.cartesian_prod(torch.arange(n_shared), torch.arange(n_text))
    joint = joint.reshape(len(images), len(texts)) / (n_image * n_text)
    return _DiscreteWorld(joint, images[:, 0], images[:, 1], texts[:, 0], texts[:, 1])


def encoder_informations(
    world: _DiscreteWorld, image_encoder: ImageTable, text_encoder: TextTable
) -> dict[str, Nats]:
    """Exact mutual information of a pair of tabular encoders.

    Args:
        world: the images and texts.
        image_encoder: p(z_v|x_v), one distribution per row [n_images, k].
        text_encoder: p(z_t|x_t), one distribution per row [n_texts, l].

    Returns:
        Scalars in nats, `shared_nats` I(Z_v;Z_t); `residual_image_nats` I(Z_v;X_v|X_t) and
        `residual_text_nats` I(Z_t;X_t|X_v), each enumerated over three variables rather than
        computed as a difference; `residual_nats`, their mean.
    """
    joint = world.joint
    # p(z_v, x_v, x_t) and p(z_t, x_t, x_v): given x_v, z_v is independent of x_t.
    image = torch.einsum("ik,ij->kij", image_encoder, joint)
    text = torch.einsum("jl,ij->lji", text_encoder, joint)
    codes = torch.einsum("ik,ij,jl->kl", image_encoder, joint, text_encoder)
    residual_image = information_nats(image)
    residual_text = information_nats(text)
    return {
        "shared_nats": information_nats(codes),
        "residual_image_nats": residual_image,
        "residual_text_nats": residual_text,
        "residual_nats": (residual_image + residual_text) / 2,
    }


def residual_bound_nats(joint: Joint, encoder: ImageTable, backward: TextTable) -> Nats:
    """E[log e(z|x_v) - log b(z|x_t)], the upper bound on I(Z_v;X_v|X_t), enumerated.

    Source: Fischer (2020, arXiv 2002.05379), section 2.3; equality where b(z|x_t) is
    the mean of e(z|x_v) over the images of a text.

    Args:
        joint: p(x_v, x_t), [n_images, n_texts].
        encoder: e(z|x_v), one distribution per row.
        backward: b(z|x_t), one distribution per row.

    Returns:
        Nats, a scalar; infinite if b excludes a code that occurs.
    """
    p = torch.einsum("ij,ik->ijk", joint, encoder)
    return xlogy(p, encoder[:, None]).sum() - xlogy(p, backward).sum()


def embedding_informations(
    world: _DiscreteWorld, embeddings: ImageVectors, kappa: float, seed: int = 0
) -> dict[str, Nats]:
    """Mutual information of Z_v ~ vMF(mu(x_v), kappa) over a finite set of images, by sampling z.

    All densities are exact mixtures and the normalising constants cancel, so only the mean over z
    is sampled. Draws move with the embeddings, so that all values are differentiable.

    Args:
        world: images and texts.
        embeddings: mu(x_v), unit vectors [n_images, d].
        kappa: concentration of the noise, positive.
        seed: of the draws, 2,000 per image.

    Returns:
        In nats, `sufficiency_nats` I(Z_v;X_t) and `residual_image_nats` I(Z_v;X_v|X_t).
    """
    joint = world.joint
    n_images = len(joint)
    n_samples = 2000
    generator = torch.Generator().manual_seed(seed)
    z = sample_vmf(embeddings.repeat_interleave(n_samples, 0), kappa, generator)
    # log e(z|x_v) up to a constant: [image that z is drawn from, sample, image]
    log_e = (kappa * z @ embeddings.T).view(n_images, n_samples, n_images)
    own = log_e.diagonal(dim1=0, dim2=2).T  # [image, sample]
    prior = joint.sum(1)  # p(x_v)
    given_text = (joint / joint.sum(0)).T  # p(x_v|x_t)
    log_z = torch.logsumexp(log_e + prior.log(), 2)
    log_z_text = torch.logsumexp(log_e[:, :, None] + given_text.log(), 3)  # [image, sample, text]
    of_text = torch.einsum("ist,it->is", own[:, :, None] - log_z_text, joint / prior[:, None])
    image_nats = (prior * (own - log_z).mean(1)).sum()
    residual = (prior * of_text.mean(1)).sum()
    return {"sufficiency_nats": image_nats - residual, "residual_image_nats": residual}


def train_discrete(
    world: _DiscreteWorld,
    settings: Sequence[Settings],
    seeds: Sequence[int] = (0,),
    n_steps: int = 300,
    dim: int = 8,
) -> tuple[Float64[Tensor, "runs seeds n_images d"], Float64[Tensor, "runs seeds n_texts d"]]:
    """Trains two small networks on 64 pairs that are drawn from the discrete world in every step.

    Their inputs are the two factors as one-hot vectors, so untrained embeddings contain both.

    Args:
        world: images and texts.
        settings: one of each run.
        seeds: of weights and pairs; runs of one seed have equal initial networks.
        n_steps: of Adam at a constant rate; 0 for the untrained encoders.
        dim: width of the embeddings.

    Returns:
        Unit vectors of all images and of all texts.
    """
    sides = (world.shared, world.image_only), (world.text_shared, world.text_only)
    inputs = [torch.cat([F.one_hot(factor) for factor in side], 1).double() for side in sides]
    with torch.random.fork_rng(devices=[]):
        nets = [_network_weights(inputs, dim, seed) for seed in seeds]
    first = [
        [torch.stack(same)[None] for same in zip(*side, strict=True)]
        for side in zip(*nets, strict=True)
    ]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    chances = world.joint.flatten()

    def batch(step: int) -> Pair:
        drawn = [torch.multinomial(chances, 64, True, generator=g) for g in generators]
        pairs = torch.stack(drawn)
        n_texts = world.joint.shape[1]
        return inputs[0][pairs // n_texts][None], inputs[1][pairs % n_texts][None]

    weights = train(first, batch, settings, n_steps)
    return tuple(embed([side, side], (x, x))[0] for side, x in zip(weights, inputs, strict=True))


def _network_weights(inputs: Sequence[Tensor], dim: int, seed: int) -> list[list[Tensor]]:
    """PyTorch's initial weights of both networks; seeds torch's global generator."""
    torch.manual_seed(seed)
    sides = []
    for x in inputs:
        hidden = nn.Linear(x.shape[1], _DIM_HIDDEN)
        last = nn.Linear(_DIM_HIDDEN, dim, bias=False)
        layers = hidden.weight.T, hidden.bias[None], last.weight.T
        sides.append([layer.detach().double() for layer in layers])
    return sides


class PopulationLoss:
    """CLIP's loss of two towers in a discrete world.

    Args:
        world: images and texts.
        batch_size: N, at most 4 in the default world, which has 250,000 batches of it; None for the
            limit of L - log N as N grows.
    """

    def __init__(self, world: _DiscreteWorld, batch_size: int | None):
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
        """
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


def averaged(world: _DiscreteWorld, images: ImageVectors) -> ImageVectors:
    """E[u | S]: each image has the mean embedding of the images with its shared factor."""
    n_shared = int(world.shared.max()) + 1
    means = images.unflatten(0, (n_shared, -1)).mean(1)
    return means[world.shared]


def representatives(
    world: _DiscreteWorld, images: ImageVectors
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
    world: _DiscreteWorld,
    loss: PopulationLoss,
    replace: Callable[[_DiscreteWorld, ImageVectors], Tensor],
    dim: int,
    temperature: float,
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
        n_steps: steps of Adam.

    Returns:
        Images [n_images, dim] and texts [n_texts, dim], and the least fall of the loss on the way,
        in nats: negative if the theorem were wrong.
    """
    generator = torch.Generator().manual_seed(0)
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
