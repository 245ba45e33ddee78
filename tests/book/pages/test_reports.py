"""What a run's page says is true for any parameters, and its files open anywhere."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from cibr.data import load_pairs
from cibr.evaluate import Evaluation
from cibr_book.experiments import twins
from cibr_book.pages import reports

ROOT = Path(__file__).resolve().parents[3]
BOOK = ROOT / "book"
WITH_PARAMETERS = ("train", "ablation", "benchmarks")
# Roles, directives and labels of MyST, which other viewers print as they stand.
MYST = re.compile(r"\{[a-z:]+\}`|^\s*(?:```|:::)\{|^\([\w-]+\)=$", re.MULTILINE)
TEST = load_pairs("photos", "test")
VALIDATION = load_pairs("photos", "validation")
each_report = pytest.mark.parametrize("name", WITH_PARAMETERS)


def plan(beta=0.05, n_photos=600, **settings):
    settings = dict(dataset="photos", model="names") | settings
    return twins.plan(n_photos, beta, output_dir="out", **settings)


def finding(change, photos, seeds=(np.nan, np.nan), said=twins.ONE_SEED):
    """A row of `twins.findings`."""
    names = ["clip", "cibr", "change", "low", "high", "seeds_low", "seeds_high", "verdict"]
    return dict(zip(names, [40.0, 40.0 + change, change, *photos, *seeds, said], strict=True))


def findings(**rows):
    """Findings by measure, with spaces for underscores."""
    found = pd.DataFrame({name.replace("_", " "): row for name, row in rows.items()}).T
    numbers = found.columns.drop("verdict")
    return found.astype(dict.fromkeys(numbers, float))


def test_the_run_is_described_by_its_own_settings():
    pairs = load_pairs("photos", "train").subset(range(600))
    said = reports.run(plan(), pairs, VALIDATION, TEST)
    assert "600 images" in said and "vMF" in said and "beta = 0.05$" in said
    assert "Validation has 300" in said and "the test 1,000" in said
    assert "not the defaults" not in said
    other = reports.run(plan(0.3, penalty="mine", seed=4, epochs=3), pairs, VALIDATION, TEST)
    assert "MINE" in other and "beta = 0.3$" in other and "The seed is 4" in other
    assert "3 epochs" in other and "not the defaults" in other
    assert "CLIP's loss alone" in reports.run(plan(0.0), pairs, VALIDATION, TEST)
    assert "MINE" not in reports.run(plan(0.0, penalty="mine"), pairs, VALIDATION, TEST)


def test_the_default_run_is_more_than_chance_only_where_both_intervals_say_so():
    row = finding(0.9, (0.1, 1.7), (0.2, 1.6), twins.MORE)
    within = finding(-0.3, (-0.9, 0.3), (-0.8, 0.2), twins.CHANCE)
    found = findings(search_on_MSCOCO=row, zero_shot_accuracy=within)
    found = found.rename(index={"zero shot accuracy": "zero-shot accuracy"})
    said = reports.findings(found, plan())
    assert "changed more than chance would: search on MSCOCO by +0.90 points." in said
    assert "No more than chance: zero-shot accuracy by -0.30 points." in said
    none = reports.findings(found.loc[["zero-shot accuracy"]], plan())
    assert "no change of recall or accuracy that is more than chance" in none


def test_a_run_of_another_kind_is_one_seed_of_which_we_cannot_tell():
    found = findings(search_on_MSCOCO=finding(0.9, (0.1, 1.7)), other=finding(0.1, (-1, 1)))
    said = reports.findings(found, plan(0.1))
    assert said.startswith("**One seed: we cannot tell.**")
    assert (
        "search on MSCOCO by +0.90 points, more than" in said
        and "other" not in said.split("more")[0]
    )
    nothing = reports.findings(found.loc[["other"]], plan(0.1))
    assert "nothing more than" in nothing
    assert "Nothing changes" in reports.findings(found, plan(0.0))


def test_averages_over_seeds_are_said_where_their_interval_leaves_out_zero():
    stored = pd.read_csv(twins.RESULTS / twins.SPREAD)
    found = findings(x=finding(0.1, (-1, 1), (-1, 1), twins.CHANCE))
    found.index = ["search on MSCOCO"]
    rows = stored[stored["measure"] == "search on MSCOCO"]["difference"]
    half = 2.1314 * rows.std() / 4  # Student's quantile for 15 degrees of freedom
    assert abs(rows.mean()) > half
    assert f"search on MSCOCO by {rows.mean():+.2f} points" in reports.findings(found, plan())
    found.index = ["search on Flickr8k"]
    rows = stored[stored["measure"] == "search on Flickr8k"]["difference"]
    is_beyond = abs(rows.mean()) > 2.1314 * rows.std() / 4
    said = reports.findings(found, plan())
    assert ("search on Flickr8k" in said) == is_beyond


@pytest.mark.parametrize(
    ("clip", "own", "said"),
    [
        ((0.7, 0.28), (0.6, 0.18), "drew pairs nearer together (1 - cos 0.700"),
        ((0.7, 0.28), (0.6, 0.38), "moved the two modalities further apart (gap 0.280"),
        ((0.7, 0.28), (0.702, 0.279), "left pairs as far apart as without it"),
    ],
)
def test_the_distances_are_said_as_they_are(clip, own, said):
    sides = [dict(zip(("1 - cos", "gap"), values, strict=True)) for values in (clip, own)]
    assert said in reports.geometry(*sides, plan())
    assert "no gradient" in reports.geometry(*sides, plan(0.0))


def evaluations(value):
    keys = [("photos-cifar10", "zero-shot", "accuracy@1"), ("mean of 7", "zero-shot", "accuracy@1")]
    ways = ("image_to_text", "text_to_image")
    keys += [("photos", "retrieval", f"{way}_recall@{k}") for way in ways for k in (1, 5, 10)]
    scores = {key: np.full(4, value + i / 100) for i, key in enumerate(keys)}
    return [Evaluation("m", "s", scores, {key: i / 200 for i, key in enumerate(keys)}, {})]


def test_tables_have_a_row_a_model_below_chance_and_the_unit_in_their_headers():
    scores = {"start": evaluations(0.1), "CLIP": evaluations(0.3)}
    table = reports.zero_shot_table(scores)
    assert table.index.tolist() == ["chance", "start", "CLIP"]
    assert table["CIFAR-10"].tolist() == [0.0, 10.0, 30.0]
    assert table["mean of 7"].tolist() == [0.5, 11.0, 31.0]
    assert table.columns.name == "zero-shot accuracy, %"
    recalls = reports.retrieval_table(scores)
    assert recalls["Flickr8k: search, %"].loc["CLIP"].to_dict() == {
        "R@1": 35.0,
        "R@5": 36.0,
        "R@10": 37.0,
    }
    assert recalls["Flickr8k: text retrieval, %", "R@1"].tolist() == [1.0, 12.0, 32.0]


def test_fine_tuning_is_said_to_lose_where_it_loses_most():
    start, clip = evaluations(0.3), evaluations(0.4)
    key = "photos-imagenette", "zero-shot", "accuracy@1"
    for each, value in ((start, 0.9), (clip, 0.8)):
        each[0].scores[key] = np.full(4, value)
        each[0].chance[key] = 0.1
    said = reports.knowledge({"start": start, "CLIP": clip})
    assert "the mean of 7 sets from 31.0 to 41.0 %" in said
    assert said.endswith("It lost most on Imagenette, which went from 90.0 to 80.0 %.")
    same = {"start": evaluations(0.3), "CLIP": evaluations(0.4)}
    assert reports.knowledge(same).endswith("No set lost.")


def test_differences_of_several_prices_are_told_from_zero_by_their_intervals():
    columns = ["measure", "penalty", "beta", "mean", "low", "high"]
    rows = [("a", "vmf", 0.2, -1.0, -1.5, -0.5), ("b", "vmf", 0.2, 1.0, -0.5, 2.5)]
    rows += [("a", "mine", 1.0, 2.0, 1.5, 2.5)]
    said = reports.over_beta(pd.DataFrame(rows, columns=columns))
    assert "Of 3 differences from CLIP, 2 can be told from zero" in said
    assert "vMF, beta = 0.2 a -1.0 points" in said and "MINE, beta = 1 a +2.0 points" in said
    assert "b +" not in said
    rows = [("m", "a", -1.0, -1.5, -0.5), ("m", "b", 1.0, -0.5, 2.5), ("n", "a", 0.1, -1, 1)]
    found = pd.DataFrame(rows, columns=["model", "measure", "mean", "low", "high"])
    said = reports.told_apart(found, "CLIP")
    assert "**m** differs from CLIP in a -1.00 points, and cannot be told from it in 1 of 2" in said
    assert "**n** cannot be told from CLIP in any of 1 measures." in said


@each_report
def test_a_page_with_parameters_is_standard_markdown(name):
    for cell in nbformat.read(BOOK / f"{name}.ipynb", as_version=4).cells:
        texts = [cell.source] if cell.cell_type == "markdown" else []
        for output in cell.get("outputs", []):
            texts.append(output.get("data", {}).get("text/markdown", ""))
        assert not any(map(MYST.search, texts)), cell.id


@each_report
def test_pages_that_a_report_names_exist(name):
    text = (BOOK / f"{name}.ipynb").read_text("utf-8")
    named = set(re.findall(r"`(book/[\w/]+\.(?:ipynb|py))`", text))
    assert named and all((ROOT / path).is_file() for path in named)


@each_report
@pytest.mark.parametrize("elsewhere", [False, True], ids=["from the root", "from elsewhere"])
def test_one_file_of_html_opens_without_a_network(name, elsewhere, tmp_path):
    copy = tmp_path / "out.ipynb"
    copy.write_bytes((BOOK / f"{name}.ipynb").read_bytes())
    command = [sys.executable, str(BOOK / "report.py"), str(copy)]
    done = subprocess.run(
        command, cwd=tmp_path if elsewhere else ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    html = copy.with_suffix(".html").read_text("utf-8")
    page = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)  # MathJax names its licence
    loaded = re.findall(r"<(?:script|link|img|iframe|source)[^>]*(?:src|href)=\"([^\"]*)\"", page)
    assert loaded and all(place.startswith("data:") for place in loaded)
    linked = set(re.findall(r"<a [^>]*href=\"([^\"]*)\"", page))
    for place in linked:
        assert place.startswith("https://arxiv.org/abs/") or place.removeprefix("#") in page
    assert "MathJax" in html and "check_parameters(" not in page  # hidden cells stay hidden


def test_the_mean_cosines_of_pairs_and_of_others():
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0.6, 0.8, 0], [0, 0, 1]])
    table = reports.cosine_table({"CLIP": (images, texts)}, torch.tensor([0, 2, 3]))
    assert table.loc["CLIP", "cosine of pairs"] == round((1 + 0.8 + 1) / 3, 2)
    assert table.loc["CLIP", "cosine of others"] == 0.1
    differences = table["cosine of pairs"] - table["cosine of others"]
    assert table["difference"].tolist() == pytest.approx(differences.tolist(), abs=0.01)


def test_a_report_has_no_log_and_is_refused_for_a_failed_notebook(tmp_path):
    log = nbformat.v4.new_output("stream", name="stderr", text="100%|####|")
    said = nbformat.v4.new_output("stream", name="stdout", text="a result")
    cell = nbformat.v4.new_code_cell("1", outputs=[log, said])
    cells = [nbformat.v4.new_markdown_cell("# A title\n\nText."), cell]
    file = tmp_path / "out.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
    command = [sys.executable, BOOK / "report.py", file]
    subprocess.run(command, check=True, capture_output=True)
    html = file.with_suffix(".html").read_text("utf-8")
    assert "a result" in html and "####" not in html and "<title>A title</title>" in html

    file.with_suffix(".html").unlink()
    cell.outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="beta is -1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1 and "ValueError: beta is -1" in refused.stderr
    assert not file.with_suffix(".html").exists()
