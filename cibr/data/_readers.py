"""Readers of image folders and WebDataset shards and, through `datasets`, of Parquet and the hub.

`loaders` maps a place, a folder or a hub id, to a function per split that loads its pairs. All of
them end in `_usable_pairs`, which opens the header of every image, leaves out samples that cannot
be used and reports all of these at once. data/README.md has the formats. Metadata bypass `datasets`
and pandas, which turn the text "NA" into a missing value and "2013" into a number.

Shards: the layout of ``clip-benchmark/wds_*`` on the hub. ``<split>/nshards.txt`` contains the
number of shards, ``<split>/0.tar``, ``1.tar``, ... the samples: members that share a name up to its
first dot, an image with ``.txt`` (one caption per line) or ``.cls`` (an index into the lines of
``classnames.txt``, beside which ``zeroshot_classification_templates.txt`` has prompts with ``{c}``
for the class). Tar files are indexed once, and an image is then read by its offset.
"""

import codecs
import csv
import glob
import io
import json
import os
import re
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from cibr.data.pairs import IMAGE_SUFFIXES, Pairs, image_fault, open_rgb
from cibr.utils import digest

_SPLITS = dict.fromkeys(("train", "training"), "train")
_SPLITS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_SPLITS |= dict.fromkeys(("test", "testing"), "test")
# Names of columns in the order of preference, as `_plain` writes them.
_FILES = ("filename", "file", "image", "imagename", "imagefile", "imagepath", "path")
_TEXTS = ("text", "caption", "captions", "texts")
_METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
_FOUND = (*IMAGE_SUFFIXES, ".avif", ".heic", ".heif")  # the last are not read but reported
# The key, up to the first dot, and the suffix of the files in a shard that are read.
_SUFFIXES = "|".join(suffix[1:] for suffix in _FOUND)
_SAMPLE_FILE = re.compile(rf"((?:.*/)?[^./]+)\.(txt|cls|{_SUFFIXES})", re.IGNORECASE)

_File = Path | Callable[[], bytes | Path]
_Row = tuple[str, dict[str, Any], str]  # where it is, its fields by plain column, its fault or ""
_Load = Callable[[str], Pairs]  # loads a split of a data set, by the set's name


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


def folder_kind(folder: Path) -> str:
    """Returns how a folder is read, a kind of `loaders`."""
    if (folder / "dataset_type.txt").exists() or any(folder.glob("*/nshards.txt")):
        return "shards"
    patterns = ("*.parquet", "dataset_info.json", "dataset_dict.json")
    is_table = any(path for pattern in patterns for path in folder.rglob(pattern))
    return "datasets" if is_table and not _metadata_files(folder) else "images"


def loaders(place: str, kind: str, folders: Sequence[str] = ()) -> dict[str, _Load]:
    """What loads each split of a place, by its kind; shards of the hub may be in known folders."""
    if kind == "images":
        return _image_loaders(Path(place))
    return _shard_loaders(place, folders) if kind == "shards" else _table_loaders(place)


def _usable_pairs(
    name: str, split: str, samples: Iterable[_Sample], root: Path | None = None, **about: Any
) -> Pairs:
    """The pairs of the samples that can be used; with a root, their files must lie within it."""
    found: list[_Sample] = []
    faults: dict[str, list[str]] = {}
    real = root and os.path.realpath(root)
    for sample in tqdm(samples, desc=f"{name}: opening images", delay=1):
        fault = sample.fault or ("" if sample.texts else "no text") or _fault(sample.file, real)
        if fault:
            faults.setdefault(fault, []).append(sample.key[:80])
        else:
            found.append(sample)
    _report(f"{split} of {name}", faults, len(found))
    keys, files, texts, groups, labels, _ = zip(*found, strict=True)
    captions = [list(dict.fromkeys(own)) for own in texts]
    load, read = partial(_image, name, keys, files), partial(_read, files)
    pairs = Pairs(name, split, captions, list(keys), load, read=read, **about)
    if any(groups):  # numbers that do not change when images are added
        own = groups if all(groups) else pairs.image_digests()
        owners = [group or single for group, single in zip(groups, own, strict=True)]
        pairs.groups = torch.tensor([int(digest(owner)[:15], 16) for owner in owners])
    if None not in labels:
        pairs.labels = torch.tensor(labels)
    return pairs


