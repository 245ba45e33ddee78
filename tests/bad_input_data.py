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
    "far name": (lambda: load_pairs("no/such/place"), r"set 'no/such/place'\. Known: glyphs, "),
    "empty name": (lambda: load_pairs(""), "no data set ''"),
    "long name": (lambda: load_pairs("a" * 5000), "no data set 'aaa"),
    "user's folder": (lambda: load_pairs("~nobody/x/y"), "no data set '~nobody/x/y'"),
    "split of a card": (lambda: load_pairs("imagenet1k", "dev"), "'validation': it has train, te"),
    "split of glyphs": (lambda: load_pairs("glyphs", "half"), "no split 'half': it has train, val"),
    "negative limit": (lambda: load_pairs("glyphs", max_skipped=-1), "is -1: give 0 or more"),
    "empty": (empty_set_of_code, r"train of mine is empty \(0 samples skipped\): add an image"),
    "CIBR_DATA": (cibr_data_that_is_no_folder, "CIBR_DATA is 'nowhere', .*: correct it or unset"),
    "csv: image column": (folder("file,text\na.png,x"), "line 2, needs .* but has file, text"),
    "csv: text column": (folder("file_name,title\na.png,x"), "needs .* file_name and text.*title"),
    "csv: comma": (folder(ROW + "a.png,a dog, brown"), "line 2, has too many fields: quote texts"),
    "csv: no file name": (folder(ROW + ",x"), "line 2, has no file_name"),
    "csv: same column": (folder("file_name,text,text\na.png,x,y"), "repeats a column of .*text"),
    "jsonl: same key": (jsonl(A_TEXT + '"x", "text": "y"}'), "line 1, .*no key twice"),
    "csv: no rows": (folder(ROW), r"metadata\.csv has no rows"),
    "csv: open quote": (folder(ROW + 'a.png,"a dog\nin/b.png,x'), "has an open quote"),
    "csv: latin-1": (folder(LATIN), r"metadata\.csv is not UTF-8"),
    "csv: parent": (folder(ROW + "../a.png,x"), r"has the file_name '\.\./a.png': move the image"),
    "csv: root": (folder(ROW + "/etc/a.png,x"), "has the file_name '/etc/a.png'"),
    "csv: drive": (folder(ROW + "C:\\photos\\a.png,x"), "has the file_name 'C:"),
    "csv: parent in Windows": (folder(ROW + "..\\a.png,x"), "has the file_name '.*a.png'"),
    "csv: no text": (folder(ROW + "a.png, "), r"a\.png of photos has no text"),
    "csv: broken image": (folder(ROW + "broken.png,x"), r"broken\.png does not decode as an image"),
    "csv: two groups": (folder(GROUPS), r"line 3, has group '2', but earlier '1'"),
    "jsonl: half a row": (jsonl(A_TEXT + '"x"}\n{"file_name"'), "line 2, is not a JSON object"),
    "jsonl: huge number": (jsonl('{"text": ' + "9" * 5000 + "}"), "line 1, is not a JSON object"),
    "jsonl: nesting": (jsonl("[" * 100_000), "line 1, is not a JSON object"),
    "jsonl: list": (jsonl('["a.png", "x"]'), "line 1, is not a JSON object"),
    "jsonl: number": (jsonl(A_TEXT + "7}"), "line 1, has the text 7: write a string or a list"),
    "jsonl: null in a list": (jsonl(A_TEXT + '["x", null]}'), r"\['x', None\]: write a string"),
    "jsonl: null name": (jsonl('{"file_name": null, "text": "x"}'), "line 1, has no file_name"),
    "both kinds": (files("metadata.csv", "metadata.jsonl"), "has metadata.jsonl and metadata.csv"),
    "two splits": (files("val/metadata.csv", "dev/metadata.csv"), "both the split 'validation'"),
    "root and split": (files("metadata.csv", "train/metadata.csv"), "train/metadata.csv: keep one"),
    "mixed": (folder(ROW + "a.png,x\ntrain/c.png,y", split=""), r"such as a\.png: put all"),
    "other split": (folder("", split="test"), "no split 'train': it has test$"),
    "nothing left": (folder(GONE, max_skipped=3), r"empty \(1 samples skipped\)"),
    "too many bad": (folder(GONE + "\nb.png,y", max_skipped=1), "(?s)of photos.*gone.png.*b.png"),
    "shard: no text": (shards(BAD), r"sample 'bad' of .*0\.tar has an image but no text"),
    "shard: no image": (shards(("bad.txt", "x")), r"'bad' of .*0\.tar has a text but no image"),
    "shard: broken": (shards(("bad.png", png()[:-30]), ("bad.txt", "x")), "'bad' .*not decode"),
    "shard: not UTF-8": (shards(BAD, ("bad.txt", b"\xff\xfe")), "text of sample 'bad' .*not UTF-8"),
    "shard: two images": (shards(BAD, ("bad.GIF", png())), "sample 'bad' of .* has two of image"),
    "shard: no samples": (shards(("a.json", "{}")), "train of set is empty"),
    "shard: split": (shards(("a.txt", "x"), split="dev"), "no split 'validation': it has train$"),
    "class: none": (classes(("c.png", png()), ("c.txt", "x")), r"'c' of .*0\.tar has the label ''"),
    "class: negative": (classes(("c.png", png()), ("c.cls", "-1")), "label '-1', .* lines 0 to 1"),
    "class: next": (classes(("c.png", png()), ("c.cls", "2")), "label '2', .* lines 0 to 1"),
    "class: extreme": (classes(("c.png", png()), ("c.cls", "9" * 5000)), "label '9{40}'"),
    "set: compressed": (damaged("val/0.tar", COMPRESSED), r"0\.tar is damaged or no tar file"),
    "set: number a word": (damaged("val/nshards.txt", b"many"), r"nshards\.txt says 'many'"),
    "set: no shards": (damaged("val/nshards.txt", b"0"), "says '0': write the number of shards"),
    "set: extreme number": (damaged("val/nshards.txt", b"9" * 5000), r"nshards\.txt says '9{40}'"),
    "set: no number": (damaged("val/nshards.txt", None), "no split 'validation': it has none"),
    "set: header": (damaged_header, r"0\.tar is damaged .*neither a sample nor the end at byte"),
    "hub: broken": (hub("owner/birds", KeyError("rows")), "owner/birds cannot be read .*KeyError"),
    "hub: no text column": (hub("owner/birds", ["train"], LABELS), r"and one of text, .*Image\("),
    "pairs: lengths": (lambda: pairs(keys=["k", "l"]), "1 images but 2 keys: pass one per image"),
    "pairs: labels": (lambda: pairs(labels=torch.zeros(3).long()), "1 images but 3 labels"),
    "pairs: no caption": (lambda: pairs([[" "]]), "sample 'k' of set has no text: give it"),
    "pairs: strings": (lambda: pairs(["a cat"]), "captions of set has a string"),
    "prompts: no names": (prompts(templates=["{c}"]), "no class names: put classnames.txt"),
    "prompts: no templates": (prompts(classnames=["a"]), "no prompt templates: put zeroshot_class"),
    "prompts: no {c}": (prompts(classnames=["a"], templates=["{c}", "b"]), r"'b' without \{c\}"),
    "image: empty": (lambda: to_rgb(Image.new("RGB", (0, 3))), "0 x 3 px has no pixels"),
    "image: NaN": (lambda: to_rgb(Image.fromarray(NANS)), "no pixel .* is a finite number"),
}
MISSING = {
    "no metadata": (files("a.png"), "no metadata.jsonl or metadata.csv: write one"),
    "missing image": (folder(GONE), r"gone\.png is missing, but .*metadata\.csv names it"),
    "long image": (folder(ROW + "a" * 5000 + ",x"), "aaa is missing, but"),
    "dangling link": (folder(ROW + "link.png,x"), r"link\.png is missing"),
    "missing shard": (damaged("val/0.tar", None), r"No such file .*0\.tar"),
    "set: too many": (damaged("val/nshards.txt", b"999999999"), r"1\.tar"),
    "missing names": (damaged("classnames.txt", None), "No such file .*classnames.txt"),
    "no image file": (lambda tmp_path: open_rgb(tmp_path / "gone.png"), "gone.png"),
}
UNREACHABLE = {
    "hub offline": (hub("owner/birds", ConnectionError("no")), r"owner/birds is no folder.*\(no\)"),
    "hub shards offline": (hub("owner/wds_x", OSError("no")), "wds_x is no folder .*CIBR_DATA"),
}
OUTSIDE = {
    "image 48": (lambda: noise_pairs().image(48), "noise has no image 48: train has 48 images"),
    "short mask": (lambda: noise_pairs().subset(np.ones(3, bool)), "mask of 3 for 48"),
    "pair -1": (lambda: noise_pairs().subset([-1]), "noise has no image -1: train has 48 images"),
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
