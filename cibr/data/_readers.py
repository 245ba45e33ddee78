"""Readers of image folders, WebDataset shards, and hub data sets through `datasets`.

A reader takes a place, a folder or a hub id, and returns for each split a function that loads its
pairs. That function takes the data set's name and a callback for the error of each unusable sample,
which raises it or counts the sample as skipped. data/README.md has the formats of image folders and
hub data sets. Metadata bypass `datasets`, which turns the text "NA" into a missing value and "2013"
into a number, and pandas, which truncates rows with too many fields.

Shards: the layout of ``clip-benchmark/wds_*`` on the hub. ``<split>/nshards.txt`` contains the
number of shards, ``<split>/0.tar``, ``1.tar``, ... the samples: members that share a name up to its
first dot, an image with ``.txt`` (one caption per line) or ``.cls`` (an index into the lines of
``classnames.txt``, beside which ``zeroshot_classification_templates.txt`` has prompts with ``{c}``
for the class). Tar files are indexed once, and an image is then read by its offset.
"""

import csv
import fileinput
import json
import os
import re
import tarfile
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cibr.data.pairs import IMAGE_SUFFIXES, Pairs, open_rgb
from cibr.utils import digest

_SPLITS = dict.fromkeys(("train", "training"), "train")
_SPLITS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_SPLITS |= dict.fromkeys(("test", "testing"), "test")
_TEXT_COLUMNS = ("text", "caption", "captions", "texts")
_VALIDATION_SHARE = 10  # one image in ten
# The key, up to the first dot, and the suffix of the files in a shard that are read.
_SUFFIXES = "|".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
_SAMPLE_FILE = re.compile(rf"((?:.*/)?[^./]+)\.(txt|cls|{_SUFFIXES})", re.IGNORECASE)

_Skip = Callable[[Exception], None]
_Loaders = dict[str, Callable[[str, _Skip], Pairs]]  # what loads each split
_Rows = dict[str, tuple[list[str], str]]  # texts of each image, and its group or "", by its key


def split_of(name: str) -> str:
    """Returns the canonical name of a split, such as ``validation`` for ``val``; others stay."""
    return _SPLITS.get(name.lower(), name)


def folder_kind(folder: Path) -> str:
    """Returns the kind of data in a folder, a key of `READERS`."""
    if (folder / "dataset_type.txt").is_file() or any(folder.glob("*/nshards.txt")):
        return "shards"
    return "hub" if not _metadata_files(folder) and any(folder.rglob("*.parquet")) else "images"


def _texts(value: Any) -> list[str]:
    """The stripped texts of a field, a string or a list of strings."""
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"the text {value!r} is no string or list of strings: write one")
    return [text for text in map(str.strip, texts) if text]


