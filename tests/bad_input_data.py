"""Bad input to data: names that lead nowhere, malformed metadata and shards, broken images."""

import os
from unittest import mock

import datasets
import numpy as np
import torch
from data_files import png, write_classes, write_images, write_shards
from helpers import noise_pairs, picture
from PIL import Image

from cibr.data import DATASETS, Dataset, Pairs, load_pairs
from cibr.data.pairs import open_rgb, to_rgb


def folder(text: str | bytes, kind: str = "csv", split: str = "train", **options):
    """Loads a folder with images a.png, in/b.png and broken.png, whose metadata are as given."""

    def call(tmp_path):
        part = write_images(tmp_path / "photos" / split, "a.png", "in/b.png")
        (part / "broken.png").write_bytes(png()[:50])
        (part / "link.png").symlink_to("gone/away.png")
        file = part / f"metadata.{kind}"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        list(load_pairs(tmp_path / "photos", **options).images())

    return call


def jsonl(text: str):
    return folder(text, "jsonl")


def files(*names: str):
    return lambda tmp_path: load_pairs(write_images(tmp_path, *names))


def shards(*members: tuple, split: str = "train"):
    def call(tmp_path):
        list(load_pairs(write_shards(tmp_path / "set", list(members)), split).images())

    return call


def classes(*members: tuple):
    return lambda tmp_path: load_pairs(write_classes(tmp_path / "set", *members), "val")


def damaged(file: str, content: bytes | None):
    """Loads a set of classes after one of its files was changed or removed."""

    def call(tmp_path):
        root = write_classes(tmp_path / "set")
        (root / file).unlink()
        if content is not None:
            (root / file).write_bytes(content)
        load_pairs(root, "validation")

    return call


def damaged_header(tmp_path):
    shard = write_classes(tmp_path) / "val" / "0.tar"
    shard.write_bytes(shard.read_bytes().replace(b"b.png", b"x.png"))  # not the checksum
    load_pairs(tmp_path, "val")


def pairs(captions=(("a",),), keys=("k",), **about):
    about = {"labels": torch.zeros(len(keys)).long(), **about}
    return Pairs("set", "test", captions, list(keys), picture, **about)


def prompts(**about):
    return lambda: pairs(**about).prompts()


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


@mock.patch.dict(os.environ, CIBR_DATA="nowhere")
def cibr_data_that_is_no_folder():
    load_pairs("flickr8k")


@mock.patch.dict(DATASETS, mine=Dataset(lambda split: noise_pairs(0), ["train"]))
def empty_set_of_code():
    load_pairs("mine")


ROW = "file_name,text\n"
GONE = ROW + "gone.png,x"
GROUPS = "file_name,text,group\na.png,x,1\na.png,y,2"
LATIN = (ROW + "a.png,größer").encode("latin-1")
A_TEXT = '{"file_name": "a.png", "text": '
BAD = ("bad.png", png())
LABELS = datasets.Dataset.from_dict({"image": ["a.png"], "label": [0]})
LABELS = LABELS.cast_column("image", datasets.Image())
COMPRESSED = b"\x1f\x8b" + bytes(2048)
NANS = np.full((2, 2), np.nan, np.float32)

