"""Readers of image folders and WebDataset shards and, through `datasets`, of tables and the hub.

`folder_loaders`, `table_loaders` and `shard_loaders` map each split of a data set to a function
that loads its pairs. All of these end in `_usable_pairs`, which opens the header of every image,
leaves out samples that cannot be used and reports all of them at once. data/README.md has the
formats. ``metadata.csv`` bypasses pandas, which takes the caption "NA" for a missing value.

Shards have the layout of ``clip-benchmark/wds_*`` on the hub: ``<split>/nshards.txt`` contains the
number of shards, ``<split>/0.tar``, ``1.tar``, ... the samples: members that share a name up to its
first dot, an image with ``.txt`` (one caption per line) or ``.cls`` (an index into the lines of
``classnames.txt``, beside which ``zeroshot_classification_templates.txt`` has prompts with ``{c}``
for the class). They are read in place: an image by its offset, when it is used.
"""

import csv
import io
import os
import re
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from cibr.data.pairs import IMAGE_SUFFIXES, Pairs, image_fault
from cibr.utils import digest

_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
# Columns in the order of preference, without case, spaces, underscores and hyphens.
_FILES = ("filename", "file", "image", "imagename", "imagefile", "imagepath", "path")
_TEXTS = ("text", "caption", "captions", "texts")
_FOUND = (*IMAGE_SUFFIXES, ".avif", ".heic", ".heif")  # the last are not read but reported

Loaders = dict[str, Callable[[], Pairs]]  # what loads each split


class _Sample(NamedTuple):
    """An image, a file or what reads one, with its texts, and why they cannot be used, or ""."""

    key: str
    file: Path | Callable[[], bytes]
    texts: Sequence[str]
    group: str = ""
    label: int | None = None
    fault: str = ""


def split_of(name: str) -> str:
    """Returns the canonical name of a split, such as ``validation`` for ``val``; others stay."""
    return _SPLITS.get(name.lower(), name)


def folder_loaders(name: str, folder: Path) -> Loaders:
    """What loads each split of a folder, by what it contains."""
    if any(folder.glob("*/nshards.txt")):
        return shard_loaders(name, str(folder))
    patterns = ("metadata.[ct]sv", "[!.]*/metadata.[ct]sv")
    if metadata := [file for pattern in patterns for file in sorted(folder.glob(pattern))]:
        return _image_loaders(name, folder, metadata)
    if any(folder.rglob("metadata.jsonl")) or any(folder.rglob("*.parquet")):
        return table_loaders(name, str(folder))
    return {"test": partial(_load_classes, name, folder)}


def _usable_pairs(
    name: str, split: str, samples: Iterable[_Sample], folder: Path | None = None, **about: Any
) -> Pairs:
    """The pairs of the samples that can be used; image files must lie in the folder, if given."""
    usable: list[_Sample] = []
    faults: dict[str, list[str]] = {}
    for sample in tqdm(samples, desc=f"{name}: opening images", delay=1):
        if fault := sample.fault or _fault(sample, folder):
            faults.setdefault(fault, []).append(sample.key[:80])
        else:
            usable.append(sample)
    _report(f"{split} of {name}", faults, len(usable))
    captions = [list(dict.fromkeys(sample.texts)) for sample in usable]
    load = partial(_load, [sample.file for sample in usable])
    pairs = Pairs(name, split, captions, [sample.key for sample in usable], load, **about)
    if any(sample.group for sample in usable):  # numbers that stay when images are added
        numbers = [int(digest(sample.group or sample.key)[:15], 16) for sample in usable]
        pairs.groups = torch.tensor(numbers)
    labels = [sample.label for sample in usable]
    if None not in labels:
        pairs.labels = torch.tensor(labels)
    return pairs


def _fault(sample: _Sample, folder: Path | None) -> str:
    if not sample.texts:
        return "no text"
    file = _load([sample.file], 0)
    if folder and isinstance(file, Path) and not file.resolve().is_relative_to(folder.resolve()):
        return "outside the folder, by name or by link"
    return image_fault(file)