def _group(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _pairs(
    name: str, split: str, rows: _Rows, load: Callable, read: Callable, skip: _Skip
) -> Pairs:
    """Pairs of the images with a text, each text of an image once; `load` and `read` take the keys
    and an index.
    """
    for key, (texts, _) in rows.items():
        if not texts:
            skip(ValueError(f"{key} of {name} has no text: write one or drop the row"))
    rows = {key: row for key, row in rows.items() if row[0]}
    captions = [list(dict.fromkeys(texts)) for texts, _ in rows.values()]
    keys = list(rows)
    pairs = Pairs(name, split, captions, keys, partial(load, keys), read=partial(read, keys))
    if any(group for _, group in rows.values()):
        groups = [group or (key,) for key, (_, group) in rows.items()]
        numbers = {item: number for number, item in enumerate(dict.fromkeys(groups))}
        pairs.groups = torch.tensor([numbers[item] for item in groups])
    return pairs


# Image folders


def _read_images(place: str) -> _Loaders:
    """Splits are subfolders with metadata, or the first folder in the file names of one metadata
    file. With neither, a hash of each ``file_name`` (or its group) assigns a tenth of the images to
    ``validation`` and the rest to ``train``; unless none fell into the tenth, later additions move
    no image. Without metadata, subfolders are classes, and there is only ``test``.
    """
    folder = Path(place)
    files = _metadata_files(folder)
    if not files:
        return {"test": partial(_load_classes, folder, _classes(folder))}
    by_split = {split_of(file.parent.name): file for file in files}
    is_whole = any(file.parent == folder for file in files)
    if len(files) > (1 if is_whole else len(by_split)):
        names = ", ".join(str(file.relative_to(folder)) for file in files)
        raise ValueError(f"{folder} has {names}: keep one, or one in each split's subfolder")
    if not is_whole:
        return {split: partial(_load_images, file, split) for split, file in by_split.items()}
    rows = _metadata(files[0])
    if not rows:
        raise ValueError(f"{files[0]} has no rows: add images with their texts")
    splits = _splits_of(files[0], rows)
    loaders = {}
    for split in sorted(set(splits.values())):
        chosen = {name: row for name, row in rows.items() if splits[name] == split}
        loaders[split] = partial(_load_images, files[0], split, rows=chosen)
    return loaders


def _metadata_files(folder: Path) -> list[Path]:
    """The metadata files in a folder and its subfolders."""
    patterns = [f"{place}metadata.{kind}" for kind in ("jsonl", "csv") for place in ("", "[!.]*/")]
    return [f for pattern in patterns for f in sorted(folder.glob(pattern)) if f.is_file()]


def _load_images(
    file: Path, split: str, name: str, skip: _Skip, rows: _Rows | None = None
) -> Pairs:
    found = {}
    for file_name, row in (rows or _metadata(file)).items():
        image = file.parent / file_name
        if os.path.isfile(image):  # False for impossible names, too
            found[file_name] = row
        else:
            skip(FileNotFoundError(f"{image} is missing, but {file} names it"))
    of_folder = (partial(of, file.parent) for of in (_folder_image, _folder_file))
    return _pairs(name, split, found, *of_folder, skip)


def _classes(folder: Path) -> dict[str, list[str]]:
    """The images, by file name, in each subfolder that has some."""
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob("[!.]*/[!.]*")):
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
            found.setdefault(file.parent.name, []).append(file.relative_to(folder).as_posix())
    if len(found) < 2 or {split_of(name) for name in found} <= {*_SPLITS.values()}:
        fix = "write one, or put the images of each class into a subfolder, to classify them"
        fix += "; shards need <split>/nshards.txt"
        raise FileNotFoundError(f"{folder} has no metadata.jsonl or metadata.csv: {fix}")
    return found


def _load_classes(folder: Path, classes: dict[str, list[str]], name: str, skip: _Skip) -> Pairs:
    """Pairs of images with the name of their class, for zero-shot classification."""
    labels = [i for i, files in enumerate(classes.values()) for _ in files]
    names = [of_class.replace("_", " ") for of_class in classes]
    files = [file for files in classes.values() for file in files]
    captions = [[names[i]] for i in labels]
    load, read = (partial(of, folder, files) for of in (_folder_image, _folder_file))
    known = dict(labels=torch.tensor(labels), classnames=names, templates=["a photo of a {c}."])
    return Pairs(name, "test", captions, files, load, read=read, **known)


def _folder_file(folder: Path, file_names: list[str], i: int) -> Path:
    return folder / file_names[i]


def _folder_image(folder: Path, file_names: list[str], i: int) -> Image.Image:
    return open_rgb(_folder_file(folder, file_names, i))


