"""The figure "move beta": its points are differences of committed rows, and every value of the
slider has one.
"""

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


def test_points_are_mean_differences_to_clip_of_the_committed_rows(data):
    rows = read_table().set_index("seed")
    assert data["conditions"][0]["name"] == "Flickr8k" and len(data["conditions"]) >= 4
    for condition in data["conditions"]:
        of_condition = rows[rows["condition"] == condition["name"]]
        clip = of_condition[of_condition["method"] == "CLIP"]
        for curve in condition["curves"]:
            betas = [point["beta"] for point in curve["points"]]
            assert betas == sorted(set(betas)) and betas[0] > 0 and len(betas) >= LEAST_BETAS
            own = of_condition[of_condition["method"] == curve["name"]]
            for point in curve["points"]:
                at = own.loc[own["beta"] == point["beta"], [*HEADLINE]]
                expected = (at - clip.loc[at.index, [*HEADLINE]]).mean()
                assert point["difference"] == pytest.approx(expected.tolist(), abs=0.006)
                assert point["n_seeds"] == len(at)
                ends = zip(point["low"], point["difference"], point["high"], strict=True)
                assert all(low < mean < high for low, mean, high in ends)


def test_the_page_holds_the_numbers_for_the_script_and_as_a_table(data):
    page = as_page(data)
    stored = re.search(r'<script type="application/json" id="explorer-data">(.*?)</script>', page)[
        1
    ]
    assert json.loads(stored) == data
    points = [
        point
        for each in data["conditions"]
        for curve in each["curves"]
        for point in curve["points"]
    ]
    assert page.count("<tr>") == 1 + len(points)
    asked = re.search(
        r"\[(\"condition\".*?)\]\.map\(\(name\) => document\.getElementById", SCRIPT.read_text()
    )[1]
    for name in re.findall(r'"(\w+)"', asked):
        assert f'id="explorer-{name}"' in page
