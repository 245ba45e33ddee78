"""Inputs of the encoders as tensors: uint8 images and tokens, or cached features of frozen towers.

`prepare` makes them and `embed_pairs` embeds them, in both training and evaluation. Texts are
tokenised once. Small sets of images are kept in memory; larger ones are decoded batch by batch in
worker processes. The features of frozen towers are computed once and kept in the cache folder, in
one file for each tower and split, under a digest of everything they depend on.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from cibr.data import Pairs
from cibr.models.dual_encoder import DualEncoder
from cibr.utils import cache_folder, digest, write_atomically

_IN_MEMORY = 2**30  # bytes of decoded images to keep in memory at most
_AT_ONCE = 16  # images in memory at full size


class Batch(NamedTuple):
    """Rows of a batch: preprocessed images with token ids and mask, or pooled features of frozen
    towers.
    """

    images: Tensor
    texts: tuple[Tensor, ...]
    labels: Int[Tensor, " n"]


@dataclass(eq=False)
class Inputs(Dataset):
    """Pairs as inputs of a model; `inputs[image_indices, text_indices]` is a `Batch`."""

    pairs: Pairs
    images: Tensor | None  # None: decoded on demand
    texts: tuple[Tensor, ...]
    labels: Int[Tensor, " m"]  # one per text: equal labels match
    preprocess: Callable[[list[Image.Image]], Tensor]

    def __getitem__(self, rows: tuple[Tensor, Tensor]) -> Batch:
        image_rows, text_rows = rows
        if self.images is None:
            images = _decode(self.preprocess, self.pairs, image_rows.tolist())
        else:
            images = self.images[image_rows]
        return Batch(images, self._texts(text_rows), self.labels[text_rows])

    def _texts(self, rows: Tensor) -> tuple[Tensor, ...]:
        texts = tuple(part[rows] for part in self.texts)
        if len(texts) == 1 or len(rows) == 0:
            return texts
        is_used = texts[1].any(0)  # token ids and mask are cut to the longest text
        return tuple(part[:, is_used] for part in texts)

    def __getitems__(self, rows: tuple[Tensor, Tensor]) -> Batch:
        """A batch, for loaders."""
        return self[rows]

    def loader(self, rows: Iterable[tuple[Tensor, Tensor]]) -> DataLoader:
        """Batches in the order of `rows`, in pinned memory if CUDA is available.

        Images that are not in memory are decoded in a process per core, at most 16.

        Args:
            rows: indices of images and of texts; consumed lazily.
        """
        workers = 0 if self.images is not None else min(16, os.cpu_count() or 1)
        # The loader draws a seed for its workers, which must not come from the global generator.
        options = dict(generator=torch.Generator(), pin_memory=torch.cuda.is_available())
        options |= dict(num_workers=workers, persistent_workers=workers > 0)
        return DataLoader(self, batch_sampler=rows, collate_fn=_as_it_is, **options)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def prepare(
    model: DualEncoder,
    pairs: Pairs,
    truncate: bool = False,
    device: torch.device | str | None = None,
    *,
    texts: list[str] | None = None,
) -> Inputs:
    """Prepares the inputs of a model for a set of pairs.

    Args:
        model: the encoders.
        pairs: the images, and the texts unless others are given.
        truncate: truncate texts longer than the context instead of raising.
        device: where frozen towers move to; None leaves them.
        texts: replace the pairs' own, such as zero-shot prompts; each has its own label.

    Returns:
        Preprocessed images, in memory or decoded on demand, and token ids and mask of the texts,
        [m, t] each; for frozen towers pooled features instead, [n, p] and [m, q].

    Raises:
        ValueError: a text longer than the context, unless `truncate` is set; an image that does not
            decode.
    """
    if texts is None:
        texts = pairs.texts()
        labels = pairs.match_labels()[pairs.text_to_image()]
    else:
        labels = torch.arange(len(texts))
    name = f"{pairs.name}-{pairs.split}"
    if model.kind != "frozen":
        images = None
        if len(pairs) * model.preprocess([pairs.image(0)]).nbytes <= _IN_MEMORY:
            rows = tqdm(range(len(pairs)), desc=f"{name}: images", delay=2)
            images = _decode(model.preprocess, pairs, rows)
        return Inputs(pairs, images, model.tokenize(texts, truncate), labels, model.processor)
    with model.to(device or model.mean.device).evaluating():
        images = _image_features(model, pairs, f"{name}-images")
        features = _text_features(model, texts, truncate, f"{name}-texts")
    return Inputs(pairs, images, (features,), labels, model.processor)


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
    title = f"{inputs.pairs.name} {inputs.pairs.split}"
    rows = torch.arange(len(inputs.pairs)).split(batch_size)
    batches = inputs.loader([(part, part[:0]) for part in rows])
    images = []
    texts = []
    with model.evaluating():
        for batch in tqdm(batches, desc=f"{title}: images", delay=2, leave=False):
            images.append(model.encode_images(batch.images).features.float().cpu())
        rows = torch.arange(len(inputs.labels)).split(batch_size)
        for part in tqdm(rows, desc=f"{title}: texts", delay=2, leave=False):
            texts.append(model.encode_texts(*inputs._texts(part)).features.float().cpu())
    return torch.cat(images), torch.cat(texts)


def _decode(preprocess: Callable, pairs: Pairs, rows: Iterable[int]) -> Tensor:
    """Preprocessed images; photos are far larger at full size, so only a few are in memory at a
    time.
    """
    rows = iter(rows)
    parts = []
    while images := [pairs.image(i) for i in itertools.islice(rows, _AT_ONCE)]:
        parts.append(preprocess(images))
    return torch.cat(parts)


def _image_features(model: DualEncoder, pairs: Pairs, name: str) -> Tensor:
    # Small batches stay in a CPU's cache: 16 photos at once are twice as fast as 64.
    size = 16 if model.mean.device.type == "cpu" else 256

    def pooled(rows: Sequence[int]) -> Tensor:
        return model.encode_images(_decode(model.preprocess, pairs, rows)).pooled

    tower, *_ = model.backbone.towers.parts().values()
    identity = [_tower_digest(tower), model.processor.to_dict(), pairs.image_digests()]
    return _cached(name, identity, range(len(pairs)), pooled, size)


def _text_features(model: DualEncoder, texts: list[str], truncate: bool, name: str) -> Tensor:
    size = 64 if model.mean.device.type == "cpu" else 1024

    def pooled(rows: Sequence[str]) -> Tensor:
        return model.encode_texts(*model.tokenize(rows, truncate)).pooled

    # Neighbours of equal length need no padding, and texts in another order have the same features.
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    vocabulary = sorted(model.tokenizer.get_vocab().items())
    *_, tower = model.backbone.towers.parts().values()
    identity = [_tower_digest(tower), model.context, vocabulary]
    features = _cached(name, [*identity, unique, truncate], unique, pooled, size)
    row = {text: i for i, text in enumerate(unique)}
    return features[[row[text] for text in texts]]


def _cached(name: str, identity: list, items: Sequence, pool: Callable, size: int) -> Tensor:
    """Pools items in batches, or reads what an earlier call with this identity stored."""
    file = cache_folder() / "features" / f"{name}-{digest(repr(identity))[:16]}.safetensors"
    stored = read_tensors(file)
    if "features" in stored:
        return stored["features"]
    starts = tqdm(range(0, len(items), size), desc=f"{name}: features", delay=1)
    features = torch.cat([pool(items[i : i + size]).float().cpu() for i in starts])
    keep_tensors(file, {"features": features})
    return features


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file; none if it is absent or damaged."""
    with suppress(OSError, SafetensorError):
        return load_file(file)
    return {}


def keep_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors to a cache; where it cannot be written, only time is lost."""
    with suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, partial(save_file, tensors))


def _tower_digest(tower: torch.nn.Module) -> str:
    """Digest of a tower, equal whether it comes from the hub or from a run's folder, which records
    its class.
    """
    config = tower.config.to_dict()
    for name in ("architectures", "transformers_version", "_name_or_path"):  # affect no feature
        config.pop(name, None)
    weights = {
        name: (tensor.dtype, tensor.shape, digest(tensor.cpu().contiguous().numpy().tobytes()))
        for name, tensor in sorted(tower.state_dict().items())
    }
    return digest(json.dumps(config, sort_keys=True, default=str) + repr(weights))
