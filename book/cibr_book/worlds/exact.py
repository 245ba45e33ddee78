"""Two synthetic worlds of images and texts with exact mutual information, and contrastive training
in them.

In the *discrete world*, a table p(x_v, x_t), encoders are tables p(z|x) and every mutual
information is a finite sum. In the *Gaussian world* it is a log ratio of determinants.
`train_discrete` and `train_gaussian` train encoders as in CLIP, without noise, and `train_discrete`
with any objective of `CIBRLoss`. Information is measured with noise of a stated level.
`contrast_rows` ties it to the temperature, a convention: exp(<u, z> / temperature) is proportional
to a von Mises-Fisher density of concentration 1 / temperature around u and, for z of one length, to
a Gaussian one of variance temperature.

Source: Cover & Thomas, Elements of Information Theory (2006), for the identities; Chechik et al.
(2005, JMLR 6) for the optimal linear encoder.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.special import xlogy

from cibr.losses import CIBRLoss
from cibr.losses.vmf import sample_vmf
from cibr_book.worlds.estimators import nce_nats

Nats = Float64[Tensor, ""]
Covariance = Float64[Tensor, "n n"]
Joint = Float64[Tensor, "n_images n_texts"]
ImageTable = Float64[Tensor, "n_images k"]
TextTable = Float64[Tensor, "n_texts l"]
ImageVectors = Float64[Tensor, "n_images d"]
TextVectors = Float64[Tensor, "n_texts d"]
Ints = Sequence[int]
Floats = Sequence[float]
_DIM_HIDDEN = 64  # of the networks that `train_discrete` trains


def entropy_nats(p: Float64[Tensor, "..."]) -> Nats:
    """Entropy of a finite distribution, -sum p log p.

    Args:
        p: probabilities of any shape, which sum to 1 over all entries.

    Returns:
        Nats, a scalar, differentiable.

    Raises:
        ValueError: entries that are negative, not finite, or do not sum to 1.
    """
    total = p.detach().sum().item()
    if not (bool((p >= 0).all()) and abs(total - 1) <= 1e-8):
        raise ValueError(f"p must be probabilities that sum to 1, the sum is {total:.6g}")
    # log 1 in place of log 0: the same value, and a finite gradient at probability zero.
    return -(p * torch.log(torch.where(p > 0, p, torch.ones_like(p)))).sum()


def mutual_information_nats(joint: Float64[Tensor, "a b"]) -> Nats:
    """I(A;B) of a joint distribution [a, b] by enumeration: H(A) + H(B) - H(A,B) (Cover & Thomas,
    eq. 2.45).
    """
    return entropy_nats(joint.sum(1)) + entropy_nats(joint.sum(0)) - entropy_nats(joint)


def conditional_information_nats(joint: Float64[Tensor, "a b c"]) -> Nats:
    """I(A;B|C) of a joint distribution [a, b, c] by enumeration: H(A,C) + H(B,C) - H(A,B,C) - H(C)
    (eq. 2.61).
    """
    with_c = entropy_nats(joint.sum(1)) + entropy_nats(joint.sum(0))
    return with_c - entropy_nats(joint) - entropy_nats(joint.sum((0, 1)))


@dataclass(frozen=True)
class DiscreteWorld:
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
    confusions: Floats = (0.3, 0.05), n_image: int = 3, n_text: int = 2
) -> DiscreteWorld:
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

    Raises:
        ValueError: a factor without values, or a probability outside [0, 1/2].
    """
    are_chances = all(0 <= chance <= 0.5 for chance in confusions)
    if not are_chances or min(len(confusions), n_image, n_text) < 1:
        got = f"confusions {list(confusions)}, n_image={n_image} and n_text={n_text}"
        raise ValueError(f"{got}: confusions lie in [0, 1/2], each factor has at least one value")
    n_shared = 2 * len(confusions)
    wrong = torch.tensor(confusions, dtype=torch.float64).repeat_interleave(2)
    channel = torch.diag(1 - wrong)
    channel[range(n_shared), torch.arange(n_shared) ^ 1] += wrong  # p(s'|s)
    shared = channel / n_shared  # p(s, s')
    joint = shared[:, None, :, None].expand(n_shared, n_image, n_shared, n_text)
    images = torch.cartesian_prod(torch.arange(n_shared), torch.arange(n_image))
    texts = torch.cartesian_prod(torch.arange(n_shared), torch.arange(n_text))
    joint = joint.reshape(len(images), len(texts)) / (n_image * n_text)
    return DiscreteWorld(joint, images[:, 0], images[:, 1], texts[:, 0], texts[:, 1])


