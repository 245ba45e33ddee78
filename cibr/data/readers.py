"""Readers of image-text data: image folders, hub data sets through `datasets`, and WebDataset
shards.

data/README.md has the formats of image folders and of hub data sets. Metadata are not read by
`datasets`, which turns the text "NA" into a missing value and "2013" into a number, and reports no
line.

Shards: the layout of ``clip-benchmark/wds_*`` on the hub. ``<split>/nshards.txt`` contains the
number of shards, ``<split>/0.tar``, ``1.tar``, ... the samples: members that share a name up to its
first dot, an image with ``.txt`` (one caption per line) or ``.cls`` (an index into the lines of
``classnames.txt``, beside which ``zeroshot_classification_templates.txt`` has prompts with ``{c}``
for the class). Tar files are indexed once, and an image is then read by its offset.

The folder of a split may have any of the names in `SPLIT_NAMES`: ``val`` is ``validation``.
"""

import csv
import hashlib
import json
import re
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cibr.data.pairs import Pairs, Skips, clean_texts, open_rgb

SPLIT_NAMES = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev")}
SPLIT_NAMES |= {"test": ("test", "testing")}
METADATA = ("metadata.jsonl", "metadata.csv")
TEXT_COLUMNS = ("text", "caption", "captions", "texts")
VALIDATION_SHARE = 10  # one image in ten
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
SAMPLE_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
CLASSNAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
N_SHARDS = "[!.]*/nshards.txt"
NOT_GIVEN = (
    "{source} is neither a folder here nor a data set that the hub gives ({error}): check the name and the "
    "network, or give a folder that holds its files; CIBR_DATA may hold those of a known name as wds_NAME"
)


def split_of(name: str) -> str:
    """Returns the canonical name of a split: ``validation`` for ``val``; unknown names are
    unchanged.
    """
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), name)


def by_split(files: Iterable[Path]) -> dict[str, Path]:
    """Returns files by the split that their folder is named after.

    Raises:
        ValueError: if two files are of the same split.
    """
    found: dict[str, Path] = {}
    for file in sorted(files):
        other = found.setdefault(split_of(file.parent.name), file)
        if other != file:
            raise ValueError(
                f"{other} and {file} are both the split {split_of(file.parent.name)!r}: keep one"
            )
    return found


@dataclass
class _Item:
    """Texts and group of an image, and the number of its first row."""

    row: int = 0
    texts: list[str] = field(default_factory=list)
    group: str = ""

    def add(self, texts: Any, group: Any, place: str) -> int:
        """Adds a row's texts and group, and returns the number of repeated texts.

        Raises:
            ValueError: if a text is not a string, or the image has another group.
        """
        values = texts if isinstance(texts, list) else [] if texts is None else [texts]
        if not all(isinstance(text, str) for text in values):
            raise ValueError(f"{place} has the text {texts!r}: it is a string or a list of strings")
        group = "" if group is None else str(group).strip()
        if self.group and group and group != self.group:
            raise ValueError(
                f"{place} has the group {group!r}, an earlier row {self.group!r}: an image has one"
            )
        self.group = self.group or group
        values = self.texts + clean_texts(values)
        self.texts = list(dict.fromkeys(values))
        return len(values) - len(self.texts)


Items = dict[str, _Item]


def _pairs(items: Items, split: str, skips: Skips, load: Callable[[list[str]], Callable]) -> Pairs:
    """Pairs of the items with a text; `load` takes their keys and returns the image loader."""
    for key, item in items.items():
        if not item.texts:
            skips.add(ValueError(f"{key} of {skips.name} has no text: write one or drop the row"))
    items = {key: item for key, item in items.items() if item.texts}
    numbers: dict[tuple[str, str], int] = {}
    groups = [numbers.setdefault(_thing(key, item), len(numbers)) for key, item in items.items()]
    grouped = any(item.group for item in items.values())
    captions, keys = [item.texts for item in items.values()], list(items)
    return Pairs(
        skips.name,
        split,
        captions,
        keys,
        load(keys),
        groups=torch.tensor(groups) if grouped else None,
    )


