"""Contrastive training in the two exact worlds: what a plain InfoNCE leaves in an embedding.

The encoders are trained as CLIP's are, without penalty and without noise, and measured afterwards with the noise
that their own temperature implies: exp(<u, z> / temperature) is a von Mises-Fisher density of concentration
1 / temperature around u, and a Gaussian one of variance temperature. In both worlds the answer is exact.
"""

import itertools
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn import functional as F

from cibr.information.checks import check_positive
from cibr.information.discrete import DiscreteWorld
from cibr.information.gaussian import GaussianWorld, linear_encoder_nats
from cibr.information.scores import nce_nats
from cibr.information.vmf import sample_vmf


def train_discrete(
    world: DiscreteWorld,
    dim: int = 16,
    temperature: float = 0.1,
    batch_size: int = 64,
    n_steps: int = 300,
    learning_rate: float = 1e-2,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> tuple[Float64[Tensor, "n_images d"], Float64[Tensor, "n_texts d"]]:
    """Two small networks trained with InfoNCE on pairs drawn from the world.

    Each reads its two factors as one-hot vectors, so that untrained embeddings show both.

    Args:
        world: images and texts.
        dim: width of the embedding.
        temperature: of the softmax.
        batch_size: pairs a step.
        n_steps: steps of AdamW.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        seed: of weights and pairs.

    Returns:
        Unit vectors of all images and of all texts.

    Raises:
        ValueError: a temperature that is not positive.
    """
    check_positive("temperature", temperature)
    inputs = [_one_hot(world.shared, world.image_only), _one_hot(world.text_shared, world.text_only)]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nets = nn.ModuleList(
            nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, dim, bias=False)) for x in inputs
        ).double()
    optimizer = torch.optim.AdamW(nets.parameters(), lr=learning_rate, weight_decay=weight_decay)
    for _ in range(n_steps):
        pairs = torch.multinomial(world.joint.flatten(), batch_size, replacement=True, generator=generator)
        rows = pairs // world.joint.shape[1], pairs % world.joint.shape[1]
        # The finite sets are embedded whole: there are fewer images than rows of a batch.
        image, text = (F.normalize(net(x), dim=1)[r] for net, x, r in zip(nets, inputs, rows, strict=True))
        optimizer.zero_grad()
        (-nce_nats(image @ text.T / temperature)).backward()
        optimizer.step()
    with torch.no_grad():
        return tuple(F.normalize(net(x), dim=1) for net, x in zip(nets, inputs, strict=True))