def encoder_informations(
    world: DiscreteWorld, image_encoder: ImageTable, text_encoder: TextTable
) -> dict[str, Nats]:
    """Exact mutual information of a pair of tabular encoders.

    Args:
        world: the images and texts.
        image_encoder: p(z_v|x_v), one distribution per row [n_images, k].
        text_encoder: p(z_t|x_t), one distribution per row [n_texts, l].

    Returns:
        Scalars in nats, `shared_nats` I(Z_v;Z_t); `sufficiency_nats` I(Z_v;X_t); `image_nats`
        I(Z_v;X_v); `residual_image_nats` I(Z_v;X_v|X_t) and `residual_text_nats` I(Z_t;X_t|X_v),
        each enumerated over three variables rather than computed as a difference; `residual_nats`,
        their mean; `nuisance_image_nats` I(Z_v;V|S), the part of the image's residual about the
        image-only factor V. The rest, I(Z_v;S|X_t), is about the shared factor S where the text
        leaves it ambiguous.

    Raises:
        ValueError: tables that do not fit the world or whose rows are not distributions.
    """
    joint = world.joint
    _check_table("image_encoder", image_encoder, joint.shape[0])
    _check_table("text_encoder", text_encoder, joint.shape[1])
    # p(z_v, x_v, x_t) and p(z_t, x_t, x_v): given x_v, z_v is independent of x_t.
    image = torch.einsum("ik,ij->kij", image_encoder, joint)
    text = torch.einsum("jl,ij->lji", text_encoder, joint)
    codes = torch.einsum("ik,ij,jl->kl", image_encoder, joint, text_encoder)
    factors = image.sum(2).unflatten(1, (int(world.shared.max()) + 1, -1))  # p(z_v, s, v)
    residual_image = conditional_information_nats(image)
    residual_text = conditional_information_nats(text)
    return {
        "shared_nats": mutual_information_nats(codes),
        "sufficiency_nats": mutual_information_nats(image.sum(1)),
        "image_nats": mutual_information_nats(image.sum(2)),
        "residual_image_nats": residual_image,
        "residual_text_nats": residual_text,
        "residual_nats": (residual_image + residual_text) / 2,
        "nuisance_image_nats": conditional_information_nats(factors.transpose(1, 2)),
    }


def backward_posterior(joint: Joint, encoder: ImageTable) -> TextTable:
    """p(z|x_t) = sum over images of p(x_v|x_t) e(z|x_v), the backward encoder for which the bound
    is tight.
    """
    return (joint / joint.sum(0)).T @ encoder


def residual_bound_nats(joint: Joint, encoder: ImageTable, backward: TextTable) -> Nats:
    """E[log e(z|x_v) - log b(z|x_t)], the upper bound on I(Z_v;X_v|X_t), enumerated.

    Source: Fischer (2020, arXiv 2002.05379), section 2.3; equality when b is `backward_posterior`.

    Args:
        joint: p(x_v, x_t), [n_images, n_texts].
        encoder: e(z|x_v), one distribution per row.
        backward: b(z|x_t), one distribution per row.

    Returns:
        Nats, a scalar; infinite if b excludes a code that occurs.

    Raises:
        ValueError: tables that do not fit each other or whose rows are not distributions.
    """
    _check_table("encoder", encoder, joint.shape[0])
    _check_table("backward", backward, joint.shape[1])
    p = torch.einsum("ij,ik->ijk", joint, encoder)
    return xlogy(p, encoder[:, None]).sum() - xlogy(p, backward).sum()


