"""The first page has the numbers of the rows and the figures of the notebooks."""

import base64
import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from cibr_book.experiments.recipes import heads_cca_means
from execute import FIGURES

ROOT = Path(__file__).resolve().parents[3]
INTRO = ROOT / "book" / "intro.md"


def test_the_table_by_number_of_photos_is_that_of_the_draws():
    rows = pd.read_csv(ROOT / "data/results/heads_cca.csv", dtype={"condition": str})
    means = heads_cca_means(rows).xs("heads + CCA", level="method")
    said = re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", INTRO.read_text(), re.MULTILINE)
    assert [n for n, *_ in said] == ["150", "400", "600", "1,500", "3,000"]
    for n_photos, *recalls in said:
        of = means.loc[n_photos.replace(",", ""), ["flickr8k search", "flickr8k text retrieval"]]
        assert [*map(float, recalls)] == pytest.approx([*of], abs=0.0501)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_the_one_that_a_notebook_made(name):
    named = []
    for path in (ROOT / "book").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        named += [cell for cell in cells if f'"{name}"' in json.dumps(cell.metadata)]
    (cell,) = named
    made = next(o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {}))
    assert base64.b64decode(made) == FIGURES[name].read_bytes()


def test_every_figure_that_a_notebook_makes_for_other_pages_is_shown_there():
    shown = INTRO.read_text("utf-8") + (ROOT / "README.md").read_text("utf-8")
    assert all(f"images/{file.name}" in shown for file in FIGURES.values())
