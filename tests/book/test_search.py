"""The search page: what models find is what their embeddings say, and the page holds what its
script asks for.
"""

import json
import re
from pathlib import Path

import torch
from PIL import Image

from cibr.data import Pairs
from cibr.models import DualEncoder
from cibr_book.search import COLLECTIONS, N_COLUMNS, N_FOUND, as_page, collection, contact_sheet

SCRIPT = Path(__file__).resolve().parents[2] / "book" / "_static" / "search.js"
COLOURS = ["red", "green", "blue", "white", "black", "yellow", "cyan", "magenta"]


class Compass(DualEncoder):
    """A model that sees a colour as its place in the list; `turned` sends every text to the next
    one.
    """

    def __init__(self, turned=False):
        torch.nn.Module.__init__(self)
        self.turned = turned

    def embed_images(self, images):
        return torch.eye(len(COLOURS))

    def embed_texts(self, texts, truncate):
        return torch.stack(
            [torch.eye(len(COLOURS))[(COLOURS.index(t) + self.turned) % 8] for t in texts]
        )


def pairs():
    images = [Image.new("RGB", (8 + 4 * (i % 2), 8), name) for i, name in enumerate(COLOURS)]
    return Pairs(
        "colours", "test", [[f"{name} ."] for name in COLOURS], COLOURS, images.__getitem__
    )


def test_right_images_are_found_and_ranked_and_a_tie_counts_against_the_model():
    is_right = torch.eye(8, dtype=torch.bool)[:3]
    is_right[2] = False
    found = collection({"a": Compass(), "b": Compass(turned=True)}, pairs(), COLOURS[:3], is_right)
    assert found["models"] == ["a", "b"] and found["images"] == COLOURS
    red, green, blue = found["queries"]
    assert (
        red["right"] == [0]
        and [each[0] for each in red["found"]] == [0, 1]
        and len(red["found"][0]) == N_FOUND
    )
    assert red["ranks"] == [1, 8] == green["ranks"]  # of eight: one is nearer, six tie
    assert blue["right"] == blue["ranks"] == []


def test_the_contact_sheet_has_the_middle_of_every_image_in_its_place():
    sheet = contact_sheet(pairs(), 4)
    assert sheet.size == (4 * N_COLUMNS, 4)
    assert [sheet.getpixel((4 * i + 2, 2)) for i in (0, 2, 5)] == [
        (255, 0, 0),
        (0, 0, 255),
        (255, 255, 0),
    ]


def test_the_page_holds_queries_whose_images_are_on_the_sheet():
    page = as_page()
    data = json.loads(re.search(r'id="search-data">(.*?)</script>', page)[1])
    assert tuple(data) == COLLECTIONS
    for each in data.values():
        with Image.open(SCRIPT.parent / each["sheet"].removeprefix("../_static/")) as sheet:
            width, height = sheet.size
        side = width // each["columns"]
        assert (width, height) == (
            side * each["columns"],
            side * -(-len(each["images"]) // each["columns"]),
        )
        assert len(each["queries"]) > 100
        for query in each["queries"]:
            for m, rank in enumerate(query["ranks"]):
                assert (rank <= N_FOUND) == bool(set(query["found"][m]) & set(query["right"]))
    asked = re.search(
        r"\[(\"collection\".*?)\]\.map\(\(name\) => document\.getElementById", SCRIPT.read_text()
    )
    for name in re.findall(r'"(\w+)"', asked[1]):
        assert f'id="search-{name}"' in page
