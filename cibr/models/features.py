"""Inputs of the encoders as tensors: uint8 images and tokens, or cached features of frozen towers.

`prepare` makes them and `embed_pairs` embeds them, in both training and evaluation. Texts are
tokenised once. Small sets of images are kept in memory; larger ones, and those with random crops,
are decoded batch by batch in worker processes. The features of frozen towers are computed once, in
parts, and kept in the cache folder under a digest of everything they depend on, so a killed
extraction resumes and later runs reuse them.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
from cibr.models.dual_encoder import DualEncoder, Encoded
from cibr.utils import cache_folder, write_atomically

IN_MEMORY = 2**30  # bytes of decoded images to keep in memory at most
PART = 512  # rows of a part of an extraction
AT_ONCE = 16  # images in memory at full size
MOST_WORKERS = 16
NO_SETTINGS = (
    "architectures",
    "transformers_version",
    "_name_or_path",
)  # of a config: do not affect features


class Batch(NamedTuple):
    """Rows of a batch: preprocessed images with token ids and mask, or pooled features of frozen
    towers.
    """

    images: Tensor
    texts: tuple[Tensor, ...]
    labels: Int[Tensor, " n"]


@dataclass(eq=False)
class Inputs(Dataset):
    """Pairs as inputs of a model; `inputs[image_indices, text_indices]` is a `Batch`.

    With a `crop`, the index has a third part, the random seed of each image's crop.
    """

    pairs: Pairs
    images: Tensor | None  # None: decoded on demand
    texts: tuple[Tensor, ...]
    labels: Int[Tensor, " m"]  # one per text: equal labels match
    preprocess: Callable[[list[Image.Image]], Tensor]
    crop: Callable[[Image.Image], Image.Image] | None = None

    def __getitem__(self, rows: tuple[Tensor, ...]) -> Batch:
        image_rows, text_rows, *keys = rows
        images = self.cropped_rows(image_rows, *keys) if self.crop else self.image_rows(image_rows)
        return Batch(images, self.text_rows(text_rows), self.labels[text_rows])

    def image_rows(self, rows: Tensor) -> Tensor:
        """Images by their index in the pairs."""
        return (
            _decode(self.preprocess, self.pairs, rows.tolist())
            if self.images is None
            else self.images[rows]
        )

    def cropped_rows(self, rows: Tensor, keys: Int[Tensor, " n"]) -> Tensor:
        """Images by their index, each with a random crop seeded by its key."""
        squares = []
        with torch.random.fork_rng(devices=[]):
            for i, key in zip(rows.tolist(), keys.tolist(), strict=True):
                torch.default_generator.manual_seed(key)
                squares.append(self.crop(self.pairs.image(i)))
        return self.preprocess(squares)

    def text_rows(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Texts by their index in `pairs.texts()`, with token ids cut to the longest of them."""
        texts = tuple(part[rows] for part in self.texts)
        longest = int(texts[1].sum(1).max()) if len(texts) == 2 and len(rows) else None
        return tuple(part[:, :longest] for part in texts)

    def loader(self, rows: Iterable[tuple[Tensor, ...]], workers: int | None = None) -> DataLoader:
        """Batches in the order of `rows`, in pinned memory if CUDA is available.

        Args:
            rows: indices of images and of texts, and with a `crop` the keys; consumed lazily.
            workers: decoding processes; by default none if images are in memory, else one per core.
        """
        if workers is None:
            workers = 0 if self.images is not None else min(MOST_WORKERS, os.cpu_count() or 1)
        own = (
            torch.Generator()
        )  # the loader draws a seed for its workers, but not from the global generator
        options = dict(num_workers=workers, generator=own, pin_memory=torch.cuda.is_available())
        return DataLoader(self, batch_size=None, sampler=rows, **options)


class Digests(NamedTuple):
    """Digests from `digest_model`: of each modality's tower and preprocessing, and of the whole
    model.
    """

    image: bytes
    text: bytes
    model: str