def _thing(key: str, item: _Item) -> tuple[str, str]:
    """The item that an image shows: its group, else the image itself."""
    return ("group", item.group) if item.group else ("image", key)


# Image folders


def load_images(folder: str, split: str, skips: Skips) -> Pairs:
    """Reads one split of a folder of images with metadata, in the order of the metadata.

    Args:
        folder: the folder.
        split: ``train``, ``validation``, ``test`` or the name of a subfolder with metadata. Without
            subfolders for the splits, a tenth of the images is ``validation``, chosen by a hash of
            each ``file_name`` (or its group), so that later additions move no image, and the rest
            is ``train``.
        skips: the data set's name, and the policy for unusable samples.

    Raises:
        FileNotFoundError: if the metadata or an image is missing.
        ValueError: if the split does not exist, the metadata are malformed or a sample is unusable.
    """
    advice = f"add a subfolder {split} with its own metadata"
    metadata, items = _split_given(image_splits(folder), split, folder, advice)
    items = _read_metadata(metadata) if items is None else items
    for key in list(items):
        file = metadata.parent / key
        if not file.is_file():
            how = (
                f"is a link to {file.readlink()}, which is missing"
                if file.is_symlink()
                else "is missing"
            )
            skips.add(FileNotFoundError(f"{file} {how}, but {metadata} names it"))
            del items[key]
    return _pairs(items, split, skips, lambda keys: partial(_folder_image, metadata.parent, keys))


def _folder_image(folder: Path, file_names: list[str], i: int) -> Image.Image:
    return open_rgb(folder / file_names[i])


def metadata_files(folder: Path) -> list[Path]:
    """Returns the metadata files in a folder and its subfolders."""
    return [
        file for name in METADATA for where in ("", "[!.]*/") for file in folder.glob(where + name)
    ]


def image_splits(place: str) -> dict[str, tuple[Path, Items | None]]:
    """Returns the metadata file and the rows of each split; rows are None, not read yet, if each
    split has a file.

    Raises:
        FileNotFoundError, ValueError: as `load_images`, for metadata that are missing or malformed.
    """
    folder = Path(place)
    files = metadata_files(folder)
    own = [file for file in files if file.parent == folder]
    if not files:
        fix = "write one, with the columns file_name and text"
        raise FileNotFoundError(f"{folder} has no {' or '.join(METADATA)}: {fix}")
    if not own:
        return {split: (file, None) for split, file in by_split(files).items()}
    if len(files) > 1:
        names = " and ".join(str(file.relative_to(folder)) for file in files[:2])
        raise ValueError(
            f"{folder} has {names}: keep one file of metadata, or one in each split's subfolder"
        )
    items = _read_metadata(own[0])
    split = _splits_of_names(items, own[0])
    names = [name for name in SPLIT_NAMES if name in split.values()]
    return {
        name: (own[0], {key: item for key, item in items.items() if split[key] == name})
        for name in names
    }


def _split_given(splits: dict[str, Any], split: str, place: str, advice: str) -> Any:
    if split not in splits:
        raise ValueError(
            f"{place} has no split {split!r}: it has {', '.join(splits) or 'none'}; {advice}"
        )
    return splits[split]


def _splits_of_names(items: Items, file: Path) -> dict[str, str]:
    """Returns the split of each name: its first folder if that is a split, else by a hash of its
    item.
    """
    first = {name: split_of(name.partition("/")[0]) for name in items}
    outside = [name for name in items if first[name] not in SPLIT_NAMES]
    if len(outside) == len(items):
        things = {name: _thing(name, item)[1] for name, item in items.items()}
        by_hash = hash_split(things.values())
        return {name: by_hash[thing] for name, thing in things.items()}
    if outside:
        others = f"in subfolders {', '.join(SPLIT_NAMES)} and others outside, such as {outside[0]}"
        raise ValueError(f"{file} names images {others}: put all into subfolders, or none")
    return first