def _fault(file: _File, root: str | None) -> str:
    file = _read([file], 0)
    is_there = isinstance(file, Path) and os.path.exists(file)
    if root and is_there and not Path(os.path.realpath(file)).is_relative_to(root):
        return "outside the folder"
    return image_fault(file)


def _report(where: str, faults: Mapping[str, list[str]], n_usable: int) -> None:
    """Warns of samples that cannot be used, or raises if they are a tenth or more."""
    n_faulty = sum(map(len, faults.values()))
    if not n_faulty + n_usable:
        raise ValueError(f"{where} is empty: add an image with a text")
    parts = []
    for fault, keys in sorted(faults.items(), key=lambda item: -len(item[1])):
        more = ", ..." if len(keys) > 3 else ""
        parts.append(f"{len(keys):,} {fault} ({', '.join(keys[:3])}{more})")
    what = f"{n_faulty:,} of {n_faulty + n_usable:,} samples cannot be used: {'; '.join(parts)}"
    if 10 * n_faulty >= n_faulty + n_usable:
        raise ValueError(
            f"{where}: {what}. Mend or remove them; only fewer than a tenth are left out"
        )
    if n_faulty:
        warnings.warn(f"{where}: {what}. They are left out", stacklevel=6)


def _read(files: Sequence[_File], i: int) -> bytes | Path:
    file = files[i]
    return file if isinstance(file, Path) else file()


def _image(name: str, keys: Sequence[str], files: Sequence[_File], i: int) -> Image.Image:
    file = _read(files, i)
    return open_rgb(file, "" if isinstance(file, Path) else f"{keys[i]} of {name}")


def _texts(value: Any) -> list[str]:
    """The stripped texts of a field, a text or a list of texts."""
    values = value if isinstance(value, list) else [value]
    return [text for text in (str(v).strip() for v in values if v is not None) if text]


def _regular(file: Path) -> Path:
    """The file, unless it is a FIFO, which never ends, or the like."""
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is no regular file: replace it with one")
    return file


# Image folders


def _image_loaders(folder: Path) -> dict[str, _Load]:
    """Splits are subfolders with metadata, or the first folders in the file names of one metadata
    file; the rest is ``train``. Without metadata, subfolders are classes, of a split ``test``.
    """
    files = _metadata_files(folder)
    if not files:
        return {"test": partial(_load_classes, folder)}
    places = [file.parent for file in files]
    if len(set(places)) < len(places) or (folder in places and len(places) > 1):
        names = ", ".join(str(file.relative_to(folder)) for file in files)
        raise ValueError(f"{folder} has {names}: keep one, or one in each split's subfolder")
    parts: dict[str, list[_Sample]] = {}
    for file in files:
        for sample in _metadata(file):
            first = sample.key.partition("/")[0].lower()
            own = _SPLITS.get(first, "train") if file.parent == folder else file.parent.name
            parts.setdefault(split_of(own), []).append(sample)
    parts = parts or {"train": []}
    return {split: partial(_load_images, folder, split, parts[split]) for split in parts}


def _metadata_files(folder: Path) -> list[Path]:
    """The metadata files in a folder and its subfolders."""
    patterns = [f"{place}{name}" for name in _METADATA for place in ("", "[!.]*/")]
    return [file for pattern in patterns for file in sorted(folder.glob(pattern))]


def _load_images(folder: Path, split: str, samples: list[_Sample], name: str) -> Pairs:
    return _usable_pairs(name, split, samples, folder)


