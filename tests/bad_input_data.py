"""Bad input to data: names that lead nowhere, malformed metadata and shards, broken images, unfit
corruptions.
"""

import datasets
import huggingface_hub
import pytest
import torch
from data_files import png, write_classes, write_csv, write_images, write_parquet, write_shards
from helpers import noise_pairs, picture

from cibr.data import Pairs, load_pairs
from cibr.data.glyphs import load_glyphs
from cibr.data.pairs import Skips, open_rgb
from cibr_book.corruptions import Corruption, corrupt, in_style
from cibr_book.glyph_benchmarks import load_glyph_benchmark


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


def mixed(tmp_path):
    write_csv(
        write_images(tmp_path, "a.png", "train/c.png"), "file_name,text\na.png,x\ntrain/c.png,y\n"
    )
    load_pairs(tmp_path)


def files(*names: str):
    return lambda tmp_path: load_pairs(write_images(tmp_path, *names))


def shards(*members: tuple, **options):
    def call(tmp_path):
        list(load_pairs(write_shards(tmp_path / "set", list(members)), **options).images())

    return call


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
    data = bytearray(shard.read_bytes())
    start = data.index(b"b.png")
    data[start : start + 512] = b"\x01" * 512
    shard.write_bytes(data)
    load_pairs(tmp_path, "val")


def prompts(**about):
    return lambda: Pairs(
        "set", "test", [["a"]], ["k"], picture, torch.tensor([0]), **about
    ).prompts()


def corruption(word: str = "", **shares):
    return lambda: corrupt(noise_pairs(8), Corruption(spurious_word=word, **shares))


def hub(name: str, error: Exception):
    """Loads a set of a hub that answers with an error."""

    def fail(*args, **kwargs):
        raise error

    def call():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(datasets, "load_dataset", fail)
            patch.setattr(huggingface_hub, "snapshot_download", fail)
            load_pairs(name)

    return call


def without_texts(tmp_path):
    write_parquet(tmp_path, "train", [0], "label")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        load_pairs(tmp_path)


def cibr_data_that_is_no_folder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIBR_DATA", "nowhere")
        load_pairs("flickr8k")


