"""Notebooks have the agreed shape and are committed executed; the lists of pages are complete."""

import ast
import base64
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

import cibr

ROOT = Path(__file__).resolve().parents[3]
BOOK = ROOT / "book"
NOTEBOOKS = sorted([*BOOK.glob("*.ipynb"), *BOOK.glob("howto/*.ipynb")])
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
PERSONAL_PATH = re.compile(r"/(?:home|root|tmp|Users|var|usr|opt|mnt|work)/\w|[A-Z]:\\\\?Users")
FENCED = re.compile(r"^(`{3,}|:{3,}).*?^\1", re.MULTILINE | re.DOTALL)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def outputs(path):
    return [output for cell in cells(path, "code") for output in cell.outputs]


@each_notebook
def test_a_notebook_has_one_title_says_what_it_needs_and_defines_nothing(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    text = "\n".join(FENCED.sub("", cell.source) for cell in cells(path, "markdown"))
    assert text.startswith("# ") and len(re.findall(r"^# \S", text, re.MULTILINE)) == 1
    assert "**You need**" in text and "**It takes**" in text
    code = [re.sub(r"^[%!].*$", "", c.source, flags=re.MULTILINE) for c in cells(path, "code")]
    nodes = [node for source in code for node in ast.walk(ast.parse(source))]
    assert not any(isinstance(node, DEFINITIONS) for node in nodes)


@each_notebook
def test_parameters_are_one_annotated_assignment_a_line_with_help(path):
    tagged = [c for c in cells(path, "code") if "parameters" in c.metadata.get("tags", [])]
    lines = [line for cell in tagged for line in cell.source.splitlines()]
    assert len(tagged) <= 1
    assert all(isinstance(ast.parse(line).body[0], ast.AnnAssign) for line in lines)
    parameters = papermill.inspect_notebook(path)  # what `papermill --help-notebook` shows
    assert len(parameters) == len(lines)
    assert all(parameter["help"] for parameter in parameters.values())


@each_notebook
def test_a_notebook_is_committed_executed_with_outputs_that_repeat_on_every_machine(path):
    counts = [cell.execution_count for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1)), f"run: python book/execute.py {path.stem}"
    found = outputs(path)
    assert not [o for o in found if o.output_type == "error" or o.get("name") == "stderr"]
    texts = [output.get("text", "") for output in found]
    for output in found:
        data = output.get("data", {})
        assert not any("widget-view" in mime for mime in data)
        texts += [str(value) for mime, value in data.items() if "image" not in mime]
    assert PERSONAL_PATH.search("\n".join(texts)) is None
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.language_info == {"name": "python", "pygments_lexer": "ipython3"}
    assert {"papermill", "widgets"}.isdisjoint(notebook.metadata)
    assert all({"papermill", "execution"}.isdisjoint(cell.metadata) for cell in notebook.cells)


@each_notebook
def test_every_figure_has_a_caption_and_a_text_for_those_who_do_not_see_it(path):
    for cell in cells(path, "code"):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            shown = cell.metadata.get("mystnb", {})
            assert shown["figure"]["caption"] and shown["image"]["alt"], cell.source


def test_the_first_page_shows_the_figure_that_a_notebook_made():
    code = cells(BOOK / "beta.ipynb", "code")
    (cell,) = [c for c in code if '"fig-confirmation-beta"' in json.dumps(c.metadata)]
    made = next(o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {}))
    assert base64.b64decode(made) == (BOOK / "images" / "beta.png").read_bytes()
    assert "images/beta.png" in (BOOK / "intro.md").read_text("utf-8")


def test_table_of_contents_lists_exactly_the_pages_that_exist():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    pages = [page for page in BOOK.rglob("*") if page.suffix in (".md", ".ipynb")]
    pages = [page for page in pages if ".ipynb_checkpoints" not in page.parts]
    names = [page.relative_to(ROOT).with_suffix("").as_posix() for page in pages]
    assert sorted([toc["root"], *chapters]) == sorted([*names, "CHANGELOG"])


def test_the_reference_opens_with_every_name_that_the_package_offers():
    shown = re.findall(r"^   ~(\S+)$", (BOOK / "api.md").read_text(), flags=re.MULTILINE)
    assert {name.split(".")[-1] for name in shown} == set(cibr.__all__) - {"__version__"}
    for name in shown:
        module, _, member = name.rpartition(".")
        assert getattr(importlib.import_module(module), member) is getattr(cibr, member)


def test_citation_and_changelog_name_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert newest == project["version"]


def test_nbval_rounds_long_floats_and_nothing_else(monkeypatch):
    monkeypatch.syspath_prepend(BOOK)
    spec = importlib.util.spec_from_file_location("book_conftest", BOOK / "conftest.py")
    policy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(policy)
    for printed, compared in {
        "loss 0.12341999, 0.12342001.": "loss 0.1234, 0.1234.",
        "[1.0000, -12345.678, 3.14159e-05]": "[1, -1.235e+04, 3.142e-05]",
        "-0.00 and 1.2e-17 are 0": "0 and 0 are 0",
        **dict.fromkeys(["0.05 1.5 1e-3", "torch 2.13.0, 2026-11-25, v1.23456, 123456"]),
    }.items():
        assert re.sub(policy.FLOAT, policy.round_float, printed) == (compared or printed)


def test_executing_twice_leaves_the_same_bytes_and_a_failure_leaves_the_notebook(tmp_path):
    seen = "import os\nprint(os.environ['TQDM_DISABLE'], os.environ.get('CIBR_DATA'))\n2"
    sources = {"small": seen, "broken": "1 / 0"}
    for name, source in sources.items():
        cell = nbformat.v4.new_code_cell(source)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / f"{name}.ipynb")
    small, broken = (tmp_path / f"{name}.ipynb" for name in sources)
    before = broken.read_bytes()
    run = (
        "import pathlib, sys, execute; small, broken = map(pathlib.Path, sys.argv[1:])\n"
        "execute.prepare_environment()\n"
        "execute.execute(small); first = small.read_bytes(); execute.execute(small)\n"
        "assert small.read_bytes() == first; execute.execute(broken)"
    )
    command = [sys.executable, "-c", run, small, broken]
    environment = {**os.environ, "CIBR_DATA": str(tmp_path)}
    done = subprocess.run(command, cwd=BOOK, env=environment, capture_output=True, text=True)
    assert "ZeroDivisionError" in done.stderr and "AssertionError" not in done.stderr
    assert outputs(small)[0].text == "1 None\n"
    assert broken.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_the_commands_of_the_pages_name_sweeps_that_exist():
    pages = [*NOTEBOOKS, *BOOK.glob("howto/*.md"), ROOT / "README.md"]
    text = "".join(path.read_text("utf-8") for path in pages)
    names = set(re.findall(r"make rows SWEEP=(\w+)", text))
    assert "confirmation" in names
    assert names <= {path.stem for path in (ROOT / "experiments").glob("*.yaml")}
