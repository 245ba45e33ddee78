"""The figure "move beta": its points are means of committed rows, and every value of the slider has one."""

import json
import re
from pathlib import Path

import pytest

from cibr_book.explorer import LEAST_BETAS, as_page, curves
from cibr_book.tables import HEADLINE, RESULTS, read_table

SCRIPT = Path(__file__).resolve().parents[2] / "book" / "_static" / "explorer.js"


@pytest.fixture(scope="module")
def data():
    return curves(RESULTS)


def test_points_are_means_of_the_committed_rows(data):
    rows = read_table()
    assert len(data["methods"]) >= 3
    for curve in data["methods"]:
        betas = [point["beta"] for point in curve["points"]]
        assert betas == sorted(set(betas)) and betas[0] == 0 and len(betas) > LEAST_BETAS
        own = rows[(rows["condition"] == curve["condition"]) & (rows["method"] == curve["name"])]
        for point in curve["points"][1:]:
            at = own[own["beta"] == point["beta"]]
            assert point["scores"] == pytest.approx(at[[*HEADLINE]].mean().tolist(), abs=0.01)
            assert point["n_seeds"] == len(at) and 0 < point["cosine"] < 1
            ends = zip(point["low"], point["scores"], point["high"], strict=True)
            assert all(low < score < high for low, score, high in ends)


def test_the_page_holds_the_numbers_for_the_script_and_as_a_table(data):
    page = as_page(data)
    stored = re.search(r'<script type="application/json" id="explorer-data">(.*?)</script>', page)[1]
    assert json.loads(stored) == data
    assert page.count("<tr>") == 1 + sum(len(curve["points"]) for curve in data["methods"])
    asked = re.search(r"= \[(.*?)\]\.map\(\s*\(name\) => document\.getElementById", SCRIPT.read_text())[1]
    for name in re.findall(r'"(\w+)"', asked):
        assert f'id="explorer-{name}"' in page