def _report(where: str, faults: Mapping[str, list[str]], n_usable: int) -> None:
    """Warns of samples that cannot be used, or raises if they are a tenth or more."""
    reasons = [f"{len(keys):,} {fault} ({', '.join(keys[:3])})" for fault, keys in faults.items()]
    n_faulty = sum(map(len, faults.values()))
    n_samples = n_faulty + n_usable
    found = f"{where}: {n_faulty:,} of {n_samples:,} samples cannot be used: {'; '.join(reasons)}"
    if not n_samples:
        raise ValueError(f"{where} is empty: add an image with a text")
    if 10 * n_faulty >= n_samples:
        raise ValueError(f"{found}. Mend or remove them; only fewer than a tenth are left out")
    if n_faulty:
        warnings.warn(f"{found}. They are left out", stacklevel=6)


def _load(files: Sequence[Path | Callable[[], bytes]], i: int) -> bytes | Path:
    file = files[i]
    return file if isinstance(file, Path) else file()


def _texts(value: Any) -> list[str]:
    """The stripped texts of a field, a text or a list of texts."""
    values = value if isinstance(value, list) else [value]
    return [text for each in values if each is not None and (text := str(each).strip())]


def _columns(where: str, names: Sequence[str]) -> tuple[str, str, str | None]:
    """The columns of image, text and group, the last None if there is none."""
    found = {re.sub(r"[\s_-]", "", name).lower(): name for name in names}
    image = next((found[name] for name in _FILES if name in found), None)
    text = next((found[name] for name in _TEXTS if name in found), None)
    if image is None or text is None:
        raise ValueError(f"{where} has {', '.join(names)}: it needs file_name (or image) and text")
    return image, text, found.get("group")


def _merged(samples: Iterable[_Sample]) -> list[_Sample]:
    """Samples with the same key as one, which has all their texts."""
    merged: dict[str, _Sample] = {}
    for sample in samples:
        first = merged.setdefault(sample.key, sample._replace(texts=[]))
        first.texts.extend(sample.texts)
    return list(merged.values())


# Image folders


def _image_loaders(name: str, folder: Path, metadata: list[Path]) -> Loaders:
    """Splits are subfolders with metadata, or the first folders in the file names of one metadata
    file; the rest is ``train``.
    """
    parts: dict[str, list[_Sample]] = {}
    for file in metadata:
        for sample in _merged(_csv_samples(file)):
            first = sample.key.partition("/")[0].lower()
            own = _SPLITS.get(first, "train") if file.parent == folder else file.parent.name
            parts.setdefault(split_of(own), []).append(sample)
    parts = parts or {"train": []}
    return {split: partial(_usable_pairs, name, split, parts[split], folder) for split in parts}


def _csv_samples(file: Path) -> Iterator[_Sample]:
    """A sample per row; commas, semicolons or tabs separate fields."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: save it as UTF-8, in Excel 'CSV UTF-8'") from error
    separator = max(",;\t", key=text.partition("\n")[0].count)
    form = dict(delimiter=separator, skipinitialspace=True, strict=True)
    table = csv.DictReader(io.StringIO(text, ""), **form)
    columns = _columns(str(file), table.fieldnames or [])
    try:
        rows = list(table)
    except csv.Error as error:  # a quote without its end, which would swallow the rows that follow
        what = f"{file}: a quote near line {table.line_num + 1} is not closed properly ({error})"
        raise ValueError(f"{what}: close it, or double a quote that is part of a text") from error
    for number, row in enumerate(rows, 2):
        image, texts, group = (_texts(row.get(column)) for column in columns)
        key = PureWindowsPath(*image).as_posix()  # with slashes
        fault = ""
        if any(_texts(row.get(None))):
            key = f"row {number}"
            fault = f"rows with too many fields, quote texts with {separator!r}"
        if image or texts:
            yield _Sample(key, file.parent / key, texts, "".join(group), fault=fault)


def _load_classes(name: str, folder: Path) -> Pairs:
    """Pairs of the images in a class's subfolder with its name, for zero-shot classification."""
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(folder, is_valid_file=lambda file: Path(file).suffix.lower() in _FOUND)
    except FileNotFoundError as error:
        what = f"{folder} has no metadata.csv with the columns file_name and text: write one"
        raise FileNotFoundError(f"{what}, or make a folder of images for each class") from error
    titles = [each.replace("_", " ") for each in found.classes]
    samples = []
    for file, label in found.samples:
        key = Path(file).relative_to(folder).as_posix()
        samples.append(_Sample(key, Path(file), [titles[label]], label=label))
    return _usable_pairs(name, "test", samples, folder, classnames=titles)


