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
from typing import Any, NamedTuple

from cibr.data import _readers
from cibr.data._readers import split_of
from cibr.data.pairs import Features, Pairs
from cibr.data.photos import SPLITS, load_photos
from cibr.utils import nearest

__all__ = ["DATASETS", "Dataset", "Features", "Pairs", "Source", "available_splits", "load_pairs"]
__all__ += ["load_parts", "resolve"]


class Dataset(NamedTuple):
    """A data set with a name of its own: `load` takes one of its `splits` and returns its pairs;
    `kind` is ``code`` if code makes the images, ``features`` if there are features in their place.
    """

    load: Callable[[str], Pairs]
    splits: Sequence[str]
    kind: str = "code"


def _load_glyphs(split: str) -> Pairs:
    from cibr.data.glyphs import load_glyphs  # late: matplotlib takes a second to import

    return load_glyphs(split)


_GLYPH_SPLITS = ("train", "validation", "test", "validation_characters", "test_characters")
# Data sets by name; add your own with `DATASETS[name] = Dataset(load, splits)`.
DATASETS: dict[str, Dataset] = {"glyphs": Dataset(_load_glyphs, _GLYPH_SPLITS)}
for _name, _splits in SPLITS.items():
    DATASETS[_name] = Dataset(partial(load_photos, _name), _splits, "features")


def load_pairs(name: str | Path | Any, split: str = "train") -> Pairs:
    """Loads one split of a data set.

    Args:
        name: a name of `DATASETS`; a folder of images with metadata, of shards, of Parquet files,
            written by `save_to_disk`, or of a subfolder of images per class; a hub id,
            ``owner/name``; ``flickr8k`` and the like, in ``$CIBR_DATA/wds_flickr8k`` or else
            ``clip-benchmark/wds_flickr8k`` on the hub; or a `datasets.Dataset` or
            `datasets.DatasetDict`.
        split: ``train``, ``validation`` (or ``val``, ``dev``) or ``test``; `glyphs` has two more,
            `photos` has ``shown``. Without a validation split, it is a tenth of ``train`` by
            `Pairs.hold_out`, and ``train`` is the rest; both are ``train+validation``.

    Returns:
        The pairs of the split. Samples that cannot be used, less than a tenth, are left out with a
        warning that counts them by reason; headers of images are checked, pixels are not decoded.

    Raises:
        ValueError: if the name or the split is unknown, or a tenth of the samples or more cannot be
            used; the message counts them by reason and has the first names.
        FileNotFoundError: if a part of the data set is missing.
        ConnectionError: if the data set cannot be fetched from the hub.
    """
    return load_parts(name, [split])[0]


def load_parts(name: str | Path | Any, splits: Sequence[str]) -> list[Pairs]:
    """Loads several splits of a data set, as `load_pairs`; files of two of them are read once."""
    loaders = _loaders(name)
    splits = [split_of(split) for split in splits]
    for split in splits:
        if split not in loaders:
            raise ValueError(
                f"{name} has no split {split!r}: it has {', '.join(loaders) or 'none'}"
            )
    return [loaders[split]() for split in splits]


def available_splits(name: str | Path | Any) -> list[str]:
    """Returns the splits that `load_pairs` offers for a name.

    Raises:
        ValueError: as `resolve`, or if a folder's metadata are malformed.
        ConnectionError: if the data set is on the hub and cannot be fetched.
    """
    return list(_loaders(name))


def _loaders(name: str | Path | Any) -> _readers.Loaders:
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


def _own_loaders(name: str | Path | Any) -> _readers.Loaders:
    """What loads each split that a data set has."""
    if not isinstance(name, str | Path):
        tables = _readers.tables_of(name)
        title = next(iter(tables.values())).info.dataset_name or "dataset"
        return _readers.table_loaders(title, tables)
    source = resolve(name)
    if not source.place:
        known = DATASETS[source.name]
        return {split: partial(known.load, split) for split in known.splits}
    if source.kind == "folder":
        return _readers.folder_loaders(source.name, Path(source.place))
    if source.kind == "datasets":
        return _readers.hub_loaders(source.name, source.place)
    try:
        return _readers.shard_loaders(source.name, source.place)
    except ConnectionError as error:
        near = nearest(source.name, [*DATASETS, *_in_cibr_data()])
        raise ConnectionError(f"{error}{near}") from error


class Source(NamedTuple):
    """The resolved location of a data set.

    Args:
        name: the data set's name in messages and tables.
        kind: ``code`` or ``features``, a set of `DATASETS`; ``folder``; ``shards``, on the hub; or
            ``datasets``, on the hub and read by that library.
        place: the folder or the hub id; empty for a set of `DATASETS`.
    """

    name: str
    kind: str
    place: str = ""


def resolve(name: str | Path) -> Source:
    """Resolves a data set's name to its location, without reading or fetching data.

    Raises:
        ValueError: if it is no name of a data set; the message has the ways to give data.
    """
    name = str(name)
    path = os.path.expanduser(name)
    if name in DATASETS:
        if os.path.isdir(path):
            what = f"{name} is taken as the data set of this name, not as the folder"
            warnings.warn(f"{what}: write ./{name} for the folder", stacklevel=2)
        return Source(name, DATASETS[name].kind)
    folder = path if os.path.isdir(path) else _in_cibr_data().get(name)
    if folder:
        return Source(Path(folder).resolve().name.removeprefix("wds_"), "folder", str(folder))
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        repository = name.partition("/")[2]
        kind = "shards" if repository.startswith("wds_") else "datasets"
        return Source(repository.removeprefix("wds_"), kind, name)
    if re.fullmatch(r"\w[\w.-]{,90}", name) and not os.path.isfile(path):
        return Source(name, "shards", f"clip-benchmark/wds_{name}")
    if os.path.isfile(path):
        raise ValueError(f"{name} is a file: give the folder that it is in")
    raise ValueError(
        f"there is no data set {name!r}: give a folder with metadata.csv or shards, a hub id "
        f"(owner/name), or one of {', '.join([*DATASETS, *_in_cibr_data()])}"
    )


def _in_cibr_data() -> dict[str, Path]:
    """The folders ``wds_<name>`` in ``CIBR_DATA``, by name; none if it is not set."""
    root = Path(os.environ.get("CIBR_DATA") or os.devnull).expanduser()
    folders = [folder for folder in sorted(root.glob("wds_*")) if folder.is_dir()]
    return {folder.name.removeprefix("wds_"): folder for folder in folders}