NAMES = {
    "near": ("flickr8", "no data set 'flickr8', did you mean 'flickr8k'.*metadata.csv.*CIBR_DATA"),
    "far": ("no/such/place", r"no data set 'no/such/place'\. Known: glyphs, "),
    "empty": ("", "no data set ''"),
    "split of a card": ("imagenet1k", "dev", "no split 'validation': it has train, test"),
    "split of glyphs": (
        "glyphs",
        "half",
        "no split 'half': it has train, validation, test, validation_characters",
    ),
}
CSV = {
    "image column": ("file,text\na.png,x", "line 2, needs the columns .* there are: file, text"),
    "text column": ("file_name,title\na.png,x", "needs the columns file_name and text or caption.*title"),
    "comma": ("file_name,text\na.png,a dog, brown", "line 2, has more fields than columns: quote texts"),
    "no file name": ("file_name,text\n,x", "line 2, has no file_name"),
    "no rows": ("file_name,text\n", r"metadata\.csv has no rows"),
    "open quote": ('file_name,text\na.png,"a dog\nin/b.png,x', "every quote closed"),
    "latin-1": ("file_name,text\na.png,größer".encode("latin-1"), r"metadata\.csv cannot be read .*UTF-8"),
    **{path: (f"file_name,text\n{path},x", "line 2, has the file_name '.*a.png', which is not within")
       for path in ("../a.png", "/etc/a.png", "C:\\photos\\a.png", "..\\a.png")},
    "no text": ("file_name,text\na.png, ", r"a\.png of photos has no text"),
    "broken image": ("file_name,text\nbroken.png,x", r"broken\.png does not decode as an image"),
    "two groups": ("file_name,text,group\na.png,x,1\na.png,y,2", "group '2', an earlier row '1'"),
}  # fmt: skip
JSONL = {
    "half a row": (
        '{"file_name": "a.png", "text": "x"}\n{"file_name"',
        "line 2, is not a JSON object",
    ),
    "huge number": ('{"text": ' + "9" * 5000 + "}", "line 1, is not a JSON object"),
    "nesting": ("[" * 100_000, "line 1, is not a JSON object"),
    "number": (
        '{"file_name": "a.png", "text": 7}',
        "line 1, has the text 7: it is a string or a list",
    ),
    "null in a list": (
        '{"file_name": "a.png", "text": ["x", null]}',
        "it is a string or a list of strings",
    ),
    "null name": ('{"file_name": null, "text": "x"}', "line 1, has no file_name"),
}
SHARDS = {
    "no text": ([("bad.png", png())], r"sample 'bad' of .*0\.tar has an image but no text"),
    "no image": ([("bad.txt", "x")], r"sample 'bad' of .*0\.tar has a text but no image"),
    "broken image": (
        [("bad.png", png()[:-30]), ("bad.txt", "x")],
        r"'bad' of .*0\.tar does not decode",
    ),
    "not UTF-8": (
        [("a.png", png()), ("a.txt", b"\xff\xfe")],
        "text of sample 'a' of .* is not UTF-8",
    ),
    "two images": ([("a.png", png()), ("a.jpg", png())], "sample 'a' of .* has two of image"),
    "no samples": ([("a.json", "{}")], "train of set is empty"),
}
CLASSES = {
    "no label": (("c.png", png()), ("c.txt", "x"), r"sample 'c' of .*0\.tar has the label ''"),
    "negative label": (
        ("c.png", png()),
        ("c.cls", "-1"),
        "has the label '-1': .* 2 lines of classnames.txt",
    ),
    "extreme label": (
        ("c.png", png()),
        ("c.cls", "9" * 5000),
        "has the label '9+': a .cls holds an index",
    ),
}
DAMAGED = {
    "compressed": (
        "val/0.tar",
        b"\x1f\x8b" + bytes(range(256)) * 8,
        "0.tar is cut short or is no tar file",
    ),
    "label too high": (
        "classnames.txt",
        b"cat",
        r"sample 'a' of .*0\.tar has the label '1'.* 1 lines",
    ),
    "word for number": ("val/nshards.txt", b"many", r"nshards\.txt says 'many'"),
    "no shards": ("val/nshards.txt", b"0", r"nshards\.txt says '0': it holds the number"),
    "extreme number": ("val/nshards.txt", b"9" * 5000, r"nshards\.txt says '9+'"),
}
PAIRS = {
    "lengths": (
        lambda: Pairs("x", "train", [["a"]], [], picture),
        "captions for 1 images but keys for 0",
    ),
    "no caption": (
        lambda: Pairs("x", "train", [[" "]], ["k"], picture),
        "sample 'k' of x has no text",
    ),
    "no templates": (
        prompts(classnames=["a"]),
        "without zeroshot_classification_templates.txt: put",
    ),
    "template": (prompts(classnames=["a"], templates=["a {}"]), r"template 'a \{\}' without \{c\}"),
    "negative limit": (lambda: Skips("set", -1), "max_skipped is -1: give a number of samples"),
    "glyph split": (
        lambda: load_glyphs("half"),
        "unknown split of glyphs 'half'. Known: train, validation",
    ),
    "glyph set": (
        lambda: load_glyph_benchmark("glyph_cats"),
        "unknown glyph set 'glyph_cats', did you mean .* Known: glyph_digits",
    ),
    "glyph set's split": (
        lambda: load_glyph_benchmark("glyph_shapes", "train"),
        "split of glyph_shapes 'train'. Known: valid",
    ),
}
CORRUPTIONS = {
    "above 1": (
        corruption(shuffled_captions=2),
        "shuffled_captions is 2: it is a share .* from 0 to 1",
    ),
    "word is a number": (corruption(7), "spurious_word is 7: it is a word, or empty for none"),
    "word of none": (corruption("cow"), "no image of noise has the word 'cow' in its captions"),
    "word of all": (corruption("a"), "every image of noise has the word 'a'"),
    "near style": (
        corruption(spurious_style="negativ"),
        "unknown style 'negativ', did you mean 'negative'",
    ),
    "style": (
        lambda: in_style(noise_pairs(2), "sketch"),
        r"unknown style 'sketch'\. Known: small, contours",
    ),
}
BAD_FRACTIONS = (0, -0.1, 1.1, float("nan"), 1e300, "half", True)
GONE = "file_name,text\ngone.png,x"


