"""Any folder of images with their texts in ``metadata.csv`` or ``metadata.jsonl``.

The layout is the one that the ``datasets`` library calls imagefolder: a row names an image
(``file_name``, relative to the metadata file) and its text (``text`` or ``caption``; in jsonl a
list of texts too). Several rows that name one image give it several texts. Images that no row
names are not used. Where rows have a ``group`` too, images of one group are one thing in other
looks, such as a product before two backgrounds; an empty one means none. Splits are the subfolders
``train``, ``validation`` and ``test``, each with its metadata or all under one; a folder without
them is split by a hash of the file name, or of the group.
"""

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cibr.data.files import SPLITS
from cibr.data.pairs import Pairs, Skips, clean_texts, without_undecodable
from cibr.images import open_rgb

METADATA = ("metadata.jsonl", "metadata.csv")
TEXT_COLUMNS = ("text", "caption")
VALIDATION_SHARE = 10  # one image in ten


@dataclass
class _Described:
    """What the metadata say of an image."""

    texts: list[str] = field(default_factory=list)
    group: str = ""


Rows = dict[str, _Described]


def load_folder(
    folder: str | Path,
    split: str,
    *,
    name: str | None = None,
    on_error: str = "raise",
    max_skipped: int = 0,
) -> Pairs:
    """Reads one split of a folder of images with metadata.

    Args:
        folder: the folder.
        split: ``train``, ``validation`` or ``test``. Without subfolders for the splits, a tenth of
            the images is ``validation``, chosen by a hash of each ``file_name`` (or its group), so
            that images added later move no others, and the rest is ``train``.
        name: the data set's name in messages and tables; by default the folder's.
        on_error: ``raise`` at the first unusable sample, or ``skip`` and count such samples; then
            every image is decoded once, at load.
        max_skipped: with ``skip``, how many samples may be left out.

    Returns:
        The pairs, in the order of the metadata, with `groups` where an image has one.

    Raises:
        FileNotFoundError: if the metadata or an image is missing.
        ValueError: if there is no such split, the metadata are malformed, a sample is unusable or
            none is left.
    """
    folder = Path(folder)
    name = name or folder.resolve().name
    skips = Skips(name, on_error, max_skipped)
    folder, rows = _split_rows(folder, split)
    keys = []
    for file_name, described in rows.items():
        if not (folder / file_name).is_file():
            skips.add(FileNotFoundError(f"{folder / file_name} is missing, but {folder}'s metadata name it"))
        elif not described.texts:
            skips.add(ValueError(f"{file_name} has no text in {folder}'s metadata: write one or drop the row"))
        else:
            keys.append(file_name)
    captions = [rows[key].texts for key in keys]
    pairs = Pairs(name, split, captions, keys, FolderImages(folder, keys), groups=_groups(rows, keys))
    return without_undecodable(pairs, skips)


@dataclass(frozen=True)
class FolderImages:
    """Loads image i from its file."""

    folder: Path
    file_names: list[str]

    def __call__(self, i: int) -> Image.Image:
        file = self.folder / self.file_names[i]
        return open_rgb(file, str(file))


def _groups(rows: Rows, keys: list[str]) -> torch.Tensor | None:
    """Numbers the groups of the images, those without one apart; None if there is none."""
    if not any(rows[key].group for key in keys):
        return None
    numbers: dict[tuple[str, str], int] = {}
    return torch.tensor([numbers.setdefault(_thing(key, rows), len(numbers)) for key in keys])


def _thing(file_name: str, rows: Rows) -> tuple[str, str]:
    """What an image shows: its group, else itself."""
    group = rows[file_name].group
    return ("group", group) if group else ("file", file_name)


def hash_split(file_names: list[str]) -> dict[str, str]:
    """Assigns each file name to ``validation``, one in ten, or ``train``, by its SHA-256 alone.

    Only where that leaves a split empty, in a very small set, is the nearest file moved into it.

    Args:
        file_names: the names, two at least.

    Returns:
        The split of each name.

    Examples:
        >>> hash_split(["a.jpg", "b.jpg", "c.jpg"])
        {'a.jpg': 'validation', 'b.jpg': 'train', 'c.jpg': 'train'}
    """
    score = {name: int(hashlib.sha256(name.encode()).hexdigest(), 16) for name in file_names}
    limit = 2**256 // VALIDATION_SHARE
    chosen = {name for name in file_names if score[name] < limit} or {min(score, key=score.get)}
    if len(chosen) == len(score):
        chosen.remove(max(score, key=score.get))
    return {name: "validation" if name in chosen else "train" for name in file_names}


