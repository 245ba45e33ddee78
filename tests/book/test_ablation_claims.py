"""The numbers printed in the ablation, its evidence and the first pages are those of the tables."""

import json
import re
from pathlib import Path

import pytest

from cibr.losses.vmf import vmf_mean_cosine
from cibr_book.tables import HEADLINE, comparisons, in_points, read_table, survivors

ROOT = Path(__file__).resolve().parents[2]
DIFFERENCE = re.compile(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]")
NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?![\w.,]*\w)")
PAGES = ("book/ablation.ipynb", "book/evidence.ipynb", "book/intro.md", "README.md")


def prose(page):
    text = (ROOT / page).read_text("utf-8")
    if page.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    code = re.compile(r"```(?:bash|{math})\n.*?```|`[^`\n]+`", re.DOTALL)
    return code.sub("", text).replace("\u2212", "-")


@pytest.fixture(scope="module")
def rows():
    return read_table()


@pytest.fixture(scope="module")
def compared(rows):
    return comparisons(rows)


@pytest.mark.parametrize("page", PAGES)
def test_every_difference_with_an_interval_is_one_of_the_comparisons(page, compared):
    index = ("condition", "method", "beta", "hyperparameters", "against")
    known = {text.rstrip(" *") for text in in_points(compared, index).stack()}
    printed = set(DIFFERENCE.findall(prose(page)))
    assert printed <= known, printed - known
    assert len(printed) > 10 or not page.endswith(".ipynb")


def test_every_other_number_of_the_two_chapters_is_a_setting_or_a_summary_of_the_rows(
    rows, compared
):
    penalty = compared["method"].str.match("CIBR (vMF|MINE|crossfit)")
    has_mine = compared.loc[compared["method"] == "CIBR MINE", "condition"]
    on_photos = compared["condition"].isin(has_mine[has_mine.str.startswith("Flickr8k")])
    photos = compared[penalty & on_photos]
    gain = photos.loc[photos["significance"] == "gain", "difference"].max()
    curves = photos[photos["beta"] <= 0.1]
    to_text = curves[curves["measure"] == "image to text"]
    ends = [curves["low"].min(), curves["high"].max(), to_text["low"].min(), to_text["high"].max()]
    anchors = compared["method"].str.startswith("CIBR anchor")
    anchors &= compared["against"].str.startswith("CLIP, CCA start")
    added = compared.loc[anchors & (compared["measure"] == "zero-shot"), "difference"].max()
    clip = rows[
        (rows["condition"] == "Flickr8k") & (rows["method"] == "CLIP") & (rows["seed"] <= 5)
    ]
    learned = rows[rows["condition"].str.endswith("learned")].groupby("beta")["last_temperature"]
    weight = 10 * float(vmf_mean_cosine(8192, 512)) * 0.03  # kappa_b A(kappa_e) T, of a beta of 1
    known = {f"{abs(x):.1f}" for x in (*ends, added, *clip[[*HEADLINE]].mean())}
    known |= {f"{x:.2f}" for x in (weight, gain, curves["difference"].abs().max())}
    known |= {f"{x:.3f}" for x in learned.mean()}
    known |= {str(len(table)) for table in (rows, read_table("ablation_trials.csv"))}
    known |= {str(compared["p_value"].notna().sum()), str(compared["n_seeds"].max())}
    known |= set(survivors(compared)["Benjamini-Hochberg"].astype(str))
    known |= {"600", "6,000", "60", "5", "10", "20", "30", "95"}
    known |= {"0", "0.003", "0.03", "0.05", "0.1", "0.3", "1", "3"}
    for page in PAGES[:2]:
        printed = set(NUMBER.findall(DIFFERENCE.sub("", prose(page))))
        assert printed <= known, printed - known
