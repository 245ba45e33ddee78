"""A suite of four small sets of noise images, written as shards, for the tests of evaluation and the command."""

import io

from data_files import TEMPLATES as TEMPLATES_FILE
from data_files import write_shards
from helpers import TEXTS, picture

from cibr.evaluate import SUITES, Task
from cibr.models import features

CLASSES = ["cat", "dog", "bird", "tree", "house", "car"]
TEMPLATES = ["a small {c}", "a big {c}", "a red {c}"]
ONE, LEFT, RIGHT = Task("one"), Task("left", group="sides"), Task("right", group="sides")
CAPTIONS = Task("captions", "retrieval")
TASKS = (ONE, LEFT, RIGHT, CAPTIONS)


def write_classes(folder, labels, first, classes=CLASSES):
    samples = [{"png": png(first + i), "cls": str(label)} for i, label in enumerate(labels)]
    write_shards(folder, members(samples), split="test")
    (folder / "dataset_type.txt").write_text("classification")
    (folder / "classnames.txt").write_text("\n".join(classes))
    (folder / TEMPLATES_FILE).write_text("\n".join(TEMPLATES))


def write_captions(folder, captions):
    samples = [{"png": png(500 + i), "txt": "\n".join(texts)} for i, texts in enumerate(captions)]
    write_shards(folder, members(samples), split="test")


def png(i):
    file = io.BytesIO()
    picture(i).save(file, "PNG")
    return file.getvalue()


def members(samples):
    return [(f"s{i}.{suffix}", part) for i, sample in enumerate(samples) for suffix, part in sample.items()]


def make_small_suite(folder, monkeypatch):
    """The suite `small`: a set of unequal classes, a group of two with less than five, a set of captions."""
    root = folder / "data"
    write_classes(root / "wds_one", [0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 5, 0], 0)
    write_classes(root / "wds_left", [0, 1, 2, 3] * 3, 100, classes=CLASSES[:4])
    write_classes(root / "wds_right", [0, 1, 2] * 4, 200, classes=CLASSES[:3])
    write_captions(root / "wds_captions", [[TEXTS[i + 14 * k] for k in range(1 + i % 3)] for i in range(14)])
    monkeypatch.setenv("CIBR_DATA", str(root))
    monkeypatch.setattr(features, "cache_folder", lambda: folder / "cache")
    monkeypatch.setitem(SUITES, "small", TASKS)
    return root
