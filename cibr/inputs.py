"""What the encoders read of a set of pairs, as tensors: pictures as bytes, or what a frozen tower gives of them.

`prepare` makes them and `embed_pairs` takes them through a model, in training and evaluation alike. Texts are
tokenised once. Small sets of pictures are held in memory, larger ones are decoded batch by batch in worker
processes. A frozen tower's features are computed once, in parts, and kept under `data/cache`, so that a killed
extraction goes on where it stopped and a second run begins at once.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
from cibr.data.labels import text_labels
from cibr.models import DualEncoder, Encoded
from cibr.paths import data_folder

IN_MEMORY = 2**30  # bytes of pictures that are held decoded
PART = 2048  # rows of a part of an extraction
AT_ONCE = 16  # pictures that are held at full size
NO_SETTINGS = ("architectures", "transformers_version", "_name_or_path")  # of a config: change no feature


class Batch(NamedTuple):
    """Rows of a batch: bytes [n, 3, h, w], a frozen tower's pooled features [n, p] or, below blocks that are
    trained, its maps [n, c, h, w]; token ids and mask or pooled features."""

    images: Tensor
    texts: tuple[Tensor, ...]
    labels: Int[Tensor, " n"]


@dataclass(eq=False)
class Inputs(Dataset):
    """Pairs as a model reads them; `inputs[image_indices, text_indices]` is a `Batch`."""

    pairs: Pairs
    images: Tensor | None  # None: decoded when asked for
    texts: tuple[Tensor, ...]
    labels: Int[Tensor, " m"]  # one a text: equal labels match
    preprocess: Callable[[list[Image.Image]], Tensor]

    def __getitem__(self, rows: tuple[Tensor, Tensor]) -> Batch:
        image_rows, text_rows = rows
        return Batch(self.image_rows(image_rows), self.text_rows(text_rows), self.labels[text_rows])

    def image_rows(self, rows: Tensor) -> Tensor:
        if self.images is None:
            return _decode(self.preprocess, self.pairs, rows.tolist())
        return self.images[rows]

    def text_rows(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Texts by their number in `pairs.texts()`, token ids cut to the longest of them."""
        texts = tuple(part[rows] for part in self.texts)
        if len(texts) == 2 and len(rows):
            longest = int(texts[1].sum(1).max())
            texts = tuple(part[:, :longest] for part in texts)
        return texts

    def loader(self, rows: list[tuple[Tensor, Tensor]]) -> DataLoader:
        """Batches in the order of `rows`, decoded in worker processes where pictures are not in memory."""
        workers = 0 if self.images is not None else min(8, os.cpu_count() or 1)
        own = torch.Generator()  # the loader draws a seed for its workers, and not from the global stream
        return DataLoader(self, batch_size=None, sampler=rows, num_workers=workers, generator=own)


class Digests(NamedTuple):
    """What features depend on, as `digest_model` finds it: each side's tower and its input, and all of a model."""

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
) -> Inputs:
    """The inputs of a model for a set of pairs.

    Args:
        model: the encoders.
        pairs: the pictures, and the texts unless others are given.
        truncate: cut texts that are longer than the context instead of refusing them.
        device: where frozen towers run.
        texts: read in place of the pairs' own, such as a classifier's prompts; each has a label of its own.
        digests: the model's, from a caller who prepares many sets and takes them once.

    Raises:
        ValueError: a text longer than the context unless `truncate`, or an image that does not decode.
    """
    labels = text_labels(pairs) if texts is None else torch.arange(len(texts))
    texts = pairs.texts() if texts is None else texts
    if model.kind == "frozen":
        images, rows = _pooled(model, pairs, texts, truncate, device, digests or digest_model(model))
    else:
        images, rows = _pixels(model, pairs), model.tokenize(texts, truncate)
    return Inputs(pairs, images, rows, labels, model.preprocess)


def encode_images(model: DualEncoder, images: Tensor) -> Encoded:
    """Images of `Inputs`: bytes, or what a frozen tower gives of them."""
    if model.kind == "frozen":
        return model.project_images(model.backbone.finish_image(images))
    return model.encode_images(model.normalise(images))


def encode_texts(model: DualEncoder, texts: tuple[Tensor, ...]) -> Encoded:
    """Texts of `Inputs`: token ids and mask, or pooled features of a frozen tower."""
    return model.project_texts(*texts) if model.kind == "frozen" else model.encode_texts(*texts)


