"""Bad input to models: images and texts of other types, and folders that hold no model or a damaged
one.
"""

import shutil
from functools import cache
from pathlib import Path

from helpers import TEXTS, picture
from PIL import Image
from safetensors.torch import load_file, save_file

from cibr import DualEncoder
from cibr.models import model_kind
from cibr.utils import shipped

LONG = "every " * 80


@cache
def model() -> DualEncoder:
    return DualEncoder.tiny(TEXTS, dim=16, width=4)


def images(items):
    return lambda: model().embed_images(items)


def texts(items, **options):
    return lambda: model().embed_texts(items, **options)


def load(name):
    return lambda: DualEncoder.from_pretrained(name)


def missing_weights(tmp_path):
    folder = shutil.copytree(shipped("checkpoints/clip-tiny"), tmp_path / "copy")
    state = load_file(folder / "cibr.safetensors")
    state.popitem()
    save_file(state, folder / "cibr.safetensors")
    DualEncoder.from_pretrained(folder)


def unfinished_run(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    DualEncoder.from_pretrained(tmp_path)


def file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    model().save_pretrained(tmp_path / "file" / "model")


def images_of_damaged():
    damaged = DualEncoder.tiny(TEXTS, dim=16, width=4)
    damaged.image_head[2].weight.data.fill_(float("nan"))
    damaged.embed_images([picture(0)])


CASES = [
    ("one image", images(picture(0)), ValueError, "got one Image: pass a list of PIL images"),
    ("paths", images([Path("cat.png")]), ValueError, "got a list with PosixPath: pass"),
    ("one text", texts("a cat"), ValueError, "got one str: pass a list of strings"),
    ("no list", texts(None), ValueError, "got one NoneType: pass"),
    ("missing text", texts(["a cat", None]), ValueError, "got a list with NoneType"),
    ("negative batches", texts(TEXTS, batch_size=-1), ValueError, "batch_size"),
    ("half a batch", texts(TEXTS, batch_size=2.5), ValueError, "batch_size is 2.5"),
    ("no width", lambda: DualEncoder.tiny(TEXTS, dim=0), ValueError, "dim is 0"),
    ("no heat", lambda: model().set_temperature(0), ValueError, "temperature is 0: give"),
    ("float image", images([Image.new("F", (2, 2))]), ValueError, "mode F has no fixed range"),
    ("long text", texts(["a", LONG]), ValueError, "64: 'every .*truncate"),
    ("one text to learn", lambda: DualEncoder.tiny("abc"), ValueError, "got one str"),
    ("NaN weights", images_of_damaged, ValueError, "not finite"),
    ("missing weights", missing_weights, ValueError, "lack 1 of the model"),
    ("folder in the way", file_in_the_way, ValueError, "file/model.*output_dir"),
    ("misspelt kind", lambda: model_kind("frozn"), FileNotFoundError, "mean 'frozen'"),
    ("misspelt model", load("cibr-tinny"), FileNotFoundError, "mean 'cibr-tiny'"),
    ("long name", load("x" * 5000), FileNotFoundError, "model 'xxx"),
    ("no name", load(""), FileNotFoundError, "model ''"),
    ("empty folder", lambda f: DualEncoder.from_pretrained(f), FileNotFoundError, "holds no model"),
    ("unfinished run", unfinished_run, FileNotFoundError, "finish the run that began here"),
    ("a file", load(__file__), FileNotFoundError, r"models\.py'"),
]
CASES = [(f"models: {name}", *case) for name, *case in CASES]
