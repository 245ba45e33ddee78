"""Data sets by name: rendered glyphs, photos as features, local folders and data sets of the hub.

`load_pairs` turns a name and a split into `Pairs`. A name resolves in this order: a set of
`DATASETS`, such as ``glyphs`` or ``photos``; an existing folder; a hub id, ``owner/name``;
``$CIBR_DATA/wds_<name>``; ``clip-benchmark/wds_<name>`` on the hub.
"""

import os
import re
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from cibr.data import _readers
from cibr.data._readers import split_of
from cibr.data.pairs import Features, Pairs
from cibr.data.photos import SPLITS, load_photos
from cibr.utils import nearest

__all__ = ["DATASETS", "Dataset", "Features", "Pairs", "available_splits", "load_pairs"]
__all__ += ["load_parts", "title_of"]


class Dataset(NamedTuple):
    """A data set with a name of its own: `load` takes one of its `splits` and returns its pairs."""

    load: Callable[[str], Pairs]
    splits: Sequence[str]


def _load_glyphs(split: str) -> Pairs:
    from cibr.data.glyphs import load_glyphs  # late: matplotlib takes a second to import

    return load_glyphs(split)


_GLYPH_SPLITS = ("train", "validation", "test", "validation_characters", "test_characters")
# Data sets by name; add your own with `DATASETS[name] = Dataset(load, splits)`.
DATASETS: dict[str, Dataset] = {"glyphs": Dataset(_load_glyphs, _GLYPH_SPLITS)}
for _name, _splits in SPLITS.items():
    DATASETS[_name] = Dataset(partial(load_photos, _name), _splits)


def load_pairs(name: str | Path, split: str = "train") -> Pairs:
    """Loads one split of a data set.

    Args:
        name: a name of `DATASETS`; a folder of images with metadata, of shards, of Parquet files,
            or of a subfolder of images per class; a hub id, ``owner/name``; or ``flickr8k`` and the
            like, in ``$CIBR_DATA/wds_flickr8k`` or else ``clip-benchmark/wds_flickr8k`` on the hub.
        split: ``train``, ``validation`` (or ``val``, ``dev``) or ``test``; `glyphs` has two more,
            `photos` has ``shown``. Without a validation split, it is a tenth of ``train`` by
            `Pairs.hold_out`, and ``train`` is the rest; both are ``train+validation``.

    Returns:
        The pairs of the split. Samples that cannot be used, less than a tenth, are left out with a
        warning that counts them by reason; headers of images are checked, pixels are not decoded.

    Raises:
        ValueError: if name or split is unknown, or a tenth of the samples or more cannot be used,
            which the message counts by reason, with the first names.
        FileNotFoundError: if a part of the data set is missing.
        ConnectionError: if the name is unknown here and cannot be fetched from the hub.
    """
    return load_parts(name, [split])[0]


def load_parts(name: str | Path, splits: Sequence[str]) -> list[Pairs]:
    """Loads several splits of a data set, as `load_pairs`; files of two of them are read once."""
    loaders = _loaders(name)
    for split in map(split_of, splits):
        if split not in loaders:
            raise ValueError(f"{name} has no split {split!r}: it has {', '.join(loaders)}")
    return [loaders[split_of(split)]() for split in splits]


def available_splits(name: str | Path) -> list[str]:
    """Returns the splits that `load_pairs` offers for a name.

    Raises:
        ValueError: if the name is unknown, or a folder's metadata are malformed.
        ConnectionError: if the name is unknown here and cannot be fetched from the hub.
    """
    return list(_loaders(name))


def _loaders(name: str | Path) -> _readers.Loaders:
    """What loads each split of a data set, once; a tenth of ``train`` is held out if it has no
    validation split.
    """
    loaders = {split: cache(load) for split, load in _own_loaders(name).items()}
    if "train" not in loaders or "validation" in loaders:
        return loaders
    whole = loaders["train"]
    parts = cache(lambda: whole().hold_out())
    held_out = {"train": lambda: parts()[0], "validation": lambda: parts()[1]}
    return loaders | held_out | {"train+validation": whole}


def _own_loaders(name: str | Path) -> _readers.Loaders:
    """What loads each split that a data set has."""
    name = str(name)
    if name in DATASETS:
        if os.path.isdir(name):
            message = f"{name} is a known data set: write ./{name} for the folder"
            warnings.warn(message, stacklevel=4)
        known = DATASETS[name]
        return {split: partial(known.load, split) for split in known.splits}
    place = _place(name)
    if os.path.isdir(place):
        return _readers.folder_loaders(title_of(name), Path(place))
    is_shards = place.partition("/")[2].startswith("wds_")
    load = _readers.shard_loaders if is_shards else _readers.table_loaders
    try:
        return load(title_of(name), place)
    except OSError as error:  # all that the network and the hub raise
        near = nearest(name, DATASETS)
        what = f"{name} is neither here nor available from the hub ({error}){near}"
        raise ConnectionError(f"{what}: check name and network, or set CIBR_DATA") from error


def _place(name: str) -> str:
    """The folder of a name, or else its hub id."""
    in_cibr_data = f"{os.environ.get('CIBR_DATA') or os.devnull}/wds_{name}"
    for folder in map(os.path.expanduser, (name, in_cibr_data)):
        if os.path.isdir(folder):
            return folder
    if not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", name):
        raise ValueError(f"there is no data set {name!r}: give a folder or a hub id, owner/name")
    return name if "/" in name else f"clip-benchmark/wds_{name}"


def title_of(name: str | Path) -> str:
    """Returns a data set's name in tables: the last part of a folder or a hub id."""
    return Path(name).resolve().name.removeprefix("wds_")  # also of the folder `.`
