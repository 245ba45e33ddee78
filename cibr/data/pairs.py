"""Image-text pairs: one split of a data set, with its captions in memory and its images decoded on
demand.

Image i has one or more texts, `captions[i]`; flattened, the texts are numbered image by image.
`Pairs.match_labels` defines which pairs match, for both losses and metrics. Images are
converted to 8-bit RGB by `to_rgb`. Pairs can be pickled, for DataLoader workers.
"""

import hashlib
import io
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from PIL import Image, ImageOps
from torch import Tensor

from cibr.utils import digest

# Suffixes of the image files that a folder is searched for and a shard's samples may have.
# EPS and the like are left out: Pillow would run an interpreter of their programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_LONGEST = 500  # times its width; scaled to a square's side, an image of 2 KB may need gigabytes
_HELD_OUT, _MOST_HELD_OUT = 0.1, 1000  # of the items, and images
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

_Indices = Iterable[int] | Shaped[Tensor, " m"] | Shaped[np.ndarray, " m"]  # integers or a mask


class Features(NamedTuple):
    """Pooled features of frozen towers, with which heads are trained without images.

    Args:
        images: of the images, one row each, [n, p].
        texts: of the texts in `strings`, [m, q].
        strings: texts in any order: the captions, and prompts if there are some.
        towers: names of the image and of the text tower, as `DualEncoder.frozen` takes them.
    """

    images: Shaped[Tensor, "n p"]
    texts: Shaped[Tensor, "m q"]
    strings: list[str]
    towers: tuple[str, str]


