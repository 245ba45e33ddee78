"""Retrieval metrics by rank counting: exact, in chunks, with ties counted against the model.

A query's rank is the number of wrong items at least as similar as its best right one. So collapsed embeddings,
where everything ties with everything, score 0 and never 100 %.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 1024  # texts at a time: similarities of at most 1024 x n_images are held


def retrieval_ranks(
    image_embeddings: Float[Tensor, "n d"],
    text_embeddings: Float[Tensor, "m d"],
    text_to_image: Int[Tensor, " m"],
) -> tuple[Int[Tensor, " n"], Int[Tensor, " m"]]:
    """For every image and every text, how many wrong items are at least as similar as its best right one.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        text_to_image: the index of each text's image [m]; every image has a text at least.

    Returns:
        Ranks of the images among texts [n] and of the texts among images [m], from 0.

    Raises:
        ValueError: shapes that do not fit, an image without text, embeddings that are not finite or zero.
    """
    _check(image_embeddings, text_embeddings, text_to_image)
    images, texts = image_embeddings.float(), text_embeddings.float()
    n, m = len(images), len(texts)
    own = torch.empty(m)
    for rows, similarity in _similarities(images, texts):
        own[rows] = similarity.gather(1, text_to_image[rows, None]).squeeze(1).cpu()
    best = torch.full((n,), -torch.inf).scatter_reduce(0, text_to_image.cpu(), own, "amax").to(images.device)
    own = own.to(images.device)
    image_ranks = torch.zeros(n, dtype=torch.long, device=images.device)
    text_ranks = torch.empty(m, dtype=torch.long, device=images.device)
    for rows, similarity in _similarities(images, texts):
        text_ranks[rows] = (similarity >= own[rows, None]).sum(1) - 1
        image_ranks += (similarity >= best).sum(0)
    right = (own >= best[text_to_image]).long()  # an image's own texts that tie for its best are not wrong
    return image_ranks.scatter_add(0, text_to_image, -right), text_ranks


def recall_at_k(
    image_embeddings: Float[Tensor, "n d"],
    text_embeddings: Float[Tensor, "m d"],
    text_to_image: Int[Tensor, " m"],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Recall@k of retrieval in both directions, any number of texts an image.

    Image to text is a hit when any of the image's texts is among the first k.

    Source: the protocol of Karpathy and Fei-Fei (2015) for captioned photos; ties count against the model.

    Args:
        image_embeddings: unit vectors [n, d].
        text_embeddings: unit vectors [m, d].
        text_to_image: the index of each text's image [m].
        ks: the cut-offs.

    Returns:
        `{"image_to_text_recall@k": ..., "text_to_image_recall@k": ...}` in [0, 1].

    Raises:
        ValueError: as `retrieval_ranks`, or a k that is not between 1 and the gallery's size.
    """
    for k in ks:
        if not 1 <= k <= min(len(image_embeddings), len(text_embeddings)):
            raise ValueError(
                f"k={k} does not fit a gallery of {len(image_embeddings)} images and {len(text_embeddings)} "
                "texts: k is at least 1 and at most the smaller of the two"
            )
    image_ranks, text_ranks = retrieval_ranks(image_embeddings, text_embeddings, text_to_image)
    recalls = {f"image_to_text_recall@{k}": (image_ranks < k).double().mean().item() for k in ks}
    return recalls | {f"text_to_image_recall@{k}": (text_ranks < k).double().mean().item() for k in ks}


def _similarities(images: Float[Tensor, "n d"], texts: Float[Tensor, "m d"]):
    for start in range(0, len(texts), CHUNK):
        rows = slice(start, start + CHUNK)
        yield rows, texts[rows] @ images.T


def _check(images: Tensor, texts: Tensor, text_to_image: Tensor) -> None:
    if (
        images.ndim != 2
        or texts.ndim != 2
        or images.shape[1] != texts.shape[1]
        or not len(images)
        or not len(texts)
    ):
        raise ValueError(
            f"image embeddings {tuple(images.shape)} and text embeddings {tuple(texts.shape)} do not fit: "
            "give [n, d] and [m, d] with the same d, n and m at least 1"
        )
    if text_to_image.shape != (len(texts),):
        raise ValueError(
            f"text_to_image has shape {tuple(text_to_image.shape)}: give one image index a text, ({len(texts)},)"
        )
    if text_to_image.min() < 0 or text_to_image.max() >= len(images):
        raise ValueError(f"text_to_image must lie in 0..{len(images) - 1}, the indices of the images")
    without = len(images) - len(text_to_image.unique())
    if without:
        raise ValueError(f"{without} images have no text: leave them out, every image needs one at least")
    for name, embeddings in (("image_embeddings", images), ("text_embeddings", texts)):
        norms = embeddings.float().norm(dim=1)
        bad = (~torch.isfinite(norms) | (norms == 0)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"{name} has {len(bad)} rows that are zero or not finite, first row {bad[0]}")