def fit_tables(
    world: DiscreteWorld, beta: float, n_codes: int, seeds: Ints = (0,), n_steps: int = 400
) -> list[tuple[ImageTable, TextTable]]:
    """Encoder tables that maximise I(Z_v;Z_t) - beta * R by gradient ascent from random starts.

    The objective is exact: with beta = 0 it is the limit of InfoNCE for large batches and an
    unrestricted critic. It is not concave, so take the best of several starts. The weight rises
    from 0 to beta over the first half: with the full weight from the start, encoders can collapse
    to zero information.

    Args:
        world: images and texts.
        beta: weight of the mean residual information, >= 0.
        n_codes: number of codes of each encoder.
        seeds: of the starts, which are fitted together.
        n_steps: steps of Adam.

    Returns:
        For each seed the image table [n_images, n_codes] and the text table [n_texts, n_codes].
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    sizes = world.joint.shape
    logits = [torch.stack([_randn(g, n, n_codes) for g in generators]) for n in sizes]
    logits = [tables.requires_grad_() for tables in logits]
    optimizer = torch.optim.Adam(logits, lr=0.1)
    for step in range(n_steps):
        weight = beta * min(1.0, 2 * step / n_steps)
        optimizer.zero_grad()
        _cib_losses(world.joint, *(x.softmax(2) for x in logits), weight).sum().backward()
        optimizer.step()
    images, texts = (x.detach().softmax(2) for x in logits)
    return list(zip(images, texts, strict=True))


def _cib_losses(
    joint: Joint,
    image_encoders: Float64[Tensor, "s n_images k"],
    text_encoders: Float64[Tensor, "s n_texts k"],
    beta: float,
) -> Float64[Tensor, " s"]:
    """beta R - I(Z_v;Z_t) from five tables of two variables, by the Markov identity."""
    sides = (joint, image_encoders), (joint.T, text_encoders)
    residual = 0.0
    for p, encoders in sides:
        kept = _informations(encoders * p.sum(1, keepdim=True))
        residual = residual + (kept - _informations(encoders.mT @ p)) / 2
    return beta * residual - _informations(image_encoders.mT @ joint @ text_encoders)


def _informations(joints: Float64[Tensor, "s a b"]) -> Float64[Tensor, " s"]:
    """`mutual_information_nats` of several tables, without its check."""
    cells = torch.special.entr(joints.clamp(min=1e-300)).sum((1, 2))
    rows, columns = joints.sum(2), joints.sum(1)
    margins = torch.special.entr(rows).sum(1) + torch.special.entr(columns).sum(1)
    return margins - cells


def _randn(generator: torch.Generator, *size: int) -> Tensor:
    return torch.randn(size, generator=generator, dtype=torch.float64)


def _check_table(name: str, table: Tensor, n_rows: int) -> None:
    if table.ndim != 2 or len(table) != n_rows:
        raise ValueError(f"{name} must be [{n_rows}, k], got {list(table.shape)}")
    sums = table.detach().sum(1)
    if not bool((table >= 0).all() and ((sums - 1).abs() <= 1e-8).all()):
        raise ValueError(f"each row of {name} must be probabilities that sum to 1: use a softmax")


def conditional_covariance(covariance: Covariance, a: Ints, given: Ints) -> Float64[Tensor, "a a"]:
    """Conditional covariance of A given B, S_aa - S_ab S_bb^-1 S_ba.

    Args:
        covariance: of all variables, positive definite.
        a: the indices of A.
        given: the indices of B.

    Returns:
        The covariance of A given B.

    Raises:
        ValueError: a covariance that is not positive definite.
    """
    _check_covariance(covariance)
    across = covariance[a][:, given]
    explained = across @ torch.linalg.solve(covariance[given][:, given], across.T)
    return covariance[a][:, a] - explained


def gaussian_information_nats(covariance: Covariance, a: Ints, b: Ints, given: Ints = ()) -> Nats:
    """I(A;B) or I(A;B|C) of jointly Gaussian variables, from determinants of covariance blocks.

    Source: Cover & Thomas (2006), section 8.5.

    Args:
        covariance: of all variables, positive definite.
        a: the indices of A.
        b: the indices of B, disjoint from A's.
        given: the indices of C, disjoint from A's and B's.

    Returns:
        Nats, a scalar, differentiable.

    Raises:
        ValueError: a covariance that is not positive definite, or blocks that share an index.
    """
    _check_covariance(covariance)
    if len({*a, *b, *given}) < len(a) + len(b) + len(given):
        raise ValueError("the blocks must have no index in common: a variable determines itself")

    def log_det(*block: int) -> Tensor:  # 0 for an empty block
        return torch.logdet(covariance[[*block]][:, [*block]])

    separate = log_det(*a, *given) + log_det(*b, *given)
    return (separate - log_det(*a, *b, *given) - log_det(*given)) / 2


def canonical_correlations(covariance: Covariance, a: Ints, b: Ints) -> Float64[Tensor, " k"]:
    """Canonical correlations of A and B, largest first: singular values of S_a^-1/2 S_ab S_b^-1/2.

    Args:
        covariance: of all variables, positive definite.
        a: the indices of A.
        b: the indices of B.

    Returns:
        Correlations in [0, 1), as many as variables in the smaller block.

    Raises:
        ValueError: a covariance that is not positive definite.
    """
    _check_covariance(covariance)
    root_a, root_b = (torch.linalg.cholesky(covariance[block][:, block]) for block in (a, b))
    left = torch.linalg.solve_triangular(root_a, covariance[a][:, b], upper=False)
    return torch.linalg.svdvals(torch.linalg.solve_triangular(root_b, left.T, upper=False))


@dataclass(frozen=True)
class GaussianWorld:
    """A world of Gaussian images and texts; build one with `gaussian_world`.

    Args:
        covariance: of (x_v, x_t).
        mix_image: rotation of the image's factors, x_v = mix_image @ (shared, image-only).
        mix_text: the same for the text.
        correlations: of the shared factors of image and text.
    """

    covariance: Covariance
    mix_image: Float64[Tensor, "v v"]
    mix_text: Float64[Tensor, "t t"]
    correlations: Float64[Tensor, " s"]

    @property
    def image(self) -> list[int]:
        """The indices of x_v in the covariance."""
        return list(range(len(self.mix_image)))

    @property
    def text(self) -> list[int]:
        """The indices of x_t in the covariance."""
        return list(range(len(self.mix_image), len(self.covariance)))


def gaussian_world(
    correlations: Floats = (0.95, 0.8, 0.5), n_image: int = 5, n_text: int = 3, seed: int = 0
) -> GaussianWorld:
    """A world of shared factors with given correlations and image-only and text-only factors, of
    unit variance.

    The factors of each modality are mixed by a random rotation, so that no coordinate is one of
    them.

    Args:
        correlations: between the image's and the text's copy of each shared factor, in (0, 1).
        n_image: number of image-only factors.
        n_text: number of text-only factors.
        seed: of the rotations.

    Returns:
        The world.

    Raises:
        ValueError: a correlation outside (0, 1).
    """
    rho = torch.tensor(correlations, dtype=torch.float64)
    if not bool(((rho > 0) & (rho < 1)).all()):
        raise ValueError(f"correlations must lie in (0, 1), got {list(correlations)}")
    generator = torch.Generator().manual_seed(seed)
    dim_image = len(rho) + n_image
    dim_text = len(rho) + n_text
    mix_image = torch.linalg.qr(_randn(generator, dim_image, dim_image)).Q
    mix_text = torch.linalg.qr(_randn(generator, dim_text, dim_text)).Q
    factors = torch.zeros(dim_image, dim_text, dtype=torch.float64)
    factors[range(len(rho)), range(len(rho))] = rho
    covariance = torch.eye(dim_image + dim_text, dtype=torch.float64)
    covariance[:dim_image, dim_image:] = mix_image @ factors @ mix_text.T
    covariance[dim_image:, :dim_image] = covariance[:dim_image, dim_image:].T
    return GaussianWorld(covariance, mix_image, mix_text, rho)


def linear_encoder_nats(
    world: GaussianWorld, weights: Float64[Tensor, "d v"], noise_variance: float = 1.0
) -> dict[str, Nats]:
    """Exact mutual information of the linear encoder Z_v = W x_v + noise.

    Args:
        world: images and texts.
        weights: W, [d, dim_image].
        noise_variance: of each coordinate of the noise, > 0: without noise the residual is
            infinite.

    Returns:
        Scalars in nats, `sufficiency_nats` I(Z_v;X_t), `image_nats` I(Z_v;X_v),
        `residual_image_nats` I(Z_v;X_v|X_t), and `nuisance_image_nats` I(Z_v;V|S), the part of the
        residual about the image-only factors V; the rest is about the shared factors S where the
        text leaves them uncertain.

    Raises:
        ValueError: a noise variance that is not positive.
    """
    _check_positive("noise_variance", noise_variance)
    identity = torch.eye(len(weights), dtype=torch.float64)
    given_text = conditional_covariance(world.covariance, world.image, world.text)
    image_only = world.mix_image[:, len(world.correlations) :]

    def log_det(of_image: Tensor) -> Tensor:
        """log det of the covariance of Z_v, in units of the noise, for a covariance of x_v."""
        return torch.logdet(identity + weights @ of_image @ weights.T / noise_variance)

    everything = log_det(torch.eye(len(given_text), dtype=torch.float64))
    remaining = log_det(given_text)
    return {
        "sufficiency_nats": (everything - remaining) / 2,
        "image_nats": everything / 2,
        "residual_image_nats": remaining / 2,
        "nuisance_image_nats": log_det(image_only @ image_only.T) / 2,
    }


def optimal_linear_encoder(world: GaussianWorld, beta: float) -> Float64[Tensor, "s v"]:
    """W of the encoder Z_v = W x_v + N(0, I) that maximises I(Z_v;X_t) - beta * I(Z_v;X_v|X_t).

    With that of the other modality it maximises (I(Z_v;X_t) + I(Z_t;X_v)) / 2 - beta * R, R being
    the mean of both residuals.

    Source: Chechik et al. (2005, JMLR 6), theorem 3.1, whose beta is (1 + beta) / beta here.

    Args:
        world: images and texts.
        beta: weight of the residual, > 0: at 0 the optimal gain is infinite.

    Returns:
        W, one row per canonical direction, in the order of the world's correlations.

    Raises:
        ValueError: beta is not positive.
    """
    gain = bottleneck_variance(world.correlations, beta).sqrt()
    return gain[:, None] * world.mix_image[:, : len(gain)].T


def bottleneck_variance(correlations: Float64[Tensor, " s"], beta: float) -> Float64[Tensor, " s"]:
    """Variance of a canonical direction in the bottleneck's embedding, in units of the noise.

    With c = beta / (1 + beta) it is (rho^2 / c - 1) / (1 - rho^2), and 0 if rho^2 <= c; see
    `optimal_linear_encoder`.
    """
    _check_positive("beta", beta)
    squared = correlations**2
    c = beta / (1 + beta)
    return torch.clamp((squared / c - 1) / (1 - squared), min=0)


def clip_price(
    rho: float | Float64[Tensor, " s"], noise_ratio: float = 1.0
) -> float | Float64[Tensor, " s"]:
    """The beta at which a Gaussian bottleneck keeps a direction as CLIP does: the book's theorem 2.

    CLIP's optimum with linear towers of the least mean squared length gives a direction of
    correlation rho the variance temperature * rho. `bottleneck_variance` is the same at
    rho^2 / ((1 - rho^2)(1 + r rho)), where r = temperature / noise variance.

    Args:
        rho: canonical correlations in (0, 1), a number or a tensor.
        noise_ratio: r; 1 for the noise that the temperature implies.

    Returns:
        beta, of the type of rho; it rises strictly with rho.
    """
    return rho**2 / ((1 - rho**2) * (1 + noise_ratio * rho))


def _check_covariance(covariance: Tensor) -> None:
    lowest = torch.linalg.eigvalsh(covariance.detach())[0].item()
    if not lowest > 0:
        raise ValueError(f"covariance must be positive definite, an eigenvalue is {lowest:.3g}")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def train_discrete(
    world: DiscreteWorld,
    dim: int = 16,
    temperature: float = 0.1,
    batch_size: int = 64,
    seed: int = 0,
    objective: Mapping[str, Any] | None = None,
    **options,
) -> tuple[ImageVectors, TextVectors]:
    """Trains two small networks with InfoNCE, or CIBR, on pairs drawn from the discrete world.

    Their inputs are the two factors as one-hot vectors, so untrained embeddings contain both.

    Args:
        world: images and texts.
        dim: width of the embedding.
        temperature: of the softmax, positive.
        batch_size: pairs per step.
        seed: of weights, pairs and noise; methods with one seed have equal initial networks.
        objective: arguments of `CIBRLoss`, such as `beta`, `penalty`, `kappa_e` and `sample`; None
            for InfoNCE. Pooled features are those before the last layer, 64 wide.
        options: `n_steps` of AdamW (0 for the untrained encoders) and `weight_decay`.

    Returns:
        Unit vectors of all images [n_images, d] and of all texts [n_texts, d].

    Raises:
        ValueError: a temperature that is not positive.
    """
    _check_positive("temperature", temperature)
    inputs = one_hot_factors(world)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        nets = initial_networks(inputs, dim, seed)
        cibr_loss = _objective(objective, dim)

    def embed(hidden: Sequence[Tensor]) -> list[Tensor]:
        return [F.normalize(net[-1](h), dim=1) for net, h in zip(nets, hidden, strict=True)]

    def all_hidden() -> list[Tensor]:  # of all images and texts: fewer than rows in a batch
        return [net[:-1](x) for net, x in zip(nets, inputs, strict=True)]

    def loss() -> Tensor:
        pairs = torch.multinomial(world.joint.flatten(), batch_size, True, generator=generator)
        rows = pairs // world.joint.shape[1], pairs % world.joint.shape[1]
        hidden = all_hidden()
        image, text = (z[i] for z, i in zip(embed(hidden), rows, strict=True))
        if cibr_loss is None:
            return -nce_nats(image @ text.T / temperature)  # the same up to log n, and faster
        pooled = dict(image_pooled=hidden[0][rows[0]], text_pooled=hidden[1][rows[1]])
        cibr_loss.update(image, text, **pooled)
        inputs_of_loss = pooled | {"generator": generator, "output_dict": False}
        return cibr_loss(image, text, 1 / temperature, **inputs_of_loss)

    _minimise(loss, nets.parameters(), **options)
    with torch.no_grad():
        return tuple(embed(all_hidden()))


def one_hot_factors(world: DiscreteWorld) -> list[Float64[Tensor, "n factors"]]:
    """Both factors of all images, and of all texts, as one-hot vectors."""
    sides = (world.shared, world.image_only), (world.text_shared, world.text_only)
    return [torch.cat([F.one_hot(factor) for factor in side], 1).double() for side in sides]


def initial_networks(inputs: Sequence[Tensor], dim: int, seed: int) -> nn.ModuleList:
    """The untrained networks of `train_discrete`; seeds torch's global generator."""
    torch.manual_seed(seed)
    nets = nn.ModuleList()
    for x in inputs:
        hidden = nn.Linear(x.shape[1], _DIM_HIDDEN), nn.ReLU()
        nets.append(nn.Sequential(*hidden, nn.Linear(_DIM_HIDDEN, dim, bias=False)))
    return nets.double()


