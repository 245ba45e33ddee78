"""Photos as features: what two frozen towers compute from real photos, captions and prompts.

``data/photos`` of the repository has one file of safetensors per set. Its features have 8 bits: a
code times the step of its dimension,

    images = image_codes * image_step,    texts = text_codes * text_step,

[n, 1280] and [m, 384]. The file also has the photos' keys, and captions, or labels with class names
and prompt templates. Of Flickr8k's captions only those of the photos with thumbnails are texts;
elsewhere an id such as ``test/s0000953#3`` stands for a text, and equal texts have one id.
data/photos/README.md is the card, and ``book/photos.py`` makes the folder.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from cibr.data.pairs import Features, Pairs
from cibr.utils import shipped

_CLASSES = "cifar10 caltech101 imagenette intel-scenes pacs-photo clothing10 rsscn7"
CLASSES = tuple(f"photos-{name}" for name in _CLASSES.split())  # the sets for zero-shot
SPLITS = {"photos": ("train", "validation", "test", "shown")}
SPLITS |= dict.fromkeys(("photos-coco", *CLASSES), ("test",))


def load_photos(name: str, split: str) -> Pairs:
    """Loads a split of a set of photos, without a network, towers or images.

    Args:
        name: ``photos``, Flickr8k; ``photos-coco``, MSCOCO; or one of `CLASSES`.
        split: ``train``, ``validation`` or ``test`` of ``photos``, or ``shown``, those of its test
            photos that have a thumbnail and captions in words; ``test`` of the others.

    Returns:
        Pairs with `features` [n, 1280] and [m, 384], float32. Only those of ``shown`` have images,
        thumbnails of 120 x 120 pixels, while their features are of the whole photos.

    Raises:
        FileNotFoundError: if the folder is not here.
    """
    part = split if name == "photos" else name.removeprefix("photos-")
    if part != "shown":
        return _read(_file(f"{part}.safetensors"), name, split)
    thumbnails = {file.stem: file for file in _file("shown").iterdir()}
    test = load_photos(name, "test")
    rows = [i for i, key in enumerate(test.keys) if Path(key).name in thumbnails]
    files = [thumbnails[Path(test.keys[i]).name] for i in rows]
    return replace(test.subset(rows), split=split, load=files.__getitem__)


class Classes(NamedTuple):
    """The image network's classifier, and its classes in the text network.

    Args:
        weight: of its last layer, [k, p].
        bias: [k].
        texts: names of the k classes with WordNet's definitions.
        features: of the texts, [k, q].
    """

    weight: Float[Tensor, "k p"]
    bias: Float[Tensor, " k"]
    texts: list[str]
    features: Float[Tensor, "k q"]


def load_classes(towers: tuple[str, str]) -> Classes | None:
    """Loads ``classes.safetensors``, float32; None if it is not here, or of other towers.

    Args:
        towers: names of an image and of a text tower.
    """
    try:
        file = _file("classes.safetensors")
    except FileNotFoundError:
        return None
    about = _about(file)
    if tuple(about["towers"]) != towers:
        return None
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    return Classes(texts=about["texts"], **tensors)


def _about(file: Path) -> dict:
    with safe_open(file, "pt") as stored:
        return json.loads(stored.metadata()["about"])


def _file(name: str) -> Path:
    """A file or folder of ``data/photos``: of the checkout, or where `CIBR_DATA` points to."""
    own = Path(os.environ.get("CIBR_DATA") or os.devnull).expanduser()
    for place in (shipped("photos"), own / "photos"):
        if (place / name).exists():
            return place / name
    what = f"data/photos/{name} is not here: only a clone of the repository has it"
    raise FileNotFoundError(f"{what}; clone it, or set CIBR_DATA to the data folder of a clone")


def _read(file: Path, name: str, split: str) -> Pairs:
    about = _about(file)
    tensors = load_file(file)
    images, texts = (
        tensors[f"{side}_codes"].float() * tensors[f"{side}_step"] for side in ("image", "text")
    )
    labels, classnames = tensors.get("labels"), about.get("classnames")
    captions = about.get("captions") or [[classnames[label]] for label in labels.tolist()]
    of_classes = dict(labels=labels, classnames=classnames, templates=about.get("templates"))
    pairs = Pairs(name, split, captions, about["keys"], **of_classes)
    features = Features(images, texts, strings(pairs), tuple(about["towers"]))
    return replace(pairs, features=features)


def strings(pairs: Pairs) -> list[str]:
    """Returns the different texts of a set, captions and then prompts, in the order in which their
    features are stored.
    """
    prompts = [text for texts in pairs.prompts() for text in texts] if pairs.classnames else []
    return list(dict.fromkeys([*pairs.texts(), *prompts]))
