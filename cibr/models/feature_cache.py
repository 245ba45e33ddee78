"""A cache of the features of frozen towers, so that a tower sees an image or a text once.

The cache folder has a folder per tower, named after a digest of its weights and of what prepares
its input. The files in it hold `features` [k, p] and the `keys` [k, 32] of their rows, SHA-256
digests of image files or texts. No file changes once it is written; rows that no file has are
computed, and written to further ones.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from cibr.utils import batched, cache_folder, digest, write_atomically

_ITEMS_PER_FILE = 2048  # what a kill can lose


def folder_of_tower(kind: str, tower: nn.Module, prepared_by: Any) -> Path:
    """The folder of a tower's features.

    Args:
        kind: `images` or `texts`.
        tower: a model of transformers.
        prepared_by: what decides the tower's input, with a `repr` that tells it from others.
    """
    config = tower.config.to_dict()
    for name in ("architectures", "transformers_version", "_name_or_path"):  # affect no feature
        config.pop(name, None)
    decisive = {
        "weights": _weights_digest(tower),
        "type": str(next(tower.parameters()).dtype),
        "config": config,
        "prepared by": repr(prepared_by),
    }
    name = digest(json.dumps(decisive, sort_keys=True, default=str))[:16]
    return cache_folder() / "features" / f"{kind}-{name}"


def _weights_digest(tower: nn.Module) -> str:
    """Digest of a tower's weights as float32, whatever their names in a version of transformers."""
    seen = hashlib.sha256()
    for weights in tower.state_dict().values():
        weights = weights.float() if weights.is_floating_point() else weights
        seen.update(repr(weights.shape).encode())
        seen.update(weights.cpu().reshape(-1).numpy())
    return seen.hexdigest()


def cached_features(
    folder: Path,
    *,
    keys: Sequence[str],
    items: Sequence,
    pool: Callable[[list], Tensor],
    batch_size: int,
) -> Float[Tensor, "n p"]:
    """Features of items: those in a folder's files, and those that `pool` makes of the others,
    which are added to the folder.

    Args:
        folder: from `folder_of_tower`.
        keys: SHA-256 digests of the items, in hexadecimal digits.
        items: rows of images, or texts.
        pool: takes a list of items and returns their features.
        batch_size: items that `pool` takes at once.
    """
    item_of = dict(zip(keys, items, strict=True))
    features = _read(folder, item_of)
    # Images in the order of their rows, and texts by their length, so that little is padding.
    missing = sorted(item_of.keys() - features, key=lambda key: _length_and_item(item_of[key]))
    for new_keys in tqdm([*batched(missing, _ITEMS_PER_FILE)], folder.name, delay=1):
        batches = batched([item_of[key] for key in new_keys], batch_size)
        new_features = torch.cat([pool(batch).float().cpu() for batch in batches])
        features.update(zip(new_keys, new_features, strict=True))
        _write(folder, new_keys, new_features)
    return torch.stack([features[key] for key in keys])


def _length_and_item(item: int | str) -> tuple[int, int | str]:
    return len(str(item)), item


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
    keep_tensors(folder / f"{digest(repr(keys))[:32]}.safetensors", tensors)


def keep_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors to a cache; where it cannot be written, only time is lost."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, partial(save_file, tensors))
    except (OSError, SafetensorError) as error:
        warnings.warn(f"{file} cannot be written ({error}): it is computed again", stacklevel=2)