def _objective(arguments: Mapping[str, Any] | None, dim: int) -> CIBRLoss | None:
    if arguments is None:
        return None
    widths = {"dims": (dim, _DIM_HIDDEN, _DIM_HIDDEN)} if arguments.get("penalty") == "mine" else {}
    return CIBRLoss(**{"beta": 0.0} | dict(arguments) | widths)


def train_gaussian(
    world: GaussianWorld,
    dim: int = 8,
    temperature: float = 0.1,
    batch_size: int = 128,
    seed: int = 0,
    **options,
) -> tuple[Float64[Tensor, "d v"], Float64[Tensor, "d t"]]:
    """Trains two linear encoders with InfoNCE on fresh pairs; embeddings have mean squared norm 1.

    The mean power of the embedding is fixed, not the norm of each vector, so that Z_v = W x_v +
    noise stays Gaussian and its information exact.

    Args:
        world: images and texts.
        dim: width of the embedding.
        temperature: of the softmax, positive; also the noise variance for measurement.
        batch_size: pairs per step.
        seed: of weights and pairs.
        options: as in `train_discrete`.

    Returns:
        W of the images [d, v] and of the texts [d, t], each with tr(W W^T) = 1.

    Raises:
        ValueError: a temperature that is not positive.
    """
    _check_positive("temperature", temperature)
    generator = torch.Generator().manual_seed(seed)
    sizes = [len(world.image), len(world.text)]
    weights = [_randn(generator, dim, n).requires_grad_() for n in sizes]
    root = torch.linalg.cholesky(world.covariance)

    def loss() -> Tensor:
        inputs = (_randn(generator, batch_size, len(root)) @ root.T).split(sizes, 1)
        image, text = (x @ (w / w.norm()).T for x, w in zip(inputs, weights, strict=True))
        return -nce_nats(image @ text.T / temperature)

    _minimise(loss, weights, **options)
    return tuple((w / w.norm()).detach() for w in weights)


