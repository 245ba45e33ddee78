"""Readers of image folders, WebDataset shards, and hub data sets through `datasets`.

A reader takes a place, a folder or a hub id, and returns for each split a function that loads its
pairs. That function takes the data set's name and what is called with the error of each unusable
sample, to raise it or to count the sample as left out. data/README.md has the formats of image
folders and hub data sets. Metadata are not read by `datasets`, which turns the text "NA" into a
missing value and "2013" into a number, nor by pandas, which cuts a row of too many fields.

Shards: the layout of ``clip-benchmark/wds_*`` on the hub. ``<split>/nshards.txt`` contains the
number of shards, ``<split>/0.tar``, ``1.tar``, ... the samples: members that share a name up to its
first dot, an image with ``.txt`` (one caption per line) or ``.cls`` (an index into the lines of
``classnames.txt``, beside which ``zeroshot_classification_templates.txt`` has prompts with ``{c}``
for the class). Tar files are indexed once, and an image is then read by its offset.
"""

import csv
import json
import os
import re
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cibr.data.pairs import IMAGE_SUFFIXES, Pairs, open_rgb
from cibr.utils import digest

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_TEXT_COLUMNS = ("text", "caption", "captions", "texts")
_VALIDATION_SHARE = 10  # one image in ten
# The key, up to the first dot, and the suffix of the files in a shard that are read.
_SUFFIXES = "|".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
_SAMPLE_FILE = re.compile(rf"((?:.*/)?[^./]+)\.(txt|cls|{_SUFFIXES})", re.IGNORECASE)

_Skip = Callable[[Exception], None]
_Loaders = dict[str, Callable[[str, _Skip], Pairs]]  # what loads each split
# The texts of each image, and the group of each image that has one, by the image's key.
_Rows = tuple[dict[str, list[str]], dict[str, str]]


def split_of(name: str) -> str:
    """Returns the canonical name of a split, such as ``validation`` for ``val``; others stay."""
    return next((split for split, names in _SPLIT_NAMES.items() if name.lower() in names), name)


def folder_kind(folder: Path) -> str:
    """Returns the kind of data in a folder, a key of `READERS`."""
    if (folder / "dataset_type.txt").is_file() or any(folder.glob("*/nshards.txt")):
        return "shards"
    return "hub" if not _metadata_files(folder) and any(folder.rglob("*.parquet")) else "images"


def _by_split(files: Iterable[Path]) -> dict[str, Path]:
    """Files by the split that their folder is named after."""
    by_split: dict[str, Path] = {}
    for file in sorted(files):
        split = split_of(file.parent.name)
        other = by_split.setdefault(split, file)
        if other != file:
            raise ValueError(f"{other} and {file} are both the split {split!r}: keep one")
    return by_split


def _merged(rows: Iterable[tuple[str, str, Any, Any]]) -> _Rows:
    """Captions and groups from rows of (where it is, key, texts, group); an image may have several
    rows.
    """
    captions: dict[str, list[str]] = {}
    groups: dict[str, str] = {}
    for where, key, texts, group in rows:
        texts = [texts] if isinstance(texts, str) else texts or []
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where} has the text {texts!r}: write a string or a list of strings")
        captions.setdefault(key, []).extend(_stripped(texts))
        group = "" if group is None else str(group).strip()
        if group and groups.setdefault(key, group) != group:
            raise ValueError(f"{where} has group {group!r}, but earlier {groups[key]!r}: keep one")
    return captions, groups


def _stripped(texts: Iterable[str]) -> list[str]:
    return [text for text in map(str.strip, texts) if text]


def _pairs(name: str, split: str, rows: _Rows, load: Callable, skip: _Skip) -> Pairs:
    """Pairs of the images with a text, each text of an image once; `load` takes the keys and an
    index.
    """
    captions, groups = rows
    for key, texts in captions.items():
        if not texts:
            skip(ValueError(f"{key} of {name} has no text: write one or drop the row"))
    unique = {key: list(dict.fromkeys(texts)) for key, texts in captions.items() if texts}
    keys = list(unique)
    pairs = Pairs(name, split, list(unique.values()), keys, partial(load, keys))
    if any(key in groups for key in keys):
        numbers: dict[Any, int] = {}  # of groups and, as (key,), of images without one
        shown = [groups.get(key, (key,)) for key in keys]
        pairs.groups = torch.tensor([numbers.setdefault(item, len(numbers)) for item in shown])
    return pairs


