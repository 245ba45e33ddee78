"""Bad input to data: names that lead nowhere, malformed metadata, broken images."""

from unittest import mock

import numpy as np
import torch
from data_files import png, write_images
from helpers import noise_pairs, picture

from cibr.data import Pairs, load_pairs
from cibr.data.pairs import open_rgb


def folder(text: str | bytes, *images: str):
    """Loads a folder with images and these metadata."""

    def call(tmp_path):
        write_images(tmp_path, *images)
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "metadata.csv").write_bytes(content)
        load_pairs(tmp_path, "validation")

    return call


def without_metadata(tmp_path):
    load_pairs(write_images(tmp_path, "a.png"), "test")


def offline():
    with mock.patch("huggingface_hub.snapshot_download", side_effect=OSError("no")):
        load_pairs("glyhps")


def changed(**about):
    """Pairs of one image with other parts."""
    usual = dict(captions=[["a"]], keys=["k"], load=picture, labels=torch.zeros(1).long())
    return lambda: Pairs(**dict(name="set", split="test") | usual | about).prompts()


ROWS = "file_name,text\na.png,x\nb.png,y"
CASES = [
    ("near name", offline, ConnectionError, r"\(no\), did you mean 'glyphs'.*CIBR_DATA"),
    ("no folder", lambda: load_pairs("/no/folder"), ValueError, "no data set '/no/folder'"),
    ("split", lambda: load_pairs("glyphs", "half"), ValueError, "split 'half'"),
    ("columns", folder("title,file\nx,a.png"), ValueError, "has title, file: it needs"),
    ("no rows", folder("file_name,text\n"), ValueError, "train of .* is empty"),
    ("latin-1", folder(ROWS.replace("x", "ö").encode("latin-1")), ValueError, "UTF-8.*Excel"),
    ("open quote", folder('file_name,text\na.png,x\nb.png,"y\n'), ValueError, "quote near line"),
    ("odd quote", folder('file_name,text\na.png,"x" y\n'), ValueError, "a quote near line 2"),
    ("equal photos", folder(ROWS, "a.png", "b.png"), ValueError, "all 2 images .* equal files"),
    ("no metadata", without_metadata, FileNotFoundError, "no metadata.csv"),
    ("no image file", lambda folder: open_rgb(folder / "gone.png"), ValueError, "no such file"),
    ("broken image", lambda: open_rgb(png()[:50], "it"), ValueError, "it does not decode"),
    ("keys", changed(keys=["k", "l"]), ValueError, "1 images but 2 keys"),
    ("no caption", changed(captions=[[" "]]), ValueError, "an image of set has no text"),
    ("strings", changed(captions=["a cat"]), ValueError, "captions of set"),
    ("no classes", changed(templates=["a {c}"]), ValueError, "no class names: add"),
    ("image 48", lambda: noise_pairs().image(48), IndexError, "range"),
    ("short mask", lambda: noise_pairs().subset(np.ones(3, bool)), IndexError, "mask"),
]
CASES = [(f"data: {name}", *case) for name, *case in CASES]
