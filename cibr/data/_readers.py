"""Readers of image folders and WebDataset shards and, through `datasets`, of tables and the hub.

`folder_loaders`, `table_loaders`, `hub_loaders` and `shard_loaders` map each split of a data set to
a function that loads its pairs. All of these end in `_usable_pairs`, which opens the header of
every image, leaves out samples that cannot be used and reports all of them at once. data/README.md
has the formats. ``metadata.csv`` bypasses pandas, which takes the caption "NA" for a missing value.

Shards have the layout of ``clip-benchmark/wds_*`` on the hub: ``<split>/nshards.txt`` contains the
number of shards, ``<split>/0.tar``, ``1.tar``, ... the samples: members that share a name up to its
first dot, an image with ``.txt`` (one caption per line) or ``.cls`` (an index into the lines of
``classnames.txt``, beside which ``zeroshot_classification_templates.txt`` has prompts with ``{c}``
for the class). They are read in place: an image by its offset, when it is used.
"""

import csv
import io
import itertools
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
_File = Path | Callable[[], bytes | Path]


class _Sample(NamedTuple):
    """An image with its texts, and why they cannot be used, or ""."""

    key: str
    file: _File
    texts: Sequence[str]
    group: str = ""
    label: int | None = None
    fault: str = ""


def split_of(name: str) -> str:
    """Returns the canonical name of a split, such as ``validation`` for ``val``; others stay."""
    return _SPLITS.get(name.lower(), name)


def folder_loaders(name: str, folder: Path) -> Loaders:
    """What loads each split of a folder, by what it contains.

    Raises:
        ValueError: metadata that cannot be read, or a file that is none, such as a FIFO.
    """
    for file in folder.rglob("*.*"):
        is_special = file.exists() and not (file.is_file() or file.is_dir())
        if is_special and file.suffix.lower() not in _FOUND:
            raise ValueError(f"{file} is no regular file: replace it with one")
    if any(folder.glob("*/nshards.txt")):
        return shard_loaders(name, str(folder))
    patterns = ("metadata.[ct]sv", "[!.]*/metadata.[ct]sv")
    if metadata := [file for pattern in patterns for file in sorted(folder.glob(pattern))]:
        return _image_loaders(name, folder, metadata)
    if tables := _tables_in(folder):
        return table_loaders(name, tables, folder)
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
        owners = [s.group or own for s, own in zip(usable, pairs.image_digests(), strict=True)]
        pairs.groups = torch.tensor([int(digest(owner)[:15], 16) for owner in owners])
    if pairs.classnames:
        pairs.labels = torch.tensor([sample.label for sample in usable])
    return pairs


def _fault(sample: _Sample, folder: Path | None) -> str:
    if not sample.texts:
        return "no text"
    file = _load([sample.file], 0)
    is_path = isinstance(file, Path) and os.path.exists(file)
    if is_path and folder and not file.resolve().is_relative_to(folder.resolve()):
        return "outside the folder"
    return image_fault(file)


def _report(where: str, faults: Mapping[str, list[str]], n_usable: int) -> None:
    """Warns of samples that cannot be used, or raises if they are a tenth or more."""
    n_faulty = sum(map(len, faults.values()))
    n_samples = n_faulty + n_usable
    if not n_samples:
        raise ValueError(f"{where} is empty: add an image with a text")
    if not n_faulty:
        return
    reasons = []
    for fault, keys in sorted(faults.items(), key=lambda item: -len(item[1])):
        more = ", ..." if len(keys) > 3 else ""
        reasons.append(f"{len(keys):,} {fault} ({', '.join(keys[:3])}{more})")
    found = f"{where}: {n_faulty:,} of {n_samples:,} samples cannot be used: {'; '.join(reasons)}"
    if 10 * n_faulty >= n_samples:
        raise ValueError(f"{found}. Mend or remove them; only fewer than a tenth are left out")
    warnings.warn(f"{found}. They are left out", stacklevel=6)


