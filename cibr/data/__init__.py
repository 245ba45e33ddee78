"""Data sets by name: glyphs made on the spot, local folders, and the sets of the hub.

`load_pairs` turns a name and a split into `Pairs`. A name resolves in this order: ``glyphs`` and
the zero-shot sets that are drawn here too; an existing folder, of shards or of images with
metadata; ``$CIBR_DATA/wds_<name>``; the hub, for the sets that have a card in ``data/datasets.yaml``.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from cibr.data.folder import folder_splits, load_folder
from cibr.data.pairs import Pairs
from cibr.data.shards import load_shards
from cibr.names import nearest
from cibr.paths import cards_file

__all__ = [
    "Pairs",
    "Source",
    "available_splits",
    "cards",
    "check_dataset",
    "known_datasets",
    "load_pairs",
    "resolve",
]


def load_pairs(
    name: str | Path,
    split: str = "train",
    *,
    on_error: str = "raise",
    max_skipped: int = 0,
    cache_dir: str | Path | None = None,
) -> Pairs:
    """Loads one split of a data set.

    Args:
        name: a known name (see `known_datasets`), or a folder of shards or of images with metadata.
        split: ``train``, ``validation`` or ``test``.
        on_error: ``raise`` at the first unusable sample, or ``skip`` and count such samples; then
            every image is decoded once, at load.
        max_skipped: with ``skip``, how many samples may be left out.
        cache_dir: where files from the hub are kept; by default in the hub's own cache.

    Returns:
        The pairs of the split.

    Raises:
        ValueError: if the name or the split is not known, or the data are not usable.
        FileNotFoundError: if a part of the data set is missing.
        ConnectionError: if the hub does not give a file.
    """
    source = resolve(name)
    if source.kind == "glyphs":
        from cibr.data.glyph_sets import load_glyph_set
        from cibr.data.glyphs import load_glyphs

        return load_glyphs(split) if source.name == "glyphs" else load_glyph_set(source.name, split)
    options = {"name": source.name, "on_error": on_error, "max_skipped": max_skipped}
    if source.kind == "images":
        return load_folder(source.place, split, **options)
    if source.kind == "hub" and split not in (there := cards()[source.name]["splits"]):
        raise ValueError(f"{name} has no split {split!r} on the hub: it has {', '.join(there)}")
    return load_shards(source.place, split, cache_dir=cache_dir, **options)


def available_splits(name: str | Path) -> list[str]:
    """Returns the splits that `load_pairs` offers for a name.

    Raises:
        ValueError: as `resolve`.
    """
    source = resolve(name)
    if source.kind == "images":
        return folder_splits(source.place)
    if source.kind == "shards":
        return sorted(file.parent.name for file in Path(source.place).glob("*/nshards.txt"))
    return cards()[source.name]["splits"]


@dataclass(frozen=True)
class Source:
    """Where a name leads.

    Args:
        name: the data set's name, in messages and tables.
        kind: ``glyphs``, what is drawn here; ``shards`` or ``images`` in a local folder; or shards
            on the ``hub``.
        place: the folder or the hub id; empty for what is drawn here.
    """

    name: str
    kind: str
    place: str = ""


def resolve(name: str | Path) -> Source:
    """Finds where a data set's name leads; nothing is read or fetched.

    Raises:
        ValueError: if it leads nowhere, with the nearest known name and the ways to give data.
    """
    name = str(name)
    card = cards().get(name)
    if card and card["hub"] is None:
        return Source(name, "glyphs")
    for folder in _folders(name):
        if folder.is_dir():
            shards = (folder / "dataset_type.txt").is_file() or any(folder.glob("*/nshards.txt"))
            title = folder.resolve().name.removeprefix("wds_")
            return Source(title, "shards" if shards else "images", str(folder))
    if card:
        return Source(name, "hub", card["hub"])
    known = known_datasets()
    raise ValueError(
        f"there is no data set {name!r}{nearest(name, known) or '.'} Known: {', '.join(known)}. "
        "Or give a folder of images with metadata.csv, a folder of shards, or set CIBR_DATA to a "
        f"folder that holds wds_{Path(name).name}"
    )


def check_dataset(name: str | Path) -> None:
    """Checks, before a long run, that a name leads somewhere; nothing is read or fetched.

    Raises:
        ValueError: as `resolve`.
    """
    resolve(name)


def known_datasets() -> list[str]:
    """Returns the names that have a card, then those of the other sets in ``CIBR_DATA``."""
    local = _cibr_data().glob("wds_*") if _cibr_data() else []
    names = sorted(folder.name.removeprefix("wds_") for folder in local if folder.is_dir())
    return [*cards(), *(name for name in names if name not in cards())]


def cards() -> dict[str, dict[str, Any]]:
    """Returns the data sets' cards by name, as ``data/datasets.yaml`` has them."""
    return _parsed(cards_file().read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _parsed(text: str) -> dict[str, dict[str, Any]]:
    return yaml.safe_load(text)


def _folders(name: str) -> list[Path]:
    """Returns the local folders that a name may mean, first choice first."""
    given = [Path(name).expanduser()] if name else []
    return given + ([_cibr_data() / f"wds_{name}"] if _cibr_data() else [])


def _cibr_data() -> Path | None:
    """Returns the folder that ``CIBR_DATA`` names, if it is set."""
    value = os.environ.get("CIBR_DATA")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise ValueError(f"CIBR_DATA is {value!r}, which is not a folder: correct it or unset it")
    return folder
