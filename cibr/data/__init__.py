"""Data sets by name: rendered glyphs, local folders and data sets of the hub.

`load_pairs` turns a name and a split into `Pairs`. A name resolves in this order: a set of `DATASETS`, such as
``glyphs``; an existing folder; ``$CIBR_DATA/wds_<name>``; a data set with a card in ``datasets.yaml``; a hub id,
``owner/name``.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cibr.data import readers
from cibr.data.pairs import Pairs, Skips, without_undecodable
from cibr.utils import nearest, shipped

__all__ = [
    "DATASETS",
    "Dataset",
    "Pairs",
    "Source",
    "available_splits",
    "cards",
    "load_pairs",
    "resolve",
]

_READERS = {
    "images": (readers.load_images, readers.image_splits),
    "shards": (readers.load_shards, readers.shard_splits),
    "hub": (readers.load_hub, readers.hub_splits),
}


class Dataset(NamedTuple):
    """A data set made by code: `load` takes one of its `splits` and returns its pairs."""

    load: Callable[[str], Pairs]
    splits: Sequence[str]


def _load_glyphs(split: str) -> Pairs:
    from cibr.data.glyphs import (
        load_glyphs,  # matplotlib, whose fonts it draws, takes a second to import
    )

    return load_glyphs(split)


_GLYPH_SPLITS = ("train", "validation", "test", "validation_characters", "test_characters")
# Data sets made by code, by name; add your own with `DATASETS[name] = Dataset(load, splits)`.
DATASETS: dict[str, Dataset] = {"glyphs": Dataset(_load_glyphs, _GLYPH_SPLITS)}


def load_pairs(name: str | Path, split: str = "train", *, max_skipped: int = 0) -> Pairs:
    """Loads one split of a data set.

    Args:
        name: a name of `DATASETS` or with a card; a folder of images with metadata, of shards or of Parquet files;
            or a hub id, ``owner/name``.
        split: ``train``, ``validation`` (or ``val``, ``dev``) or ``test``.
        max_skipped: the number of unusable samples that may be left out, for which every image is decoded once;
            with 0 the first unusable sample raises.

    Returns:
        The pairs of the split.

    Raises:
        ValueError: if the name or the split is unknown, or the data are unusable.
        FileNotFoundError: if a part of the data set is missing.
        ConnectionError: if the data set cannot be fetched from the hub.
    """
    source, split = resolve(name), readers.split_of(split)
    skips = Skips(source.name, max_skipped)
    known = _known_splits(source)
    if known and split not in known:
        raise ValueError(f"{name} has no split {split!r}: it has {', '.join(known)}")
    if source.kind == "code":
        return DATASETS[source.name].load(split)
    load, _ = _READERS[source.kind]
    return without_undecodable(load(source.place, split, skips), skips)


def available_splits(name: str | Path) -> list[str]:
    """Returns the splits that `load_pairs` offers for a name.

    Raises:
        ValueError: as `resolve`, or if a folder's metadata are malformed.
        FileNotFoundError: if a folder has no metadata.
        ConnectionError: if the name is a hub id and cannot be fetched.
    """
    source = resolve(name)
    return list(_known_splits(source) or _READERS[source.kind][1](source.place))


@dataclass(frozen=True)
class Source:
    """The resolved location of a data set.

    Args:
        name: the data set's name in messages and tables.
        kind: ``code``, a set of `DATASETS`; ``images``, a folder of images with metadata; ``shards``; or ``hub``,
            read by the library `datasets`.
        place: the folder or the hub id; empty for ``code``.
        card: its card; empty for a folder, whatever its name.
    """

    name: str
    kind: str
    place: str = ""
    card: dict[str, Any] = field(default_factory=dict, compare=False)


def resolve(name: str | Path) -> Source:
    """Resolves a data set's name to its location, without reading or fetching data.

    Raises:
        ValueError: if the name is unknown; the message has the nearest known name and the ways to give data.
    """
    name = str(name)
    card = cards().get(name, {})
    if name in DATASETS:
        return Source(name, "code", card=card)
    given = Path(name).expanduser()
    folder = given if name and given.is_dir() else _in_cibr_data().get(name)
    if folder:
        return Source(folder.resolve().name.removeprefix("wds_"), _kind(folder), str(folder))
    if card:
        return Source(name, "shards", card["hub"], card)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        title = name.partition("/")[2]
        return Source(
            title.removeprefix("wds_"), "shards" if title.startswith("wds_") else "hub", name
        )
    known = list(dict.fromkeys([*DATASETS, *cards(), *_in_cibr_data()]))
    near = f"{nearest(name, known) or '.'} Known: {', '.join(known)}"
    others = "a folder of images with metadata.csv, a folder of shards, a hub id (owner/name)"
    place = f"set CIBR_DATA to a folder that holds wds_{Path(name).name}"
    raise ValueError(f"there is no data set {name!r}{near}. Or give {others}, or {place}")


def _known_splits(source: Source) -> Sequence[str]:
    """The splits of a set made by code or with a card; empty where the data have to be asked."""
    return DATASETS[source.name].splits if source.kind == "code" else source.card.get("splits", ())


def _kind(folder: Path) -> str:
    if (folder / "dataset_type.txt").is_file() or any(folder.glob("*/nshards.txt")):
        return "shards"
    described = readers.metadata_files(folder)
    return "hub" if not described and any(folder.rglob("*.parquet")) else "images"


@cache
def cards() -> dict[str, dict[str, Any]]:
    """Returns the data set cards of ``datasets.yaml`` by name."""
    return yaml.safe_load(shipped("datasets.yaml").read_text(encoding="utf-8"))


def _in_cibr_data() -> dict[str, Path]:
    """The folders ``wds_<name>`` in ``CIBR_DATA``, by name; none if it is not set."""
    value = os.environ.get("CIBR_DATA")
    if not value:
        return {}
    place = Path(value).expanduser()
    if not place.is_dir():
        raise ValueError(f"CIBR_DATA is {value!r}, which is not a folder: correct it or unset it")
    return {
        folder.name.removeprefix("wds_"): folder
        for folder in sorted(place.glob("wds_*"))
        if folder.is_dir()
    }