def _load(files: Sequence[_File], i: int) -> bytes | Path:
    file = files[i]
    return file if isinstance(file, Path) else file()


def _texts(value: Any) -> list[str]:
    """The stripped texts of a field, a text or a list of texts."""
    values = value if isinstance(value, list) else [value]
    texts = [str(each).strip() for each in values if each is not None]
    return [text for text in texts if text]


def _columns(
    where: str, names: Sequence[str], images: Sequence[str] = ()
) -> tuple[str, str, str | None]:
    """The columns of image, text and group, the last None if there is none."""
    plain = [re.sub(r"[\s_-]", "", name).lower() for name in names]
    for name in filter(None, plain):
        if plain.count(name) > 1:
            raise ValueError(f"{where} has the column {name} twice: keep one")
    found = dict(zip(plain, names, strict=True))
    image = next((found[name] for name in _FILES if name in found), None)
    image = next(iter(images), image)
    text = next((found[name] for name in _TEXTS if name in found), None)
    if image is None or text is None:
        raise ValueError(
            f"{where} needs the columns file_name (or image) and text: it has {', '.join(names)}"
        )
    return image, text, found.get("group")


def _merged(samples: Iterable[_Sample]) -> list[_Sample]:
    """Samples with the same key as one, which has all their texts."""
    merged: dict[str, _Sample] = {}
    for sample in samples:
        before = merged.get(sample.key, sample._replace(texts=[]))
        groups = {before.group, sample.group} - {""}
        merged[sample.key] = before._replace(
            texts=[*before.texts, *sample.texts],
            group=max(groups, default=""),
            fault="in two groups" if len(groups) > 1 else before.fault,
        )
    return list(merged.values())


# Image folders


def _image_loaders(name: str, folder: Path, metadata: list[Path]) -> Loaders:
    """Splits are subfolders with metadata, or the first folders in the file names of one metadata
    file; the rest is ``train``.
    """
    places = [file.parent for file in metadata]
    if len(set(places)) < len(places) or (folder in places and len(places) > 1):
        names = ", ".join(str(file.relative_to(folder)) for file in metadata)
        raise ValueError(f"{folder} has {names}: keep one, or one in each split's subfolder")
    parts: dict[str, list[_Sample]] = {}
    for file in metadata:
        for sample in _merged(_csv_samples(file)):
            first = sample.key.partition("/")[0].lower()
            own = _SPLITS.get(first, "train") if file.parent == folder else file.parent.name
            parts.setdefault(split_of(own), []).append(sample)
    parts = parts or {"train": []}
    return {s: partial(_usable_pairs, name, s, parts[s], folder) for s in parts}


def _csv_samples(file: Path) -> Iterator[_Sample]:
    """A sample per row; commas, semicolons or tabs separate fields."""
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig").lstrip("\r\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file}, line {line}, is not UTF-8 text ({error}): "
            "save it as that, in Excel as 'CSV UTF-8'"
        ) from error
    separator = max(",;\t", key=text.partition("\n")[0].count)
    source = io.StringIO(text, newline="")
    rows = csv.DictReader(source, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        columns = _columns(str(file), rows.fieldnames or [])
        for row in rows:
            image, texts, group = (_texts(row.get(column)) for column in columns)
            if any(map(str.strip, row.get(None) or [])):
                fault = f"rows with too many fields, quote texts with {separator!r}"
                yield _Sample(f"line {rows.line_num}", file, texts, fault=fault)
            elif image:
                key = PureWindowsPath(image[0]).as_posix()  # with slashes
                yield _Sample(key, file.parent / key, texts, "".join(group))
            elif texts:
                yield _Sample(f"line {rows.line_num}", file, texts, fault="rows without a file")
    except csv.Error as error:
        raise ValueError(
            f"{file} cannot be read up to line {rows.reader.line_num} ({error}): "
            "look for a quote that is not closed"
        ) from error


def _load_classes(name: str, folder: Path) -> Pairs:
    """Pairs of the images in a class's subfolder with its name, for zero-shot classification."""
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(folder, is_valid_file=lambda file: Path(file).suffix.lower() in _FOUND)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} has no metadata.csv, no Parquet files and no shards, and is no folder of "
            f"classes ({error}): write a metadata.csv with the columns file_name and text"
        ) from error
    if set(map(split_of, found.classes)) <= set(_SPLITS.values()):
        raise FileNotFoundError(
            f"{folder} has splits without metadata.csv: write one for each, or give the folder of "
            "one split, with a subfolder of images per class"
        )
    titles = [each.replace("_", " ") for each in found.classes]
    samples = []
    for file, label in found.samples:
        key = Path(file).relative_to(folder).as_posix()
        samples.append(_Sample(key, Path(file), [titles[label]], label=label))
    about = dict(classnames=titles, templates=["a photo of a {c}."])
    return _usable_pairs(name, "test", samples, folder, **about)


