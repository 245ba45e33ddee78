"""Numbers and figures that pages have from elsewhere: from rows, and from notebooks."""

import base64
import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from cibr_book.experiments import ablation
from cibr_book.experiments.names import means_of
from cibr_book.experiments.plan import read_plan
from cibr_book.experiments.tables import read_table
from execute import FIGURES

ROOT = Path(__file__).resolve().parents[3]
INTRO = ROOT / "book" / "intro.md"


def test_the_table_of_the_first_page_is_that_of_the_draws():
    means = means_of(pd.read_csv(ROOT / "data/results/names.csv", dtype={"condition": str}))
    row = r"^\|([^|]*)\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$"
    said = re.findall(row, INTRO.read_text(), re.MULTILINE)
    methods = ["start", *["fine-tuned + CCA"] * 3, "heads + CCA"]
    assert [n for _, n, *_ in said] == ["0", "150", "600", "3,000", "600"]
    for method, (_, n_photos, *numbers) in zip(methods, said, strict=True):
        condition = n_photos.replace(",", "") if n_photos != "0" else "600"
        scores = means.loc[condition, method][["flickr8k search", "coco search", "zero-shot"]]
        assert [*map(float, numbers)] == pytest.approx(scores.tolist(), abs=0.0501)
    for share, method in (("39 %", "fine-tuned + CCA"), ("27 %", "heads + CCA")):
        assert share in (ROOT / "README.md").read_text()
        assert round(means.loc["600", method]["coco search"]) == int(share[:2])


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
    said = re.search(r"0.05 cost (\S+) points of search, at 0.2 it cost (\S+) \(", text).groups()
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
