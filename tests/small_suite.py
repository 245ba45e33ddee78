"""A suite of four small sets of noise images, written as shards, for the tests of evaluation and
the command.
"""

from data_files import TEMPLATES as TEMPLATES_FILE
from data_files import encoded, write_shards
from helpers import TEXTS, picture

from cibr.evaluate import SUITES, Task
from cibr.models import features

CLASSES = ["cat", "dog", "bird", "tree", "house", "car"]
TEMPLATES = ["a small {c}", "a big {c}", "a red {c}"]
ONE, LEFT, RIGHT = Task("one"), Task("left", group="sides"), Task("right", group="sides")
CAPTIONS = Task("captions", "retrieval")
TASKS = (ONE, LEFT, RIGHT, CAPTIONS)


def write_classes(folder, labels, first, classes=CLASSES):
    write_samples(folder, first, "cls", map(str, labels))
    (folder / "dataset_type.txt").write_text("classification")
    (folder / "classnames.txt").write_text("\n".join(classes))
    (folder / TEMPLATES_FILE).write_text("\n".join(TEMPLATES))


def write_captions(folder, captions):
    write_samples(folder, 500, "txt", map("\n".join, captions))


def write_samples(folder, first, kind, contents):
    parts = (
        (("png", encoded(picture(first + i))), (kind, content))
        for i, content in enumerate(contents)
    )
    members = [
        (f"s{i}.{suffix}", part) for i, sample in enumerate(parts) for suffix, part in sample
    ]
    write_shards(folder, members, split="test")


def make_small_suite(folder, monkeypatch):
    """The suite `small`: a set of unequal classes, a group of two with less than five, a set of
    captions.
    """
    root = folder / "data"
    write_classes(root / "wds_one", [0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 5, 0], 0)
    write_classes(root / "wds_left", [0, 1, 2, 3] * 3, 100, classes=CLASSES[:4])
    write_classes(root / "wds_right", [0, 1, 2] * 4, 200, classes=CLASSES[:3])
    write_captions(
        root / "wds_captions", [[TEXTS[i + 14 * k] for k in range(1 + i % 3)] for i in range(14)]
    )
    monkeypatch.setenv("CIBR_DATA", str(root))
    monkeypatch.setattr(features, "cache_folder", lambda: folder / "cache")
    monkeypatch.setitem(SUITES, "small", TASKS)
    return root
