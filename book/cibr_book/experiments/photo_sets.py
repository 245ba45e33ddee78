"""The photos of the fine-tuning study: features for frozen towers, pictures for trained ones.

Most sets come with the repository, as features. The others are local folders, whose features are
computed once and coded in 8 bits, as those of the repository are: a set that is shipped later has
the same numbers. For the pictures of a shipped set, its photos are looked up in the local folder by
their keys.
"""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cibr.data import Features, Pairs, load_pairs
from cibr.data.photos import CLASSES, strings
from cibr.models import DualEncoder
from cibr.models.frozen_features import frozen_features

N_UNSHIPPED = 1000  # training photos of Flickr8k that the repository does not ship


class PhotoSet(NamedTuple):
    """Where a set is.

    Args:
        local: the name and the split of a folder of photos.
        shipped: the same of its features in the repository, "" if it is not there.
    """

    local: tuple[str, str]
    shipped: str = ""
    split: str = "test"


SETS = {
    "train": PhotoSet(("flickr8k", "train"), "photos", "train"),
    "validation": PhotoSet(("flickr8k", "validation")),
    "flickr8k": PhotoSet(("flickr8k", "test"), "photos"),
    "flickr8k-unshipped": PhotoSet(("flickr8k", "train")),
    "coco-mini": PhotoSet(("coco-mini", "test"), "photos-coco"),
    "coco-fresh": PhotoSet(("coco-fresh", "test")),
}
_LOCAL_NAMES = {"caltech101": "caltech101-mini"}
for _set in CLASSES:
    _name = _set.removeprefix("photos-")
    SETS[_name] = PhotoSet((_LOCAL_NAMES.get(_name, _name), "test"), _set)
for _name in ("art_painting", "cartoon", "sketch"):
    SETS[f"pacs-{_name}"] = PhotoSet((f"pacs-{_name}", "test"))
for _name in ("flowers5", "dtd10"):
    SETS[_name] = PhotoSet((_name, "test"))


@cache
def with_features(name: str) -> Pairs:
    """A set with the features of the start's towers.

    Args:
        name: of `SETS`.

    Raises:
        FileNotFoundError: a set that is not shipped, without its folder or the towers.
    """
    of = SETS[name]
    if of.shipped:
        return load_pairs(of.shipped, of.split)
    pairs = with_pictures(name)
    model = DualEncoder.frozen()
    texts = strings(pairs)
    images, text_features = frozen_features(model.eval(), pairs, texts)
    features = Features(decoded(images), decoded(text_features), texts, model.towers.names)
    return replace(pairs, features=features)


@cache
def with_pictures(name: str) -> Pairs:
    """A set with its photos and texts.

    Args:
        name: of `SETS`.

    Raises:
        FileNotFoundError: its folder is missing.
    """
    of = SETS[name]
    whole = load_pairs(*of.local)
    if of.shipped:
        shipped = load_pairs(of.shipped, of.split)
        return whole.subset(_rows_of(whole, shipped))
    if name != "flickr8k-unshipped":
        return whole
    shipped = {*_rows_of(whole, with_features("train"))}
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0)).tolist()
    return whole.subset([row for row in order if row not in shipped][:N_UNSHIPPED])


def owners(name: str) -> Int[Tensor, " n"]:
    """The row of each text's photo; of a set with classes, the class of each photo."""
    pairs = with_features(name) if SETS[name].shipped else with_pictures(name)
    return pairs.labels if pairs.classnames else pairs.text_to_image()


def _rows_of(whole: Pairs, shipped: Pairs) -> list[int]:
    """The rows of shipped photos in the folder that they come from."""
    row_of_key = {key: row for row, key in enumerate(whole.keys)}
    return [row_of_key[key.rpartition("/")[-1]] for key in shipped.keys]


def coded(features: Float[Tensor, "n d"]) -> tuple[Tensor, Float[Tensor, " d"]]:
    """Features as 8-bit codes and a step per dimension, whose product they are.

    Means of ReLUs, as of images, are not negative and use all 8 bits for their size.
    """
    dtype = torch.int8 if (features < 0).any() else torch.uint8
    step = (features.abs().amax(0) / torch.iinfo(dtype).max).clamp(min=1e-9)
    return (features / step).round().to(dtype), step


def decoded(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Features as their codes have them."""
    codes, step = coded(features)
    return codes.float() * step
