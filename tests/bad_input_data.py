"""Bad input to data: names that lead nowhere, malformed metadata and shards, broken images."""

from unittest import mock

import datasets
import numpy as np
import torch
from data_files import png, write_classes, write_images
from helpers import noise_pairs, picture

from cibr.data import Pairs, load_pairs
from cibr.data.pairs import open_rgb


def folder(text: str | bytes, kind: str = "csv", image: str = "a.png"):
    """Loads a folder with an image and these metadata."""

    def call(tmp_path):
        write_images(tmp_path / "photos", image)
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "photos" / f"metadata.{kind}").write_bytes(content)
        load_pairs(tmp_path / "photos")

    return call


def files(*names: str):
    return lambda tmp_path: load_pairs(write_images(tmp_path, *names), "test")


def classes(*members: tuple, file: str = "classnames.txt", content: bytes | None = b"a\nb"):
    """Loads a set of two classes with more members, in which one file is changed or removed."""

    def call(tmp_path):
        root = write_classes(tmp_path / "set", *members)
        (root / file).unlink()
        if content is not None:
            (root / file).write_bytes(content)
        load_pairs(root, "validation")

    return call


def damaged_header(tmp_path):
    shard = write_classes(tmp_path) / "val" / "0.tar"
    shard.write_bytes(shard.read_bytes().replace(b"b.png", b"x.png"))  # not the checksum
    load_pairs(tmp_path, "val")


def equal_photos(tmp_path):
    write_images(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text("file,text\na.png,x\nb.png,y")
    load_pairs(tmp_path, "validation")


def changed(**about):
    """Pairs of one image with other parts."""
    usual = dict(captions=[["a"]], keys=["k"], load=picture, labels=torch.zeros(1).long())
    return lambda: Pairs(**dict(name="set", split="test") | usual | about).prompts()


def hub(name: str, *answers):
    """Loads a set of a hub with these answers, such as an error."""

    def call():
        with (
            mock.patch("datasets.get_dataset_split_names", side_effect=answers),
            mock.patch("datasets.load_dataset", side_effect=answers[1:]),
            mock.patch("huggingface_hub.snapshot_download", side_effect=answers),
        ):
            load_pairs(name)

    return call


ROW = "file_name,text\n"
LATIN = (ROW + "a.png,größer").encode("latin-1")
LABELS = datasets.Dataset.from_dict({"image": ["a.png"], "label": [0]})
NUMBERS = datasets.Dataset.from_dict({"image": [1], "text": ["a"]})

CASES = [
    ("near name", hub("glyhps", OSError("no")), ConnectionError, "CIBR_DATA, .* mean 'glyphs'"),
    ("long name", lambda: load_pairs("a" * 5000), ValueError, "data set 'aaa"),
    ("file", lambda: load_pairs(__file__), ValueError, "is a file: give the folder"),
    ("no name", lambda: load_pairs(7), ValueError, "int is no kind of data set"),
    ("split", lambda: load_pairs("glyphs", "half"), ValueError, "split 'half'"),
    ("columns", folder("title,file\nx,a.png"), ValueError, "and text: it has title, file"),
    ("a column twice", folder("file_name,text,Text\na.png,x,y"), ValueError, "column text twice"),
    ("two groups", folder("file,text,group\na.png,x,1\na.png,y,2"), ValueError, "1 in two groups"),
    ("no rows", folder(ROW, image="a.txt"), ValueError, "train of photos is empty"),
    ("open quote", folder(ROW + 'a.png,"a dog\nin/b.png,x'), ValueError, "line 3 .*closed"),
    ("latin-1", folder(LATIN), ValueError, r"metadata\.csv, line 2, is not UTF-8 .*Excel"),
    ("half a row", folder('{"file_name": "a.png"}\n{', "jsonl"), ValueError, "photos cannot be"),
    ("two levels", files("metadata.csv", "dev/metadata.csv"), ValueError, "keep one, or one in"),
    ("no metadata", files("a.png"), FileNotFoundError, "no metadata.csv.*class folder"),
    ("split folders", files("val/a.png", "test/a.png"), FileNotFoundError, "without metadata"),
    ("no image file", lambda folder: open_rgb(folder / "gone.png"), FileNotFoundError, "gone.png"),
    ("broken image", lambda: open_rgb(png()[:50], "it"), ValueError, "it does not decode"),
    ("equal photos", equal_photos, ValueError, "all 2 images of .* equal files"),
    ("not UTF-8", classes(("x.txt", b"\xff\xfe")), ValueError, r"0\.tar .*utf-8"),
    ("compressed", classes(file="val/0.tar", content=b"\x1f\x8b"), ValueError, r"0\.tar"),
    ("damaged header", damaged_header, ValueError, r"0\.tar is damaged .*byte"),
    ("no shards", classes(file="val/nshards.txt", content=b"0"), ValueError, "set is empty"),
    ("shard", classes(file="val/nshards.txt", content=b"9" * 5), FileNotFoundError, r"1\.tar"),
    ("class names", classes(content=None), FileNotFoundError, "classnames.txt"),
    ("broken hub set", hub("owner/birds", KeyError("rows")), ValueError, "birds .*KeyError"),
    ("no text column", hub("owner/birds", ["train"], LABELS), ValueError, "column"),
    ("no images", hub("owner/birds", ["train"], NUMBERS), ValueError, "a column of images"),
    ("offline", hub("owner/birds", ConnectionError("no")), ConnectionError, r"birds .*\(no\)"),
    ("no shards offline", hub("owner/wds_x", OSError("no")), ConnectionError, "wds_x .*CIBR_DATA"),
    ("keys", changed(keys=["k", "l"]), ValueError, "2 keys"),
    ("no caption", changed(captions=[[" "]]), ValueError, "'k' of set"),
    ("strings", changed(captions=["a cat"]), ValueError, "captions of set"),
    ("no class names", changed(templates=["{c}"]), ValueError, "classnames.txt"),
    ("no templates", changed(classnames=["a"]), ValueError, "templates.txt"),
    ("no {c}", changed(classnames=["a"], templates=["{c}", "b"]), ValueError, "{c}"),
    ("image 48", lambda: noise_pairs().image(48), IndexError, "range"),
    ("short mask", lambda: noise_pairs().subset(np.ones(3, bool)), IndexError, "mask"),
]
CASES = [(f"data: {name}", *case) for name, *case in CASES]
