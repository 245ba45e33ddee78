"""Make data/photos, the features of photos that the repository has: `CIBR_DATA=... CIBR_MODELS=...
python book/photos.py`, some five minutes on two idle cores.

Photos and captions are those of the local folders that data/README.md lists. The same versions on
the same kind of machine write the same bytes; elsewhere a few codes differ by one. The 3,000 photos
for training are those that the study's sweeps use as half of Flickr8k, the first 600 its tenth.
"""

import json
import shutil

import torch
from jaxtyping import Float, Int64
from safetensors.torch import save_file
from torch import Tensor

from cibr import DualEncoder, load_pairs
from cibr.data import Pairs
from cibr.data.photos import strings
from cibr.models.names import load_classifier
from cibr.utils import digest, project_root
from cibr_book.experiments.photo_sets import coded

FOLDER = project_root() / "data" / "photos"
SIZES = {"train": 3000, "validation": 300, "test": 1000}  # photos of Flickr8k
# Photos per class, some 400 of a set, by the local set's name. Some clothes have fewer.
CLASSES = {"cifar10": 40, "caltech101-mini": 4, "imagenette": 40, "intel-scenes": 66}
CLASSES |= {"pacs-photo": 57, "clothing10": 40, "rsscn7": 57}
SIDE = 120  # of a thumbnail, in pixels
# The test photos with thumbnails: animals, water, snow and mountains, sport, cities and crowds.
SHOWN = [953, 307, 355, 611, 736, 737, 699, 808, 818, 821, 825, 844, 604]
SHOWN += [310, 522, 212, 407, 452, 771, 633, 696, 523, 494, 571, 687, 485, 491]
SHOWN += [245, 701, 754, 744, 392, 84, 10, 439, 929, 639, 206, 857, 878]


def image_features(model: DualEncoder, pairs: Pairs) -> Float[Tensor, "n p"]:
    """Pooled features of all images."""
    batches = torch.arange(len(pairs)).split(16)
    pixels = (model.preprocess([*pairs.subset(rows).images()]) for rows in batches)
    return torch.cat([model.encode_images(batch).pooled for batch in pixels])


def text_features(model: DualEncoder, texts: list[str]) -> Float[Tensor, "m q"]:
    """Pooled features of texts, computed in batches of like lengths."""
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), texts[i]))
    features = torch.zeros(len(texts), model.dim_text_pooled)
    for rows in torch.tensor(order).split(64):
        tokens = model.tokenize([texts[i] for i in rows])
        features[rows] = model.encode_texts(*tokens).pooled
    return features


def order(pairs: Pairs) -> Int64[Tensor, " n"]:
    """The pairs in a random order, always the same."""
    return torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))


def balanced(pairs: Pairs, n: int) -> Pairs:
    """Of a classification set at most n random photos of each class, in their order."""
    rows, classes = order(pairs), range(len(pairs.classnames))
    of_classes = [rows[pairs.labels[rows] == label][:n] for label in classes]
    return pairs.subset(torch.cat(of_classes).sort().values)


def ids(parts: dict[str, Pairs], shown: Pairs) -> dict[str, str]:
    """What stands for each text of Flickr8k: the first photo that has it, and its number there; the
    text itself if a shown photo has it.
    """
    names: dict[str, str] = {}
    for pairs in parts.values():
        for key, texts in zip(pairs.keys, pairs.captions, strict=True):
            for i, text in enumerate(texts):
                names.setdefault(text, f"{key}#{i}")
    return names | {text: text for text in shown.texts()}


def write(model: DualEncoder, name: str, pairs: Pairs, names: dict[str, str]) -> None:
    """Writes the file of a set, with `names` in place of the captions that have one."""
    images, texts = image_features(model, pairs), text_features(model, strings(pairs))
    about = {"towers": model.towers.names, "keys": pairs.keys}
    if pairs.classnames:
        about |= {"classnames": pairs.classnames, "templates": pairs.templates}
    else:
        named = ([names.get(text, text) for text in own] for own in pairs.captions)
        about["captions"] = [*named]
    labels = {"labels": pairs.labels} if pairs.classnames else {}
    tensors = dict(labels)
    for side, features in (("image", images), ("text", texts)):
        tensors[f"{side}_codes"], tensors[f"{side}_step"] = coded(features)
    text = json.dumps(about, ensure_ascii=False, separators=(",", ":"))
    save_file(tensors, FOLDER / f"{name}.safetensors", metadata={"about": text})
    print(f"{name}: {len(pairs):,} photos, {len(texts):,} texts", flush=True)


def write_classes(model: DualEncoder) -> None:
    """Writes the classifier of the image tower and the text features of its classes, in half
    precision.
    """
    classifier = load_classifier(model.towers.names[0])
    tensors = {
        "weight": classifier.weight,
        "bias": classifier.bias,
        "features": text_features(model, classifier.texts),
    }
    about = {"towers": model.towers.names, "texts": classifier.texts}
    text = json.dumps(about, ensure_ascii=False, separators=(",", ":"))
    halves = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(halves, FOLDER / "classes.safetensors", metadata={"about": text})
    print(f"classes: {len(classifier.texts):,}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the order of sums, and so the bytes, depend on it
    shutil.rmtree(FOLDER / "shown", ignore_errors=True)
    (FOLDER / "shown").mkdir(parents=True)
    parts = {}
    for split, n in SIZES.items():
        whole = load_pairs("flickr8k", split)
        whole.keys = [f"{split}/{key}" for key in whole.keys]
        parts[split] = whole if n == len(whole) else whole.subset(order(whole)[:n])
    shown = parts["test"].subset(sorted(SHOWN))
    for key, image in zip(shown.keys, shown.images(), strict=True):
        thumbnail = image.resize((SIDE, SIDE))
        thumbnail.save(FOLDER / "shown" / f"{key.split('/')[1]}.jpg", quality=80)
    names = ids(parts, shown)
    with (model := DualEncoder.frozen()).evaluating():
        for split, pairs in parts.items():
            write(model, split, pairs, names)
        write(model, "coco", load_pairs("coco-mini", "test"), {})
        for name, n in CLASSES.items():
            pairs = balanced(load_pairs(name, "test"), n)
            write(model, name.removesuffix("-mini"), pairs, {})
        write_classes(model)
    files = sorted([*FOLDER.glob("*.safetensors"), *FOLDER.glob("shown/*.jpg")])
    lines = (
        f"{digest(file.read_bytes())}  {file.relative_to(FOLDER).as_posix()}\n"
        for file in files
    )
    (FOLDER / "SHA256SUMS").write_text("".join(lines))
