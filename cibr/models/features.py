"""Inputs of the encoders as tensors: pixels and tokens, or cached features of frozen towers.

`prepare` makes them and `embed_pairs` embeds them, in both training and evaluation. Texts are
tokenised once. Small sets of images are kept in memory; larger ones are decoded batch by batch in
worker processes. Frozen towers see an image or a text once (`cibr.models.feature_cache`).
"""

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from cibr.data import Pairs
from cibr.models.dual_encoder import DualEncoder
from cibr.models.feature_cache import cached_features, folder_of_tower
from cibr.models.preprocessing import preprocess
from cibr.utils import batched, digest

_MOST_IN_MEMORY = 2**31  # bytes of preprocessed images that are kept
_DECODED_AT_ONCE = 16  # images in memory at full size
_Rows = tuple[Int[Tensor, " _"], Int[Tensor, " _"]]  # of images, and of texts


class Batch(NamedTuple):
    """Rows of a batch: preprocessed images with token ids and mask, or pooled features of frozen
    towers.
    """

    images: Tensor
    texts: tuple[Tensor, ...]
    labels: Int[Tensor, " n"]


@dataclass(eq=False)
class Inputs(Dataset):
    """Pairs as inputs of a model; `inputs[image_rows, text_rows]` is a `Batch`.

    Args:
        pairs: the images and their texts.
        images: preprocessed images [n, 3, h, w] or pooled features [n, p]; None if images are
            decoded on demand.
        texts: token ids and mask, [m, t] each, or pooled features alone, [m, q].
        labels: one per text; equal labels match.
        processor: of images that are decoded on demand.
    """

    pairs: Pairs
    images: Tensor | None
    texts: tuple[Tensor, ...]
    labels: Int[Tensor, " m"]
    processor: Callable | None = None

    def __getitem__(self, rows: _Rows) -> Batch:
        image_rows, text_rows = rows
        if self.images is None:
            images = _decode(self.processor, self.pairs, image_rows.tolist())
        else:
            images = self.images[image_rows]
        return Batch(images, self.texts_at(text_rows), self.labels[text_rows])

    __getitems__ = __getitem__  # which loaders call with the rows of a batch

    def texts_at(self, rows: Int[Tensor, " k"]) -> tuple[Tensor, ...]:
        """Token ids and mask of these texts, cut to the longest one, or their pooled features."""
        texts = tuple(tensor[rows] for tensor in self.texts)
        if len(texts) == 1 or len(rows) == 0:
            return texts
        ids, mask = texts
        is_used = mask.any(0)
        return ids[:, is_used], mask[:, is_used]

    def loader(self, rows: Iterable[_Rows]) -> DataLoader:
        """Batches in the order of `rows`, in pinned memory if CUDA is available.

        Images that are not in memory are decoded in a process per core, at most 16.

        Args:
            rows: indices of images and of texts; consumed lazily.
        """
        return DataLoader(
            self,
            batch_sampler=rows,
            collate_fn=Batch._make,
            num_workers=0 if self.images is not None else min(16, os.cpu_count() or 1),
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # workers' seeds must not come from the global generator
        )


def prepare(model: DualEncoder, pairs: Pairs, *, texts: list[str] | None = None) -> Inputs:
    """Prepares the inputs of a model for a set of pairs.

    Args:
        model: the encoders, on the device to use.
        pairs: the images, and the texts unless others are given.
        texts: replace the pairs' own, such as zero-shot prompts; each has its own label.

    Returns:
        Preprocessed images, in memory or decoded on demand, and token ids and mask of the texts,
        [m, t] each; for frozen towers pooled features instead, [n, p] and [m, q]: those of the
        pairs, of the cache or of the towers. Texts are cut to the model's context; a warning counts
        those that are longer.

    Raises:
        ValueError: an image that does not decode.
    """
    if texts is None:
        texts = pairs.texts()
        labels = pairs.match_labels()[pairs.text_to_image()]
    else:
        labels = torch.arange(len(texts))

    if model.towers.is_frozen:
        with model.evaluating():
            images, text_features = _frozen_features(model, pairs, texts)
        return Inputs(pairs, images, (text_features,), labels)

    _warn_of_cuts(model, pairs, texts)
    processor = model.towers.processor
    inputs = Inputs(pairs, None, model.tokenize(texts), labels, processor)
    n_bytes = _decode(processor, pairs, [0]).nbytes
    if len(pairs) * n_bytes <= _MOST_IN_MEMORY:
        inputs.images = _decode(processor, pairs, tqdm(range(len(pairs)), "images", delay=2))
    return inputs


