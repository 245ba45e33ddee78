"""WebDataset shards: tar files of images with their texts, from a local folder or from the hub.

The layout is that of the hub's ``clip-benchmark/wds_*`` sets. ``<split>/nshards.txt`` holds the
number of shards, ``<split>/0.tar``, ``1.tar``, ... hold the samples. A sample is the members that
share a name up to its first dot: an image (``.jpg``, ``.jpeg``, ``.png``, ``.webp``) with ``.txt``
(captions, one a line) or ``.cls`` (the class's index into the lines of ``classnames.txt``; beside
it ``zeroshot_classification_templates.txt`` holds prompts with ``{c}`` for the class).
Tar files are indexed once; an image is then read by its offset. Only texts are held in memory.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cibr.data.files import HubFiles, LocalFiles
from cibr.data.pairs import Pairs, Skips, clean_texts, without_undecodable
from cibr.images import open_rgb

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
TEXT_SUFFIXES = ("txt", "cls")
SAMPLE_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
TAR_BLOCK = 512


def load_shards(
    source: str | Path,
    split: str,
    *,
    name: str | None = None,
    on_error: str = "raise",
    max_skipped: int = 0,
    cache_dir: str | Path | None = None,
) -> Pairs:
    """Reads one split of a set of WebDataset shards.

    Args:
        source: a local folder, or else the hub id of a data set, ``owner/name``.
        split: the split's name.
        name: the data set's name in messages and tables; by default the end of `source`.
        on_error: ``raise`` at the first unusable sample, or ``skip`` and count such samples; then
            every image is decoded once, at load.
        max_skipped: with ``skip``, how many samples may be left out.
        cache_dir: where files from the hub are kept; by default in the hub's own cache.

    Returns:
        The pairs; with labels, class names and prompt templates if the samples have ``.cls``.

    Raises:
        FileNotFoundError: if the split, a shard or another file is missing.
        ValueError: if a file is not what the layout says, a sample is unusable, or none is left.
        ConnectionError: if the hub does not give a file.
    """
    files = LocalFiles(Path(source)) if Path(source).is_dir() else HubFiles(str(source), cache_dir)
    name = name or Path(source).name.removeprefix("wds_")
    skips = Skips(name, on_error, max_skipped)
    shards, samples = [], []
    n_shards = _n_shards(files, split, name)
    for number in tqdm(range(n_shards), desc=f"{name} {split}: shards", unit="shard", delay=1):
        shards.append(files.fetch(f"{split}/{number}.tar"))
        samples += [sample for sample in index_shard(shards[-1], number) if sample.usable(skips)]
    samples, labels, classnames = _labels(samples, files, skips)
    keys = [sample.key for sample in samples]
    places = np.array([(s.number, *s.image) for s in samples], dtype=np.int64).reshape(-1, 3)
    captions = [sample.captions for sample in samples]
    if labels is not None:
        captions = [own or [classnames[i]] for own, i in zip(captions, labels.tolist(), strict=True)]
    templates = None if classnames is None else _templates(files)
    load = ShardImages(shards, keys, places)
    pairs = Pairs(name, split, captions, keys, load, labels=labels, classnames=classnames, templates=templates)
    return without_undecodable(pairs, skips)


@dataclass
class Sample:
    """A sample as its shard's index has it: where its image lies, and its texts."""

    key: str
    shard: Path
    number: int
    image: tuple[int, int] | None = None
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"sample {self.key!r} of {self.shard}"

    @property
    def captions(self) -> list[str]:
        return clean_texts(self.texts.get("txt", "").split("\n"))

    def usable(self, skips: Skips) -> bool:
        """Returns whether the sample has an image and a text, or reports the lack to `skips`."""
        if self.image is None:
            wanted = ", ".join(f".{suffix}" for suffix in IMAGE_SUFFIXES)
            skips.add(ValueError(f"{self.where} has a text but no image: add one of {wanted}"))
        elif not self.texts:
            skips.add(ValueError(f"{self.where} has an image but no text: add a .txt or a .cls"))
        elif "txt" in self.texts and not self.captions:
            skips.add(ValueError(f"{self.where} has an empty .txt: write one caption a line"))
        else:
            return True
        return False

    def label(self, classnames: list[str]) -> int:
        """Returns the class index in the ``.cls`` member, checked against the class names."""
        text = self.texts.get("cls", "").strip()
        if not text.isdecimal() or int(text) >= len(classnames):
            raise ValueError(
                f"{self.where} has the label {text!r}: a .cls holds an index into the "
                f"{len(classnames)} lines of classnames.txt, counted from 0"
            )
        return int(text)


