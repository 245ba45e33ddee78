"""Features of frozen towers, and their cache, so that a tower sees an image or a text once.

Pairs may bring features of the same towers along (`cibr.data.Features`). For others, the cache
folder has a folder per tower, named after a digest of its weights and of what prepares its input.
The files in it hold `features` [k, p] and the `keys` [k, 32] of their rows, SHA-256 digests of
image files or texts. No file changes once it is written; rows that no file has are computed, and
written to further ones.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from cibr.data import Pairs
from cibr.models.dual_encoder import DualEncoder
from cibr.models.preprocessing import decode_images, warn_of_cut_texts
from cibr.utils import batched, cache_folder, digest, write_atomically

_ITEMS_PER_FILE = 2048  # what a kill can lose


def frozen_features(
    model: DualEncoder, pairs: Pairs, texts: list[str]
) -> tuple[Float[Tensor, "n p"], Float[Tensor, "m q"]]:
    """Pooled features of the images of pairs and of texts: those that the pairs bring along, of the
    cache, or of the towers.

    Args:
        model: over frozen towers, in eval mode.
        pairs: the images.
        texts: captions or prompts.
    """
    features = pairs.features
    are_of_these_towers = features is not None and tuple(features.towers) == model.towers.names
    if not are_of_these_towers:
        return _image_features(model, pairs), _text_features(model, pairs, texts)
    images = features.images.float()
    row_of_text = {text: row for row, text in enumerate(features.strings)}
    if not set(texts) <= row_of_text.keys():
        return images, _text_features(model, pairs, texts)
    rows = [row_of_text[text] for text in texts]
    return images, features.texts[rows].float()


def _image_features(model: DualEncoder, pairs: Pairs) -> Float[Tensor, "n p"]:
    """Features of the images of pairs, of the cache or of the tower."""
    towers = model.towers.loaded
    keys = pairs.image_digests()
    row_of_key = {key: row for row, key in enumerate(keys)}  # of equal images the last

    def pool(rows: list[int]) -> Tensor:
        pixels = decode_images(towers.processor, pairs, rows)
        return model.towers.image_pooled(pixels.to(model.device, model.dtype))

    features = _cached(
        _folder_of_tower("images", towers.image_tower, prepared_by=towers.processor),
        {keys[row]: row for row in sorted(row_of_key.values())},
        pool,
        # Small batches stay in a CPU's cache: 16 photos at once are twice as fast as 64.
        batch_size=16 if model.device.type == "cpu" else 256,
    )
    return torch.stack([features[key] for key in keys])


def _text_features(model: DualEncoder, pairs: Pairs, texts: list[str]) -> Float[Tensor, "m q"]:
    """Features of texts, of the cache or of the tower; a warning counts those that are cut."""
    warn_of_cut_texts(model.tokenizer, model.context, pairs, texts)
    towers = model.towers.loaded
    keys = [digest(text) for text in texts]
    vocabulary = sorted(towers.tokenizer.get_vocab().items())

    def pool(batch: list[str]) -> Tensor:
        ids, mask = model.tokenize(batch)
        return model.towers.text_pooled(ids.to(model.device), mask.to(model.device))

    by_length = sorted(set(texts), key=lambda text: (len(text), text))  # little is padding
    features = _cached(
        _folder_of_tower("texts", towers.text_tower, prepared_by=(model.context, vocabulary)),
        {digest(text): text for text in by_length},
        pool,
        batch_size=64 if model.device.type == "cpu" else 1024,
    )
    return torch.stack([features[key] for key in keys])


# The cache


def _folder_of_tower(kind: str, tower: nn.Module, prepared_by: Any) -> Path:
    """The folder of a tower's features.

    Args:
        kind: `images` or `texts`.
        tower: a model of transformers.
        prepared_by: what decides the tower's input, with a `repr` that tells it from others.
    """
    config = tower.config.to_dict()
    for name in ("architectures", "transformers_version", "_name_or_path"):  # affect no feature
        config.pop(name, None)
    fingerprint = {
        "weights": _weights_digest(tower),
        "type": str(next(tower.parameters()).dtype),
        "config": config,
        "prepared by": repr(prepared_by),
    }
    name = digest(json.dumps(fingerprint, sort_keys=True, default=str))[:16]
    return cache_folder() / "features" / f"{kind}-{name}"


def _weights_digest(tower: nn.Module) -> str:
    """Digest of a tower's weights as float32, whatever their names in a version of transformers."""
    hasher = hashlib.sha256()
    for weights in tower.state_dict().values():
        weights = weights.float() if weights.is_floating_point() else weights
        hasher.update(repr(weights.shape).encode())
        hasher.update(weights.cpu().reshape(-1).numpy())
    return hasher.hexdigest()


def _cached(
    folder: Path, items: dict[str, Any], pool: Callable[[list], Tensor], batch_size: int
) -> dict[str, Float[Tensor, " p"]]:
    """Features of items by key: those in a folder's files, and those that `pool` makes of the
    others, which are added to the folder.

    Args:
        folder: from `_folder_of_tower`.
        items: rows of images, or texts, by their SHA-256 digests in hexadecimal digits, in the
            order in which those that no file has are computed.
        pool: takes a list of items and returns their features.
        batch_size: items that `pool` takes at once.
    """
    features = _read(folder, items)
    missing = [key for key in items if key not in features]
    for new_keys in tqdm([*batched(missing, _ITEMS_PER_FILE)], folder.name, delay=1):
        batches = batched([items[key] for key in new_keys], batch_size)
        new_features = torch.cat([pool(batch).float().cpu() for batch in batches])
        features.update(zip(new_keys, new_features, strict=True))
        _write(folder, new_keys, new_features)
    return features


def _read(folder: Path, wanted: Collection[str]) -> dict[str, Float[Tensor, " p"]]:
    """The stored features of the wanted keys."""
    features = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored = load_file(file)
        keys = [key.tobytes().hex() for key in stored["keys"].numpy()]
        for key, row in zip(keys, stored["features"], strict=True):
            if key in wanted:
                features[key] = row
    return features


def _write(folder: Path, keys: list[str], features: Float[Tensor, "k p"]) -> None:
    digests = torch.frombuffer(bytearray.fromhex("".join(keys)), dtype=torch.uint8)
    tensors = {"keys": digests.view(len(keys), -1), "features": features}
    save_to_cache(folder / f"{digest(repr(keys))[:32]}.safetensors", tensors)


def save_to_cache(file: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors to a cache; where it cannot be written, only time is lost."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, partial(save_file, tensors))
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"{file} cannot be written ({error}): it will be computed again next time", stacklevel=2
        )
