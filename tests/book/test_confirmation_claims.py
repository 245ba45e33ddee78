"""The numbers printed on the confirmation's page and on the first pages are those of its rows."""

import json
import re
import shlex

import pytest
from prose import DIFFERENCE, ROOT, prose, with_intervals

from cibr_book import confirmation as c
from cibr_book.tables import comparisons, differences, read_table

PAGES = ("book/intro.md", "README.md")
CONDITIONS = ("Flickr8k", *c.FEW_OR_WRONG)  # in the order of the table's columns
ROWS = {  # how a row of the first pages begins, and its method
    "closed-form CCA": "closed-form CCA",
    "CCA start": "CLIP, CCA start",
    "CCA start + anchor": "CCA anchor",
}


@pytest.fixture(scope="module")
def rows():
    return c.with_measures(read_table("confirmation.csv"))


@pytest.fixture(scope="module")
def forms():
    return c.best_forms(read_table("confirmation_trials.csv"))


def test_every_difference_with_an_interval_is_one_of_the_rows(rows, forms):
    measures = [
        *c.RECALLS,
        c.VALIDATION,
        *c.ACCURACIES,
        "zero-shot accuracy",
        "accuracy on the new sets",
    ]
    measures += [*c.STRENGTHS[1:], *(f"recall under {name}" for name in c.SHIFTS)]
    measures += [f"accuracy on PACS, {style}" for style in c.STYLES_OF_PACS]
    tables = [c.hypothesis_tests(rows, forms), c.zero_shot_tests(rows)]
    of_methods = rows[~rows["method"].str.endswith("over beta")]
    tables += [differences(of_methods, measures), c.over_beta(rows, measures)]
    known = set().union(*map(with_intervals, tables))
    printed = set(DIFFERENCE.findall(prose("book/confirmation.ipynb")))
    assert printed and printed <= known, printed - known


@pytest.mark.parametrize("page", PAGES)
def test_the_first_pages_print_the_confirmed_recall(page, rows, forms):
    means = rows.groupby(["condition", "method"])["recall on Flickr8k"].mean()
    clip = {condition: means[condition, "CLIP"] for condition in CONDITIONS}
    methods = {start: dict.fromkeys(CONDITIONS, name) for start, name in ROWS.items()}
    methods |= {"residual penalty as proposed (MINE)": dict.fromkeys(CONDITIONS, "CIBR MINE")}
    methods |= {"residual penalty, best simpler form": forms}
    table = {"CLIP, per cent": [f"{level:.1f}" for level in clip.values()]}
    for start, of in methods.items():
        gains = [means[condition, of[condition]] - clip[condition] for condition in CONDITIONS]
        table[start] = [re.sub(r"[+-]0\.0", "0.0", f"{gain:+.1f}") for gain in gains]
    for start, texts in table.items():
        cells = re.escape(" | ".join(texts))
        assert re.search(rf"^\| {re.escape(start)} \| {cells} \|$", prose(page), re.MULTILINE)
    explored = comparisons(read_table())
    both = (explored["method"] == "CLIP, in both styles") & (explored["measure"] == "recall")
    measured = differences(rows[~rows["method"].str.endswith("over beta")], c.RECALLS)
    known = {f"{x:+.1f}" for x in [*measured["difference"], *explored[both]["difference"]]}
    assert set(re.findall(r"[+-]\d+\.\d", prose(page))) <= known


def test_the_how_to_compares_with_the_clip_that_was_confirmed(rows):
    names = ["learning_rate", "temperature", "weight_decay", "dropout"]
    clip = rows[rows["method"] == "CLIP"].drop_duplicates("condition").set_index("condition")
    configurations = clip["configuration"].map(json.loads)
    few, wrong = (configurations[condition] for condition in c.FEW_OR_WRONG)
    cells = json.loads((ROOT / "book/howto/own_pairs.ipynb").read_text("utf-8"))["cells"]
    page = "\n".join("".join(cell["source"]) for cell in cells)
    command, _ = page.replace("\\\n", "").split("--output-dir runs/plain")
    words = shlex.split(command.rsplit("cibr train ", 1)[1])
    options = dict(zip(words[::2], words[1::2], strict=True))
    for name in [*names, "beta", "batch_size", "epochs"]:
        assert float(options[f"--{name.replace('_', '-')}"]) == few[name]
    assert wrong["epochs"] == 40
    told = "a rate of {}, a temperature of {}, a weight decay of {} and a dropout of {}"
    assert told.format(*(f"{wrong[name]:g}" for name in names)) in page