@dataclass(frozen=True)
class ShardImages:
    """Loads image i from its place: columns of `places` are shard number, offset, size in bytes."""

    shards: list[Path]
    keys: list[str]
    places: np.ndarray

    def __call__(self, i: int) -> Image.Image:
        number, offset, size = self.places[i].tolist()
        with open(self.shards[number], "rb") as file:
            file.seek(offset)
            data = file.read(size)
        return open_rgb(data, f"the image of sample {self.keys[i]!r} of {self.shards[number]}")


def index_shard(shard: Path, number: int = 0) -> list[Sample]:
    """Lists a shard's samples, in the order in which they first come.

    Args:
        shard: an uncompressed tar file.
        number: the shard's number, which its samples carry.

    Raises:
        ValueError: if the file is not a whole tar file, or two members have the same name.
    """
    samples: dict[str, Sample] = {}
    for key, suffix, place, data in _members(shard):
        sample = samples.setdefault(key, Sample(key, shard, number))
        if suffix in IMAGE_SUFFIXES:
            if sample.image is not None:
                raise ValueError(f"{sample.where} has two images: give each a name of its own")
            sample.image = place
        elif suffix in sample.texts:
            raise ValueError(f"{sample.where} has two .{suffix}: give each a name of its own")
        else:
            try:
                sample.texts[suffix] = data.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(f"the .{suffix} of {sample.where} is not UTF-8: {error}") from error
    return list(samples.values())


def _members(shard: Path) -> Iterator[tuple[str, str, tuple[int, int], bytes]]:
    """Yields key, suffix, place and, of texts, the content of a shard's images and texts."""
    end = 0
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // TAR_BLOCK) * TAR_BLOCK
                named = SAMPLE_NAME.fullmatch(member.name)
                if not member.isfile() or not named:
                    continue
                key, suffix = named[1], named[2].lower()
                place = member.offset_data, member.size
                if suffix in IMAGE_SUFFIXES:
                    yield key, suffix, place, b""
                elif suffix in TEXT_SUFFIXES:
                    yield key, suffix, place, tar.extractfile(member).read()
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is cut short or is no tar file ({error}): fetch it again") from error
    # tarfile takes a damaged header, or the lack of one, for the end; a whole file ends in zeros.
    with open(shard, "rb") as file:
        file.seek(end)
        if file.read(TAR_BLOCK) != bytes(TAR_BLOCK):
            raise ValueError(f"{shard} is cut short or damaged at byte {end:,}: fetch it again")


def _labels(
    samples: list[Sample], files: LocalFiles | HubFiles, skips: Skips
) -> tuple[list[Sample], Int64[Tensor, " n"] | None, list[str] | None]:
    """Returns the samples with a good label, their labels and the class names, if any has one."""
    if not any("cls" in sample.texts for sample in samples):
        return samples, None, None
    classnames = files.fetch("classnames.txt").read_text(encoding="utf-8-sig").strip().split("\n")
    classnames = [name.strip() for name in classnames]
    labelled, labels = [], []
    for sample in samples:
        try:
            labels.append(sample.label(classnames))
            labelled.append(sample)
        except ValueError as error:
            skips.add(error)
    return labelled, torch.tensor(labels, dtype=torch.long), classnames


def _templates(files: LocalFiles | HubFiles) -> list[str] | None:
    """Returns the prompt templates, or None if the set has none: only zero-shot classification needs them."""
    try:
        file = files.fetch("zeroshot_classification_templates.txt")
    except FileNotFoundError:
        return None
    return clean_texts(file.read_text(encoding="utf-8-sig").splitlines()) or None


def _n_shards(files: LocalFiles | HubFiles, split: str, name: str) -> int:
    """Reads the number of shards of a split."""
    if not files.has_split(split):
        there = ", ".join(files.splits()) or "none"
        raise ValueError(f"{name} has no split {split!r} in {files}: those that are there: {there}")
    file = files.fetch(f"{split}/nshards.txt")
    text = file.read_text(encoding="utf-8", errors="replace").strip()
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{file} says {text[:40]!r}: it holds the number of the split's shards, 1 or more")
    return int(text)
