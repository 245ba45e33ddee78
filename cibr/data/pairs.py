"""Image-text pairs: one split of a data set, with its captions in memory and its images decoded on
demand.

Image i has one or more texts, `captions[i]`; flattened, the texts are numbered image by image.
`Pairs.match_labels` defines which pairs match, for both losses and metrics. Images are converted to
8-bit RGB by `to_rgb`. Pairs can be pickled, for DataLoader workers.
"""

import io
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import suppress
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

# EPS and the like are left out: Pillow would run an interpreter of their programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_MIN_SHARE, _MAX_SHARE = 0.1, 0.2  # of the images that are held out
_MIN_HELD_OUT, _MAX_HELD_OUT = 50, 1000  # images, if the shares allow

_Indices = Iterable[int] | Shaped[Tensor, " m"] | Shaped[np.ndarray, " m"]  # integers or a mask
_Loaded = Image.Image | Path | bytes


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
        load: takes an index and returns the image in mode ``RGB``, or its file, a path or bytes; a
            module-level function or a `partial` of one, so that it can be pickled. None if there
            are features alone.
        labels: content labels, equal for pairs that match; None if unknown.
        factors: a `pandas.DataFrame` of the factors of variation, one row per image.
        classnames: the class names that `labels` index, in a classification set.
        templates: prompt templates for zero-shot classification, with ``{c}`` for the class name.
        groups: equal numbers for images of the same item; None if unknown.
        features: of frozen towers, which models over these towers read in place of images and
            texts.

    Raises:
        ValueError: if the lengths disagree, or an image has no text.
    """

    name: str
    split: str
    captions: list[list[str]]
    keys: list[str]
    load: Callable[[int], _Loaded] | None = None
    labels: Int64[Tensor, " n"] | None = None
    factors: Any = None
    classnames: list[str] | None = None
    templates: list[str] | None = None
    groups: Int64[Tensor, " n"] | None = None
    features: Features | None = None
    _digests: list[str] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if any(isinstance(texts, str) for texts in self.captions):
            raise ValueError(f"captions of {self.name} contain a string: pass a list per image")
        self.captions = [list(filter(None, map(str.strip, texts))) for texts in self.captions]
        if not all(self.captions):
            raise ValueError(f"an image of {self.name} has no text: give each a caption")
        for name in ("keys", "labels", "groups", "factors"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self):
                raise ValueError(f"{self.name} has {len(self)} images but {len(values)} {name}")

    def __len__(self) -> int:
        return len(self.captions)

    def image(self, i: int) -> Image.Image:
        """Decodes and returns image i, in mode ``RGB``.

        Raises:
            IndexError: if there is no image i.
            ValueError: if the file does not decode, or there are features alone.
        """
        if self.load is None:
            raise ValueError(f"{self.name} has features of its images, but not the images")
        loaded = self.load(range(len(self))[i])
        if isinstance(loaded, Image.Image):
            return loaded
        return open_rgb(loaded, f"{self.keys[i]} of {self.name}")

    def images(self) -> Iterator[Image.Image]:
        """Yields all images."""
        return map(self.image, range(len(self)))

    def image_digests(self) -> list[str]:
        """Returns a SHA-256 digest per image, of its file or, without one, of its pixels, or of its
        features if there is no image.

        Every file is read once: after a change, load the pairs again.
        """
        if self._digests is None:
            load = self.load or (lambda i: self.features.images[i].numpy().tobytes())
            self._digests = [_digest(load(i)) for i in range(len(self))]
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

    def hold_out(self) -> tuple["Pairs", "Pairs"]:
        """Splits off some items for validation, chosen by a hash: a tenth, but of fewer than 500
        images some 50, of fewer than 250 a fifth, and never more than some 1,000 images.

        An item is a group, or else all images with equal files, and stays whole. The hash of its
        group or file decides, so every call on the same images holds out the same, and later
        additions move no image into the held-out part; they may return some to the rest.

        Returns:
            The rest and the held-out part, each with at least one item.

        Raises:
            ValueError: if there is only one item.
        """
        digests = self.image_digests()
        groups = digests if self.groups is None else self.groups.tolist()
        items = _components(len(self), [*range(len(self))] * 2, digests + groups).numpy()
        sizes = np.bincount(items)
        if len(sizes) < 2:
            raise ValueError(f"all {len(self)} images of {self.name} are one group or equal files")
        places = np.ones(len(sizes))  # of items, in [0, 1]: the lowest are held out
        np.minimum.at(places, items, [int(digest(str(g))[:15], 16) / 16**15 for g in groups])
        share = np.clip(_MIN_HELD_OUT / len(self), _MIN_SHARE, _MAX_SHARE)
        chosen = []  # the lowest item in any case, the highest never
        for item in places.argsort()[:-1]:
            if chosen and (places[item] >= share or sizes[chosen].sum() >= _MAX_HELD_OUT):
                break
            chosen.append(item)
        is_held_out = np.isin(items, chosen)
        held_out = self.subset(is_held_out)
        held_out.split = "validation"
        return self.subset(~is_held_out), held_out

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

    def retrieval_targets(self) -> tuple[list[str], Tensor, Tensor | None]:
        """Returns what is correct in retrieval: the m texts, the index of each one's image [m], and
        the label of each image [n], or None if `paired`; the arguments of
        `cibr.metrics.retrieval_recalls`.
        """
        labels = None if self.paired else self.match_labels()
        return self.texts(), self.text_to_image(), labels

    def prompts(self) -> list[list[str]]:
        """Returns the zero-shot prompts of each class: its name in every template, or "a photo of a
        {c}." without any.

        Raises:
            ValueError: if the set has no class names.
        """
        templates = self.templates or ["a photo of a {c}."]
        if not self.classnames:
            raise ValueError(f"{self.name} has no class names: add a classnames.txt")
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

        def part(values: Any) -> Any:
            return None if values is None else values[rows]

        features, factors = self.features, self.factors
        pairs = replace(
            self,
            captions=[self.captions[i] for i in chosen],
            keys=[self.keys[i] for i in chosen],
            load=self.load and partial(_load_chosen, self.load, chosen),
            labels=part(self.labels),
            groups=part(self.groups),
            factors=None if factors is None else factors.iloc[chosen].reset_index(drop=True),
            features=features and features._replace(images=part(features.images)),
        )
        pairs._digests = self._digests and [self._digests[i] for i in chosen]
        return pairs


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


def _load_chosen(load: Callable[[int], _Loaded], indices: list[int], i: int) -> _Loaded:
    return load(indices[i])


def _digest(content: _Loaded) -> str:
    if isinstance(content, Path):
        content = content.read_bytes()
    if isinstance(content, Image.Image):
        content = repr(content.size).encode() + content.tobytes()
    return digest(content)


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
    if image.mode in ("F", "I"):
        raise ValueError(f"mode {image.mode} has no fixed range of greys: save it with 8 bits")
    with suppress(SyntaxError):  # damaged EXIF says nothing about the pixels
        image = ImageOps.exif_transpose(image)
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
        ValueError: if the file is missing or does not decode.
    """
    try:
        return to_rgb(_opened(file))
    except Exception as error:  # Pillow raises nearly anything: SyntaxError, struct.error, EOFError
        what = f"{where or file} does not decode as an image ({error})"
        raise ValueError(f"{what}: replace or remove it") from error


def image_fault(file: str | Path | bytes) -> str:
    """Returns why an image file cannot be used, in words that are the same for all files with this
    fault; empty if its header and its end are sound.

    Pixels are not decoded: damage among them shows when the image is used.
    """
    try:
        image = _opened(file)
        is_cut = image.format == "JPEG" and b"\xff\xd9" not in image.fp.read()
        return "cut short" if is_cut else ""
    except ValueError as error:
        return str(error)
    except Exception:  # Pillow raises nearly anything
        return f"not an image of {', '.join(_FORMATS)}, or damaged"


def _opened(file: str | Path | bytes) -> Image.Image:
    """An image file with a sound header, not decoded yet."""
    if not isinstance(file, bytes):
        if not os.path.isfile(file):  # a FIFO never ends
            raise ValueError("no regular file" if os.path.exists(file) else "no such file")
        file = Path(file).read_bytes()
    if file[4:8] == b"ftyp":
        raise ValueError("HEIC, HEIF or AVIF: save as JPEG")
    return Image.open(io.BytesIO(file), formats=_FORMATS)
