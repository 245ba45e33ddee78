"""`pytest --nbval book/` is red where a page's numbers, words or code are wrong, and only there."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from cibr_book.pages.compare import is_close, is_close_html

ROOT = Path(__file__).resolve().parents[3]
BOOK = ROOT / "book"


def failed_notebooks(folder):
    """The names of the notebooks of a folder that nbval finds wrong, and what it printed."""
    shutil.copy(BOOK / "conftest.py", folder)
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider", folder]
    environment = {**os.environ, "PYTHONPATH": f"{BOOK}:{ROOT}"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    return set(re.findall(r"FAILED (\w+)\.ipynb", done.stdout)), done.stdout


def test_nbval_rounds_long_floats_and_nothing_else(monkeypatch):
    monkeypatch.syspath_prepend(BOOK)
    policy = runpy.run_path(BOOK / "conftest.py")
    for printed, compared in {
        "loss 0.12341999, 0.12342001.": "loss 0.1234, 0.1234.",
        "[1.0000, -12345.678, 3.14159e-05]": "[1, -1.235e+04, 3.142e-05]",
        "-0.00 and 1.2e-17 are 0": "0 and 0 are 0",
        **dict.fromkeys(["0.05 1.5 1e-3", "torch 2.13.0, 2026-11-25, v1.23456, 123456"]),
    }.items():
        assert re.sub(policy["FLOAT"], policy["_round_float"], printed) == (compared or printed)


@pytest.mark.parametrize(
    ("text", "close", "far"),
    [
        ("41.2 %", "43.9 %", "44.3 %"),
        ("41.2 per cent", "43.9 per cent", "44.3 per cent"),
        ("1.99 nats of 3", "2.2 nats of 3", "2.3 nats of 3"),
        ("1.99 nats of 3", "1.99 nats of 3", "1.99 nats of 4"),
        ("a share 0.35 of", "a share 0.37 of", "a share 0.39 of"),
        ("1 - cos 0.704, gap 0.283", "1 - cos 0.72, gap 0.3", "1 - cos 0.73, gap 0.283"),
        ("1 - cos 0.704, gap 0.283", "1 - cos 0.704, gap 0.283", "1 - cos 0.704, gap 0.31"),
        ("+1.39 points", "+0.42 points", "+0.3 points"),
        ("+0.2 points", "-0.3 points", "-0.4 points"),
        ("from -0.1 to +2.4 points", "from +0.1 to +3.2 points", "from -1.2 to +2.4 points"),
        ("-9.92, from -11.4 to -8.3 points", "-9.92, from -11 to -8 points", "9.92, from 1 to 2"),
        ("beta 0.05, 2 % more", "beta 0.05, 3 % more", "beta 0.06, 2 % more"),
        ("seed 3 of 16", "seed 3 of 16", "seed 3 of 15"),
        ("0.5 points, chance", "0.6 points, chance", "0.5 points, more than chance"),
        ("more than 1 - cos", "more than 1 - cos", "more than 2 - cos"),
    ],
)
def test_a_number_may_be_off_by_the_tolerance_of_its_unit(text, close, far):
    assert is_close(close, text) and is_close(text, text)
    assert not is_close(far, text)


TABLE = """<style>.dataframe th {{ top: 3 }}</style><table><thead><tr><th></th>
<th colspan="2">{search}, %</th><th>change, points</th><th>1 - cos of 40</th><th>seeds</th></tr>
<tr><th>twin</th><th>R@1</th><th>R@10</th><th></th><th></th><th></th></tr></thead>
<tbody><tr><th>CLIP</th><td>9.6</td><td>39.4</td><td>0 [-1.0, 1.0]</td><td>0.704</td><td>8</td></tr>
<tr><th>beta = {beta}</th><td>9.4</td><td>{recall}</td><td>{change}</td><td>{distance}</td>
<td>{seeds}</td></tr></tbody></table>"""
ROW = {"search": "search", "beta": 0.05, "recall": 39.2, "change": "-0.2 [-1.0, 0.2]"}
ROW |= {"distance": 0.666, "seeds": 8}


@pytest.mark.parametrize(
    ("name", "close", "far"),
    [
        ("recall", 41.9, 42.3),
        ("change", "0.3 [-0.1, 1.1]", "0.4 [-1.0, 0.2]"),
        ("change", "-0.2 [-1.9, 0.2]", "-0.2 [-1.0, 1.3]"),
        ("distance", 0.68, 0.69),
        ("seeds", 8, 9),
        ("beta", 0.05, 0.06),
        ("search", "search", "text retrieval"),
    ],
)
def test_cells_of_a_table_have_the_unit_of_their_column(name, close, far):
    stored = TABLE.format(**ROW)
    assert is_close_html(TABLE.format(**{**ROW, name: close}), stored)
    assert not is_close_html(TABLE.format(**{**ROW, name: far}), stored)
    assert not is_close_html(stored.replace("<td>39.4</td>", ""), stored)
    assert not is_close_html(stored[: stored.index("<tr><th>beta")], stored)
    exchanged = stored.replace("R@10", "R@5").replace("R@1<", "R@10<").replace("R@5", "R@1")
    assert not is_close_html(exchanged, stored)


PRINTED = """
import pandas as pd
from IPython.display import Markdown, display
print('recall 41.2 %, beta 0.05')
display(Markdown('changed **-0.5 points**: no more than chance'))
pd.DataFrame({'search, %': [40.0, 41.0], 'seed': [0, 1]}, index=['CLIP', 'beta = 0.05'])
"""


def executed(notebook, folder):
    """The notebook with the outputs of a run in the folder."""
    path = folder / "page.ipynb"
    nbformat.write(notebook, path)
    run = "import execute as e, pathlib, sys; e.prepare_environment();"
    run += "e.execute(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", run, path], cwd=BOOK, check=True)
    notebook = nbformat.read(path, as_version=4)
    path.unlink()
    return notebook


def test_nbval_allows_for_training_in_the_cells_that_train(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PRINTED)])
    notebook = executed(notebook, tmp_path)
    stored = {
        "exact": ([], "41.2 %", "41.3 %"),
        "close": (["trains"], "41.2 %", "42.0 %"),
        "close_table": (["trains"], "<td>41.0", "<td>42.5"),
        "far": (["trains"], "41.2 %", "45.2 %"),
        "beta": (["trains"], "beta 0.05", "beta 0.5"),
        "sign": (["trains"], "-0.5 points", "+0.1 points"),
        "verdict": (["trains"], "no more than", "more than"),
        "far_table": (["trains"], "<td>41.0", "<td>45.0"),
        "seed": (["trains"], "<td>1</td>", "<td>2</td>"),
        "missing": (["trains"], "<th>CLIP</th>", ""),
    }
    for name, (tags, printed, planted) in stored.items():
        (cell,) = nbformat.from_dict(notebook).cells
        cell.metadata["tags"] = tags
        outputs = json.dumps(cell.outputs)
        assert printed in outputs
        cell.outputs = nbformat.from_dict(json.loads(outputs.replace(printed, planted)))
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / f"{name}.ipynb")
    failed, printed = failed_notebooks(tmp_path)
    assert failed == set(stored) - {"close", "close_table"}, printed
    assert re.search(r"^ +\d+ s  close.ipynb$", printed, re.MULTILINE)


# Each replaces code under a page by what is wrong, before the page's first cell.
FAULTS = {
    "penalty_with_the_other_sign": """