# Tables, through `datasets`


def table_loaders(name: str, tables: Mapping[str, Any], folder: Path | None = None) -> Loaders:
    """What loads each split of tables, each a `datasets.Dataset`."""
    return {
        split_of(split): partial(_table_pairs, name, split_of(split), table, folder)
        for split, table in tables.items()
    }


def hub_loaders(name: str, repository: str) -> Loaders:
    """What loads each split of an image-text data set on the hub."""
    import datasets

    def load(split: str) -> Pairs:
        table = _fetched(repository, datasets.load_dataset, repository, split=split)
        return _table_pairs(name, split_of(split), table)

    splits = _fetched(repository, datasets.get_dataset_split_names, repository)
    return {split_of(split): partial(load, split) for split in splits}


def tables_of(data: Any) -> Mapping[str, Any]:
    """The `datasets.Dataset` of each split of a `datasets.DatasetDict`, or of one of them."""
    import datasets

    if isinstance(data, datasets.Dataset):
        return {str(data.split or "train"): data}
    if isinstance(data, datasets.DatasetDict):
        return data
    raise ValueError(
        f"{type(data).__name__} is no kind of data set: give a name, a folder, a hub id, or a "
        "Dataset or DatasetDict of the library datasets"
    )


def _tables_in(folder: Path) -> Mapping[str, Any]:
    """The tables of each split in a folder that `datasets` reads; none if there are none."""
    is_saved = any((folder / f"dataset_{name}.json").exists() for name in ("info", "dict"))
    has_rows = any(folder.rglob("metadata.jsonl"))
    if not is_saved and not has_rows and not any(folder.rglob("*.parquet")):
        return {}
    import datasets

    place = str(folder)
    if is_saved:
        return tables_of(_fetched(place, datasets.load_from_disk, place))
    if has_rows:
        return _fetched(place, datasets.load_dataset, "imagefolder", data_dir=place)
    return _fetched(place, datasets.load_dataset, place)


def _table_pairs(name: str, split: str, table: Any, folder: Path | None = None) -> Pairs:
    import datasets

    images = [c for c, kind in table.features.items() if isinstance(kind, datasets.Image)]
    image, text, group = _columns(name, table.column_names, images)
    try:
        files = table.select_columns(image).cast_column(image, datasets.Image(decode=False))
    except Exception as error:  # of Arrow
        raise ValueError(f"{name} needs a column of images: it has {table.features}") from error
    texts, groups = table[text], table[group] if group else itertools.repeat(None)

    def samples() -> Iterator[_Sample]:
        for i, (cell, own, owner) in enumerate(zip(files, texts, groups, strict=False)):
            key, file = f"row {i}", partial(_image_bytes, files, image, i)
            stored = cell[image] or {}
            if stored.get("path") and not stored.get("bytes"):
                file = Path(folder or "", stored["path"])
                key = os.path.relpath(file, folder) if folder else str(file)
            yield _Sample(key, file, _texts(own), "".join(_texts(owner)))

    return _usable_pairs(name, split, _merged(samples()), folder)