def _split_rows(folder: Path, split: str) -> tuple[Path, Rows]:
    """Returns what is said of each image of a split, and the folder that the names are relative to."""
    with_metadata = [part for part in SPLITS if _metadata_file(folder / part)]
    if split in with_metadata:
        return folder / split, _read_metadata(_metadata_file(folder / split))
    file = _metadata_file(folder)
    if with_metadata:
        there = with_metadata
    elif file is None:
        raise FileNotFoundError(
            f"{folder} has no {METADATA[0]} and no {METADATA[1]}: write one, with the columns "
            f"file_name and {TEXT_COLUMNS[0]}"
        )
    else:
        rows = _read_metadata(file)
        split_of = _splits_of_names(rows, file)
        there = sorted(set(split_of.values()))
        if split in there:
            return folder, {key: row for key, row in rows.items() if split_of[key] == split}
    raise ValueError(
        f"{folder} has no split {split!r}: those that are there: {', '.join(there) or 'none'}. "
        f"Add a subfolder {split} with its own metadata"
    )


def folder_splits(folder: str | Path) -> list[str]:
    """Returns the splits that `load_folder` offers for a folder; the pictures are not looked at.

    Raises:
        FileNotFoundError, ValueError: as `load_folder`, for metadata that are missing or malformed.
    """
    folder = Path(folder)
    with_metadata = [part for part in SPLITS if _metadata_file(folder / part)]
    if with_metadata or (file := _metadata_file(folder)) is None:
        return with_metadata
    there = set(_splits_of_names(_read_metadata(file), file).values())
    return [part for part in SPLITS if part in there]


def _splits_of_names(rows: Rows, file: Path) -> dict[str, str]:
    """Returns the split of each name: its first folder where that is one, else by hash of what it shows."""
    first = {name: name.partition("/")[0] for name in rows}
    outside = [name for name in rows if first[name] not in SPLITS]
    if outside and len(outside) < len(rows):
        raise ValueError(
            f"{file} names images in subfolders {', '.join(SPLITS)} and others outside, such as "
            f"{outside[0]}: put all into subfolders, or none"
        )
    if not outside:
        return first
    things = {name: _thing(name, rows) for name in rows}
    if len(set(things.values())) < 2:
        n = "1 image" if len(rows) == 1 else f"{len(rows)} images of one group"
        raise ValueError(f"{file} names {n}: train and validation need two")
    split_of = hash_split(list(dict.fromkeys(name for _, name in things.values())))
    return {name: split_of[thing] for name, (_, thing) in things.items()}


def _metadata_file(folder: Path) -> Path | None:
    """Returns the folder's metadata file, if it has one."""
    there = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(there) > 1:
        raise ValueError(f"{folder} has both {METADATA[0]} and {METADATA[1]}: keep one")
    return there[0] if there else None


def _read_metadata(file: Path) -> Rows:
    """Reads what is said of each image, in the file's order; rows of the same image are joined."""
    read = _jsonl_rows if file.suffix == ".jsonl" else _csv_rows
    rows: Rows = {}
    try:
        for place, row in read(file):
            column = next((column for column in TEXT_COLUMNS if column in row), None)
            if "file_name" not in row or column is None:
                raise ValueError(
                    f"{place} needs the columns file_name and {' or '.join(TEXT_COLUMNS)}; "
                    f"those that are there: {', '.join(map(str, row)) or 'none'}"
                )
            if not isinstance(row["file_name"], str) or not row["file_name"].strip():
                raise ValueError(f"{place} has no file_name: name the image, relative to {file.parent}")
            described = rows.setdefault(row["file_name"], _Described())
            described.texts.extend(_texts(row[column], place))
            group = _group(row.get("group"), place)
            if described.group and group and group != described.group:
                raise ValueError(
                    f"{place} puts {row['file_name']} into group {group!r}, an earlier row into "
                    f"{described.group!r}: an image has one group"
                )
            described.group = described.group or group
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read ({error}): save it as UTF-8, with every quote closed") from error
    if not rows:
        raise ValueError(f"{file} has no rows: write one for each image")
    return rows


def _group(value: Any, place: str) -> str:
    """Returns the name of a row's group; null and an empty one count as none."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int))):
        raise ValueError(f"{place} has the group {value!r}: it is a string or a whole number")
    return "" if value is None else str(value).strip()


def _texts(value: Any, place: str) -> list[str]:
    """Returns the texts of a row's value; null counts as none."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in values):
        raise ValueError(f"{place} has the text {value!r}: it is a string or a list of strings")
    return clean_texts(values)


def _csv_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, skipinitialspace=True, strict=True)
        for row in reader:
            place = f"{file}, line {reader.line_num},"
            if None in row:
                raise ValueError(f"{place} has more fields than columns: quote texts that hold a comma")
            yield place, row


def _jsonl_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(file, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{file}, line {number},"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{place} is not JSON ({error}): write one object a line") from error
            if not isinstance(row, dict):
                raise ValueError(f"{place} is not a JSON object: write one object a line")
            yield place, row
