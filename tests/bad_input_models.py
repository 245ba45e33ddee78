"""Bad input to models: images and texts of other types, and names of no model."""

from functools import cache

import torch
from helpers import TEXTS, picture
from PIL import Image

from cibr import DualEncoder
from cibr.models import RegularisedCCA


@cache
def model() -> DualEncoder:
    return DualEncoder.tiny(TEXTS, dim=16, width=4)


def images(items):
    return lambda: model().embed_images(items)


def texts(items, **options):
    return lambda: model().embed_texts(items, **options)


def load(name):
    return lambda: DualEncoder.from_pretrained(name)


def constant_features():
    RegularisedCCA.fit(torch.randn(9, 4), torch.zeros(9, 4), dim=3)


CASES = [
    ("constant", constant_features, ValueError, "image_pooled and text_pooled must be finite"),
    ("one text", texts("a cat"), ValueError, "got one string: pass a list of strings"),
    ("no batch", texts(TEXTS, batch_size=0), ValueError, "batch_size is 0"),
    ("float image", images([Image.new("F", (2, 2))]), ValueError, "mode F has no fixed range"),
    ("one image", images(picture(0)), TypeError, "not iterable"),
    ("misspelt model", load("cibr-tinny"), FileNotFoundError, "mean 'cibr-tiny'"),
    ("no name", load(""), FileNotFoundError, "model ''"),
    ("empty folder", lambda f: DualEncoder.from_pretrained(f), FileNotFoundError, "cannot load"),
]
CASES = [(f"models: {name}", *case) for name, *case in CASES]
