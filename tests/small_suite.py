"""A suite of four small sets of noise images, written as shards, for the tests of evaluation and
the command.
"""

from itertools import count

from data_files import TEMPLATES as TEMPLATES_FILE
from data_files import encoded, write_shards
from helpers import TEXTS, picture

from cibr.evaluate import SUITES, Task

TEMPLATES = ["a small {c}", "a big {c}", "a red {c}"]
CLASSES = ["cat", "dog", "bird", "tree", "house", "car"]
ONE, LEFT, RIGHT = Task("one"), Task("left", group="sides"), Task("right", group="sides")
CAPTIONS = Task("captions")


def write_set(folder, kind, contents, images, split="test"):
    """Writes a split of images, each with its class or its captions."""
    members = []
    for i, (content, image) in enumerate(zip(contents, images, strict=False)):
        members += [(f"s{i:07}.png", encoded(image)), (f"s{i:07}.{kind}", content)]
    write_shards(folder, members, split=split)


def write_classes(folder, labels, images, names=CLASSES, templates=TEMPLATES, split="test"):
    write_set(folder, "cls", map(str, labels), images, split)
    (folder / "dataset_type.txt").write_text("classification")
    (folder / "classnames.txt").write_text("\n".join(names))
    (folder / TEMPLATES_FILE).write_text("\n".join(templates))


def write_captions(folder, captions, images, split="test"):
    write_set(folder, "txt", map("\n".join, captions), images, split)


def noise(first):
    """Images of noise, numbered from the first on."""
    return map(picture, count(first))


def make_small_suite(folder, monkeypatch):
    """The suite `small`: a set of unequal classes, a group of two with less than five, a set of
    captions.
    """
    root = folder / "data"
    write_classes(root / "wds_one", [0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 5, 0], noise(0))
    write_classes(root / "wds_left", [0, 1, 2, 3] * 3, noise(100), CLASSES[:4])
    write_classes(root / "wds_right", [0, 1, 2] * 4, noise(200), CLASSES[:3])
    captions = [[TEXTS[i + 14 * k] for k in range(1 + i % 3)] for i in range(14)]
    write_captions(root / "wds_captions", captions, noise(500))
    monkeypatch.setenv("CIBR_DATA", str(root))
    monkeypatch.setitem(SUITES, "small", (ONE, LEFT, RIGHT, CAPTIONS))
    return root