def cases(kind: str, table: dict, call):
    return [
        (f"{kind}: {case}", call(*how), ValueError, message)
        for case, (*how, message) in table.items()
    ]


CASES = [
    *cases("name", NAMES, lambda *how: lambda: load_pairs(*how)),
    *cases("csv", CSV, folder),
    *cases("jsonl", JSONL, lambda text: folder(text, "jsonl")),
    *cases("shard", SHARDS, lambda members: shards(*members)),
    *cases(
        "classes",
        CLASSES,
        lambda *members: lambda p: load_pairs(write_classes(p / "set", *members), "val"),
    ),
    *cases("shards", DAMAGED, damaged),
    *cases("pairs", PAIRS, lambda call: call),
    *cases("corruption", CORRUPTIONS, lambda call: call),
    *((f"fraction {x}", corruption(fraction=x), ValueError, "fraction is ") for x in BAD_FRACTIONS),
    (
        "CIBR_DATA",
        cibr_data_that_is_no_folder,
        ValueError,
        "CIBR_DATA is 'nowhere', .*: correct it or unset it",
    ),
    (
        "hub offline",
        hub("owner/birds", ConnectionError("no")),
        ConnectionError,
        "owner/birds is neither",
    ),
    (
        "hub set broken",
        hub("owner/birds", KeyError("rows")),
        ValueError,
        "birds cannot be read .*KeyError",
    ),
    (
        "hub shards offline",
        hub("owner/wds_x", OSError("no")),
        ConnectionError,
        "wds_x is neither .*CIBR_DATA",
    ),
    (
        "no text column",
        without_texts,
        ValueError,
        r"column image of images and one of text, .*image.: Image\(",
    ),
    (
        "no metadata",
        files("a.png"),
        FileNotFoundError,
        "no metadata.jsonl or metadata.csv: write one",
    ),
    (
        "both kinds",
        files("metadata.csv", "metadata.jsonl"),
        ValueError,
        "has metadata.jsonl and metadata.csv",
    ),
    (
        "two splits",
        files("val/metadata.csv", "dev/metadata.csv"),
        ValueError,
        "are both the split 'val",
    ),
    (
        "root and split",
        files("metadata.csv", "train/metadata.csv"),
        ValueError,
        "train/metadata.csv: keep one",
    ),
    ("other split", folder("", split="test"), ValueError, "no split 'train': it has test;"),
    ("missing image", folder(GONE), FileNotFoundError, r"gone\.png is missing, but"),
    (
        "dangling link",
        folder("file_name,text\nlink.png,x"),
        FileNotFoundError,
        "is a link to gone/away.png",
    ),
    (
        "nothing left",
        folder(GONE, max_skipped=3),
        ValueError,
        r"empty \(1 samples skipped\)",
    ),
    (
        "too many bad",
        folder(GONE + "\nalso.png,y", max_skipped=1),
        ValueError,
        "(?s)more than max_skipped=1 samples of photos.*gone.png",
    ),
    ("mixed", mixed, ValueError, "others outside, such as a.png"),
    (
        "split of shards",
        shards(("a.txt", "x"), split="dev"),
        ValueError,
        "no split 'validation': .* train;",
    ),
    ("damaged header", damaged_header, ValueError, r"0\.tar is cut short or damaged at byte"),
    ("missing shard", damaged("val/0.tar", None), FileNotFoundError, r"No such file .*0\.tar"),
    (
        "missing number",
        damaged("val/nshards.txt", None),
        ValueError,
        "add validation/nshards.txt with its shards",
    ),
    (
        "missing names",
        damaged("classnames.txt", None),
        FileNotFoundError,
        "No such file .*classnames.txt",
    ),
    (
        "image 48",
        lambda: noise_pairs().image(48),
        IndexError,
        "noise has no image 48: train holds 0 to 47",
    ),
    (
        "pair -1",
        lambda: noise_pairs().subset([-1]),
        IndexError,
        "noise has no image -1: train holds 0 to 47",
    ),
    (
        "no image file",
        lambda p: open_rgb(p / "gone.png", "gone.png"),
        FileNotFoundError,
        "gone.png",
    ),
]
