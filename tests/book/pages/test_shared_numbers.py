"""The numbers typed into the first page are those of the committed table."""

import re
from pathlib import Path

import pytest

from cibr_book.experiments.confirmation import best_forms, with_measures
from cibr_book.experiments.tables import read_table

ROOT = Path(__file__).resolve().parents[3]
ALL, FEW, WRONG = CONDITIONS = (
    "Flickr8k",
    "Flickr8k, 10 % of the pairs",
    "Flickr8k, 30 % shuffled captions, drawn anew",
)
METHODS = {
    "baseline: tuned heads with CLIP's loss, %": ["CLIP"] * 3,
    "residual penalty as proposed (MINE)": ["CIBR MINE"] * 3,
    "closed-form CCA": ["closed-form CCA"] * 3,
    "CCA start": ["CLIP, CCA start"] * 3,
    "CCA start + anchor": ["CCA anchor"] * 3,
}


@pytest.fixture(scope="module")
def gain():
    """A method's mean difference from tuned CLIP, in points; of CLIP itself the mean."""
    means = with_measures(read_table("confirmation.csv")).groupby(["condition", "method"])

    def of(condition, method, measure="recall on Flickr8k", control="CLIP"):
        mean = means[measure].mean()[condition]
        return mean[method] - (0 if method == "CLIP" else mean[control])

    return of


def test_the_first_table_has_the_numbers_of_the_confirmation(gain):
    forms = best_forms(read_table("confirmation_trials.csv"))
    simpler = {"residual penalty, best simpler form": [forms[name] for name in CONDITIONS]}
    text = (ROOT / "book/intro.md").read_text("utf-8")
    for title, methods in (METHODS | simpler).items():
        row = re.search(rf"^\| {re.escape(title)} \|(.*)\|$", text, re.MULTILINE)[1]
        printed = [float(cell) for cell in row.split("|")]
        values = [gain(*each) for each in zip(CONDITIONS, methods, strict=True)]
        assert printed == [pytest.approx(value, abs=0.0501) for value in values], title


def test_the_numbers_of_the_first_page_beside_its_table_are_those_of_the_confirmation(gain):
    text = (ROOT / "book/intro.md").read_text("utf-8")
    for said, value in {
        "weight averaging adds 0.3": gain(ALL, "CLIP, weight averaging"),
        "two captions a photo and noise 0.4": gain(ALL, "CLIP, two captions + noise"),
        "+1.4 or +1.5": gain(FEW, "closed-form CCA"),
        "+3.2": gain(FEW, "CLIP, self-training"),
        "+2.3": gain(WRONG, "CCA anchor"),
        "costs 0.9 of zero-shot accuracy": -gain(WRONG, "CCA anchor", "accuracy on the new sets"),
        "adds 0.6 points": gain(WRONG, "CCA anchor", control="CLIP, CCA start"),
    }.items():
        assert said in text
        assert float(re.search(r"[-+]?\d+\.\d", said)[0]) == pytest.approx(value, abs=0.0501)