VALUE_ERRORS = {
    "near name": (lambda: load_pairs("flickr8"), "'flickr8', did you mean 'flickr8k'.*CIBR_DATA"),
    "far name": (lambda: load_pairs("no/such/place"), "'no/such/place'"),
    "long name": (lambda: load_pairs("a" * 5000), "data set 'aaa"),
    "user's folder": (lambda: load_pairs("~nobody/x/y"), "'~nobody/x/y'"),
    "split": (lambda: load_pairs("glyphs", "half"), "split 'half'"),
    "empty": (empty_set_of_code, "train of mine is empty"),
    "CIBR_DATA": (cibr_data_that_is_no_folder, "CIBR_DATA is 'nowhere'"),
    "csv: image column": (folder("file,text\na.png,x"), "line 2, .*file_name"),
    "csv: text column": (folder("file_name,title\na.png,x"), "line 2, .*text"),
    "csv: comma": (folder(ROW + "a.png,a dog, brown"), "line 2, .*comma"),
    "csv: no file name": (folder(ROW + ",x"), "line 2, .*file_name"),
    "csv: same column": (folder("file_name,text,text\na.png,x,y"), "column .*text"),
    "csv: no rows": (folder(ROW), "train of photos is empty"),
    "csv: open quote": (folder(ROW + 'a.png,"a dog\nin/b.png,x'), "open quote"),
    "csv: latin-1": (folder(LATIN), r"metadata\.csv is not UTF-8"),
    "csv: root": (folder(ROW + "/etc/a.png,x"), "file_name '/etc/a.png'"),
    "csv: drive": (folder(ROW + "C:\\photos\\a.png,x"), "file_name 'C:"),
    "csv: parent": (folder(ROW + "..\\a.png,x"), "file_name '.*a.png'"),
    "csv: no text": (folder(ROW + "a.png, "), r"a\.png of photos has no text"),
    "csv: broken image": (folder(ROW + "broken.png,x"), r"broken\.png"),
    "csv: two groups": (folder(GROUPS), "line 3, .*group '2'"),
    "jsonl: half a row": (jsonl(A_TEXT + '"x"}\n{"file_name"'), "line 2, .*JSON"),
    "jsonl: huge number": (jsonl('{"text": ' + "9" * 5000 + "}"), "line 1, .*JSON"),
    "jsonl: nesting": (jsonl("[" * 100_000), "line 1, .*JSON"),
    "jsonl: list": (jsonl('["a.png", "x"]'), "line 1, .*JSON"),
    "jsonl: same key": (jsonl(A_TEXT + '"x", "text": "y"}'), "line 1, .*key"),
    "jsonl: number": (jsonl(A_TEXT + "7}"), "line 1, .*text 7"),
    "jsonl: null in a list": (jsonl(A_TEXT + '["x", null]}'), "line 1, .*text"),
    "both kinds": (files("metadata.csv", "metadata.jsonl"), "metadata.jsonl and metadata.csv"),
    "two splits": (files("val/metadata.csv", "dev/metadata.csv"), "split 'validation'"),
    "mixed": (folder(ROW + "a.png,x\ntrain/c.png,y", split=""), r"a\.png"),
    "nothing left": (folder(GONE, max_skipped=3), r"empty \(1 samples skipped\)"),
    "too many bad": (folder(GONE + "\nb.png,y", max_skipped=1), "(?s)gone.png.*b.png"),
    "shard: no text": (shards(BAD), "'bad' .*no text"),
    "shard: no image": (shards(("bad.txt", "x")), "'bad' .*no image"),
    "shard: broken": (shards(("bad.png", png()[:-30]), ("bad.txt", "x")), "'bad' .*decode"),
    "shard: not UTF-8": (shards(BAD, ("bad.txt", b"\xff\xfe")), "'bad' .*UTF-8"),
    "shard: two images": (shards(BAD, ("bad.GIF", png())), "'bad' .*two of image"),
    "class: negative": (classes(("c.png", png()), ("c.cls", "-1")), "label '-1'"),
    "class: next": (classes(("c.png", png()), ("c.cls", "2")), "label '2'"),
    "class: extreme": (classes(("c.png", png()), ("c.cls", "9" * 5000)), "label '9{40}'"),
    "set: compressed": (damaged("val/0.tar", COMPRESSED), r"0\.tar"),
    "set: header": (damaged_header, r"0\.tar is damaged .*byte"),
    "set: no shards": (damaged("val/nshards.txt", b"0"), r"nshards\.txt says '0'"),
    "set: number": (damaged("val/nshards.txt", b"9" * 5000), r"nshards\.txt says '9{40}'"),
    "hub: broken": (hub("owner/birds", KeyError("rows")), "owner/birds cannot be read .*KeyError"),
    "hub: no text column": (hub("owner/birds", ["train"], LABELS), "column"),
    "pairs: lengths": (lambda: pairs(keys=["k", "l"]), "2 keys"),
    "pairs: labels": (lambda: pairs(labels=torch.zeros(3).long()), "3 labels"),
    "pairs: no caption": (lambda: pairs([[" "]]), "'k' of set"),
    "pairs: strings": (lambda: pairs(["a cat"]), "captions of set"),
    "prompts: no names": (prompts(templates=["{c}"]), "classnames.txt"),
    "prompts: no templates": (prompts(classnames=["a"]), "templates.txt"),
    "prompts: no {c}": (prompts(classnames=["a"], templates=["{c}", "b"]), "template 'b'"),
    "image: empty": (lambda: to_rgb(Image.new("RGB", (0, 3))), "0 x 3 px"),
    "image: NaN": (lambda: to_rgb(Image.fromarray(NANS)), "finite"),
}
MISSING = {
    "no metadata": (files("a.png"), "metadata.jsonl or metadata.csv"),
    "missing image": (folder(GONE), r"gone\.png"),
    "long image": (folder(ROW + "a" * 5000 + ",x"), "aaa is missing"),
    "missing shard": (damaged("val/nshards.txt", b"999999999"), r"1\.tar"),
    "missing names": (damaged("classnames.txt", None), "classnames.txt"),
    "no image file": (lambda tmp_path: open_rgb(tmp_path / "gone.png"), "gone.png"),
}
UNREACHABLE = {
    "hub offline": (hub("owner/birds", ConnectionError("no")), r"owner/birds .*\(no\)"),
    "hub shards offline": (hub("owner/wds_x", OSError("no")), "wds_x .*CIBR_DATA"),
}
OUTSIDE = {
    "image 48": (lambda: noise_pairs().image(48), "image 48"),
    "pair -1": (lambda: noise_pairs().subset([-1]), "image -1"),
    "short mask": (lambda: noise_pairs().subset(np.ones(3, bool)), "mask of 3 for 48"),
}
TABLES = {
    ValueError: VALUE_ERRORS,
    FileNotFoundError: MISSING,
    ConnectionError: UNREACHABLE,
    IndexError: OUTSIDE,
}
CASES = [
    (f"data: {case}", call, error, message)
    for error, table in TABLES.items()
    for case, (call, message) in table.items()
]