@dataclass(eq=False)
class Pairs:
    """Image-text pairs of one split.

    Args:
        name: the data set's name, for messages and tables.
        split: the split's name, ``train``, ``validation`` or ``test``.
        captions: the texts of each image, at least one; they are stripped, empty ones dropped.
        keys: the samples' names, for messages.
        load: takes an index and returns the image in mode ``RGB``; a module-level function or a
            `partial` of one, so that it can be pickled. None if there are features alone.
        labels: content labels, equal for pairs that match; None if unknown.
        factors: a `pandas.DataFrame` of the factors of variation, one row per image.
        classnames: the class names that `labels` index, in a classification set.
        templates: prompt templates for zero-shot classification, with ``{c}`` for the class name.
        groups: equal numbers for images of the same item; None if unknown.
        read: takes an index and returns the image's file, a path or bytes; None if `load` makes the
            images.
        features: of frozen towers, which models over these towers read in place of images and
            texts.

    Raises:
        ValueError: if the lengths disagree, or an image has no text.
    """

    name: str
    split: str
    captions: list[list[str]]
    keys: list[str]
    load: Callable[[int], Image.Image] | None = None
    labels: Int64[Tensor, " n"] | None = None
    factors: Any = None
    classnames: list[str] | None = None
    templates: list[str] | None = None
    groups: Int64[Tensor, " n"] | None = None
    read: Callable[[int], bytes | Path] | None = None
    features: Features | None = None
    _digests: list[str] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if any(isinstance(texts, str) for texts in self.captions):
            raise ValueError(f"captions of {self.name} has a string: pass a list per image")
        self.captions = [list(filter(None, map(str.strip, texts))) for texts in self.captions]
        for part in ("labels", "groups"):
            value = getattr(self, part)
            setattr(self, part, None if value is None else torch.as_tensor(value))
        for part in ("keys", "labels", "groups", "factors"):
            value = getattr(self, part)
            if value is not None and len(value) != len(self):
                counts = f"{len(self)} images but {len(value)} {part}"
                raise ValueError(f"{self.name} has {counts}: pass one per image")
        if self.features is not None and len(self.features.images) != len(self):
            counts = f"{len(self)} images but features of {len(self.features.images)}"
            raise ValueError(f"{self.name} has {counts}: pass one row per image")
        for key, texts in zip(self.keys, self.captions, strict=True):
            if not texts:
                raise ValueError(f"sample {key!r} of {self.name} has no text: give it a caption")

    def __len__(self) -> int:
        return len(self.captions)

    def image(self, i: int) -> Image.Image:
        """Decodes and returns image i, in mode ``RGB``.

        Raises:
            IndexError: if there is no image i.
            ValueError: if the file does not decode, or there are features alone.
        """
        if self.load is None:
            what = f"{self.name} has features of its images, but not the images"
            raise ValueError(f"{what}: use heads over the towers that computed them")
        return self.load(range(len(self))[i])

    def images(self, indices: _Indices | None = None) -> Iterator[Image.Image]:
        """Yields the images at these indices, in order, or all images."""
        pairs = self if indices is None else self.subset(indices)
        return map(pairs.image, range(len(pairs)))

    def image_digests(self) -> list[str]:
        """Returns a SHA-256 digest per image, of its file or, without one, of its pixels, or of its
        features if there is no image.

        Every file is read once: after a change, load the pairs again.
        """
        if self._digests is None and self.load is None:
            self._digests = [digest(row.numpy().tobytes()) for row in self.features.images]
        elif self._digests is None:
            read = self.read or self.image
            self._digests = [_digest(read(i)) for i in range(len(self))]
        return self._digests

    def texts(self) -> list[str]:
        """Returns all texts as one list, image by image."""
        return [text for texts in self.captions for text in texts]

    def text_to_image(self) -> Int64[Tensor, " n_texts"]:
        """Returns the index of the image that each of `texts()` belongs to."""
        n_texts = torch.tensor([len(texts) for texts in self.captions], dtype=torch.long)
        return torch.repeat_interleave(torch.arange(len(self)), n_texts)

    def match_labels(self) -> Int64[Tensor, " n"]:
        """Returns one label per image; images with equal labels, and their texts, are positives of
        each other.

        Returns:
            `labels` if given; else the connected components of images that share a caption or a
            group, numbered from 0 in the order of the images.
        """
        if self.labels is not None:
            return self.labels
        groups = [] if self.groups is None else self.groups.tolist()
        images = self.text_to_image().tolist() + list(range(len(groups)))
        return _components(len(self), images, self.texts() + groups)

    def hold_out(self, least: int = 1, split: str = "validation") -> tuple["Pairs", "Pairs"]:
        """Splits off a tenth of the items, some 1,000 images at most, chosen by a hash.

        An item is a group, or else all images with equal files, and stays whole. The hash of its
        group or file decides, so every call on the same images holds out the same, and additions
        move no image (beyond 10,000 images they return some to the rest).

        Args:
            least: images to hold out at least.
            split: the name of the held-out part.

        Returns:
            The rest and the held-out part, both with an item at least.

        Raises:
            ValueError: if there is only one item.
        """
        digests = self.image_digests()
        groups = digests if self.groups is None else self.groups.tolist()
        items = _components(len(self), [*range(len(self))] * 2, digests + groups).numpy()
        sizes = np.bincount(items)
        if len(sizes) < 2:
            what = f"{len(self)} images of {self.name} are one group or equal files"
            raise ValueError(f"all {what}, so none can be held out: add others")
        places = np.ones(len(sizes))  # in [0, 1]
        np.minimum.at(places, items, [int(digest(str(g))[:15], 16) / 16**15 for g in groups])
        order = places.argsort()[:-1]
        n_before = sizes[order].cumsum() - sizes[order]
        is_low = (places[order] < _HELD_OUT) & (n_before < _MOST_HELD_OUT)
        is_chosen = np.isin(items, order[is_low | (n_before < least)])
        held_out = self.subset(is_chosen)
        held_out.split = split
        return self.subset(~is_chosen), held_out

    @property
    def paired(self) -> bool:
        """Whether retrieval follows Karpathy's protocol, in which only an image's own captions are
        correct.

        It does if there are no labels and no groups, and captions are unique or some image has
        several. Otherwise retrieval is scored by `match_labels`.
        """
        if self.labels is not None or self.groups is not None:
            return False
        texts = self.texts()
        return len(texts) > len(self) or len(set(texts)) == len(texts)

    def retrieval_targets(
        self,
    ) -> tuple[list[str], Int64[Tensor, " m"], Int64[Tensor, " n"] | None]:
        """Returns what is correct in retrieval: the texts, the index of each text's image, and the
        label of each image, or None if `paired`; the arguments of `cibr.metrics.retrieval_recalls`.
        """
        labels = None if self.paired else self.match_labels()
        return self.texts(), self.text_to_image(), labels

    def prompts(self) -> list[list[str]]:
        """Returns the zero-shot prompts of each class: its name in every template.

        Raises:
            ValueError: if the set has no class names, no templates, or a template without ``{c}``.
        """
        templates = self.templates or [""]
        if not self.classnames or not all("{c}" in template for template in templates):
            files = "classnames.txt and zeroshot_classification_templates.txt"
            needed = "class names, and prompt templates with {c} for them"
            raise ValueError(f"{self.name} needs {needed}: put {files} into its folder")
        return [[text.replace("{c}", name) for text in templates] for name in self.classnames]

    def subset(self, indices: _Indices) -> "Pairs":
        """Returns the pairs at these indices, in order, or those of a boolean mask; indices may
        repeat.

        Raises:
            IndexError: if an index is out of range, or a mask has another length.
        """
        rows = torch.as_tensor(indices)
        rows = torch.arange(len(self))[rows if len(rows) else rows.long()]
        chosen = rows.tolist()
        factors, features = self.factors, self.features
        part = replace(
            self,
            captions=[self.captions[i] for i in chosen],
            keys=[self.keys[i] for i in chosen],
            load=None if self.load is None else partial(_chosen, self.load, chosen),
            read=None if self.read is None else partial(_chosen, self.read, chosen),
            labels=None if self.labels is None else self.labels[rows],
            groups=None if self.groups is None else self.groups[rows],
            factors=None if factors is None else factors.iloc[chosen].reset_index(drop=True),
            features=None if features is None else features._replace(images=features.images[rows]),
        )
        part._digests = self._digests and [self._digests[i] for i in chosen]
        return part


