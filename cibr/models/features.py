"""Inputs of the encoders as tensors: pixels and tokens, or cached features of frozen towers.

`prepare` makes them and `embed_pairs` embeds them, in both training and evaluation. Texts are
tokenised once. Small sets of images are kept in memory; larger ones are decoded batch by batch in
worker processes.

Frozen towers see an image or a text once: the cache folder has a folder per tower, named after a
digest of its weights and of what prepares its input. The files in it hold `features` [k, p] and the
`keys` [k, 32] of their rows, SHA-256 digests of image files or texts. No file changes once it is
written; rows that no file has are computed, and written to further ones.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from cibr.data import Pairs
from cibr.models.dual_encoder import DualEncoder
from cibr.models.towers import preprocess
from cibr.utils import batched, cache_folder, digest, write_atomically

_IN_MEMORY = 2**31  # bytes of preprocessed images to keep in memory at most
_AT_ONCE = 16  # images in memory at full size
_PER_FILE = 2048  # items of a file in the cache: what a kill can lose


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
    processor: Callable | None = None  # of images that are decoded on demand

    def __getitem__(self, rows: tuple[Tensor, Tensor]) -> Batch:
        image_rows, text_rows = rows
        if self.images is None:
            images = _decode(self.processor, self.pairs, image_rows.tolist())
        else:
            images = self.images[image_rows]
        return Batch(images, self.texts_at(text_rows), self.labels[text_rows])

    __getitems__ = __getitem__  # which loaders call with the rows of a batch

    def texts_at(self, rows: Int[Tensor, " k"]) -> tuple[Tensor, ...]:
        """Token ids and mask of these texts, or their pooled features."""
        texts = tuple(part[rows] for part in self.texts)
        if len(texts) == 1 or len(rows) == 0:
            return texts
        is_used = texts[1].any(0)  # token ids and mask are cut to the longest text
        return tuple(part[:, is_used] for part in texts)

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
        return DataLoader(self, batch_sampler=rows, collate_fn=Batch._make, **options)


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
    if len(pairs) * _decode(processor, pairs, [0]).nbytes <= _IN_MEMORY:
        inputs.images = _decode(processor, pairs, tqdm(range(len(pairs)), "images", delay=2))
    return inputs


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


def _warn_of_cuts(model: DualEncoder, pairs: Pairs, texts: list[str]) -> None:
    limit = model.context
    # A token has a byte or more, and up to four mark the ends: most texts need no look.
    doubtful = [text for text in texts if len(text.encode(errors="replace")) > limit - 4]
    n_cut = sum(len(model.tokenizer(text, verbose=False)["input_ids"]) > limit for text in doubtful)
    if n_cut:
        what = f"{n_cut:,} of {len(texts):,} texts of {pairs.name}-{pairs.split} are cut"
        warnings.warn(f"{what} to the {limit} tokens that the model reads", stacklevel=3)


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
    rows = torch.arange(len(inputs.pairs)).split(batch_size)
    batches = inputs.loader([(part, part[:0]) for part in rows])
    batches = tqdm(batches, "images", delay=2, leave=False)
    images = model.unit_vectors(model.encode_images(batch.images) for batch in batches)
    rows = torch.arange(len(inputs.labels)).split(batch_size)
    texts = model.unit_vectors(model.encode_texts(*inputs.texts_at(part)) for part in rows)
    return images, texts


def _decode(processor: Callable, pairs: Pairs, rows: Iterable[int]) -> Tensor:
    """Preprocessed images; photos are far larger at full size, so only a few are in memory at a
    time.
    """
    batches = batched(rows, _AT_ONCE)
    return torch.cat([preprocess(processor, [pairs.image(i) for i in part]) for part in batches])


def _image_features(model: DualEncoder, pairs: Pairs) -> Float[Tensor, "n p"]:
    towers = model.towers.towers
    folder = _cache_of("images", towers.image_tower, towers.processor)
    # Small batches stay in a CPU's cache: 16 photos at once are twice as fast as 64.
    size = 16 if model.device.type == "cpu" else 256

    def pool(rows: list[int]) -> Tensor:
        return model.encode_images(_decode(towers.processor, pairs, rows)).pooled

    return _cached(folder, pairs.image_digests(), range(len(pairs)), pool, size)


def _text_features(model: DualEncoder, texts: list[str]) -> Float[Tensor, "m q"]:
    towers = model.towers.towers
    vocabulary = sorted(towers.tokenizer.get_vocab().items())
    folder = _cache_of("texts", towers.text_tower, (model.context, vocabulary))
    size = 64 if model.device.type == "cpu" else 1024

    def pool(batch: list[str]) -> Tensor:
        return model.encode_texts(*model.tokenize(batch)).pooled

    return _cached(folder, [digest(text) for text in texts], texts, pool, size)


def _cache_of(kind: str, tower: nn.Module, prepared_by: Any) -> Path:
    """The folder of a tower's features, named after its weights and what prepares its input."""
    config = tower.config.to_dict()
    for name in ("architectures", "transformers_version", "_name_or_path"):  # affect no feature
        config.pop(name, None)
    shown = json.dumps(config, sort_keys=True, default=str), next(tower.parameters()).dtype
    name = digest(repr((_weights_digest(tower), *shown, prepared_by)))[:16]
    return cache_folder() / "features" / f"{kind}-{name}"


def _weights_digest(tower: nn.Module) -> str:
    """Digest of a tower's weights as float32, whatever their names in a version of transformers."""
    seen = hashlib.sha256()
    for weights in tower.state_dict().values():
        weights = weights.float() if weights.is_floating_point() else weights
        seen.update(repr(weights.shape).encode())
        seen.update(weights.cpu().reshape(-1).numpy())
    return seen.hexdigest()


def _cached(
    folder: Path, keys: Sequence[str], items: Sequence, pool: Callable, size: int
) -> Float[Tensor, "n p"]:
    """Features of items: those in a folder's files, by key, and those that `pool` makes of the
    others, in batches of `size`; they are added to the folder.
    """
    item = dict(zip(keys, items, strict=True))
    features = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored = load_file(file)
        stored_keys = [key.tobytes().hex() for key in stored["keys"].numpy()]
        rows = zip(stored_keys, stored["features"], strict=True)
        features |= {key: row for key, row in rows if key in item}
    # Rows in their order, and texts by their length, so that little is padding.
    new = sorted(item.keys() - features, key=lambda key: (len(str(item[key])), item[key]))
    for part in tqdm([*batched(new, _PER_FILE)], folder.name, delay=1):
        pooled = [pool([item[key] for key in batch]).float().cpu() for batch in batched(part, size)]
        features |= zip(part, torch.cat(pooled), strict=True)
        digests = torch.frombuffer(bytearray.fromhex("".join(part)), dtype=torch.uint8)
        stored = {"keys": digests.view(len(part), -1), "features": torch.cat(pooled)}
        keep_tensors(folder / f"{digest(repr(part))[:32]}.safetensors", stored)
    return torch.stack([features[key] for key in keys])


def keep_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors to a cache; where it cannot be written, only time is lost."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, partial(save_file, tensors))
    except (OSError, SafetensorError) as error:
        warnings.warn(f"{file} cannot be written ({error}): it is computed again", stacklevel=2)