def _minimise(loss, parameters, n_steps=300, weight_decay=0.0) -> None:
    descent = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=weight_decay)
    for _ in range(n_steps):
        descent.zero_grad()
        loss().backward()
        descent.step()


def embedding_informations(
    world: DiscreteWorld, embeddings: ImageVectors, kappa: float, seed: int = 0
) -> dict[str, float]:
    """Mutual information of Z_v ~ vMF(mu(x_v), kappa) over a finite set of images, by sampling z.

    All densities are exact mixtures and the normalising constants cancel, so only the mean over z
    is sampled.

    Args:
        world: images and texts.
        embeddings: mu(x_v), unit vectors [n_images, d].
        kappa: concentration of the noise, positive.
        seed: of the draws, 2,000 per image.

    Returns:
        In nats, `image_nats` I(Z_v;X_v), `sufficiency_nats` I(Z_v;X_t), `residual_image_nats`
        I(Z_v;X_v|X_t) with its `standard_error`, and `nuisance_image_nats` I(Z_v;V|S).

    Raises:
        ValueError: embeddings that do not fit the world, or a kappa that is not positive.
    """
    nats = sampled_informations(world, embeddings, kappa, seed)
    return {name: value.item() for name, value in nats.items()}


def sampled_informations(
    world: DiscreteWorld, embeddings: ImageVectors, kappa: float, seed: int = 0
) -> dict[str, Nats]:
    """As `embedding_informations`, differentiable in the embeddings: the draws move with them."""
    _check_positive("kappa", kappa)
    joint = world.joint
    n_images = len(joint)
    n_samples = 2000
    if len(embeddings) != n_images:
        raise ValueError(f"{len(embeddings)} embeddings but {n_images} images: pass one per image")
    generator = torch.Generator().manual_seed(seed)
    z = sample_vmf(embeddings.repeat_interleave(n_samples, 0), kappa, generator)
    # log e(z|x_v) up to a constant: [image that z is drawn from, sample, image]
    log_e = (kappa * z @ embeddings.T).view(n_images, n_samples, n_images)
    own = log_e.diagonal(dim1=0, dim2=2).T  # [image, sample]
    prior = joint.sum(1)  # p(x_v)
    given_text = (joint / joint.sum(0)).T  # p(x_v|x_t)
    same = prior * (world.shared[:, None] == world.shared)  # images of the same shared factor
    given_shared = same / same.sum(1, keepdim=True)
    log_z = torch.logsumexp(log_e + prior.log(), 2)
    log_z_text = torch.logsumexp(log_e[:, :, None] + given_text.log(), 3)  # [image, sample, text]
    log_z_shared = torch.logsumexp(log_e + given_shared.log()[:, None], 2)
    of_text = torch.einsum("ist,it->is", own[:, :, None] - log_z_text, joint / prior[:, None])
    image_nats = (prior * (own - log_z).mean(1)).sum()
    residual = (prior * of_text.mean(1)).sum()
    return {
        "image_nats": image_nats,
        "sufficiency_nats": image_nats - residual,
        "residual_image_nats": residual,
        "standard_error": torch.sqrt((prior**2 * of_text.detach().var(1) / n_samples).sum()),
        "nuisance_image_nats": (prior * (own - log_z_shared).mean(1)).sum(),
    }


