"""Data sets by name: rendered glyphs, photos as features, local folders and data sets of the hub.

`load_pairs` turns a name and a split into `Pairs`. A name resolves in this order: a set of
`DATASETS`, such as ``glyphs`` or ``photos``; an existing folder; ``$CIBR_DATA/wds_<name>``; a data
set with a card in ``datasets.yaml``; a hub id, ``owner/name``.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cibr.data._readers import folder_kind, loaders, split_of, table_pairs, tables_of
from cibr.data.pairs import Features, Pairs
from cibr.data.photos import SPLITS, load_photos
from cibr.utils import nearest, shipped

__all__ = ["DATASETS", "Dataset", "Features", "Pairs", "Source", "available_splits", "load_pairs"]
__all__ += ["load_parts", "resolve", "sizes"]


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
        name: a name of `DATASETS` or with a card; a folder of images with metadata, of shards, of
            Parquet files or written by `save_to_disk`; a hub id, ``owner/name``; or a
            `datasets.Dataset` or `datasets.DatasetDict`.
        split: ``train``, ``validation`` (or ``val``, ``dev``) or ``test``; `glyphs` has two more,
            `photos` has ``shown``. Without a validation split, it is a tenth of ``train`` by
            `Pairs.hold_out`, and ``train`` is the rest.

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
    given = _given(name)
    offered = _offered(given)
    parts: dict[str, Pairs] = {}
    for split in map(split_of, splits):
        if split not in offered:
            known = ", ".join(offered) or "none"
            raise ValueError(f"{name} has no split {split!r}: it has {known}")
        if split in parts:
            continue
        if split in given and (split != "train" or "validation" in given):
            parts[split] = given[split]()
        else:
            parts["train"] = given["train"]()
            try:
                parts["train"], parts["validation"] = parts["train"].hold_out()
            except ValueError:  # of one item, which then is the training split
                if split == "validation":
                    raise
    return [parts[split_of(split)] for split in splits]


def available_splits(name: str | Path | Any) -> list[str]:
    """Returns the splits that `load_pairs` offers for a name.

    Raises:
        ValueError: as `resolve`, or if a folder's metadata are malformed.
        ConnectionError: if the name is a hub id and cannot be fetched.
    """
    return _offered(_given(name))


def sizes(*parts: Pairs) -> str:
    """Returns how many images parts of a data set have, for commands to print."""
    counts = {part.split: f"{len(part):,} images for {part.split}" for part in parts}
    return f"{parts[0].name}: {', '.join(counts.values())}"


def _given(name: str | Path | Any) -> dict[str, Callable[[], Pairs]]:
    """What loads each split that a data set has."""
    if not isinstance(name, str | Path):
        tables = tables_of(name)
        titles = {n: tables[n].info.dataset_name or "dataset" for n in tables}
        return {
            split_of(n): partial(table_pairs, titles[n], split_of(n), tables[n]) for n in tables
        }
    source = resolve(name)
    if source.kind in ("code", "features"):
        known = DATASETS[source.name]
        return {split: partial(known.load, split) for split in known.splits}
    given = loaders(source.place, source.kind, source.card.get("splits", []))
    return {split: partial(load, source.name) for split, load in given.items()}


def _offered(given: Iterable[str]) -> list[str]:
    """The splits of a data set, with one for validation if there is one for training."""
    made = ["validation"] if "train" in given and "validation" not in given else []
    return [*given, *made]


class Source(NamedTuple):
    """The resolved location of a data set.

    Args:
        name: the data set's name in messages and tables.
        kind: ``code`` or ``features``, a set of `DATASETS`; ``images``, a folder of images;
            ``shards``; or ``datasets``, read by that library.
        card: its card; empty for a folder, whatever its name.
        place: the folder or the hub id; empty for a set of `DATASETS`.
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
    given = os.path.expanduser(name)
    if name in DATASETS:
        if os.path.isdir(given):
            what = f"{name} is taken as the data set of this name, not as the folder"
            warnings.warn(f"{what}: write ./{name} for the folder", stacklevel=2)
        return Source(name, DATASETS[name].kind, card)
    folder = given if os.path.isdir(given) else _in_cibr_data().get(name)
    if folder:
        title = Path(folder).resolve().name.removeprefix("wds_")
        return Source(title, folder_kind(Path(folder)), {}, str(folder))
    if card:
        return Source(name, "shards", card, card["hub"])
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        repository = name.partition("/")[2]
        kind = "shards" if repository.startswith("wds_") else "datasets"
        return Source(repository.removeprefix("wds_"), kind, {}, name)
    if os.path.isfile(given):
        raise ValueError(f"{name} is a file: give the folder that it is in")
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
