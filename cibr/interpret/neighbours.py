"""What lies beside what: nearest items, the factors that neighbours have in common, and answers that changed."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

MAP_COMPONENTS = 30  # of the embedding, that t-SNE starts from


def nearest_items(embeddings: Float[Tensor, "n d"], k: int) -> Int[Tensor, "n k"]:
    """The k most similar other items of each, the most similar first.

    Args:
        embeddings: unit vectors.
        k: between 1 and n - 1.

    Raises:
        ValueError: a k that does not fit.
    """
    if not 1 <= k < len(embeddings):
        raise ValueError(f"k={k} does not fit {len(embeddings)} items: k is between 1 and n - 1")
    similarity = embeddings @ embeddings.T
    return similarity.fill_diagonal_(-torch.inf).topk(k).indices


def neighbour_agreement(nearest: Int[Tensor, "n k"], factor: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The share of neighbours with an item's own value of a factor, beyond chance: 0 at chance, 1 for all.

    Args:
        nearest: as `nearest_items` gives them.
        factor: small integers.

    Returns:
        (share - chance) / (1 - chance), with the chance that another item drawn at random has the same value.

    Raises:
        ValueError: a factor that does not vary.
    """
    share = (factor[nearest] == factor[:, None]).double().mean(1)
    counts = torch.bincount(factor).double()
    n = len(factor)
    chance = (counts * (counts - 1)).sum() / (n * (n - 1))
    if chance >= 1:
        raise ValueError("the factor has the same value everywhere: neighbours cannot differ in it")
    return (share - chance) / (1 - chance)


def embedding_map(embeddings: Float[Tensor, "n d"], seed: int = 0, perplexity: float = 30.0) -> np.ndarray:
    """Places on a plane [n, 2] that keep neighbours together; distances between groups mean little.

    Source: van der Maaten and Hinton (2008), as scikit-learn has it, from the principal components.

    Args:
        embeddings: unit vectors.
        seed: of what is left to chance.
        perplexity: about how many neighbours count.
    """
    components = PCA(min(MAP_COMPONENTS, *embeddings.shape), svd_solver="full").fit_transform(embeddings.numpy())
    return TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(components)


def answer_changes(a: Bool[Tensor, " n"], b: Bool[Tensor, " n"]) -> dict[str, float]:
    """Shares of the queries that two models answer rightly: both, neither, or one of them.

    Args:
        a: which queries model a answers rightly.
        b: the same of model b.

    Returns:
        `both`, `neither`, `gained` (b alone) and `lost` (a alone), which sum to 1.
    """
    parts = {"both": a & b, "neither": ~a & ~b, "gained": ~a & b, "lost": a & ~b}
    return {name: part.double().mean().item() for name, part in parts.items()}


def margins(similarity: Float[Tensor, "n m"], is_right: Bool[Tensor, "n m"]) -> Float[Tensor, " n"]:
    """By how much the best right answer beats the best wrong one, in cosine; below zero for a wrong answer."""
    best = similarity.masked_fill(~is_right, -torch.inf).amax(1)
    return best - similarity.masked_fill(is_right, -torch.inf).amax(1)


def wrong_name_kinds(names: list[str], chosen: list[str], same_drawing: list[bool]) -> list[str]:
    """In what a chosen name of a character differs from the right one.

    Args:
        names: the right names.
        chosen: those chosen instead.
        same_drawing: whether the chosen name's character is drawn like the right one.

    Returns:
        `right`; `same drawing` under another name; `same letter` with another mark or none; `same script or
        kind`, where the first word agrees; or `other`.
    """
    kinds = []
    for name, other, alike in zip(names, chosen, same_drawing, strict=True):
        rules = {
            "right": name == other,
            "same drawing": alike,
            "same letter": name.partition(" with ")[0] == other.partition(" with ")[0],
            "same script or kind": name.split()[0] == other.split()[0],
        }
        kinds.append(next((kind for kind, holds in rules.items() if holds), "other"))
    return kinds