# Image folders


def _read_images(place: str) -> _Loaders:
    """Splits are subfolders with metadata, or the first folder in the file names of one metadata
    file. With neither, a tenth of the images is ``validation``, chosen by a hash of each
    ``file_name`` (or its group), so that later additions move no image, and the rest is ``train``.
    """
    folder = Path(place)
    files = _metadata_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder} has no metadata.jsonl or metadata.csv: write one")
    own = [file for file in files if file.parent == folder]
    if not own:
        by_split = _by_split(files)
        return {split: partial(_load_images, file, split, None) for split, file in by_split.items()}
    if len(files) > 1:
        names = " and ".join(str(file.relative_to(folder)) for file in files[:2])
        raise ValueError(f"{folder} has {names}: keep one, or one in each split's subfolder")
    captions, groups = _merged(_metadata_rows(own[0]))
    splits = _splits_of_names(captions, groups, own[0])
    loaders = {}
    for split in sorted(set(splits.values())):
        chosen = {name: texts for name, texts in captions.items() if splits[name] == split}
        loaders[split] = partial(_load_images, own[0], split, (chosen, groups))
    return loaders


def _metadata_files(folder: Path) -> list[Path]:
    """The metadata files in a folder and its subfolders."""
    patterns = [f"{place}metadata.{kind}" for kind in ("jsonl", "csv") for place in ("", "[!.]*/")]
    return [file for pattern in patterns for file in folder.glob(pattern)]


def _load_images(file: Path, split: str, rows: _Rows | None, name: str, skip: _Skip) -> Pairs:
    captions, groups = rows or _merged(_metadata_rows(file))
    for file_name in list(captions):
        image = file.parent / file_name
        if not os.path.isfile(image):  # False for impossible names, too
            skip(FileNotFoundError(f"{image} is missing, but {file} names it"))
            del captions[file_name]
    return _pairs(name, split, (captions, groups), partial(_folder_image, file.parent), skip)


def _folder_image(folder: Path, file_names: list[str], i: int) -> Image.Image:
    return open_rgb(folder / file_names[i])


def _splits_of_names(names: Iterable[str], groups: dict[str, str], file: Path) -> dict[str, str]:
    """The split of each file name: its first folder, or else by a hash of its group or itself."""
    splits = {name: split_of(name.partition("/")[0]) for name in names}
    outside = [name for name, split in splits.items() if split not in _SPLIT_NAMES]
    if len(outside) == len(splits):
        by_hash = _hash_split(groups.get(name, name) for name in splits)
        return {name: by_hash[groups.get(name, name)] for name in splits}
    if outside:
        what = f"{file} names images in folders of splits and others outside, such as {outside[0]}"
        raise ValueError(f"{what}: put all into such folders, or none")
    return splits


def _hash_split(names: Iterable[str]) -> dict[str, str]:
    """Assigns each name to ``validation``, one in ten, or ``train``, by its SHA-256 hash.

    In a very small set at least one name is ``validation`` and one ``train``; a single name is
    ``train``.
    """
    scores = {name: int(digest(name), 16) for name in names}
    n_chosen = sum(score < 2**256 // _VALIDATION_SHARE for score in scores.values())
    n_chosen = min(max(n_chosen, 1), len(scores) - 1)
    chosen = sorted(scores, key=scores.get)[:n_chosen]
    return dict.fromkeys(scores, "train") | dict.fromkeys(chosen, "validation")


def _metadata_rows(file: Path) -> Iterator[tuple[str, str, Any, Any]]:
    """Where it is, file name, texts and group of each row of a metadata file."""
    for line, row in _csv_rows(file) if file.suffix == ".csv" else _jsonl_rows(file):
        where = f"{file}, line {line},"
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not a JSON object: write one a line, no key twice")
        if None in row:  # where `csv` puts what is left over
            raise ValueError(f"{where} has too many fields: quote texts that hold a comma")
        column = next((column for column in _TEXT_COLUMNS if column in row), None)
        if "file_name" not in row or column is None:
            columns = ", ".join(row) or "none"
            raise ValueError(f"{where} needs the columns file_name and text, but has {columns}")
        yield where, _file_name(row["file_name"], where), row[column], row.get("group")


def _csv_rows(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, skipinitialspace=True, strict=True)
            columns = reader.fieldnames or []
            if len(set(columns)) < len(columns):
                raise ValueError(f"{file} repeats a column of {', '.join(columns)}: keep one")
            for row in reader:
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} is not UTF-8 or has an open quote: mend it ({error})") from error


