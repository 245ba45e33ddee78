"""Bad input to data: names that lead nowhere, malformed metadata and shards, broken images."""

import warnings
from unittest import mock

import datasets
import numpy as np
import torch
from data_files import encoded, png, write_classes, write_images
from helpers import noise_pairs, picture
from PIL import Image

from cibr.data import Pairs, load_pairs
from cibr.data.pairs import open_rgb


def folder(text: str | bytes, kind: str = "csv", split: str = "train", **options):
    """Loads a folder with images a.png, in/b.png, broken.png and deep.tif, and these metadata."""

    def call(tmp_path):
        part = write_images(tmp_path / "photos" / split, "a.png", "in/b.png")
        (part / "broken.png").write_bytes(png()[:50])
        (part / "eps.png").write_bytes(encoded(Image.new("RGB", (2, 2)), "EPS"))
        (part / "deep.tif").write_bytes(encoded(Image.new("F", (2, 2)), "TIFF"))
        text_bytes = text if isinstance(text, bytes) else text.encode()
        (part / f"metadata.{kind}").write_bytes(text_bytes)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* does not name")
            list(load_pairs(tmp_path / "photos", **options).images())

    return call


def jsonl(text: str):
    return folder(text, "jsonl")


def files(*names: str):
    return lambda tmp_path: load_pairs(write_images(tmp_path, *names))


def classes(*members: tuple, file: str = "classnames.txt", content: bytes | None = b"a\nb"):
    """Loads a set of two classes with more members, in which one file is changed or removed."""

    def call(tmp_path):
        root = write_classes(tmp_path / "set", *members)
        (root / file).unlink()
        if content is not None:
            (root / file).write_bytes(content)
        list(load_pairs(root, "validation").images())

    return call


def damaged_header(tmp_path):
    shard = write_classes(tmp_path) / "val" / "0.tar"
    shard.write_bytes(shard.read_bytes().replace(b"b.png", b"x.png"))  # not the checksum
    load_pairs(tmp_path, "val")


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
GONE = ROW + "gone.png,x"
LATIN = (ROW + "a.png,größer").encode("latin-1")
A_TEXT = '{"file_name": "a.png", "text": '
BAD = ("bad.png", png())
LABELS = datasets.Dataset.from_dict({"image": ["a.png"], "label": [0]})
LABELS = LABELS.cast_column("image", datasets.Image())

CASES = [
    ("near name", lambda: load_pairs("flickr8"), ValueError, "mean 'flickr8k'.*CIBR_DATA"),
    ("long name", lambda: load_pairs("a" * 5000), ValueError, "data set 'aaa"),
    ("split", lambda: load_pairs("glyphs", "half"), ValueError, "split 'half'"),
    ("image column", folder("file,text\na.png,x"), ValueError, "line 2: .*file_name"),
    ("text column", folder("file_name,title\na.png,x"), ValueError, "line 2: .*text"),
    ("comma", folder(ROW + "a.png,a dog, brown"), ValueError, "line 2: .*comma"),
    ("no file name", folder(ROW + ",x"), ValueError, "line 2: .*file_name"),
    ("a column twice", folder("file_name,text,text\na.png,x,y"), ValueError, "text comes twice"),
    ("two groups", folder("file_name,text,group\na.png,x,1\na.png,y,2"), ValueError, "groups '1'"),
    ("no rows", folder(ROW), ValueError, "train of photos is empty"),
    ("open quote", folder(ROW + 'a.png,"a dog\nin/b.png,x'), ValueError, r"metadata\.csv"),
    ("latin-1", folder(LATIN), ValueError, r"metadata\.csv.*utf-8"),
    ("drive", folder(ROW + "C:\\photos\\a.png,x"), ValueError, "file_name 'C:"),
    ("parent", folder(ROW + "..\\a.png,x"), ValueError, "file_name '.*a.png'"),
    ("no text", folder(ROW + "a.png, "), ValueError, r"a\.png of photos has no text"),
    ("broken image", folder(ROW + "broken.png,x"), ValueError, r"broken\.png"),
    ("EPS", folder(ROW + "eps.png,x"), ValueError, r"eps\.png does not decode .*identify"),
    ("deep greys", folder(ROW + "deep.tif,x"), ValueError, r"deep\.tif .*mode F .*8 or 16 bits"),
    ("too many bad", folder(GONE + "\nbroken.png,y", max_skipped=1), ValueError, "broken.png"),
    ("half a row", jsonl(A_TEXT + '"x"}\n{"file_name"'), ValueError, "line 2: "),
    ("row that is a list", jsonl('["a.png", "x"]'), ValueError, "line 1: .*file_name"),
    ("a key twice", jsonl(A_TEXT + '"x", "text": "y"}'), ValueError, "line 1: .*text comes twice"),
    ("number", jsonl(A_TEXT + "7}"), ValueError, "line 1: .*text 7"),
    ("null in a list", jsonl(A_TEXT + '["x", null]}'), ValueError, "line 1: .*text"),
    ("both kinds", files("metadata.csv", "metadata.jsonl"), ValueError, "jsonl, metadata.csv"),
    ("two levels", files("metadata.csv", "dev/metadata.csv"), ValueError, "keep one, or one in"),
    ("two splits", files("val/metadata.csv", "dev/metadata.csv"), ValueError, "dev/.*val/"),
    ("mixed", folder(ROW + "a.png,x\ntrain/c.png,y", split=""), ValueError, r"a\.png"),
    ("no metadata", files("a.png"), FileNotFoundError, "metadata.jsonl or metadata.csv"),
    ("missing image", folder(GONE), FileNotFoundError, r"gone\.png"),
    ("long image", folder(ROW + "a" * 5000 + ",x"), FileNotFoundError, "aaa is missing"),
    ("no image file", lambda folder: open_rgb(folder / "gone.png"), FileNotFoundError, "gone.png"),
    ("sample without text", classes(BAD), ValueError, "'bad' .*text"),
    ("sample without image", classes(("bad.txt", "x")), ValueError, "'bad' .*image"),
    ("label", classes(("bad.cls", "-1"), BAD), ValueError, "'bad' .*'-1'"),
    ("no label", classes(BAD, ("bad.txt", "x")), ValueError, "'bad' .*classnames"),
    ("broken", classes(("bad.png", b"no"), ("bad.cls", "0")), ValueError, "'bad' .*decode"),
    ("not UTF-8", classes(BAD, ("bad.txt", b"\xff\xfe")), ValueError, r"0\.tar .*utf-8"),
    ("compressed", classes(file="val/0.tar", content=b"\x1f\x8b"), ValueError, r"0\.tar"),
    ("damaged header", damaged_header, ValueError, r"0\.tar is damaged .*byte"),
    ("no shards", classes(file="val/nshards.txt", content=b"0"), ValueError, "set is empty"),
    ("shard", classes(file="val/nshards.txt", content=b"9" * 9), FileNotFoundError, r"1\.tar"),
    ("class names", classes(content=None), FileNotFoundError, "classnames.txt"),
    ("broken hub set", hub("owner/birds", KeyError("rows")), ValueError, "birds .*KeyError"),
    ("no text column", hub("owner/birds", ["train"], LABELS), ValueError, "column"),
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