def hash_split(names: Iterable[str]) -> dict[str, str]:
    """Assigns each name to ``validation``, one in ten, or ``train``, by its SHA-256 hash.

    If that leaves a split empty, in a very small set, the nearest name is moved; a single name is
    ``train``.

    Examples:
        >>> hash_split(["a.jpg", "b.jpg", "c.jpg"])
        {'a.jpg': 'validation', 'b.jpg': 'train', 'c.jpg': 'train'}
    """
    score = {name: int(hashlib.sha256(name.encode()).hexdigest(), 16) for name in names}
    chosen = {name for name in score if score[name] < 2**256 // VALIDATION_SHARE} or {
        min(score, key=score.get)
    }
    if len(chosen) == len(score):
        chosen.remove(max(score, key=score.get))
    return {name: "validation" if name in chosen else "train" for name in score}


def _read_metadata(file: Path) -> Items:
    """Reads the texts and group of each image, in the order of the file; rows of one image are
    merged.
    """
    items: Items = {}
    n_repeated = 0
    try:
        for line, row in _rows(file):
            place = f"{file}, line {line},"
            if not isinstance(row, dict):
                raise ValueError(f"{place} is not a JSON object: write one object a line")
            if None in row:
                raise ValueError(
                    f"{place} has more fields than columns: quote texts that hold a comma"
                )
            column = next((column for column in TEXT_COLUMNS if column in row), None)
            if "file_name" not in row or column is None:
                there = ", ".join(map(str, row)) or "none"
                raise ValueError(
                    f"{place} needs the columns file_name and text or caption; there are: {there}"
                )
            name = _file_name(row["file_name"], place, file.parent)
            n_repeated += items.setdefault(name, _Item()).add(row[column], row.get("group"), place)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{file} cannot be read ({error}): save it as UTF-8, with every quote closed"
        ) from error
    if not items:
        raise ValueError(f"{file} has no rows: write one for each image")
    if n_repeated:
        warnings.warn(
            f"{file} repeats {n_repeated} texts of the same image: each is used once", stacklevel=2
        )
    return items


def _file_name(value: Any, place: str, folder: Path) -> str:
    """Returns a validated file name relative to the folder, with forward slashes."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place} has no file_name: name the image, relative to {folder}")
    path = PureWindowsPath(value)
    if path.anchor or ".." in path.parts:
        raise ValueError(
            f"{place} has the file_name {value!r}, which is not within {folder}: move the file there"
        )
    return path.as_posix()


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and rows of a metadata file; None for a line that is not JSON."""
    with open(file, encoding="utf-8-sig", newline="") as lines:
        if file.suffix == ".csv":
            reader = csv.DictReader(lines, skipinitialspace=True, strict=True)
            yield from ((reader.line_num, row) for row in reader)
        else:
            yield from (
                (number, _json(line)) for number, line in enumerate(lines, start=1) if line.strip()
            )


def _json(line: str) -> Any:
    with suppress(
        ValueError, RecursionError
    ):  # ValueError also for numbers with thousands of digits
        return json.loads(line)


# Hub data sets and local Parquet files, through `datasets`


def load_hub(source: str, split: str, skips: Skips) -> Pairs:
    """Reads one split of an image-text data set through `datasets`; images are decoded on demand.

    Rows with the same image file are merged; rows with embedded images are separate images.

    Args:
        source: the hub id of a data set, ``owner/name``, or a local folder of Parquet files.
        split: the split's name.
        skips: the data set's name, and the policy for unusable samples.

    Raises:
        ConnectionError: if the data set cannot be fetched from the hub.
        ValueError: if the split does not exist, a column is missing, or a sample is unusable.
    """
    import datasets
    import pyarrow.compute

    loaded = _asked(source, (datasets.exceptions.DatasetNotFoundError,), datasets.load_dataset)
    splits = {split_of(str(name)): data for name, data in loaded.items()}
    data = _split_given(splits, split, source, "name another split")
    column = next((column for column in TEXT_COLUMNS if column in data.column_names), None)
    if column is None or not isinstance(data.features.get("image"), datasets.Image):
        needed = f"a column image of images and one of {', '.join(TEXT_COLUMNS)}"
        raise ValueError(f"{source} needs {needed}; there are {dict(data.features)}")
    files = data.select_columns("image").cast_column("image", datasets.Image(decode=False))
    paths = pyarrow.compute.struct_field(files.data["image"], "path").to_pylist()
    groups = data["group"] if "group" in data.column_names else [None] * len(data)
    items: Items = {}
    for row, (path, texts, group) in enumerate(zip(paths, data[column], groups, strict=True)):
        key = path if path and Path(path).is_absolute() else f"row {row}"
        items.setdefault(key, _Item(row)).add(texts, group, f"row {row} of {source}")
    return _pairs(
        items,
        split,
        skips,
        lambda keys: partial(_hub_image, files, [items[key].row for key in keys]),
    )


