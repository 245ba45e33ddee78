"""Inputs of the encoders as tensors: pixels and tokens, or features of frozen towers.

`prepare` makes them and `embed_pairs` embeds them, in both training and evaluation. Texts are
tokenised once. Small sets of images are kept in memory; larger ones are decoded batch by batch in
worker processes. Frozen towers see an image or a text once (`cibr.models.frozen_features`).
"""

import os
import signal
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
from cibr.models.frozen_features import frozen_features
from cibr.models.preprocessing import decode_images, warn_of_cut_texts

_MOST_IN_MEMORY = 2**31  # bytes of preprocessed images that are kept
_MOST_WORKERS = 16
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

    @property
    def texts_are_pooled(self) -> bool:
        """Whether `texts` are pooled features, a single tensor, and not token ids with a mask."""
        return len(self.texts) == 1

    def __getitem__(self, rows: _Rows) -> Batch:
        image_rows, text_rows = rows
        if self.images is None:
            images = decode_images(self.processor, self.pairs, image_rows.tolist())
        else:
            images = self.images[image_rows]
        return Batch(images, self.texts_at(text_rows), self.labels[text_rows])

    __getitems__ = __getitem__  # what a loader calls, with the rows of a whole batch

    def texts_at(self, rows: Int[Tensor, " k"]) -> tuple[Tensor, ...]:
        """Token ids and mask of these texts, cut to the longest one, or their pooled features."""
        texts = tuple(tensor[rows] for tensor in self.texts)
        if self.texts_are_pooled or len(rows) == 0:
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
        # Each element of `rows` goes to `__getitems__`, whose `Batch` is passed on as it is.
        return DataLoader(
            self,
            batch_sampler=rows,
            collate_fn=_as_it_is,
            num_workers=0 if self.images is not None else min(_MOST_WORKERS, os.cpu_count() or 1),
            worker_init_fn=_ignore_sigterm,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # workers' seeds must not come from the global generator
        )


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _ignore_sigterm(worker: int) -> None:
    """Leaves SIGTERM, which SLURM sends to every process, to the run: it saves a checkpoint, then
    stops its workers.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


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
            images, text_features = frozen_features(model, pairs, texts)
        return Inputs(pairs, images, (text_features,), labels)

    warn_of_cut_texts(model.tokenizer, model.context, pairs, texts)
    processor = model.towers.processor
    bytes_per_image = decode_images(processor, pairs, [0]).nbytes
    images = None
    if len(pairs) * bytes_per_image <= _MOST_IN_MEMORY:
        images = decode_images(processor, pairs, tqdm(range(len(pairs)), "images", delay=2))
    return Inputs(pairs, images, model.tokenize(texts), labels, processor)


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
    # The loader is for images alone, which may have to be decoded; all texts are in memory.
    no_texts = torch.arange(0)
    image_rows = torch.arange(len(inputs.pairs)).split(batch_size)
    loader = inputs.loader([(rows, no_texts) for rows in image_rows])
    images = model.unit_vectors(
        lambda batch: model.encode_images(batch.images), tqdm(loader, "images", delay=2)
    )
    text_rows = torch.arange(len(inputs.labels)).split(batch_size)
    texts = model.unit_vectors(lambda rows: model.encode_texts(*inputs.texts_at(rows)), text_rows)
    return images, texts
