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
    "one image": (images(picture(0)), "one Image, but embed_images"),
    "one path": (images("cat.png"), "one str, but embed_images"),
    "paths": (images([Path("cat.png")]), "item 0 .*embed_images"),
    "array": (images(np.zeros((1, 4, 4, 3))), "item 0 .*embed_images"),
    "no pixels": (images([picture(0), Image.new("L", (0, 0))]), "0 x 0 px"),
    "one text": (texts("a cat"), "one str, but embed_texts"),
    "no list": (texts(None), "one NoneType, but embed_texts"),
    "missing text": (texts(["a cat", None]), "item 1 .*embed_texts"),
    "half a character": (texts(["a", "\ud83d"]), "surrogate"),
    "batches of none": (texts(TEXTS, batch_size=0), "batch_size"),
    "part of a batch": (texts(TEXTS, batch_size=1.5), "batch_size"),
    "long text": (texts(["a", LONG]), "64: 'every .*truncate"),
    "long caption": (long_captions, "truncate"),
    "no texts": (lambda: DualEncoder.tiny([]), "texts"),
    "text in place of texts": (lambda: DualEncoder.tiny("abc"), "one str"),
    "NaN weights": (images_of_damaged, "not finite"),
    "temperature 0": (temperature(0), "temperature"),
    "temperature inf": (temperature(float("inf")), "temperature"),
    "temperature text": (temperature("0.1"), "temperature"),
    "first format": (changed(format=1), "format 1"),
    "other backbone": (changed(kind="huge"), "'huge'"),
    "other settings": (changed(settings=[]), "damaged"),
    "other weights": (changed(settings=WIDER), "damaged"),
    "folder in the way": (file_in_the_way, "file/model.*output_dir"),
    "no name": (lambda: model().save_pretrained(""), "folder"),
}
MISSING = {
    "misspelt kind": (lambda: model_kind("frozn"), "'frozn', did you mean 'frozen'"),
    "misspelt checkpoint": (load("cibr-tinny"), "'cibr-tinny', did you mean 'cibr-tiny'"),
    "long name": (load("x" * 5000), "model 'xxx"),
    "three parts": (load("owner/name/file"), "'owner/name/file'"),
    "empty name": (load(""), "model ''"),
    "empty folder": (empty_folder, "CIBR_MODELS"),
    "unfinished run": (unfinished_run, "unfinished run"),
    "dangling link": (dangling, "latest': .*link"),
    "a file": (load(__file__), r"models\.py': it is a file"),
}
CASES = [(name, call, ValueError, message) for name, (call, message) in VALUE_ERRORS.items()]
CASES += [(name, call, FileNotFoundError, message) for name, (call, message) in MISSING.items()]
