"""The numbers printed on the confirmation's page and on the first pages are those of its rows."""

import json
import re
import shlex

import pytest
from prose import DIFFERENCE, ROOT, prose, with_intervals

import cibr
from cibr import configure
from cibr_book.experiments import confirmation as c
from cibr_book.experiments.run import library_settings
from cibr_book.experiments.tables import comparisons, differences, read_table

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
    table = {
        "baseline: heads trained with CLIP's loss, per cent": [
            f"{level:.1f}" for level in clip.values()
        ]
    }
    for start, of in methods.items():
        gains = [means[condition, of[condition]] - clip[condition] for condition in CONDITIONS]
        table[start] = [re.sub(r"[+-]0\.0", "0.0", f"{gain:+.1f}") for gain in gains]
    for start, texts in table.items():
        cells = re.escape(" | ".join(texts))
        assert re.search(rf"^\| {re.escape(start)} \| {cells} \|$", prose(page), re.MULTILINE)
    explored = comparisons(read_table())
    both = (explored["method"] == "CLIP, in both styles") & (explored["measure"] == "recall")
    measures = [*c.RECALLS, "accuracy on the new sets"]
    measured = differences(rows[~rows["method"].str.endswith("over beta")], measures)
    known = {f"{x:+.1f}" for x in [*measured["difference"], *explored[both]["difference"]]}
    assert set(re.findall(r"[+-]\d+\.\d", prose(page))) <= known


def own_pairs():
    """The how-to, with commands of several lines as one."""
    cells = json.loads((ROOT / "book/howto/own_pairs.ipynb").read_text("utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells).replace("\\\n", "")


def the_run(rows, condition, method):
    """Settings of the model and its training in a row, with the defaults."""
    is_method = (rows["condition"] == condition) & (rows["method"] == method)
    settings = json.loads(rows[is_method]["configuration"].iloc[0])
    config = configure(**library_settings(settings)).model_dump()
    kept_apart = ("dataset", "seed", "output_dir", "validate_every")
    return settings, {name: config[name] for name in config if name not in kept_apart}


def test_the_how_to_has_the_recipe_for_thousands_of_photos(rows):
    options = re.search(r"--preset wrong-captions --(cca-ridges .*)", own_pairs())[1].split("--")
    given = {}
    for name, *values in map(str.split, options):
        numbers = [float(value) for value in values]
        given[name.replace("-", "_")] = numbers if len(numbers) > 1 else numbers[0]
    _, run = the_run(rows, "Flickr8k", "CCA anchor")
    assert run.items() <= configure("wrong-captions", **given).model_dump().items()


def test_the_how_to_has_the_settings_of_self_training(rows):
    beginning = own_pairs().split("import with_pseudo_pairs")[1]
    code = re.search(r"config = (cibr.*?\n  \))", beginning, re.DOTALL)
    given = eval(code[1].replace("path/to/pairs", "glyphs"), {"cibr": cibr})
    settings, run = the_run(rows, c.FEW_OR_WRONG[0], "CLIP, self-training")
    assert run.items() <= given.model_dump().items()
    assert f"repeats={settings['unpaired']['repeats']})" in own_pairs()


def test_the_how_to_compares_with_the_clip_that_was_confirmed(rows):
    names = ["learning_rate", "temperature", "weight_decay", "dropout"]
    clip = rows[rows["method"] == "CLIP"].drop_duplicates("condition").set_index("condition")
    configurations = clip["configuration"].map(json.loads)
    few, wrong = (configurations[condition] for condition in c.FEW_OR_WRONG)
    page = own_pairs()
    command, _ = page.split("--output-dir runs/plain")
    words = shlex.split(command.rsplit("cibr train ", 1)[1])
    options = dict(zip(words[::2], words[1::2], strict=True))
    for name in [*names, "beta", "batch_size", "epochs"]:
        assert float(options[f"--{name.replace('_', '-')}"]) == few[name]
    assert wrong["epochs"] == 40
    told = "a rate of {}, a temperature of {}, a weight decay of {} and a dropout of {}"
    assert told.format(*(f"{wrong[name]:g}" for name in names)) in page