def _image_bytes(files: Any, column: str, i: int) -> bytes:
    """The image in row i of a `datasets.Dataset` with undecoded images."""
    return (files[i][column] or {}).get("bytes") or b""


def _fetched(place: str, ask: Callable, *arguments: Any, **options: Any) -> Any:
    """The result of a function of `datasets` or of the hub's client."""
    try:
        return ask(*arguments, **options)
    except OSError as error:  # all that the network and the hub raise
        if os.path.exists(place):
            raise ValueError(f"{place} cannot be read ({error})") from error
        raise ConnectionError(
            f"{place} is no folder here and cannot be fetched from the hub ({error}): "
            "check name and network, or set CIBR_DATA"
        ) from error
    except Exception as error:  # the builders of `datasets` raise nearly anything
        cause = error.__cause__ or error
        raise ValueError(f"{place} cannot be read ({cause!r}): check its files") from error


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
    import huggingface_hub

    options = dict(repo_type="dataset", allow_patterns=list(patterns))
    return Path(_fetched(place, huggingface_hub.snapshot_download, place, **options))


def _load_shards(name: str, place: str, split: str) -> Pairs:
    """Pairs of a split, with labels, class names and templates if it has classes."""
    folder = _shard_folder(place, "*.txt", f"{split}/*")
    count = _lines(folder / split / "nshards.txt")[0]
    if not count.isdigit():
        raise ValueError(f"{folder / split}/nshards.txt has {count!r}: write the number of shards")
    found: dict[tuple[int, str], dict[str, Any]] = {}  # image, txt and cls of samples
    for i in tqdm(range(int(count)), desc=f"{name}: shards", delay=1):
        for key, kind, content in _members(folder / split / f"{i}.tar"):
            found.setdefault((i, key), {})[kind] = content
    about: dict[str, Any] = {}
    if any("cls" in parts for parts in found.values()):
        templates = folder / "zeroshot_classification_templates.txt"
        about["classnames"] = _lines(folder / "classnames.txt")
        about["templates"] = _texts(_lines(templates)) if templates.exists() else None
    labels = {str(i): i for i in range(len(about.get("classnames", [])))}
    samples = []
    for (_, key), parts in found.items():
        label, fault = labels.get(parts.get("cls")), ""
        if "image" not in parts:
            fault = "samples without an image"
        elif labels and label is None:
            fault = "samples whose .cls is no number of a line in classnames.txt"
        texts = parts.get("txt", "").split("\n") if label is None else about["classnames"][label]
        samples.append(_Sample(key, parts.get("image", folder), _texts(texts), "", label, fault))
    return _usable_pairs(name, split_of(split), samples, **about)


def _members(shard: Path) -> Iterator[tuple[str, str, Any]]:
    """Key, kind and content of the members of an uncompressed tar file; of images, their reader."""
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in filter(tarfile.TarInfo.isfile, tar):
                name = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", member.name)
                suffix = name[2].lower() if name else ""
                if suffix in ("txt", "cls"):
                    text = tar.extractfile(member).read().decode("utf-8-sig")
                    yield name[1], suffix, text.strip()
                elif f".{suffix}" in _FOUND:
                    image = partial(_part, shard, member.offset_data, member.size)
                    yield name[1], "image", image
            # tarfile takes a damaged header for the end of the file; a whole file ends in zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"neither a sample nor the end at byte {tar.offset:,}")
    except (tarfile.TarError, UnicodeDecodeError) as error:
        raise ValueError(f"{shard} is damaged ({error}): fetch or write it again") from error


def _part(file: Path, offset: int, size: int) -> bytes:
    with file.open("rb") as content:
        content.seek(offset)
        return content.read(size)


def _lines(file: Path) -> list[str]:
    """The stripped lines of a text file."""
    return [line.strip() for line in file.read_text(encoding="utf-8-sig").strip().split("\n")]