def embedding_informations(
    world: DiscreteWorld,
    embeddings: Float64[Tensor, "n_images d"],
    kappa: float,
    n_samples: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Informations of Z_v ~ vMF(mu(x_v), kappa) over a finite set of images, by sampling z alone.

    All densities are exact mixtures; the normalising constants cancel, so that only the mean over z is sampled.

    Args:
        world: images and texts.
        embeddings: mu(x_v), unit vectors.
        kappa: concentration of the noise.
        n_samples: draws of z for each image.
        seed: of the draws.

    Returns:
        Nats: `image_nats` I(Z_v;X_v), `sufficiency_nats` I(Z_v;X_t), `residual_image_nats` I(Z_v;X_v|X_t) with
        its `standard_error`, and `nuisance_image_nats` I(Z_v;V|S).

    Raises:
        ValueError: embeddings that do not fit the world, or a kappa that is not positive.
    """
    check_positive("kappa", kappa)
    joint, n_images = world.joint, len(world.joint)
    if len(embeddings) != n_images:
        raise ValueError(f"embeddings must have one row an image, {n_images}, got {len(embeddings)}")
    generator = torch.Generator().manual_seed(seed)
    z = sample_vmf(embeddings.repeat_interleave(n_samples, 0), kappa, generator)
    log_e = (kappa * z @ embeddings.T).view(n_images, n_samples, n_images)  # log e(z|image) + a constant
    prior, given_text = joint.sum(1), (joint / joint.sum(0)).T  # p(x_v), p(x_v|x_t)
    own = log_e.diagonal(dim1=0, dim2=2).T  # [image, sample]
    log_z = torch.logsumexp(log_e + prior.log(), 2)
    log_z_text = torch.logsumexp(log_e[:, :, None, :] + given_text.log(), 3)  # [image, sample, text]
    of_text = torch.einsum("ist,it->is", own[:, :, None] - log_z_text, joint / prior[:, None])
    same = prior * (world.shared[:, None] == world.shared)  # images of the same shared factor
    log_z_shared = torch.logsumexp(log_e + (same / same.sum(1, keepdim=True)).log()[:, None], 2)
    image_nats, residual = (prior * (own - log_z).mean(1)).sum(), (prior * of_text.mean(1)).sum()
    error = torch.sqrt((prior**2 * of_text.var(1) / n_samples).sum())
    return {
        "image_nats": image_nats.item(),
        "sufficiency_nats": (image_nats - residual).item(),
        "residual_image_nats": residual.item(),
        "standard_error": error.item(),
        "nuisance_image_nats": (prior * (own - log_z_shared).mean(1)).sum().item(),
    }


def train_gaussian(
    world: GaussianWorld,
    dim: int = 8,
    temperature: float = 0.1,
    batch_size: int = 128,
    n_steps: int = 400,
    learning_rate: float = 1e-2,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> tuple[Float64[Tensor, "d v"], Float64[Tensor, "d t"]]:
    """Two linear encoders trained with InfoNCE on fresh pairs; embeddings have mean squared length 1.

    The power of the whole embedding is fixed, not the length of each vector, so that Z_v = W x_v + noise stays
    Gaussian and its informations exact. n_steps = 0 gives the untrained encoders.

    Args:
        world: images and texts.
        dim: width of the embedding.
        temperature: of the softmax; the noise variance to measure with.
        batch_size: pairs a step.
        n_steps: steps of AdamW.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        seed: of weights and pairs.

    Returns:
        W of the images and of the texts, each with tr(W W^T) = 1.

    Raises:
        ValueError: a temperature that is not positive.
    """
    check_positive("temperature", temperature)
    generator = torch.Generator().manual_seed(seed)
    sizes = [(dim, world.dim_image), (dim, world.dim_text)]
    weights = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in sizes]
    root = torch.linalg.cholesky(world.covariance)
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay)
    for _ in range(n_steps):
        noise = torch.randn(batch_size, len(root), generator=generator, dtype=torch.float64)
        sides = (noise @ root.T).split([world.dim_image, world.dim_text], 1)
        image, text = (x @ (w / w.norm()).T for x, w in zip(sides, weights, strict=True))
        optimizer.zero_grad()
        (-nce_nats(image @ text.T / temperature)).backward()
        optimizer.step()
    return tuple((w / w.norm()).detach() for w in weights)


def discrete_contrast_rows(
    world: DiscreteWorld,
    temperatures: Sequence[float],
    batch_sizes: Sequence[int],
    dims: Sequence[int],
    seeds: Sequence[int],
    **options,
) -> pd.DataFrame:
    """`train_discrete` over a grid, each run measured before and after at concentration 1 / temperature.

    Args:
        world: images and texts.
        temperatures: of the softmax.
        batch_sizes: pairs a step.
        dims: widths of the embedding.
        seeds: of weights and pairs; before and after share their weights.
        options: of `train_discrete`.

    Returns:
        Tidy rows: `temperature, batch_size, dim, seed, trained`, and the nats of `embedding_informations`.
    """
    rows = []
    for setting, trained, steps in _grid(temperatures, batch_sizes, dims, seeds, options):
        embeddings, _ = train_discrete(world, **setting, **steps)
        nats = embedding_informations(world, embeddings, 1 / setting["temperature"], seed=setting["seed"])
        rows.append(setting | {"trained": trained} | nats)
    return pd.DataFrame(rows)


def gaussian_contrast_rows(
    world: GaussianWorld,
    temperatures: Sequence[float],
    batch_sizes: Sequence[int],
    dims: Sequence[int],
    seeds: Sequence[int],
    **options,
) -> pd.DataFrame:
    """`train_gaussian` over a grid, each run measured before and after with noise of variance temperature.

    Args:
        world: images and texts.
        temperatures: of the softmax.
        batch_sizes: pairs a step.
        dims: widths of the embedding.
        seeds: of weights and pairs; before and after share their weights.
        options: of `train_gaussian`.

    Returns:
        Tidy rows: `temperature, batch_size, dim, seed, trained`, and the nats of `linear_encoder_nats`.
    """
    rows = []
    for setting, trained, steps in _grid(temperatures, batch_sizes, dims, seeds, options):
        weights, _ = train_gaussian(world, **setting, **steps)
        nats = linear_encoder_nats(world, weights, setting["temperature"])
        rows.append(setting | {"trained": trained} | {name: value.item() for name, value in nats.items()})
    return pd.DataFrame(rows)


def _grid(temperatures, batch_sizes, dims, seeds, options):
    """Every setting twice, before and after training: the setting, whether trained, the training's options."""
    for temperature, batch_size, dim, seed in itertools.product(temperatures, batch_sizes, dims, seeds):
        setting = dict(temperature=temperature, batch_size=batch_size, dim=dim, seed=seed)
        for trained in (False, True):
            yield setting, trained, options if trained else {"n_steps": 0}


def _one_hot(*factors: Tensor) -> Float64[Tensor, "n d"]:
    return torch.cat([F.one_hot(factor) for factor in factors], 1).double()
