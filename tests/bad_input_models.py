"""Bad input to models: images and texts of other types, and folders that hold no model or a damaged
one.
"""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
from helpers import TEXTS, noise_pairs, picture
from PIL import Image

from cibr import DualEncoder
from cibr.data import Pairs
from cibr.models import model_kind
from cibr.models.features import prepare
from cibr.utils import shipped

LONG = "every " * 80
WIDER = dict(dim=8, width=32, vocabulary=1949, context=64, dropout=0.0)


@cache
def model() -> DualEncoder:
    return DualEncoder.tiny(TEXTS, dim=16, width=4)


def images(items):
    return lambda: model().embed_images(items)


def texts(items, **options):
    return lambda: model().embed_texts(items, **options)


def load(name):
    return lambda: DualEncoder.from_pretrained(name)


def temperature(value):
    return lambda: model().set_temperature(value)


def changed(**settings):
    """Loads a copy of a shipped model whose configuration is changed."""

    def call(tmp_path):
        folder = shutil.copytree(shipped("checkpoints/clip-tiny"), tmp_path / "copy")
        config = json.loads((folder / "cibr.json").read_text())
        (folder / "cibr.json").write_text(json.dumps(config | settings))
        DualEncoder.from_pretrained(folder)

    return call


def empty_folder(tmp_path):
    DualEncoder.from_pretrained(tmp_path)


def unfinished_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    DualEncoder.from_pretrained(tmp_path)


def dangling(tmp_path):
    (tmp_path / "latest").symlink_to(tmp_path / "gone")
    DualEncoder.from_pretrained(tmp_path / "latest")


def file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    model().save_pretrained(tmp_path / "file" / "model")


def images_of_damaged():
    damaged = DualEncoder.tiny(TEXTS, dim=16, width=4)
    damaged.backbone.image_head[2].weight.data.fill_(float("nan"))
    damaged.embed_images([picture(0)])


def long_captions():
    pairs = noise_pairs(2)
    prepare(model(), Pairs("noise", "train", [[LONG]] * 2, ["a", "b"], pairs.load))


VALUE_ERRORS = {
    "one image": (images(picture(0)), "got one Image, but .* a list of PIL images: open files"),
    "one path": (images("cat.png"), r"got one str, .* with PIL\.Image\.open\(path\), make images"),
    "paths": (images([Path("cat.png")]), "item 0 is a PosixPath, .*list of PIL images: open"),
    "array": (images(np.zeros((1, 4, 4, 3))), r"item 0 is a ndarray, .* with Image\.fromarray"),
    "no pixels": (images([picture(0), Image.new("L", (0, 0))]), "image of 0 x 0 px has no pixels"),
    "no width": (images([Image.new("RGB", (0, 5))]), "image of 0 x 5 px has no pixels: drop it"),
    "one text": (texts("a cat"), "got one str, but embed_texts takes a list of strings"),
    "missing text": (texts(["a cat", None]), r"item 1 is a NoneType, .* make them with str\(item"),
    "half a character": (texts(["a", "\ud83d"]), r"'\\ud83d' has half a surrogate pair: decode"),
    "no list": (texts(None), "got one NoneType"),
    "part of a batch": (texts(TEXTS, batch_size=1.5), "batch_size is 1.5"),
    "NaN weights": (images_of_damaged, "not finite"),
    "text in place of texts": (lambda: DualEncoder.tiny("abc"), "got one str"),
    "batches of none": (texts(TEXTS, batch_size=0), "batch_size is 0: give 1 or more items"),
    "long text": (texts(["a", LONG]), r"\d+ tokens and the model reads 64: 'every .*truncate="),
    "long caption": (long_captions, r"Shorten it, or cut .* truncate=True"),
    "no texts": (lambda: DualEncoder.tiny([]), "learns its tokenizer from texts: give at least"),
    "temperature 0": (temperature(0), "temperature is 0: give a positive number"),
    "temperature inf": (temperature(float("inf")), "temperature is inf: give a positive number"),
    "temperature text": (temperature("0.1"), "temperature is .0.1.: give a positive number"),
    "first format": (changed(format=1), "format 1"),
    "other backbone": (
        changed(kind="huge"),
        "'huge'",
    ),
    "other settings": (changed(settings=[]), "incomplete or damaged .*: save the m"),
    "other weights": (changed(settings=WIDER), "incomplete or damaged"),
    "folder in the way": (file_in_the_way, "cannot write the model to .*choose another output_dir"),
    "no name": (lambda: model().save_pretrained(""), "name of the folder is empty: give a folder"),
}
MISSING = {
    "misspelt kind": (lambda: model_kind("frozn"), "unknown model 'frozn', did you mean 'frozen'"),
    "unknown kind": (lambda: model_kind("/no"), "Give the folder of a model, .* tiny or frozen"),
    "misspelt checkpoint": (load("cibr-tinny"), "'cibr-tinny', did you mean 'cibr-tiny'.* a hub"),
    "long name": (load("x" * 5000), "unknown model 'xxx.* Give the folder of a model, a hub id"),
    "three parts": (load("owner/name/file"), "unknown model 'owner/name/file'. Give the folder"),
    "empty name": (load(""), "unknown model ''. Give the folder of a model, a hub id"),
    "no folder": (load("/nowhere/gone"), "unknown model '/nowhere/gone'. Give the folder of a m"),
    "empty folder": (empty_folder, r"cannot load .*AutoModel .*give its folder, set CIBR_MODELS"),
    "unfinished run": (unfinished_run, "no model yet: .*unfinished run; repeat the command that"),
    "dangling link": (dangling, "unknown model '.*latest': it is a file or a broken link. Give"),
    "a file": (load(__file__), r"models\.py': it is a file or a broken link. Give the folder"),
}
CASES = [(name, call, ValueError, message) for name, (call, message) in VALUE_ERRORS.items()]
CASES += [(name, call, FileNotFoundError, message) for name, (call, message) in MISSING.items()]