# Tables, through `datasets`


def table_loaders(name: str, place: str) -> Loaders:
    """What loads each split of a folder or of an image-text data set on the hub."""
    import datasets

    folder = Path(place) if os.path.isdir(place) else None  # which files of a table must lie in

    def load(split: str) -> Pairs:
        table = datasets.load_dataset(place, split=split)
        return _table_pairs(name, split_of(split), table, folder)

    splits = datasets.get_dataset_split_names(place)
    return {split_of(split): partial(load, split) for split in splits}


def _table_pairs(name: str, split: str, table: Any, folder: Path | None) -> Pairs:
    import datasets

    image, text, group = _columns(name, table.column_names)
    files = table.select_columns(image).cast_column(image, datasets.Image(decode=False))
    texts = table[text]
    groups = table[group] if group else [None] * len(table)

    samples = []
    for i, cell in enumerate(files):
        key, file = f"row {i}", partial(_image_bytes, files, image, i)
        if not cell[image]["bytes"]:  # of metadata.jsonl
            file = Path(cell[image]["path"])
            key = os.path.relpath(file, folder)
        samples.append(_Sample(key, file, _texts(texts[i]), "".join(_texts(groups[i]))))
    return _usable_pairs(name, split, _merged(samples), folder)


def _image_bytes(files: Any, column: str, i: int) -> bytes:
    """The image in row i of a `datasets.Dataset` with undecoded images."""
    return files[i][column]["bytes"]


# WebDataset shards


def shard_loaders(name: str, place: str) -> Loaders:
    """What loads each split of a set of shards in a folder or on the hub; subfolders are splits."""
    counts = sorted(_shard_folder(place, "*.txt").glob("[!.]*/nshards.txt"))
    splits = [file.parent.name for file in counts]
    return {split_of(split): partial(_load_shards, name, place, split) for split in splits}


def _shard_folder(place: str, *patterns: str) -> Path:
    """The folder of a set of shards; if it is on the hub, the files of the patterns are fetched."""
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(place, repo_type="dataset", allow_patterns=list(patterns)))


def _load_shards(name: str, place: str, split: str) -> Pairs:
    """Pairs of a split, with labels, class names and templates if it has classes."""
    folder = _shard_folder(place, "*.txt", f"{split}/*")
    found: dict[tuple[int, str], dict[str, Any]] = {}  # image, txt and cls of samples
    for i in range(int((folder / split / "nshards.txt").read_text())):
        for key, kind, content in _members(folder / split / f"{i}.tar"):
            found.setdefault((i, key), {})[kind] = content
    names = _lines(folder / "classnames.txt")
    templates = _lines(folder / "zeroshot_classification_templates.txt")
    samples = []
    for (_, key), parts in found.items():
        label = int(parts["cls"]) if "cls" in parts else None
        texts = parts.get("txt", "").split("\n") if label is None else names[label]
        fault = "" if "image" in parts else "samples without an image"
        samples.append(_Sample(key, parts.get("image"), _texts(texts), "", label, fault))
    about = dict(classnames=names or None, templates=templates or None)
    return _usable_pairs(name, split_of(split), samples, **about)


def _members(shard: Path) -> Iterator[tuple[str, str, Any]]:
    """Key, kind and content of the members of an uncompressed tar file; of images, their reader."""
    with tarfile.open(shard, "r:") as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            name = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", member.name)
            suffix = name[2].lower() if name else ""
            if suffix in ("txt", "cls"):
                text = tar.extractfile(member).read().decode("utf-8-sig")
                yield name[1], suffix, text.strip()
            elif f".{suffix}" in _FOUND:
                yield name[1], "image", partial(_part, shard, member.offset_data, member.size)


def _part(file: Path, offset: int, size: int) -> bytes:
    with file.open("rb") as content:
        content.seek(offset)
        return content.read(size)


def _lines(file: Path) -> list[str]:
    """The stripped lines of a text file, without empty ones; none if there is no file."""
    return _texts(file.read_text("utf-8-sig").split("\n")) if file.exists() else []