def _metadata(file: Path) -> list[_Sample]:
    """The samples of a metadata file; warns of images in its folder that it does not name."""
    content = _regular(file).read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
        rows = _json_rows(text) if file.suffix == ".jsonl" else _csv_rows(text)
        samples = _named_samples(list(rows), file.parent)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        fix = "save it as that, in Excel as 'CSV UTF-8'"
        raise ValueError(f"{file}, line {line}, is not UTF-8 text ({error}): {fix}") from error
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error
    names = {path.relative_to(file.parent).as_posix() for path in _image_files(file.parent)}
    if unnamed := sorted(names - {sample.key for sample in samples}):
        what = f"{len(unnamed):,} images of its folder, such as {unnamed[0]}: they are left out"
        warnings.warn(f"{file} does not name {what}", stacklevel=2)
    return samples


def _image_files(folder: Path) -> list[Path]:
    """The image files in a folder and its subfolders, without hidden ones."""
    files = (file for file in folder.rglob("*.*") if file.suffix.lower() in _FOUND)
    return sorted(f for f in files if "/." not in f"/{f.relative_to(folder).as_posix()}")


def _csv_rows(text: str) -> Iterator[_Row]:
    """Rows below a header, with its separator: a comma, a semicolon or a tab."""
    text = re.sub(r"\Asep=.\s*\n", "", text)  # Excel's line
    header = text.lstrip().partition("\n")[0]
    separator = max(",;\t", key=header.count)
    source = io.StringIO(text, newline="")
    lines = csv.reader(source, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        rows = [(lines.line_num, row) for row in lines if any(map(str.strip, row))]
    except csv.Error as error:
        what = f"cannot be read up to line {lines.line_num} ({error})"
        raise ValueError(f"{what}: look for a quote that is not closed") from error
    names = [_plain(name) for name in rows[0][1]] if rows else []
    for name in filter(None, names):
        if names.count(name) > 1:
            raise ValueError(f"has the column {name} twice: keep one")
    for number, row in rows[1:]:
        has_more = any(map(str.strip, row[len(names) :]))
        fault = f"rows with too many fields, quote texts with {separator!r}" if has_more else ""
        yield f"line {number}", dict(zip(names, row, strict=False)), fault


def _json_rows(text: str) -> Iterator[_Row]:
    """A JSON object a line."""
    for number, line in enumerate(text.split("\n"), 1):
        row, fault = {}, ""
        try:
            if line.strip():
                row = {_plain(name): value for name, value in json.loads(line).items()}
        except (ValueError, AttributeError, RecursionError):
            fault = "rows that are no JSON objects"
        if row or fault:
            yield f"line {number}", row, fault


def _plain(column: str) -> str:
    """A column's name without case, spaces, underscores and hyphens."""
    return re.sub(r"[\s_-]", "", column).lower()


def _field(row: Mapping[str, Any], columns: Sequence[str]) -> Any:
    return next((row[column] for column in columns if column in row), None)


def _named_samples(rows: Sequence[_Row], folder: Path) -> list[_Sample]:
    """The samples of rows that name image files, each with the texts of all its rows."""
    names = dict.fromkeys(name for _, row, _ in rows for name in row)
    if rows and not (names.keys() & {*_FILES} and names.keys() & {*_TEXTS}):
        raise ValueError(f"needs the columns file_name and text: it has {', '.join(names)}")
    samples: dict[str, _Sample] = {}
    for where, row, fault in rows:
        file_name = str(_field(row, _FILES) or "").strip()
        if fault or not file_name:
            samples[f"/{where}"] = _Sample(where, folder, (), fault=fault or "rows without a file")
            continue
        key = PureWindowsPath(file_name).as_posix()  # with slashes
        before = samples.get(key, _Sample(key, folder / key, []))
        group = "".join(_texts(row.get("group"))) or before.group
        fault = "in two groups" if before.group not in ("", group) else before.fault
        texts = [*before.texts, *_texts(_field(row, _TEXTS))]
        samples[key] = before._replace(texts=texts, group=group, fault=fault)
    return list(samples.values())


def _load_classes(folder: Path, name: str) -> Pairs:
    """Pairs of images with the name of their class, for zero-shot classification."""
    # torchvision's `ImageFolder` would follow links, and take hidden folders for classes.
    files = [file for file in _image_files(folder) if file.parent != folder]
    keys = [file.relative_to(folder).as_posix() for file in files]
    classes = list(dict.fromkeys(key.partition("/")[0] for key in keys))
    if len(classes) < 2 or {split_of(each) for each in classes} <= {*_SPLITS.values()}:
        what = f"{folder} has no metadata.csv or metadata.jsonl, no Parquet files and no shards"
        fix = "write one, or put the images of each class into a subfolder, to classify them"
        fix += ", and give the folder of one split"
        raise FileNotFoundError(f"{what}: {fix}")
    titles = [each.replace("_", " ") for each in classes]
    labels = [classes.index(key.partition("/")[0]) for key in keys]
    rows = zip(keys, files, labels, strict=True)
    samples = [_Sample(key, file, [titles[label]], label=label) for key, file, label in rows]
    about = dict(classnames=titles, templates=["a photo of a {c}."])
    return _usable_pairs(name, "test", samples, folder, **about)


# Tables, through `datasets`: Parquet files, what `save_to_disk` wrote, the hub


def _table_loaders(place: str) -> dict[str, _Load]:
    import datasets

    folder = Path(place) if Path(place).is_dir() else None
    if folder is None:
        names = _fetched(place, datasets.get_dataset_split_names, place)
        given = {name: partial(datasets.load_dataset, place, split=name) for name in names}
    elif files := _parquet_files(folder):
        load = partial(datasets.load_dataset, "parquet", split="train")
        given = {split: partial(load, data_files=files[split]) for split in files}
    else:
        tables = tables_of(_fetched(place, datasets.load_from_disk, place))
        given = {name: partial(tables.__getitem__, name) for name in tables}
    return {split_of(n): partial(_load_table, place, split_of(n), given[n], folder) for n in given}


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    """The Parquet files of each split, which is the first word in their paths that names one."""
    files: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*")):
        if file.exists() and not file.is_dir() and _regular(file).suffix == ".parquet":
            words = re.split(r"[/._-]", file.relative_to(folder).as_posix().lower())
            split = next((_SPLITS[word] for word in words if word in _SPLITS), "train")
            files.setdefault(split, []).append(glob.escape(str(file)))
    return files


def tables_of(data: Any) -> dict[str, Any]:
    """The `datasets.Dataset` of each split of a `datasets.DatasetDict`, or of one of them."""
    import datasets

    if not isinstance(data, datasets.Dataset | datasets.DatasetDict):
        fix = "give a name, a folder, a hub id, or a Dataset or DatasetDict of the library datasets"
        raise ValueError(f"{type(data).__name__} is no kind of data set: {fix}")
    return data if isinstance(data, dict) else {str(data.split or "train"): data}


def _load_table(
    place: str, split: str, load: Callable[[], Any], folder: Path | None, name: str
) -> Pairs:
    return table_pairs(name, split, _fetched(place, load), folder)


def table_pairs(name: str, split: str, table: Any, folder: Path | None = None) -> Pairs:
    """Pairs of the rows of a `datasets.Dataset`, each with an image; in a file within the folder,
    if there is one.
    """
    import datasets

    plain = {_plain(column): column for column in table.column_names}
    images = [c for c, kind in table.features.items() if isinstance(kind, datasets.Image)]
    image, text = next(iter(images), _field(plain, _FILES)), _field(plain, _TEXTS)
    try:
        files = table.select_columns(image).cast_column(image, datasets.Image(decode=False))
        texts = [_texts(value) for value in table[text]]
    except Exception as error:  # of columns that are not there, or of another type
        needed = f"a column image of images, and one of {', '.join(_TEXTS)}"
        raise ValueError(f"{name} needs {needed}: it has {dict(table.features)}") from error
    groups = table[plain["group"]] if "group" in plain else [None] * len(table)
    samples = []
    for i, (own, group) in enumerate(zip(texts, groups, strict=True)):
        file = partial(_table_file, files, image, folder or Path(), i)
        samples.append(_Sample(f"row {i}", file, own, "".join(_texts(group))))
    return _usable_pairs(name, split, samples, folder)


def _table_file(files: Any, column: str, folder: Path, i: int) -> bytes | Path:
    """The image of row i of a `datasets.Dataset` with undecoded images."""
    image = files[i][column] or {}
    in_file = image.get("path") and not image.get("bytes")
    return folder / image["path"] if in_file else image.get("bytes") or b""


def _fetched(place: str, ask: Callable, *given: Any, **options: Any) -> Any:
    """The result of a function of `datasets` or of the hub's client."""
    try:
        return ask(*given, **options)
    except OSError as error:  # all that the network and the hub raise
        if Path(place).is_dir():
            raise ValueError(f"{place} cannot be read ({error})") from error
        what = f"{place} is no folder here and cannot be fetched from the hub ({error})"
        raise ConnectionError(f"{what}: check name and network, or set CIBR_DATA") from error
    except Exception as error:  # the builders of `datasets` raise nearly anything
        cause = error.__cause__ or error
        raise ValueError(f"{place} cannot be read ({cause!r}): check its files") from error


# WebDataset shards


def _shard_loaders(place: str, folders: Sequence[str]) -> dict[str, _Load]:
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

    options = dict(repo_type="dataset", allow_patterns=list(patterns))
    return Path(_fetched(place, huggingface_hub.snapshot_download, place, **options))


def _load_shards(place: str, folder: str, name: str) -> Pairs:
    """Pairs of the split in a folder; with labels, class names and templates if it has ``.cls``."""
    root = _shard_root(place, "*.txt", f"{folder}/*")
    counted = root / folder / "nshards.txt"
    try:
        shards = [root / folder / f"{i}.tar" for i in range(int(_lines(counted)[0]))]
    except ValueError as error:
        raise ValueError(f"{counted} has no number of shards ({error})") from error
    parts: dict[tuple[Path, str], dict[str, Any]] = {}  # image, txt and cls of samples
    for shard in tqdm(shards, desc=f"{name}: shards", delay=1):
        for key, suffix, part in _members(shard):
            parts.setdefault((shard, key), {})[suffix] = part
    classnames = None
    if any("cls" in own for own in parts.values()):
        classnames = _lines(root / "classnames.txt")
    labels = {str(label): label for label in range(len(classnames or []))}
    samples = []
    for (_, key), own in parts.items():
        label = labels.get(own.get("cls", "").strip())
        texts = _texts(own.get("txt", "").split("\n"))
        fault = "" if "image" in own else "samples without an image"
        if classnames and label is None:
            fault = fault or "samples whose .cls is no number of a line in classnames.txt"
        elif classnames:
            texts = texts or [classnames[label]]
        samples.append(_Sample(key, own.get("image", root), texts, label=label, fault=fault))
    templates = root / "zeroshot_classification_templates.txt"
    prompts = _texts(_lines(templates)) if classnames and templates.exists() else None
    about = dict(classnames=classnames, templates=prompts)
    return _usable_pairs(name, split_of(folder), samples, **about)


def _members(shard: Path) -> Iterator[tuple[str, str, Any]]:
    """Key, kind and content of the members of an uncompressed tar file; of images, their reader."""
    try:
        with tarfile.open(_regular(shard), "r:") as tar:
            for member in tar:
                name = _SAMPLE_FILE.fullmatch(member.name)
                if name and member.isfile() and name[2].lower() in ("txt", "cls"):
                    text = tar.extractfile(member).read().decode("utf-8-sig")
                    yield name[1], name[2].lower(), text
                elif name and member.isfile():
                    image = partial(_shard_bytes, shard, member.offset_data, member.size)
                    yield name[1], "image", image
            # tarfile takes a damaged or missing header for the end of the file; a complete file
            # ends in zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"neither a sample nor the end at byte {tar.offset:,}")
    except (tarfile.TarError, UnicodeDecodeError) as error:
        raise ValueError(f"{shard} is damaged ({error}): fetch or write it again") from error


def _shard_bytes(shard: Path, offset: int, size: int) -> bytes:
    with open(shard, "rb") as file:
        file.seek(offset)
        return file.read(size)


def _lines(file: Path) -> list[str]:
    """The stripped lines of a text file."""
    text = _regular(file).read_text(encoding="utf-8-sig")
    return [line.strip() for line in text.strip().split("\n")]