def _jsonl_rows(file: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_utf8(file).split("\n"), start=1):
        try:
            if line.strip():
                yield number, json.loads(line, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError):  # ValueError also for numbers of thousands of digits
            yield number, None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is repeated")
    return dict(pairs)


def _utf8(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: save it so ({error})") from error


def _file_name(value: Any, where: str) -> str:
    """A file name within the metadata's folder, with forward slashes."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} has no file_name: give the image's path within the folder")
    path = PureWindowsPath(value)
    if path.anchor or ".." in path.parts:
        raise ValueError(f"{where} has the file_name {value!r}: move the image into the folder")
    return path.as_posix()


# Hub data sets and local Parquet files, through `datasets`


def _read_hub(place: str) -> _Loaders:
    import datasets

    names = _fetched(place, datasets.get_dataset_split_names)
    return {split_of(name): partial(_load_hub, place, name) for name in names}


def _load_hub(place: str, split: str, name: str, skip: _Skip) -> Pairs:
    """Rows with the same image file are merged; rows with embedded images are separate images."""
    import datasets
    import pyarrow.compute

    data = _fetched(place, datasets.load_dataset, split=split)
    column = next((column for column in _TEXT_COLUMNS if column in data.column_names), None)
    if column is None or not isinstance(data.features.get("image"), datasets.Image):
        needed = f"a column image of images and one of {', '.join(_TEXT_COLUMNS)}"
        raise ValueError(f"{place} needs {needed}; there are {dict(data.features)}")
    files = data.select_columns("image").cast_column("image", datasets.Image(decode=False))
    paths = pyarrow.compute.struct_field(files.data["image"], "path").to_pylist()
    groups = data["group"] if "group" in data.column_names else [None] * len(data)
    rows = []
    first: dict[str, int] = {}  # the first row of each image
    for row, (path, texts, group) in enumerate(zip(paths, data[column], groups, strict=True)):
        key = path if path and Path(path).is_absolute() else f"row {row}"
        first.setdefault(key, row)
        rows.append((f"row {row} of {place}", key, texts, group))
    return _pairs(name, split_of(split), _merged(rows), partial(_hub_image, files, first), skip)


def _hub_image(files: Any, rows: dict[str, int], keys: list[str], i: int) -> Image.Image:
    """Loads image i from its row of a `datasets.Dataset` with undecoded images."""
    row = rows[keys[i]]
    image = files[row]["image"] or {"bytes": b"", "path": None}
    return open_rgb(image["bytes"] or image["path"] or b"", f"the image of row {row}")


def _fetched(place: str, ask: Callable, **options: Any) -> Any:
    """The result of `ask(place)`, a function of `datasets` or of the hub's client."""
    try:
        return ask(place, **options)
    except OSError as error:  # all that the network and the hub raise
        what = f"{place} is no folder here and cannot be fetched from the hub ({error})"
        raise ConnectionError(f"{what}: check name and network, or set CIBR_DATA") from error
    except Exception as error:  # the builders of `datasets` raise nearly anything
        cause = error.__cause__ or error
        raise ValueError(f"{place} cannot be read ({cause!r}): check its files") from error


# WebDataset shards


def _read_shards(place: str, *folders: str) -> _Loaders:
    """Splits are subfolders; if they are given, nothing is fetched to find them."""
    if not folders:
        files = _shard_root(place, "*.txt").glob("[!.]*/nshards.txt")
        folders = [file.parent.name for file in _by_split(files).values()]
    return {split_of(folder): partial(_load_shards, place, folder) for folder in folders}


def _shard_root(place: str, *patterns: str) -> Path:
    """The folder of a set of shards; if it is on the hub, the files of the patterns are fetched."""
    if Path(place).is_dir():
        return Path(place)
    import huggingface_hub

    fetch = huggingface_hub.snapshot_download
    return Path(_fetched(place, fetch, repo_type="dataset", allow_patterns=list(patterns)))


def _load_shards(place: str, folder: str, name: str, skip: _Skip) -> Pairs:
    """Pairs of the split in a folder; with labels, class names and templates if it has ``.cls``."""
    root = _shard_root(place, "*.txt", f"{folder}/*")
    shards, samples = [], []
    for number in tqdm(range(_n_shards(root / folder)), desc=f"{name}: shards", delay=1):
        shards.append(root / folder / f"{number}.tar")
        samples += [(number, key, sample) for key, sample in _index(shards[-1]).items()]
    has_classes = any("cls" in sample for _, _, sample in samples)
    classnames = _classnames(root / "classnames.txt") if has_classes else None
    keys, captions, labels, images = [], [], [], []
    for number, key, sample in samples:
        if problem := _problem(sample, classnames):
            skip(ValueError(f"sample {key!r} of {shards[number]} has {problem}"))
            continue
        keys.append(key)
        images.append((number, *sample["image"]))
        labels.append(int(sample.get("cls", 0)))
        texts = _stripped(sample.get("txt", "").split("\n"))
        captions.append(texts or [classnames[labels[-1]]])
    load = partial(_shard_image, shards, keys, np.array(images, dtype=np.int64).reshape(-1, 3))
    pairs = Pairs(name, split_of(folder), captions, keys, load, classnames=classnames)
    templates = root / "zeroshot_classification_templates.txt"
    if has_classes:
        pairs.labels = torch.tensor(labels, dtype=torch.long)
    if has_classes and templates.is_file():
        pairs.templates = _stripped(_utf8(templates).split("\n"))
    return pairs


def _shard_image(shards: list[Path], keys: list[str], images: np.ndarray, i: int) -> Image.Image:
    """Loads image i from its shard; the columns of `images` [n, 3] are shard, offset and size in
    bytes.
    """
    shard, offset, size = images[i].tolist()
    with open(shards[shard], "rb") as file:
        file.seek(offset)
        return open_rgb(file.read(size), f"the image of sample {keys[i]!r} of {shards[shard]}")


def _n_shards(folder: Path) -> int:
    file = folder / "nshards.txt"
    text = _utf8(file).strip()
    if not text.isdecimal() or len(text) > 9 or int(text) == 0:
        raise ValueError(f"{file} says {text[:40]!r}: write the number of shards, 1 or more")
    return int(text)


def _classnames(file: Path) -> list[str]:
    names = [name.strip() for name in _utf8(file).strip().split("\n")]
    # Not an error: ImageNet's usual list has "missile" twice and "sunglasses" twice.
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        what = f"{file} gives several classes the same name, which no text can tell apart"
        warnings.warn(f"{what}: {', '.join(repeated)}", stacklevel=2)
    return names


def _index(shard: Path) -> dict[str, dict[str, Any]]:
    """The samples of an uncompressed tar file by key: `image` (offset, size), `txt` and `cls`."""
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                name = _SAMPLE_FILE.fullmatch(member.name)
                if not name or not member.isfile():
                    continue
                key, suffix = name[1], name[2].lower()
                is_text = suffix in ("txt", "cls")
                content = suffix if is_text else "image"
                sample = samples.setdefault(key, {})
                if content in sample:
                    raise ValueError(f"sample {key!r} of {shard} has two of {content}: keep one")
                sample[content] = (member.offset_data, member.size)
                if is_text:
                    sample[content] = tar.extractfile(member).read().decode("utf-8-sig")
            # tarfile takes a damaged or missing header for the end of the file; a complete file
            # ends in zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"neither a sample nor the end at byte {tar.offset:,}")
    except UnicodeDecodeError as error:
        raise ValueError(f"a text of sample {key!r} of {shard} is not UTF-8: save it so") from error
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is damaged or no tar file ({error}): fetch it again") from error
    return samples


def _problem(sample: dict[str, Any], classnames: list[str] | None) -> str:
    """The reason why a sample is unusable, with the fix; empty if it is usable."""
    if "image" not in sample:
        return f"a text but no image: add one of {', '.join(IMAGE_SUFFIXES)}"
    if "cls" not in sample and not sample.get("txt", "").strip():
        return "an image but no text: add a .txt with one caption a line, or a .cls"
    label = sample.get("cls", "").strip()
    if classnames and not (label.isdecimal() and len(label) < 10 and int(label) < len(classnames)):
        return f"the label {label[:40]!r}, but classnames.txt has lines 0 to {len(classnames) - 1}"
    return ""


# Readers by the kind of data.
READERS = {"images": _read_images, "shards": _read_shards, "hub": _read_hub}