def _hub_image(files: Any, rows: list[int], i: int) -> Image.Image:
    """Loads image i from its row of a `datasets.Dataset` with undecoded images."""
    image = files[rows[i]]["image"] or {"bytes": b"", "path": None}
    return open_rgb(image["bytes"] or image["path"] or b"", f"the image of row {rows[i]}")


def hub_splits(source: str) -> list[str]:
    """Returns the splits of a data set that `datasets` loads, without fetching images.

    Raises:
        ConnectionError: if the data set cannot be fetched from the hub.
    """
    import datasets

    names = _asked(
        source, (datasets.exceptions.DatasetNotFoundError,), datasets.get_dataset_split_names
    )
    return [split_of(name) for name in names]


def _asked(source: str, offline: tuple[type[Exception], ...], ask: Callable, **options: Any) -> Any:
    """The result of `ask(source)`; errors name the source, those of `offline` as a
    `ConnectionError`.
    """
    try:
        return ask(source, **options)
    except (ConnectionError, *offline) as error:
        raise ConnectionError(NOT_GIVEN.format(source=source, error=error)) from error
    except Exception as error:  # the builders of `datasets` raise nearly anything
        cause = error.__cause__ or error
        raise ValueError(
            f"{source} cannot be read as a data set ({type(cause).__name__}: {cause})"
        ) from error


# WebDataset shards


def load_shards(source: str, split: str, skips: Skips) -> Pairs:
    """Reads one split of a data set of WebDataset shards.

    Args:
        source: a local folder, or the hub id of a data set, ``owner/name``.
        split: the split's name.
        skips: the data set's name, and the policy for unusable samples.

    Returns:
        The pairs; with labels, class names and prompt templates if the samples have ``.cls``.

    Raises:
        FileNotFoundError: if a shard or another file is missing.
        ValueError: if the split does not exist, a file violates the layout, or a sample is
        unusable.
        ConnectionError: if the files cannot be fetched from the hub.
    """
    root = _shard_root(
        source, ["*.txt", *(f"{name}/*" for name in SPLIT_NAMES.get(split, (split,)))]
    )
    advice = f"add {split}/nshards.txt with its shards"
    numbered = _split_given(by_split(root.glob(N_SHARDS)), split, source, advice)
    shards = [numbered.parent / f"{number}.tar" for number in range(_n_shards(numbered))]
    bar = tqdm(shards, desc=f"{skips.name} {split}: shards", unit="shard", delay=1)
    samples = [
        (n, key, parts) for n, shard in enumerate(bar) for key, parts in _index(shard).items()
    ]
    classnames = _classnames(root) if any("cls" in parts for _, _, parts in samples) else None
    keys, captions, labels, places = [], [], [], []
    for number, key, parts in samples:
        if problem := _problem(parts, classnames):
            skips.add(ValueError(f"sample {key!r} of {shards[number]} has {problem}"))
            continue
        keys.append(key)
        places.append((number, *parts["image"]))
        labels.append(int(parts.get("cls", 0)))
        captions.append(clean_texts(parts.get("txt", "").split("\n")) or [classnames[labels[-1]]])
    about: dict[str, Any] = {}
    if classnames:
        about = {"labels": torch.tensor(labels, dtype=torch.long), "classnames": classnames}
    if classnames and (root / TEMPLATES).is_file():
        about["templates"] = clean_texts(
            (root / TEMPLATES).read_text(encoding="utf-8-sig").split("\n")
        )
    load = partial(_shard_image, shards, keys, np.array(places, dtype=np.int64).reshape(-1, 3))
    return Pairs(skips.name, split, captions, keys, load, **about)