def within_reach(images: ImageVectors, texts: TextVectors) -> ImageVectors:
    """The part of the images' embeddings in the linear span of the texts' embeddings."""
    directions, lengths, _ = torch.linalg.svd(texts.T, full_matrices=False)
    span = directions[:, lengths > 1e-9 * lengths[0]]
    return images @ span @ span.T


def contrast_rows(
    world: GaussianWorld,
    temperatures: Floats,
    batch_sizes: Ints,
    dims: Ints,
    seeds: Ints,
    **options,
) -> pd.DataFrame:
    """`train_gaussian` over a grid, measured before and after by `linear_encoder_nats`, with the
    temperature as the noise variance.

    Args:
        world: images and texts.
        temperatures: of the softmax.
        batch_sizes: pairs per step.
        dims: widths of the embedding.
        seeds: of weights and pairs; both measurements share the initial weights.
        options: of the training.

    Returns:
        Tidy rows of `temperature, batch_size, dim, seed, trained`, the information in nats and
        `nuisance_in_span`: the share of the squared length of the image-only factors' embeddings
        that lies in the span of the texts' embeddings, from 0 to 1.
    """
    rows = []
    grid = itertools.product(temperatures, batch_sizes, dims, seeds, (False, True))
    for temperature, batch_size, dim, seed, trained in grid:
        settings = dict(temperature=temperature, batch_size=batch_size, dim=dim, seed=seed)
        training = settings | (options if trained else {"n_steps": 0})
        image, text = train_gaussian(world, **training)
        nats = linear_encoder_nats(world, image, temperature)
        image_only = (image @ world.mix_image[:, len(world.correlations) :]).T
        inside = within_reach(image_only, text.T)
        nats["nuisance_in_span"] = inside.square().sum() / image_only.square().sum()
        values = {name: float(value) for name, value in nats.items()}
        rows.append(settings | {"trained": trained} | values)
    return pd.DataFrame(rows)