def embed_pairs(
    model: DualEncoder, inputs: Inputs, batch_size: int = 512
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Embeds all images and texts of a set, in eval mode.

    Args:
        model: the encoders, on the device to use.
        inputs: from `prepare`.
        batch_size: rows encoded at once.

    Returns:
        Unit vectors of the images [n, d] and of the texts [m, d], float32, on the CPU.
    """
    none = torch.arange(0)
    image_rows = torch.arange(len(inputs.pairs)).split(batch_size)
    batches = tqdm(inputs.loader([(rows, none) for rows in image_rows]), "images", delay=2)
    images = model.unit_vectors(model.encode_images(batch.images) for batch in batches)
    text_rows = torch.arange(len(inputs.labels)).split(batch_size)
    texts = model.unit_vectors(model.encode_texts(*inputs.texts_at(rows)) for rows in text_rows)
    return images, texts


def _decode(processor: Callable, pairs: Pairs, rows: Iterable[int]) -> Tensor:
    """Preprocessed images; photos are far larger at full size, so only a few are in memory at a
    time.
    """
    batches = batched(rows, _DECODED_AT_ONCE)
    return torch.cat([preprocess(processor, [pairs.image(i) for i in batch]) for batch in batches])


def _warn_of_cuts(model: DualEncoder, pairs: Pairs, texts: list[str]) -> None:
    limit = model.context
    # A token has a byte or more, and up to four mark the ends: most texts need no look.
    doubtful = [text for text in texts if len(text.encode(errors="replace")) > limit - 4]
    n_cut = sum(len(model.tokenizer(text, verbose=False)["input_ids"]) > limit for text in doubtful)
    if n_cut:
        warnings.warn(
            f"{n_cut:,} of {len(texts):,} texts of {pairs.name}-{pairs.split} are cut to the "
            f"{limit} tokens that the model reads",
            stacklevel=3,
        )


# Features of frozen towers


def _frozen_features(
    model: DualEncoder, pairs: Pairs, texts: list[str]
) -> tuple[Float[Tensor, "n p"], Float[Tensor, "m q"]]:
    """Features of images and texts: those that the pairs bring along, or those of the towers."""
    features = pairs.features
    if features is not None and tuple(features.towers) == model.towers.names:
        images = features.images.float()
        row_of = {text: row for row, text in enumerate(features.strings)}
        if row_of.keys() >= set(texts):
            return images, features.texts[[row_of[text] for text in texts]].float()
    else:
        images = _image_features(model, pairs)
    _warn_of_cuts(model, pairs, texts)
    return images, _text_features(model, texts)


def _image_features(model: DualEncoder, pairs: Pairs) -> Float[Tensor, "n p"]:
    towers = model.towers.loaded

    def pool(rows: list[int]) -> Tensor:
        return model.encode_images(_decode(towers.processor, pairs, rows)).pooled

    return cached_features(
        folder_of_tower("images", towers.image_tower, prepared_by=towers.processor),
        keys=pairs.image_digests(),
        items=range(len(pairs)),
        pool=pool,
        # Small batches stay in a CPU's cache: 16 photos at once are twice as fast as 64.
        batch_size=16 if model.device.type == "cpu" else 256,
    )


def _text_features(model: DualEncoder, texts: list[str]) -> Float[Tensor, "m q"]:
    towers = model.towers.loaded
    vocabulary = sorted(towers.tokenizer.get_vocab().items())

    def pool(batch: list[str]) -> Tensor:
        return model.encode_texts(*model.tokenize(batch)).pooled

    return cached_features(
        folder_of_tower("texts", towers.text_tower, prepared_by=(model.context, vocabulary)),
        keys=[digest(text) for text in texts],
        items=texts,
        pool=pool,
        batch_size=64 if model.device.type == "cpu" else 1024,
    )