def _shard_image(shards: list[Path], keys: list[str], places: np.ndarray, i: int) -> Image.Image:
    """Loads image i from its shard; the columns of `places` [n, 3] are shard number, offset and
    size in bytes.
    """
    number, offset, size = places[i].tolist()
    with open(shards[number], "rb") as file:
        file.seek(offset)
        data = file.read(size)
    return open_rgb(data, f"the image of sample {keys[i]!r} of {shards[number]}")


def shard_splits(source: str) -> list[str]:
    """Returns the splits of a data set of WebDataset shards, without fetching a shard.

    Raises:
        ConnectionError: if the data set cannot be fetched from the hub.
    """
    return list(by_split(_shard_root(source, ["*.txt"]).glob(N_SHARDS)))


def _shard_root(source: str, patterns: list[str]) -> Path:
    """The local folder of a data set; if it is on the hub, after fetching the files that match the
    patterns.
    """
    if Path(source).is_dir():
        return Path(source)
    import huggingface_hub

    # The hub client raises its own errors, and those of its HTTP library and of the system.
    options = dict(repo_type="dataset", allow_patterns=patterns)
    return Path(_asked(source, (Exception,), huggingface_hub.snapshot_download, **options))


def _n_shards(file: Path) -> int:
    text = file.read_text(encoding="utf-8", errors="replace").strip()
    if not text.isdecimal() or len(text) > 9 or int(text) == 0:
        raise ValueError(
            f"{file} says {text[:40]!r}: it holds the number of the split's shards, 1 or more"
        )
    return int(text)


def _classnames(root: Path) -> list[str]:
    text = (root / CLASSNAMES).read_text(encoding="utf-8-sig")
    names = [name.strip() for name in text.strip().split("\n")]
    # Not an error: ImageNet's usual list has "missile" twice and "sunglasses" twice.
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        several = f"several classes the name {', '.join(map(repr, repeated))}"
        warnings.warn(
            f"{root / CLASSNAMES} gives {several}: no text tells them apart", stacklevel=3
        )
    return names


def _index(shard: Path) -> dict[str, dict[str, Any]]:
    """Lists the samples of an uncompressed tar file: ``image`` (offset, size), ``txt`` and ``cls``
    by key.

    Raises:
        ValueError: if it is not a whole tar file, two members have the same name, or a text is not
            UTF-8.
    """
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                named = SAMPLE_NAME.fullmatch(member.name)
                suffix = named[2].lower() if named and member.isfile() else ""
                part = "image" if suffix in IMAGE_SUFFIXES else suffix
                if part not in ("image", "txt", "cls"):
                    continue
                parts, where = samples.setdefault(named[1], {}), f"sample {named[1]!r} of {shard}"
                if part in parts:
                    raise ValueError(f"{where} has two of {part}: give each a name of its own")
                place = member.offset_data, member.size
                parts[part] = (
                    place if part == "image" else tar.extractfile(member).read().decode("utf-8-sig")
                )
            # tarfile takes a damaged or missing header for the end of the file; a complete file
            # ends in zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(
                    f"{shard} is cut short or damaged at byte {tar.offset:,}: fetch it again"
                )
    except UnicodeDecodeError as error:
        raise ValueError(f"a text of {where} is not UTF-8 ({error}): write it again") from error
    except tarfile.TarError as error:
        raise ValueError(
            f"{shard} is cut short or is no tar file ({error}): fetch it again"
        ) from error
    return samples


def _problem(parts: dict[str, Any], classnames: list[str] | None) -> str:
    """The reason why a sample is unusable, with the fix; empty if it is usable."""
    if "image" not in parts:
        return f"a text but no image: add one of {', '.join(f'.{suffix}' for suffix in IMAGE_SUFFIXES)}"
    if "cls" not in parts and not parts.get("txt", "").strip():
        return "an image but no text: add a .txt with one caption a line, or a .cls"
    label = parts.get("cls", "").strip()
    if classnames and not (label.isdecimal() and len(label) < 10 and int(label) < len(classnames)):
        place = f"an index into the {len(classnames)} lines of {CLASSNAMES}, counted from 0"
        return f"the label {label[:40]!r}: a .cls holds {place}"
    return ""