def joined(parts: Sequence[Pairs]) -> Pairs:
    """The pairs of parts of one set, in their order, without labels."""
    groups = [-1 - torch.arange(len(p)) if p.groups is None else p.groups for p in parts]
    rows = [(n, i) for n, part in enumerate(parts) for i in range(len(part))]
    load = partial(_of_part, [part.load for part in parts], rows)
    read = partial(_of_part, [part.read for part in parts], rows)
    captions = [texts for part in parts for texts in part.captions]
    features = [part.features for part in parts if part.features is not None]
    is_shared = len(features) == len(parts) and len({own.towers for own in features}) == 1
    return Pairs(
        name=parts[0].name,
        split=parts[0].split,
        captions=captions,
        keys=[key for part in parts for key in part.keys],
        load=None if all(part.load is None for part in parts) else load,
        features=_joined_features(features) if is_shared else None,
        groups=torch.cat(groups) if any(part.groups is not None for part in parts) else None,
        read=read if all(part.read for part in parts) else None,
    )


def _joined_features(parts: Sequence[Features]) -> Features:
    images, texts = (torch.cat(sides) for sides in zip(*(part[:2] for part in parts), strict=True))
    strings = [text for part in parts for text in part.strings]
    return Features(images, texts, strings, parts[0].towers)


def _of_part(calls: list[Callable[[int], Any]], rows: list[tuple[int, int]], i: int) -> Any:
    part, row = rows[i]
    return calls[part](row)


def _components(n: int, images: list[int], shared: list[Hashable]) -> Int64[Tensor, " n"]:
    """The connected components of n images, numbered in their order; `images[k]` has `shared[k]`,
    and what images share connects them.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first: dict[Hashable, int] = {}
    linked = [(i, first.setdefault(item, i)) for i, item in zip(images, shared, strict=True)]
    edges = np.array(linked, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).long()


def _chosen(load: Callable[[int], Any], indices: list[int], i: int) -> Any:
    return load(indices[i])


def _digest(image: Image.Image | bytes | Path) -> str:
    if isinstance(image, Path):
        with image.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(image, Image.Image):  # RGB, as `Pairs.image` returns it
        image = repr(image.size).encode() + image.tobytes()
    return digest(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to a new 8-bit RGB image.

    The EXIF orientation is applied, colour profiles are not. The current frame of an animation is
    used.

    Args:
        image: an image of any mode but ``F`` and ``I``, such as ``1``, ``L``, ``P``, ``RGBA``,
            ``CMYK`` and ``I;16``.

    Returns:
        The image in mode ``RGB``, upright, with transparency on white.

    Raises:
        ValueError: a mode without a fixed range, ``F`` or ``I``.
    """
    with suppress(SyntaxError):  # damaged EXIF says nothing about the pixels
        image = ImageOps.exif_transpose(image)
    if image.mode in ("F", "I"):
        raise ValueError(
            f"mode {image.mode} has no fixed range of greys: save it with 8 or 16 bits"
        )
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, image).convert("RGB")
    return image.convert("RGB")


def open_rgb(file: str | Path | bytes, where: str = "") -> Image.Image:
    """Decodes an image file as RGB.

    Args:
        file: a path, or the bytes of a file: BMP, GIF, JPEG, PNG, TIFF or WebP.
        where: the image's name in errors; by default its path.

    Returns:
        The image in mode ``RGB``, see `to_rgb`.

    Raises:
        ValueError: if the file does not decode, or is 500 times as long as wide.
        FileNotFoundError: if there is no such file.
    """
    try:
        with _opened(file) as image:
            return to_rgb(image)
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow raises nearly anything: SyntaxError, struct.error, EOFError
        what = f"{where or file} does not decode as an image"
        raise ValueError(f"{what} ({error}): replace or remove it") from error


def image_fault(file: str | Path | bytes) -> str:
    """Returns why an image file cannot be used, in words that are the same for all files with this
    fault; empty if its header and its end are sound.

    Pixels are not decoded: damage among them shows when the image is used.
    """
    try:
        with _opened(file) as image:
            if image.mode in ("F", "I"):
                return f"greys without a fixed range, mode {image.mode}: save with 8 or 16 bits"
            if image.format == "PNG":
                image.verify()
            is_cut = image.format == "JPEG" and image.fp.read().rfind(b"\xff\xd9") < 0
            return "cut short" if is_cut else ""
    except FileNotFoundError:
        return "no such file"
    except ValueError as error:
        return str(error)
    except Exception:  # Pillow raises nearly anything
        return f"not an image of {', '.join(_FORMATS)}, or damaged"


@contextmanager
def _opened(file: str | Path | bytes) -> Iterator[Image.Image]:
    """An image file with a sound header, not decoded yet."""
    if not isinstance(file, bytes) and not os.path.isfile(file):  # a FIFO never ends
        if os.path.exists(file):
            raise ValueError("no regular file")
        raise FileNotFoundError(f"there is no image {file}")
    with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as source:
        start = source.read(12)
        source.seek(0)
        if not start:
            raise ValueError("an empty file")
        if start[4:8] == b"ftyp":
            raise ValueError("HEIC, HEIF or AVIF: save as JPEG")
        with Image.open(source, formats=_FORMATS) as image:
            if max(image.size) > _LONGEST * min(image.size):
                raise ValueError(f"one side more than {_LONGEST} times the other")
            yield image
