"""Bad input to models: images and texts of other types, and folders that hold no model or a damaged
one.
"""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import torch
from helpers import TEXTS, Crafted, noise_pairs, picture

from cibr import DualEncoder
from cibr.data import Pairs
from cibr.models import model_kind
from cibr.models.features import prepare
from cibr.utils import shipped

LONG = "every " * 80


@cache
def model() -> DualEncoder:
    return DualEncoder.tiny(TEXTS, dim=16, width=4)


def embed(side: str, items, **options):
    return lambda: getattr(model(), f"embed_{side}")(items, **options)


def load(write):
    """Loads from a folder after something was written to it."""
    return lambda tmp_path: DualEncoder.from_pretrained(write(tmp_path) or tmp_path)


def changed(**settings):
    """A copy of a shipped model whose configuration is changed."""

    def write(folder: Path):
        shutil.copytree(shipped("checkpoints/clip-tiny"), folder, dirs_exist_ok=True)
        config = json.loads((folder / "cibr.json").read_text())
        (folder / "cibr.json").write_text(json.dumps(config | settings))

    return load(write)


def dangling(folder: Path):
    (folder / "latest").symlink_to(folder / "gone")
    return folder / "latest"


def crafted_pickle(tmp_path):
    from transformers import CLIPConfig

    CLIPConfig().save_pretrained(tmp_path)
    torch.save({"logit_scale": Crafted(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    try:
        DualEncoder.from_pretrained(tmp_path)
    finally:
        assert not (tmp_path / "ran").exists()


def file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    model().save_pretrained(tmp_path / "file" / "model")


def long_captions():
    pairs = noise_pairs(2)
    prepare(model(), Pairs("noise", "train", [[LONG]] * 2, ["a", "b"], pairs.load))


def named(name: str):
    return lambda: DualEncoder.from_pretrained(name)


WIDER = dict(dim=8, width=32, vocabulary=1949, context=64, dropout=0.0)
OPEN = r"open files with PIL\.Image\.open\(path\), make images of arrays with PIL\.Image\.fromarray"
Absent = FileNotFoundError
CASES = [
    (
        "one image",
        embed("images", picture(0)),
        ValueError,
        "list of PIL images, not one Image: open files",
    ),
    (
        "one path",
        embed("images", "cat.png"),
        ValueError,
        f"list of PIL images, not one str: .*{OPEN}",
    ),
    (
        "paths",
        embed("images", [Path("cat.png")]),
        ValueError,
        f"PIL images, and item 0 is a PosixPath: {OPEN}",
    ),
    ("array", embed("images", np.zeros((1, 4, 4, 3))), ValueError, f"item 0 is a ndarray: {OPEN}"),
    (
        "one text",
        embed("texts", "a cat"),
        ValueError,
        "a list of strings, not one str: make strings",
    ),
    (
        "missing text",
        embed("texts", ["a cat", None]),
        ValueError,
        "takes strings, and item 1 is a NoneType",
    ),
    (
        "batches of none",
        embed("texts", TEXTS, batch_size=0),
        ValueError,
        "batch_size is 0: .* 1 or more",
    ),
    (
        "long text",
        embed("texts", [LONG]),
        ValueError,
        r"\d+ tokens and the model reads 64: 'every .*truncate=",
    ),
    ("long caption", long_captions, ValueError, r"Shorten it, or cut .* truncate_texts=True"),
    (
        "no texts",
        lambda: DualEncoder.tiny([]),
        ValueError,
        "learns its tokenizer from texts: give at least one",
    ),
    (
        "misspelt checkpoint",
        named("cibr-tinny"),
        Absent,
        "'cibr-tinny', did you mean 'cibr-tiny'.* a hub",
    ),
    ("empty name", named(""), Absent, "unknown model ''. Give the folder of a model, a hub id"),
    (
        "misspelt kind",
        lambda: model_kind("frozn"),
        ValueError,
        "unknown model 'frozn', did you mean 'frozen'",
    ),
    (
        "unknown kind",
        lambda: model_kind("/nowhere"),
        ValueError,
        "Give the folder of a model, .* tiny or frozen",
    ),
    (
        "no folder",
        named("/nowhere/gone"),
        Absent,
        "unknown model '/nowhere/gone'. Give the folder of a model",
    ),
    (
        "empty folder",
        load(lambda _: None),
        Absent,
        r"cannot load folder .*config\.json and weights, set CIBR_MODELS",
    ),
    ("dangling link", load(dangling), Absent, "unknown model '.*latest': it is a link to nothing"),
    ("a file", named(__file__), Absent, r"models\.py': it is a file. Give the folder of a model"),
    (
        "first format",
        changed(format=1),
        ValueError,
        "format 1 and this version reads 2: train it again",
    ),
    (
        "unknown backbone",
        changed(kind="huge"),
        ValueError,
        r"cibr\.json' is missing or damaged \('huge'\)",
    ),
    (
        "other settings",
        changed(settings=[]),
        ValueError,
        r"cibr\.json' is missing or damaged .*: save the model",
    ),
    (
        "other weights",
        changed(settings=WIDER),
        ValueError,
        r"fit cibr\.json: 2 weights .*, first '.*head",
    ),
    ("crafted pickle", crafted_pickle, Absent, "cannot load folder '.*': .*[Ww]eights.only"),
    (
        "folder in the way",
        file_in_the_way,
        ValueError,
        "cannot write the model to .*choose another output_dir",
    ),
]
