"""Numbers and figures that pages have from elsewhere: from rows, and from notebooks."""

import base64
import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from cibr_book.experiments import ablation
from cibr_book.experiments.plan import read_plan
from cibr_book.experiments.tables import read_table
from execute import FIGURES

ROOT = Path(__file__).resolve().parents[3]
INTRO = ROOT / "book" / "intro.md"
SEARCH = "flickr8k/text_to_image_recall"


def test_the_table_by_number_of_photos_is_that_of_the_draws():
    rows = pd.read_csv(ROOT / "data/results/heads_cca.csv", dtype={"condition": str})
    rows = rows[(rows["stage"] == "tests") & (rows["method"] == "heads + CCA")]
    means = 100 * rows.set_index("condition").filter(like="flickr8k/").groupby("condition").mean()
    said = re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", INTRO.read_text(), re.MULTILINE)
    assert [n for n, *_ in said] == ["150", "400", "600", "1,500", "3,000"]
    for n_photos, *recalls in said:
        of = [means.loc[n_photos.replace(",", ""), f"{SEARCH}@{k}"] for k in (1, 10)]
        assert [*map(float, recalls)] == pytest.approx(of, abs=0.0501)


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


def test_the_page_on_own_loops_has_the_losses_of_the_ablation():
    text = (ROOT / "book/howto/own_loop.ipynb").read_text("utf-8")
    said = re.search(r"= 0.05 cost (\S+) points of search, .* = 0.2 cost (\S+) \(", text).groups()
    rows = ablation.with_measures(read_table("ablation.csv")).query("condition == 'Flickr8k'")
    search = rows.set_index(["method", "beta", "seed"])["search"].sort_index()
    for beta, points in zip((0.05, 0.2), said, strict=True):
        lost = (search["CLIP", 0.0] - search["vMF", beta]).mean()
        assert float(points) == pytest.approx(lost, abs=0.0501)


def test_the_page_on_sweeps_names_every_sweep_and_its_hours():
    text = (ROOT / "book/howto/sweep.md").read_text("utf-8")
    rows = re.findall(r"results/(\w+\.csv)>` \| (.*) \| (\d+) \|", text)
    for table, sweeps, hours in rows:
        for sweep in re.findall(r"`([\w-]+)`", sweeps):
            plan = read_plan(ROOT / f"experiments/{sweep}.yaml")
            assert plan.results.name == table
        seconds = pd.read_csv(ROOT / "data/results" / table)["seconds"].sum()
        assert float(hours) == pytest.approx(seconds / 7200, abs=0.55)  # on two cores
    named = {sweep for _, sweeps, _ in rows for sweep in re.findall(r"`([\w-]+)`", sweeps)}
    files = (ROOT / "experiments").glob("*.yaml")
    assert named == {file.stem for file in files if read_plan(file).results.exists()}