@torch.no_grad()
def embed_pairs(
    model: DualEncoder, inputs: Inputs, batch_size: int = 512
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Unit vectors of all images [n, d] and all texts [m, d] of a set, in eval mode, on the CPU."""
    was_training, device = model.training, model.log_logit_scale.device
    image_rows, text_rows = (torch.arange(len(x)).split(batch_size) for x in (inputs.pairs, inputs.labels))
    image_batches = inputs.loader([(rows, rows[:0]) for rows in image_rows])
    title = f"{inputs.pairs.name} {inputs.pairs.split}"
    images, texts = [], []
    model.eval()
    try:
        for batch in tqdm(image_batches, desc=f"{title}: images", delay=2, leave=False):
            images.append(encode_images(model, batch.images.to(device)).features.float().cpu())
        for rows in tqdm(text_rows, desc=f"{title}: texts", delay=2, leave=False):
            tokens = tuple(part.to(device) for part in inputs.text_rows(rows))
            texts.append(encode_texts(model, tokens).features.float().cpu())
    finally:
        model.train(was_training)
    return torch.cat(images), torch.cat(texts)


def _pixels(model: DualEncoder, pairs: Pairs) -> Tensor | None:
    if len(pairs) * 3 * model.image_size**2 > IN_MEMORY:
        return None
    rows = tqdm(range(len(pairs)), desc=f"{pairs.name} {pairs.split}: pictures", delay=2)
    return _decode(model.preprocess, pairs, rows)


def _decode(preprocess: Callable[[list[Image.Image]], Tensor], pairs: Pairs, rows: Iterable[int]) -> Tensor:
    """Preprocessed pictures; a photo is many times larger before, so only a few are held at a time."""
    rows = iter(rows)
    groups = iter(lambda: [pairs.image(i) for i in itertools.islice(rows, AT_ONCE)], [])
    return torch.cat([preprocess(group) for group in groups])


def _pooled(
    model: DualEncoder, pairs: Pairs, texts: list[str], truncate: bool, device, digests: Digests
) -> tuple[Tensor, tuple[Tensor]]:
    """Features of both frozen towers, from the cache where they are there."""
    once = sorted(dict.fromkeys(texts), key=len)  # each once; neighbours of one length need no padding
    images_folder, texts_folder = _cache_folders(pairs, once, truncate, digests)
    was_training = model.training
    model.eval().to(device)

    def pool_images(rows: Iterable[int]) -> Tensor:
        pixels = _decode(model.preprocess, pairs, rows)
        return model.backbone.image_base(model.normalise(pixels.to(device)))

    def pool_texts(rows: list[str]) -> Tensor:
        ids, mask = model.tokenize(rows, truncate)
        return model.backbone.text_pooled(ids.to(device), mask.to(device))

    # Small batches stay in a CPU's cache: 16 photos at once are twice as fast there as 64.
    n_images, n_texts = (16, 64) if torch.device(device).type == "cpu" else (256, 1024)
    title = f"{pairs.name} {pairs.split}"
    images = _in_parts(images_folder, len(pairs), pool_images, f"{title}: image features", n_images)
    encoded = _in_parts(
        texts_folder,
        len(once),
        lambda rows: pool_texts([once[i] for i in rows]),
        f"{title}: text features",
        n_texts,
    )
    place = {text: i for i, text in enumerate(once)}
    features = encoded[torch.tensor([place[text] for text in texts])]
    model.train(was_training)
    return images, (features,)


def _in_parts(folder: Path, n: int, pool, title: str, batch: int) -> Tensor:
    """`pool` over 0..n in batches; every finished part is a file that a later run reads instead."""
    parts = []
    with tqdm(total=n, desc=title, delay=1, unit="rows") as bar:
        for start in range(0, n, PART):
            file, end = folder / f"{start:09d}.safetensors", min(start + PART, n)
            part = _read(file, end - start)
            if part is None:
                part = torch.cat(
                    [pool(range(i, min(i + batch, end))).float().cpu() for i in _ticks(start, end, batch, bar)]
                )
                _write(file, part)
            else:
                bar.update(end - start)
            parts.append(part)
    return torch.cat(parts)


def _ticks(start: int, end: int, batch: int, bar: tqdm):
    for i in range(start, end, batch):
        yield i
        bar.update(min(batch, end - i))


def _read(file: Path, rows: int) -> Tensor | None:
    try:
        features = load_file(file)["features"]
    except (OSError, SafetensorError, KeyError):
        return None
    return features if len(features) == rows else None


def _write(file: Path, features: Tensor) -> None:
    """Written beside and moved into place; a folder that cannot be written only costs the next run its time."""
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": features.contiguous()}, part)
        part.replace(file)
    except (OSError, SafetensorError):
        if part.parent.is_dir():
            part.unlink(missing_ok=True)


def _cache_folders(pairs: Pairs, texts: list[str], truncate: bool, digests: Digests) -> tuple[Path, Path]:
    """Folders named by what the features depend on: a side's tower and its input, and the pairs."""
    root, name = data_folder() / "features", f"{pairs.name}-{pairs.split}"
    image, text = hashlib.sha256(digests.image), hashlib.sha256(digests.text)
    image.update(repr((pairs.name, pairs.split, pairs.keys, pixel_digests(pairs))).encode())
    text.update(repr((texts, truncate)).encode())  # whatever set they are of
    return root / f"{name}-images-{image.hexdigest()[:16]}", root / f"{name}-texts-{text.hexdigest()[:16]}"


def pixel_digests(pairs: Pairs, n: int = 64) -> list[str]:
    """Digests of a few pictures, evenly spaced: a set that was made again under the same names is seen."""
    rows = torch.linspace(0, len(pairs) - 1, min(n, len(pairs))).long().tolist()
    return [hashlib.sha256(pairs.image(i).tobytes()).hexdigest() for i in rows]


def digest_model(model: DualEncoder) -> Digests:
    """Digests of a model's weights, preprocessing and vocabulary."""
    processor = model.processor.to_json_string()
    vocabulary = repr((model.context, sorted(model.tokenizer.get_vocab().items())))
    image, text = processor.encode(), vocabulary.encode()
    if model.kind == "frozen":
        image += _tower_digest(model.backbone.image_tower)
        if n_blocks := model.backbone.trained_blocks:
            image += f"below the last {n_blocks} blocks".encode()
        text += _tower_digest(model.backbone.text_tower)
    whole = hashlib.sha256(image + text + repr((model.kind, model.backbone.settings)).encode())
    whole.update(_digest(model.own_state()))
    return Digests(image, text, whole.hexdigest())


def _tower_digest(tower: torch.nn.Module) -> bytes:
    """Equal for a tower from the hub and the same one from a run's folder, which writes down its class."""
    config = {name: value for name, value in tower.config.to_dict().items() if name not in NO_SETTINGS}
    return json.dumps(config, sort_keys=True, default=str).encode() + _digest(tower.state_dict())


def _digest(state: dict[str, Tensor]) -> bytes:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()
