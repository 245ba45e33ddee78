"""A number that several pages print is one number, and that of the code or the data."""

import json
import re
from pathlib import Path

import pytest

import cibr
from cibr.data import glyphs
from cibr_book.experiments.confirmation import SETS

ROOT = Path(__file__).resolve().parents[3]
PAGES = [*ROOT.glob("book/*.ipynb"), *ROOT.glob("book/*.md"), ROOT / "README.md"]
WORDS = {"five": 5, "seven": 7}
FACTS = {  # what is counted, and where the pages say it
    "characters": r"among (\S+), and|\d of (\S+) test images|images of (\S+) printed characters",
    "sets": r"(?:mean of|on|their|of the|over the|the same) (\w+) (?:small )?(?<!test )sets",
    "photos": r"(?:up to|at most|Flickr8k:) (\S+) photos",
    "photos of a tenth": r"(?<=[\s|])(\d+) photos",
    "captions": r"(?:with|and) (\w+) captions each",
}


def printed(fact):
    """The numbers that pages print, by page."""
    found = {}
    for page in PAGES:
        text = page.read_text("utf-8")
        if page.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        texts = ["".join(match.groups("")) for match in re.finditer(FACTS[fact], text)]
        numbers = [WORDS.get(text, text.replace(",", "")) for text in texts]
        if numbers := {int(x) for x in numbers if str(x).isdigit()}:
            found[page.name] = numbers
    return found


def check(fact, value, n_pages=2):
    found = printed(fact)
    assert len(found) >= n_pages and set().union(*found.values()) == {value}, (value, found)


def test_counts_of_glyphs_and_sets():
    check("characters", int((glyphs.glyph_characters()["group"] == "seen").sum()))
    check("sets", len(SETS["mini"].split()), 4)


def test_counts_of_photos_and_captions():
    try:
        train = cibr.load_pairs("flickr8k", "train")
    except (ConnectionError, FileNotFoundError) as error:
        pytest.skip(f"Flickr8k is not there: {error}")
    check("photos", len(train), 3)
    check("photos of a tenth", len(train) // 10, 3)
    check("captions", {len(own) for own in train.captions}.pop(), 3)