def prepare(
    model: DualEncoder,
    pairs: Pairs,
    truncate: bool = False,
    device: torch.device | str = "cpu",
    *,
    texts: list[str] | None = None,
    digests: Digests | None = None,
    crop_scale: float = 1.0,
) -> Inputs:
    """Prepares the inputs of a model for a set of pairs.

    Args:
        model: the encoders.
        pairs: the images, and the texts unless others are given.
        truncate: truncate texts longer than the context instead of raising.
        device: the device of frozen towers.
        texts: replace the pairs' own, such as zero-shot prompts; each has its own label.
        digests: of the model, if the caller has computed them.
        crop_scale: smallest share of an image's area in random resized crops, 1 for none (not for
            frozen towers).

    Returns:
        Preprocessed images, in memory or decoded on demand, and token ids and mask of the texts,
        [m, t] each; for frozen towers pooled features instead, [n, p] and [m, q].

    Raises:
        ValueError: a text longer than the context, unless `truncate` is set; an image that does not
            decode; crops for a model whose images are not square.
    """
    labels = (
        pairs.match_labels()[pairs.text_to_image()] if texts is None else torch.arange(len(texts))
    )
    texts = pairs.texts() if texts is None else texts
    if model.kind != "frozen":
        if crop_scale < 1 and model.image_size is None:
            raise ValueError(
                "the model reads images that keep their proportions: leave crop_scale at 1"
            )
        crop = random_resized_crop(model.image_size, crop_scale) if crop_scale < 1 else None
        images = None if crop else _pixels(model, pairs)
        return Inputs(pairs, images, model.tokenize(texts, truncate), labels, model.processor, crop)
    digests = digests or digest_model(model)
    with model.to(device).evaluating():
        images = _image_features(model, pairs, device, digests)
        features = _text_features(
            model, texts, truncate, device, digests, f"{pairs.name}-{pairs.split}"
        )
    return Inputs(pairs, images, (features,), labels, model.processor)


def random_resized_crop(size: int, smallest: float) -> Callable[[Image.Image], Image.Image]:
    """A random crop with an aspect ratio of 3:4 to 4:3, resized to a square of `size` pixels
    (bicubic).

    Source: torchvision's `RandomResizedCrop`, as in open_clip (0.9 to 1 of the area).
    """
    from torchvision.transforms import (
        InterpolationMode,
        RandomResizedCrop,
    )  # takes seconds to import

    return RandomResizedCrop(size, (smallest, 1.0), interpolation=InterpolationMode.BICUBIC)


def encode_images(model: DualEncoder, images: Tensor) -> Encoded:
    """Encodes images of `Inputs`: preprocessed images, or pooled features of a frozen tower."""
    return (
        model.project_images(images)
        if model.kind == "frozen"
        else model.encode_images(model.normalise(images))
    )


def encode_texts(model: DualEncoder, texts: tuple[Tensor, ...]) -> Encoded:
    """Encodes texts of `Inputs`: token ids and mask, or pooled features of a frozen tower."""
    return model.project_texts(*texts) if model.kind == "frozen" else model.encode_texts(*texts)


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
    device, title = model.log_logit_scale.device, f"{inputs.pairs.name} {inputs.pairs.split}"
    image_rows, text_rows = (
        torch.arange(len(x)).split(batch_size) for x in (inputs.pairs, inputs.labels)
    )
    image_batches = inputs.loader([(rows, rows[:0]) for rows in image_rows])
    images, texts = [], []
    with model.evaluating():
        for batch in tqdm(image_batches, desc=f"{title}: images", delay=2, leave=False):
            images.append(encode_images(model, batch.images.to(device)).features.float().cpu())
        for rows in tqdm(text_rows, desc=f"{title}: texts", delay=2, leave=False):
            tokens = tuple(part.to(device) for part in inputs.text_rows(rows))
            texts.append(encode_texts(model, tokens).features.float().cpu())
    return torch.cat(images), torch.cat(texts)


def _pixels(model: DualEncoder, pairs: Pairs) -> Tensor | None:
    if len(pairs) * model.preprocess([pairs.image(0)]).nbytes > IN_MEMORY:
        return None
    rows = tqdm(range(len(pairs)), desc=f"{pairs.name} {pairs.split}: images", delay=2)
    return _decode(model.preprocess, pairs, rows)


def _decode(
    preprocess: Callable[[list[Image.Image]], Tensor], pairs: Pairs, rows: Iterable[int]
) -> Tensor:
    """Preprocessed images; photos are far larger at full size, so only a few are in memory at a
    time.
    """
    rows = iter(rows)
    groups = iter(lambda: [pairs.image(i) for i in itertools.islice(rows, AT_ONCE)], [])
    return torch.cat([preprocess(group) for group in groups])