def _splits_of(file: Path, rows: _Rows) -> dict[str, str]:
    """The split of each image: its first folder, or by a hash of its group or name."""
    splits = {name: split_of(name.partition("/")[0]) for name in rows}
    outside = [name for name, split in splits.items() if split not in _SPLITS.values()]
    if outside and len(outside) < len(splits):
        what = f"{file} names images in folders of splits and others outside, such as {outside[0]}"
        raise ValueError(f"{what}: put all into such folders, or none")
    if not outside:
        return splits
    items = {name: group or name for name, (_, group) in rows.items()}
    scores = sorted((int(digest(item), 16), item) for item in set(items.values()))
    n_chosen = sum(score < 2**256 // _VALIDATION_SHARE for score, _ in scores)
    n_chosen = min(max(n_chosen, 1), len(scores) - 1)  # of two images, one for each split
    chosen = {item for _, item in scores[:n_chosen]}
    return {name: "validation" if items[name] in chosen else "train" for name in rows}


def _metadata(file: Path) -> _Rows:
    """The rows of a metadata file by image, which may have several."""
    with fileinput.FileInput(file, encoding="utf-8-sig") as lines:
        try:
            read = partial(json.loads, object_pairs_hook=_once)
            rows: Any = map(read, filter(str.strip, lines))
            if file.suffix == ".csv":
                rows = csv.DictReader(lines, skipinitialspace=True, strict=True)
                _once((name, "") for name in rows.fieldnames or [])
            merged = _merged(map(_row, rows))
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text ({error}): save it as that") from error
        except (ValueError, TypeError, RecursionError, csv.Error) as error:
            raise ValueError(f"{file}, line {lines.lineno()}: mend it ({error})") from error
    _warn_of_unnamed(file, merged)
    return merged


def _once(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a row by name."""
    row: dict[str, Any] = {}
    for name, value in fields:
        if name in row:
            raise ValueError(f"{name} comes twice: keep one")
        row[name] = value
    return row


def _warn_of_unnamed(file: Path, rows: _Rows) -> None:
    """Warns of images beside a metadata file, or below it, that it does not name."""
    names = [path.relative_to(file.parent).as_posix() for path in file.parent.rglob("*.*")]
    images = {name for name in names if name.lower().endswith(IMAGE_SUFFIXES)}
    if unnamed := sorted(name for name in images - rows.keys() if "/." not in f"/{name}"):
        what = f"{len(unnamed):,} images of its folder, such as {unnamed[0]}: they are left out"
        warnings.warn(f"{file} does not name {what}", stacklevel=2)


def _merged(rows: Iterable[tuple[str, list[str], str]]) -> _Rows:
    """All texts and the group of each image, from rows of key, texts and group."""
    merged: _Rows = {}
    for key, texts, group in rows:
        before, known = merged.get(key, ([], ""))
        if group and known and group != known:
            raise ValueError(f"{key} is in the groups {known!r} and {group!r}: keep one")
        merged[key] = [*before, *texts], group or known
    return merged


def _row(row: dict[str, Any]) -> tuple[str, list[str], str]:
    """The file name, with forward slashes, the texts and the group of a row of metadata."""
    if None in row:  # where `csv` puts what is left over
        raise ValueError("too many fields: quote texts that hold a comma")
    column = next((column for column in _TEXT_COLUMNS if column in row), None)
    if "file_name" not in row or column is None:
        raise ValueError(f"no column file_name or text among {', '.join(row)}")
    path = PureWindowsPath(row["file_name"])
    if not path.parts or path.anchor or ".." in path.parts:
        raise ValueError(f"the file_name {str(path)!r} names no image within the folder")
    return path.as_posix(), _texts(row[column]), _group(row.get("group"))


# Hub data sets and local Parquet files, through `datasets`


def _read_hub(place: str) -> _Loaders:
    import datasets

    names = _fetched(place, datasets.get_dataset_split_names)
    return {split_of(name): partial(_load_hub, place, name) for name in names}


def _load_hub(place: str, split: str, name: str, skip: _Skip) -> Pairs:
    """Every row is an image."""
    import datasets

    data = _fetched(place, datasets.load_dataset, split=split)
    column = next((column for column in _TEXT_COLUMNS if column in data.column_names), None)
    if column is None or not isinstance(data.features.get("image"), datasets.Image):
        needed = f"a column image of images and one of {', '.join(_TEXT_COLUMNS)}"
        raise ValueError(f"{place} needs {needed}; there are {dict(data.features)}")
    files = data.select_columns("image").cast_column("image", datasets.Image(decode=False))
    groups = data["group"] if "group" in data.column_names else [None] * len(data)
    fields = zip(map(_texts, data[column]), map(_group, groups), strict=True)
    rows = {f"row {i}": row for i, row in enumerate(fields)}
    of_files = (partial(of, files) for of in (_hub_image, _hub_file))
    return _pairs(name, split_of(split), rows, *of_files, skip)


def _hub_file(files: Any, keys: list[str], i: int) -> bytes | Path:
    """Image i in its row of a `datasets.Dataset` with undecoded images."""
    image = files[int(keys[i].removeprefix("row "))]["image"] or {}
    in_file = image.get("path") and not image.get("bytes")
    return Path(image["path"]) if in_file else image.get("bytes") or b""


def _hub_image(files: Any, keys: list[str], i: int) -> Image.Image:
    return open_rgb(_hub_file(files, keys, i), f"the image of {keys[i]}")


def _fetched(place: str, ask: Callable, **options: Any) -> Any:
    """The result of `ask(place)`, a function of `datasets` or of the hub's client."""
    try:
        return ask(place, **options)
    except OSError as error:  # all that the network and the hub raise
        if Path(place).is_dir():
            raise ValueError(f"{place} cannot be read ({error})") from error
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
        folders = sorted(file.parent.name for file in files)
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
    counted = root / folder / "nshards.txt"
    try:
        n_shards = int(_lines(counted)[0])
    except ValueError as error:
        raise ValueError(f"{counted} has no number of shards ({error})") from error
    shards, samples = [], []
    for i in tqdm(range(n_shards), desc=f"{name}: shards", delay=1):
        shards.append(root / folder / f"{i}.tar")
        samples += [(i, key, sample) for key, sample in _index(shards[-1]).items()]
    has_classes = any("cls" in sample for _, _, sample in samples)
    classnames = _lines(root / "classnames.txt") if has_classes else None
    numbers = {str(label): label for label in range(len(classnames or []))}
    keys, captions, labels, images = [], [], [], []
    for shard, key, sample in samples:
        label = numbers.get(sample.get("cls", "").strip())
        texts = _texts(sample.get("txt", "").split("\n"))
        texts = texts or ([] if label is None else [classnames[label]])
        if "image" not in sample or not texts or (has_classes and label is None):
            needed = "an image, and a text or the number of a line in classnames.txt"
            has = f"has {str(sample)[:80]}: it needs {needed}"
            skip(ValueError(f"sample {key!r} of {shards[shard]} {has}"))
            continue
        keys.append(key)
        captions.append(texts)
        labels.append(label)
        images.append((shard, *sample["image"]))
    read = partial(_shard_bytes, shards, np.array(images, dtype=np.int64).reshape(-1, 3))
    titles = [f"sample {key!r} of {shards[i]}" for key, (i, *_) in zip(keys, images, strict=True)]
    load = partial(_shard_image, read, titles)
    pairs = Pairs(name, split_of(folder), captions, keys, load, classnames=classnames, read=read)
    templates = root / "zeroshot_classification_templates.txt"
    if has_classes:
        pairs.labels = torch.tensor(labels, dtype=torch.long)
    if has_classes and templates.is_file():
        pairs.templates = _texts(_lines(templates))
    return pairs


def _shard_bytes(shards: list[Path], images: np.ndarray, i: int) -> bytes:
    """The file of image i; the columns of `images` [n, 3] are shard, offset and size in bytes."""
    shard, offset, size = images[i].tolist()
    with open(shards[shard], "rb") as file:
        file.seek(offset)
        return file.read(size)


def _shard_image(read: Callable[[int], bytes], titles: list[str], i: int) -> Image.Image:
    return open_rgb(read(i), f"the image of {titles[i]}")


def _lines(file: Path) -> list[str]:
    """The stripped lines of a text file."""
    text = file.read_text(encoding="utf-8-sig")
    return [line.strip() for line in text.strip().split("\n")]


def _index(shard: Path) -> dict[str, dict[str, Any]]:
    """The samples of an uncompressed tar file by key: `image` (offset, size), `txt` and `cls`."""
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                name = _SAMPLE_FILE.fullmatch(member.name)
                if not name or not member.isfile():
                    continue
                sample = samples.setdefault(name[1], {})
                suffix = name[2].lower()
                if suffix in ("txt", "cls"):
                    sample[suffix] = tar.extractfile(member).read().decode("utf-8-sig")
                else:
                    sample["image"] = (member.offset_data, member.size)
            # tarfile takes a damaged or missing header for the end of the file; a complete file
            # ends in zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"neither a sample nor the end at byte {tar.offset:,}")
    except (tarfile.TarError, UnicodeDecodeError) as error:
        raise ValueError(f"{shard} is damaged ({error}): fetch or write it again") from error
    return samples


# Readers by the kind of data.
READERS = {"images": _read_images, "shards": _read_shards, "hub": _read_hub}
