"""Data sets by name: rendered glyphs, local folders and data sets of the hub.

`load_pairs` turns a name and a split into `Pairs`. A name resolves in this order: a set of
`DATASETS`, such as ``glyphs``; an existing folder; ``$CIBR_DATA/wds_<name>``; a data set with a
card in ``datasets.yaml``; a hub id, ``owner/name``.
"""

import os
import re
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tqdm import tqdm

from cibr.data._readers import READERS, folder_kind, split_of
from cibr.data.pairs import Features, Pairs
from cibr.utils import nearest, shipped

__all__ = [
    "DATASETS",
    "Dataset",
    "Features",
    "Pairs",
    "Source",
    "available_splits",
    "load_pairs",
    "resolve",
]


class Dataset(NamedTuple):
    """A data set made by code: `load` takes one of its `splits` and returns its pairs."""

    load: Callable[[str], Pairs]
    splits: Sequence[str]


def _load_glyphs(split: str) -> Pairs:
    from cibr.data.glyphs import load_glyphs  # late: matplotlib takes a second to import

    return load_glyphs(split)


_GLYPH_SPLITS = ("train", "validation", "test", "validation_characters", "test_characters")
# Data sets made by code, by name; add your own with `DATASETS[name] = Dataset(load, splits)`.
DATASETS: dict[str, Dataset] = {"glyphs": Dataset(_load_glyphs, _GLYPH_SPLITS)}


def load_pairs(name: str | Path, split: str = "train", *, max_skipped: int = 0) -> Pairs:
    """Loads one split of a data set.

    Args:
        name: a name of `DATASETS` or with a card; a folder of images with metadata, of shards or of
            Parquet files; or a hub id, ``owner/name``.
        split: ``train``, ``validation`` (or ``val``, ``dev``) or ``test``; `glyphs` has two more.
        max_skipped: maximum number of unusable samples to skip with a warning; every image is then
            decoded once. With 0 the first unusable sample raises.

    Returns:
        The pairs of the split. Without a validation split, a flat folder of images is split by a
        hash; for other data, `cibr.load_splits` holds out training pairs.

    Raises:
        ValueError: if the name or the split is unknown, or the data are unusable.
        FileNotFoundError: if a part of the data set is missing.
        ConnectionError: if the data set cannot be fetched from the hub.
    """
    source = resolve(name)
    split = split_of(split)
    loaders = _loaders(source)
    if split not in loaders:
        raise ValueError(f"{name} has no split {split!r}: it has {', '.join(loaders) or 'none'}")
    skipped = []

    def skip(error: Exception) -> None:
        skipped.append(error)
        if len(skipped) > max_skipped:
            raise error

    pairs = loaders[split](source.name, skip)
    if max_skipped > 0:
        pairs = pairs.subset(_decodable(pairs, skip))
    if not len(pairs):
        raise ValueError(f"{split} of {source.name} is empty: add an image with a text")
    if skipped:
        what = f"{split} of {source.name}: {len(skipped):,} unusable samples are left out"
        warnings.warn(f"{what}; the first: {skipped[0]}", stacklevel=2)
    return pairs


def available_splits(name: str | Path) -> list[str]:
    """Returns the splits that `load_pairs` offers for a name.

    Raises:
        ValueError: as `resolve`, or if a folder's metadata are malformed.
        FileNotFoundError: if a folder has no metadata.
        ConnectionError: if the name is a hub id and cannot be fetched.
    """
    return list(_loaders(resolve(name)))


def _loaders(source: "Source") -> dict[str, Callable[..., Pairs]]:
    """What loads each split of a data set; see `READERS`."""
    if source.kind == "code":
        load, splits = DATASETS[source.name]
        return {split: lambda *_, split=split: load(split) for split in splits}
    return READERS[source.kind](source.place, *source.card.get("splits", []))


def _decodable(pairs: Pairs, skip: Callable[[Exception], None]) -> list[int]:
    """The images that decode; the others are skipped."""
    good = []
    for i in tqdm(range(len(pairs)), desc=f"{pairs.name}: checking images", delay=1):
        try:
            pairs.image(i)
            good.append(i)
        except (ValueError, FileNotFoundError) as error:
            skip(error)
    return good


class Source(NamedTuple):
    """The resolved location of a data set.

    Args:
        name: the data set's name in messages and tables.
        kind: ``code``, a set of `DATASETS`; ``images``, a folder of images with metadata;
            ``shards``; or ``hub``, read by the library `datasets`.
        card: its card; empty for a folder, whatever its name.
        place: the folder or the hub id; empty for ``code``.
    """

    name: str
    kind: str
    card: dict[str, Any]
    place: str = ""


def resolve(name: str | Path) -> Source:
    """Resolves a data set's name to its location, without reading or fetching data.

    Raises:
        ValueError: if the name is unknown; the message has the nearest known name and the ways to
            give data.
    """
    name = str(name)
    card = _cards().get(name, {})
    if name in DATASETS:
        return Source(name, "code", card)
    given = os.path.expanduser(name)
    folder = given if os.path.isdir(given) else _in_cibr_data().get(name)
    if folder:
        title = Path(folder).resolve().name.removeprefix("wds_")
        return Source(title, folder_kind(Path(folder)), {}, str(folder))
    if card:
        return Source(name, "shards", card, card["hub"])
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        repository = name.partition("/")[2]
        kind = "shards" if repository.startswith("wds_") else "hub"
        return Source(repository.removeprefix("wds_"), kind, {}, name)
    known = dict.fromkeys([*DATASETS, *_cards(), *_in_cibr_data()])
    near = f"{nearest(name, known) or '.'} Known: {', '.join(known)}"
    ways = "give a folder with metadata.csv or shards, a hub id (owner/name), or set CIBR_DATA"
    raise ValueError(f"there is no data set {name!r}{near}. Or {ways}")


@cache
def _cards() -> dict[str, dict[str, Any]]:
    """The data set cards of ``datasets.yaml`` by name."""
    return yaml.safe_load(shipped("datasets.yaml").read_text(encoding="utf-8"))


def _in_cibr_data() -> dict[str, Path]:
    """The folders ``wds_<name>`` in ``CIBR_DATA``, by name; none if it is not set."""
    root = Path(os.environ.get("CIBR_DATA") or os.devnull).expanduser()
    folders = [folder for folder in sorted(root.glob("wds_*")) if folder.is_dir()]
    return {folder.name.removeprefix("wds_"): folder for folder in folders}
