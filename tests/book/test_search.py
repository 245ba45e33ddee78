"""The search page: what models find is what their embeddings say."""

import json
import re
from pathlib import Path

import torch
from PIL import Image, ImageOps

from cibr.data import Pairs
from cibr.models import DualEncoder
from cibr_book.search import as_page, collection, contact_sheet, scores

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


def test_among_equal_cosines_the_right_image_stands_where_its_rank_says():
    class Blind(Compass):
        def embed_images(self, images):
            return torch.ones(8, 8)  # every image is as near to every text

    is_right = torch.eye(8, dtype=torch.bool)
    found = collection({"blind": Blind(), "a": Compass()}, pairs(), COLOURS, is_right)
    for query in found["queries"]:
        assert query["ranks"] == [8, 1] and query["found"][1][0] == query["right"][0]
        assert set(query["found"][0]).isdisjoint(query["right"])  # behind seven wrong ones, of six
    pair = pairs().subset([0, 1])
    Blind.embed_images = lambda self, images: torch.ones(2, 8)
    first, second = collection({"blind": Blind()}, pair, COLOURS[:2], is_right[:2, :2])["queries"]
    assert first["found"] == [[1, 0]] and second["found"] == [[0, 1]]
    assert first["ranks"] == second["ranks"] == [2]


def test_the_scores_are_recalls_over_all_queries_with_a_right_image():
    ranks = [[1, 2], [5, 1], [], [6, 5], [1, 240]]
    data = {"models": ["a", "b"], "queries": [{"ranks": row} for row in ranks]}
    table = scores(data)
    assert table.index.tolist() == ["a", "b"] and table.index.name == "4 captions"
    assert table.to_numpy().tolist() == [[50, 75], [25, 75]]


def test_the_contact_sheet_has_the_middle_of_every_image_in_its_place():
    sheet = contact_sheet(pairs().subset([*range(8)] * 3), 4)
    assert sheet.size == (4 * 20, 2 * 4)
    for i, name in enumerate(COLOURS * 3):
        left, top = 4 * (i % 20), 4 * (i // 20)
        square = sheet.crop((left, top, left + 4, top + 4))
        assert square.tobytes() == Image.new("RGB", (4, 4), name).tobytes()


def test_the_page_holds_queries_whose_photos_are_on_the_sheet_and_the_scores():
    page = as_page()
    data = json.loads(re.search(r'id="search-data">(.*?)</script>', page)[1])
    with Image.open(STATIC / data["sheet"].removeprefix("../_static/")) as sheet:
        width, height = sheet.size
    side = width // data["columns"]
    assert height == side * -(-len(data["images"]) // data["columns"])
    cells = [f"<td>{x}</td>" for x in scores(data).reset_index().to_numpy().ravel()]
    assert len(data["queries"]) > 100 and re.search(r"\s*".join(map(re.escape, cells[:3])), page)
    for query in data["queries"]:
        for rows, rank in zip(query["found"], query["ranks"], strict=bool(query["ranks"])):
            places = [rows.index(right) + 1 for right in query["right"] if right in rows]
            assert places == ([rank] if rank <= len(rows) else [])
