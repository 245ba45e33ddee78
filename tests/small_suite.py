"""A suite of four small sets of noise images, written as shards, for the tests of evaluation and
the command.
"""

from data_files import TEMPLATES as TEMPLATES_FILE
from data_files import encoded, write_shards
from helpers import TEXTS, picture

from cibr.evaluate import SUITES, Task
from cibr.models import features

CLASSES = ["cat", "dog", "bird", "tree", "house", "car"]
ONE, LEFT, RIGHT = Task("one"), Task("left", group="sides"), Task("right", group="sides")
CAPTIONS = Task("captions", "retrieval")


def write_set(folder, kind, contents, first):
    """Images of noise, numbered from the first, each with its class or its captions."""
    members = []
    for i, content in enumerate(contents):
        members += [(f"s{i}.png", encoded(picture(first + i))), (f"s{i}.{kind}", content)]
    write_shards(folder, members, split="test")


def write_classes(folder, labels, first, n_classes=6):
    write_set(folder, "cls", map(str, labels), first)
    (folder / "dataset_type.txt").write_text("classification")
    (folder / "classnames.txt").write_text("\n".join(CLASSES[:n_classes]))
    (folder / TEMPLATES_FILE).write_text("a small {c}\na big {c}\na red {c}")


def write_captions(folder, captions):
    write_set(folder, "txt", map("\n".join, captions), 500)


def make_small_suite(folder, monkeypatch):
    """The suite `small`: a set of unequal classes, a group of two with less than five, a set of
    captions.
    """
    root = folder / "data"
    write_classes(root / "wds_one", [0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 5, 0], 0)
    write_classes(root / "wds_left", [0, 1, 2, 3] * 3, 100, n_classes=4)
    write_classes(root / "wds_right", [0, 1, 2] * 4, 200, n_classes=3)
    captions = [[TEXTS[i + 14 * k] for k in range(1 + i % 3)] for i in range(14)]
    write_captions(root / "wds_captions", captions)
    monkeypatch.setenv("CIBR_DATA", str(root))
    monkeypatch.setattr(features, "cache_folder", lambda: folder / "cache")
    monkeypatch.setitem(SUITES, "small", (ONE, LEFT, RIGHT, CAPTIONS))
    return root