def _image_features(
    model: DualEncoder, pairs: Pairs, device, digests: Digests
) -> Float[Tensor, "n p"]:
    def pool(rows: Sequence[int]) -> Tensor:
        pixels = _decode(model.preprocess, pairs, rows).to(device)
        return model.backbone.image_pooled(model.normalise(pixels))

    name, shown = (
        f"{pairs.name}-{pairs.split}",
        (pairs.name, pairs.split, pairs.keys, pixel_digests(pairs)),
    )
    # Small batches stay in a CPU's cache: 16 photos at once are twice as fast as 64.
    batch = 16 if torch.device(device).type == "cpu" else 256
    return _in_parts(
        f"{name}-images", digests.image + repr(shown).encode(), range(len(pairs)), pool, batch
    )


def _text_features(
    model: DualEncoder, texts: list[str], truncate: bool, device, digests: Digests, name: str
) -> Float[Tensor, "m p"]:
    def pool(rows: Sequence[str]) -> Tensor:
        return model.backbone.text_pooled(
            *(part.to(device) for part in model.tokenize(rows, truncate))
        )

    once = sorted(
        dict.fromkeys(texts), key=len
    )  # each once; neighbours of equal length need no padding
    batch = 64 if torch.device(device).type == "cpu" else 1024
    features = _in_parts(
        f"{name}-texts", digests.text + repr((once, truncate)).encode(), once, pool, batch
    )
    place = {text: i for i, text in enumerate(once)}
    return features[torch.tensor([place[text] for text in texts])]


def _in_parts(
    name: str, identity: bytes, items: Sequence, pool: Callable[[Sequence], Tensor], batch: int
) -> Tensor:
    """Applies `pool` to all items in batches; every finished part is a file that later runs reuse."""
    folder = cache_folder() / "features" / f"{name}-{hashlib.sha256(identity).hexdigest()[:16]}"
    parts = []
    for start in tqdm(range(0, len(items), PART), desc=f"{name}: features", delay=1):
        file, rows = folder / f"{start:09d}.safetensors", items[start : start + PART]
        part = []
        with suppress(OSError, SafetensorError, KeyError):
            part = load_file(file)["features"]
        if len(part) != len(rows):
            batches = (rows[i : i + batch] for i in range(0, len(rows), batch))
            part = torch.cat([pool(batch).float().cpu() for batch in batches])
            with suppress(OSError, SafetensorError):  # without a cache, only time is lost
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(file, lambda path, part=part: save_file({"features": part}, path))
        parts.append(part)
    return torch.cat(parts)


def pixel_digests(pairs: Pairs, n: int = 64) -> list[str]:
    """Digests of a few evenly spaced images, to detect a data set that was changed under the same
    names.
    """
    rows = torch.linspace(0, len(pairs) - 1, min(n, len(pairs))).long().tolist()
    return [hashlib.sha256(pairs.image(i).tobytes()).hexdigest() for i in rows]


def digest_model(model: DualEncoder) -> Digests:
    """Digests of a model's weights, preprocessing and vocabulary."""
    backbone, vocabulary = model.backbone, sorted(model.tokenizer.get_vocab().items())
    image, text = (
        json.dumps(model.processor.to_dict()).encode(),
        repr((model.context, vocabulary)).encode(),
    )
    if model.kind == "frozen":
        image, text = (
            image + _tower_digest(backbone.image_tower),
            text + _tower_digest(backbone.text_tower),
        )
    settings = repr((model.kind, backbone.settings)).encode()
    whole = hashlib.sha256(image + text + settings + _digest(model.own_state()))
    return Digests(image, text, whole.hexdigest())


def _tower_digest(tower: torch.nn.Module) -> bytes:
    """Digest of a tower, equal whether it comes from the hub or from a run's folder, which records
    its class.
    """
    config = {
        name: value for name, value in tower.config.to_dict().items() if name not in NO_SETTINGS
    }
    return json.dumps(config, sort_keys=True, default=str).encode() + _digest(tower.state_dict())


def _digest(state: dict[str, Tensor]) -> bytes:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.digest()
