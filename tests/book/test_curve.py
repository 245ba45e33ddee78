"""The interactive information curve: its points are optima, and the page has what its script asks
for.
"""

import json
import re
from pathlib import Path

import pytest

from cibr_book.curve import FILE, as_page, optimum

SCRIPT = Path(__file__).resolve().parents[2] / "book" / "_static" / "curve.js"


@pytest.fixture
def data():
    return json.loads(FILE.read_text())


def test_a_stored_optimum_is_found_again(data):
    stored = data["points"][data["ambiguities"].index(0.3)][data["betas"].index(0.3)]
    again = optimum(0.3, 0.3)
    for name in ("shared", "residual", "nuisance"):
        assert again[name] == pytest.approx(stored[name], abs=0.01)
    assert again["apart"] == stored["apart"] == [0, 1]


def test_along_a_curve_the_residual_falls_and_no_other_point_is_better_for_its_beta(data):
    for limit, points in zip(data["limits"], data["points"], strict=True):
        assert max(p["shared"] for p in points) <= limit + 1e-3
        for beta, own in zip(data["betas"], points, strict=True):
            scores = [p["shared"] - beta * p["residual"] for p in points]
            assert own["shared"] - beta * own["residual"] >= max(scores)
            assert own["nuisance"] < 0.01
        assert points[-1]["residual"] < 0.01 < points[0]["residual"]


def test_the_page_has_what_its_script_asks_for(data):
    page = as_page()
    assert json.loads(re.search(r'id="curve-data">(.*?)</script>', page)[1]) == data
    names = re.search(r"\[(\"beta\".*?)\]\.map\(\(name\) => document", SCRIPT.read_text())[1]
    for name in [*re.findall(r'"(\w+)"', names), "beta-value", "ambiguity-value"]:
        assert f'id="curve-{name}"' in page
