"""A world that can be counted: finite images and texts, encoders as tables, every information by enumeration.

An image is a pair (shared, image-only), a text a pair (shared, text-only). The text's shared factor is a noisy
copy of the image's: a caption may name the wrong one of two look-alikes. Encoders are tables p(z|x), so the
joint distribution of (z_v, x_v, x_t, z_t) is a finite sum and nothing is estimated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from cibr.information.checks import check_distribution, check_encoder


def entropy_nats(p: Float64[Tensor, "..."]) -> Float64[Tensor, ""]:
    """Entropy of a finite distribution, -sum p log p.

    Args:
        p: probabilities of any shape that sum to 1 over all entries.

    Returns:
        Nats, a scalar.

    Raises:
        ValueError: entries that are negative, not finite, or do not sum to 1.
    """
    check_distribution("p", p)
    # log 1 in place of log 0: the value is the same and the gradient finite where an event cannot happen.
    return -(p * torch.log(torch.where(p > 0, p, torch.ones_like(p)))).sum()


def mutual_information_nats(joint: Float64[Tensor, "a b"]) -> Float64[Tensor, ""]:
    """I(A;B) of a joint distribution by enumeration: H(A) + H(B) - H(A,B).

    Source: Cover & Thomas, Elements of Information Theory (2006), eq. 2.45.

    Args:
        joint: p(a, b), [a, b].

    Returns:
        Nats, a scalar, differentiable.

    Raises:
        ValueError: as `entropy_nats`.
    """
    return entropy_nats(joint.sum(1)) + entropy_nats(joint.sum(0)) - entropy_nats(joint)


def conditional_information_nats(joint: Float64[Tensor, "a b c"]) -> Float64[Tensor, ""]:
    """I(A;B|C) of a joint distribution by enumeration: H(A,C) + H(B,C) - H(A,B,C) - H(C).

    Source: Cover & Thomas, Elements of Information Theory (2006), eq. 2.61.

    Args:
        joint: p(a, b, c), [a, b, c].

    Returns:
        Nats, a scalar, differentiable.

    Raises:
        ValueError: as `entropy_nats`.
    """
    pairs = entropy_nats(joint.sum(1)) + entropy_nats(joint.sum(0))
    return pairs - entropy_nats(joint) - entropy_nats(joint.sum((0, 1)))


@dataclass(frozen=True)
class DiscreteWorld:
    """Finite images and texts with a known joint distribution; build one with `discrete_world`.

    Args:
        joint: p(x_v, x_t), [n_images, n_texts].
        shared: the shared factor of each image, [n_images].
        image_only: the factor of each image that no text tells, [n_images].
        text_shared: the shared factor of each text, [n_texts].
        text_only: the factor of each text that no image shows, [n_texts].
    """

    joint: Float64[Tensor, "n_images n_texts"]
    shared: Int64[Tensor, " n_images"]
    image_only: Int64[Tensor, " n_images"]
    text_shared: Int64[Tensor, " n_texts"]
    text_only: Int64[Tensor, " n_texts"]


def discrete_world(confusions: Sequence[float] = (0.3, 0.05), n_image: int = 3, n_text: int = 2) -> DiscreteWorld:
    """A world whose shared factor comes in pairs of look-alikes that a text may take for each other.

    Shared values 2i and 2i + 1 look alike, and a text names the wrong one with chance confusions[i], as Latin A
    and Greek Alpha are one drawing with two names. All factors are uniform and, but for this, independent.

    Args:
        confusions: a chance in [0, 1/2] for each pair; the shared factor has twice as many values.
        n_image: values of the image-only factor.
        n_text: values of the text-only factor.

    Returns:
        The world, of 2 len(confusions) n_image images and 2 len(confusions) n_text texts.

    Raises:
        ValueError: a factor without values, or a chance outside [0, 1/2].
    """
    if min(len(confusions), n_image, n_text) < 1:
        raise ValueError("the world needs one pair of look-alikes and one value of each other factor at least")
    if not all(0 <= chance <= 0.5 for chance in confusions):
        raise ValueError(f"confusions must be chances in [0, 1/2], got {list(confusions)}")
    n_shared = 2 * len(confusions)
    wrong = torch.tensor(confusions, dtype=torch.float64).repeat_interleave(2)
    partner = torch.arange(n_shared) ^ 1
    channel = torch.diag(1 - wrong)
    channel[range(n_shared), partner] += wrong  # p(s'|s)
    joint = (channel / n_shared)[:, None, :, None].expand(n_shared, n_image, n_shared, n_text)
    images = torch.cartesian_prod(torch.arange(n_shared), torch.arange(n_image))
    texts = torch.cartesian_prod(torch.arange(n_shared), torch.arange(n_text))
    joint = joint.reshape(len(images), len(texts)) / (n_image * n_text)
    return DiscreteWorld(joint, images[:, 0], images[:, 1], texts[:, 0], texts[:, 1])


def encoder_informations(
    world: DiscreteWorld, image_encoder: Float64[Tensor, "n_images k"], text_encoder: Float64[Tensor, "n_texts l"]
) -> dict[str, Float64[Tensor, ""]]:
    """All informations of a pair of encoders that the book speaks of, exact.

    Args:
        world: the images and texts.
        image_encoder: p(z_v|x_v), one distribution a row.
        text_encoder: p(z_t|x_t), one distribution a row.

    Returns:
        Nats, scalars: `shared_nats` I(Z_v;Z_t); `sufficiency_nats` I(Z_v;X_t); `image_nats` I(Z_v;X_v);
        `residual_image_nats` I(Z_v;X_v|X_t) and `residual_text_nats` I(Z_t;X_t|X_v), each enumerated over
        three variables rather than taken as a difference; `residual_nats`, their mean; `nuisance_image_nats`
        I(Z_v;V|S), the part of the image's residual that is about the image-only factor V. The rest of it,
        I(Z_v;S|X_t), is about the shared factor S where the text leaves it open.

    Raises:
        ValueError: tables that do not fit the world or whose rows are no distributions.
    """
    joint = world.joint
    check_encoder("image_encoder", image_encoder, joint.shape[0])
    check_encoder("text_encoder", text_encoder, joint.shape[1])
    # p(z_v, x_v, x_t) and p(z_t, x_t, x_v): given x_v, z_v does not look at x_t.
    image = torch.einsum("ik,ij->kij", image_encoder, joint)
    text = torch.einsum("jl,ij->lji", text_encoder, joint)
    codes = torch.einsum("ik,ij,jl->kl", image_encoder, joint, text_encoder)
    n_shared, n_only = world.shared.max() + 1, world.image_only.max() + 1
    factors = image.sum(2).view(-1, n_shared, n_only).transpose(1, 2)  # p(z_v, v, s)
    residual_image, residual_text = conditional_information_nats(image), conditional_information_nats(text)
    return {
        "shared_nats": mutual_information_nats(codes),
        "sufficiency_nats": mutual_information_nats(image.sum(1)),
        "image_nats": mutual_information_nats(image.sum(2)),
        "residual_image_nats": residual_image,
        "residual_text_nats": residual_text,
        "residual_nats": (residual_image + residual_text) / 2,
        "nuisance_image_nats": conditional_information_nats(factors),
    }


def backward_posterior(
    joint: Float64[Tensor, "n_images n_texts"], encoder: Float64[Tensor, "n_images k"]
) -> Float64[Tensor, "n_texts k"]:
    """p(z|x_t) = sum over images of p(x_v|x_t) e(z|x_v): the backward encoder that makes the bound tight."""
    return (joint / joint.sum(0)).T @ encoder


def discrete_residual_bound_nats(
    joint: Float64[Tensor, "n_images n_texts"],
    encoder: Float64[Tensor, "n_images k"],
    backward: Float64[Tensor, "n_texts k"],
) -> Float64[Tensor, ""]:
    """E[log e(z|x_v) - log b(z|x_t)], the upper bound on I(Z;X_v|X_t), enumerated.

    Source: Fischer (2020, arXiv 2002.05379), section 2.3; equality when b is `backward_posterior`.

    Args:
        joint: p(x_v, x_t).
        encoder: e(z|x_v), one distribution a row.
        backward: b(z|x_t), one distribution a row.

    Returns:
        Nats, a scalar; infinite where b excludes a code that occurs.

    Raises:
        ValueError: tables that do not fit each other or whose rows are no distributions.
    """
    check_encoder("encoder", encoder, joint.shape[0])
    check_encoder("backward", backward, joint.shape[1])
    p = torch.einsum("ij,ik->ijk", joint, encoder)
    return torch.special.xlogy(p, encoder[:, None, :]).sum() - torch.special.xlogy(p, backward[None]).sum()


def fit_tables(
    world: DiscreteWorld, beta: float, n_codes: int, seed: int = 0, n_steps: int = 400, learning_rate: float = 0.1
) -> tuple[Float64[Tensor, "n_images k"], Float64[Tensor, "n_texts k"]]:
    """Encoder tables that maximise I(Z_v;Z_t) - beta * R by gradient, from a random start.

    The objective is exact: with beta = 0 it is what InfoNCE tends to with ever larger batches and a critic
    that can be anything. It is not concave, so take the best of a few seeds for an optimum. The weight rises from
    0 to beta over the first half: from a random start, the full weight can end at encoders that say nothing.

    Args:
        world: the images and texts.
        beta: weight of the mean residual information, >= 0.
        n_codes: codes that each encoder may use.
        seed: of the start.
        n_steps: steps of Adam.
        learning_rate: of Adam.

    Returns:
        The image table and the text table.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [(n, n_codes) for n in world.joint.shape]
    logits = [torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes]
    optimizer = torch.optim.Adam(logits, lr=learning_rate)
    for step in range(n_steps):
        weight = beta * min(1.0, 2 * step / n_steps)
        optimizer.zero_grad()
        _cib_loss(world.joint, *(x.softmax(1) for x in logits), weight).backward()
        optimizer.step()
    return tuple(x.detach().softmax(1) for x in logits)


def _cib_loss(joint: Tensor, image_encoder: Tensor, text_encoder: Tensor, beta: float) -> Tensor:
    """beta R - I(Z_v;Z_t) from five tables of two variables, by the Markov identity; nothing is checked."""

    def nats(p: Tensor) -> Tensor:
        entropies = [-(q * torch.log(q.clamp(min=1e-300))).sum() for q in (p.sum(0), p.sum(1), p)]
        return entropies[0] + entropies[1] - entropies[2]

    sides = (joint, image_encoder), (joint.T, text_encoder)
    residual = sum(nats(e * p.sum(1, keepdim=True)) - nats(e.T @ p) for p, e in sides) / 2
    return beta * residual - nats(image_encoder.T @ joint @ text_encoder)
