"""The figure "move beta": its points are differences of committed rows, as is its table."""

import json
import re

import pytest

from cibr_book.explorer import as_page, curves
from cibr_book.tables import HEADLINE, read_table


def test_points_are_mean_differences_to_clip_of_the_committed_rows():
    rows = read_table().set_index("seed")
    conditions = curves()["conditions"]
    assert conditions[0]["name"] == "Flickr8k" and len(conditions) >= 4
    for condition in conditions:
        of_condition = rows[rows["condition"] == condition["name"]]
        clip = of_condition[of_condition["method"] == "CLIP"]
        for curve in condition["curves"]:
            betas = [point["beta"] for point in curve["points"]]
            assert betas == sorted(set(betas)) and betas[0] > 0 and len(betas) >= 3
            own = of_condition[of_condition["method"] == curve["name"]]
            for point in curve["points"]:
                at = own.loc[own["beta"] == point["beta"], [*HEADLINE]]
                expected = (at - clip.loc[at.index, [*HEADLINE]]).mean()
                assert point["difference"] == pytest.approx(expected.tolist(), abs=0.006)
                assert point["n_seeds"] == len(at)
                ends = zip(point["low"], point["difference"], point["high"], strict=True)
                assert all(low < mean < high for low, mean, high in ends)


def test_the_page_holds_the_numbers_for_the_script_and_as_a_table():
    page = as_page()
    data = json.loads(re.search(r'json" id="explorer-data">(.*?)</script>', page)[1])
    assert data == curves() and page.count("</svg>") == len(data["scores"]) == 2
    points = [p for c in data["conditions"] for curve in c["curves"] for p in curve["points"]]
    assert page.count("<tr") == 1 + len(points)
    first = zip(*(points[0][name] for name in ("difference", "low", "high")), strict=True)
    cells = [f"<td>{mean:+.2f} [{low:+.2f}, {high:+.2f}]</td>" for mean, low, high in first]
    assert all(cell in page for cell in cells)