from cibr.losses import penalties
right = penalties.VMF.forward
penalties.VMF.forward = lambda self, inputs: -right(self, inputs)
""",
    "beta_ignored": """
from cibr.losses import CIBRLoss
right = CIBRLoss.forward
def forward(self, *args, **options):
    self.beta = 0.0
    return right(self, *args, **options)
CIBRLoss.forward = forward
""",
    "prompts_of_another_class": """
from cibr import metrics
right = metrics.class_embeddings
metrics.class_embeddings = lambda prompts: right(prompts).roll(1, 0)
""",
    "directions_exchanged": """
from cibr import metrics
from cibr.metrics.retrieval import Ranks
right = metrics.retrieval_ranks
def ranks(*args, **options):
    found = right(*args, **options)
    return Ranks(found.text_ranks, found.image_ranks, found.text_clusters, found.image_clusters,
                 found.by_label)
metrics.retrieval_ranks = ranks
""",
    "none": "",
}
RANDOM_CCA = """
import torch
from cibr.models import RegularisedCCA
right = RegularisedCCA.fit
def fit(*args, **options):
    cca = right(*args, **options)
    torch.manual_seed(0)
    cca.image.weight.data = torch.randn_like(cca.image.weight) * cca.image.weight.std()
    return cca
RegularisedCCA.fit = fit
"""
SMALL = {"n_photos": 100, "epochs": 3, "beta": 1.0, "learning_rate": 1e-3}


def plant(notebook, fault, path):
    """Writes the notebook with code before its first, and runs of its own to resume."""
    notebook = nbformat.from_dict(notebook)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    runs = f"import os\nos.environ['CIBR_RUNS'] = {str(path.with_suffix(''))!r}\n"
    first.source = runs + fault + first.source
    nbformat.write(notebook, path)


@pytest.mark.slow
def test_wrong_code_under_the_page_on_training_makes_it_red(tmp_path):
    notebook = nbformat.read(BOOK / "train.ipynb", as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in SMALL.items())
    notebook = executed(notebook, tmp_path)
    for name, fault in FAULTS.items():
        plant(notebook, fault, tmp_path / f"{name}.ipynb")
    failed, printed = failed_notebooks(tmp_path)
    assert failed == set(FAULTS) - {"none"}, printed


@pytest.mark.slow
def test_random_cca_makes_the_page_on_own_pairs_red(tmp_path):
    notebook = nbformat.read(BOOK / "howto" / "own_pairs.ipynb", as_version=4)
    plant(notebook, RANDOM_CCA, tmp_path / "random_cca.ipynb")
    failed, printed = failed_notebooks(tmp_path)
    assert failed == {"random_cca"}, printed
