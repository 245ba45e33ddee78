"""The search page: what models find is what their embeddings say."""

import json
import re
from pathlib import Path

import torch
from PIL import Image, ImageOps

from cibr.data import Pairs
from cibr.models import DualEncoder
from cibr_book.search import as_page, collection, contact_sheet

STATIC = Path(__file__).resolve().parents[2] / "book" / "_static"
COLOURS = ["red", "lime", "blue", "white", "black", "yellow", "cyan", "magenta"]


class Compass(DualEncoder):
    """A model that sees a colour as its place in the list; `turn` sends every text further on."""

    def __init__(self, turn=0):
        torch.nn.Module.__init__(self)
        self.turn = turn

    def embed_images(self, images):
        return torch.eye(8)

    def embed_texts(self, texts, truncate):
        return torch.eye(8)[[(COLOURS.index(text) + self.turn) % 8 for text in texts]]


def pairs():
    squares = [Image.new("RGB", (8, 8), name) for name in COLOURS]
    borders = [(8, 0), (0, 8)] * 4
    images = [ImageOps.expand(*part) for part in zip(squares, borders, strict=True)]
    captions = [[f"{name} ."] for name in COLOURS]
    return Pairs("colours", "test", captions, COLOURS, images.__getitem__)


def test_right_images_are_found_and_ranked_and_a_tie_counts_against_the_model():
    is_right = torch.eye(8, dtype=torch.bool)[:3]
    is_right[2] = False
    found = collection({"a": Compass(), "b": Compass(turn=1)}, pairs(), COLOURS[:3], is_right)
    assert found["models"] == ["a", "b"] and found["images"] == COLOURS
    red, lime, blue = found["queries"]
    assert red["text"] == "red" and red["right"] == [0] and lime["right"] == [1]
    assert [rows[0] for rows in red["found"]] == [0, 1] and len(red["found"][0]) == 6
    assert red["ranks"] == [1, 8] == lime["ranks"]  # of eight: one is nearer, six tie
    assert blue["right"] == blue["ranks"] == []


def test_the_contact_sheet_has_the_middle_of_every_image_in_its_place():
    sheet = contact_sheet(pairs().subset([*range(8)] * 3), 4)
    assert sheet.size == (4 * 20, 2 * 4)
    for i, name in enumerate(COLOURS * 3):
        left, top = 4 * (i % 20), 4 * (i // 20)
        square = sheet.crop((left, top, left + 4, top + 4))
        assert square.tobytes() == Image.new("RGB", (4, 4), name).tobytes()


def test_the_page_holds_queries_whose_images_are_on_the_sheet():
    data = json.loads(re.search(r'id="search-data">(.*?)</script>', as_page())[1])
    assert list(data) == ["photos", "characters"]
    for part in data.values():
        with Image.open(STATIC / part["sheet"].removeprefix("../_static/")) as sheet:
            width, height = sheet.size
        side = width // part["columns"]
        assert height == side * -(-len(part["images"]) // part["columns"])
        assert len(part["queries"]) > 100
        for query in part["queries"]:
            for rows, rank in zip(query["found"], query["ranks"], strict=bool(query["ranks"])):
                assert (rank <= len(rows)) == bool(set(rows) & set(query["right"]))
