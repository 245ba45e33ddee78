"""Notebooks have the agreed shape and are committed executed; lists of pages, names and numbers are
complete.
"""

import ast
import base64
import importlib
import json
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
from cibr_book.tables import comparisons, in_points, read_table

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
NOTEBOOKS = sorted([*BOOK.glob("*.ipynb"), *BOOK.glob("howto/*.ipynb")])
PERSONAL_PATH = re.compile(
    r"/(?:home|root|tmp|Users|var|usr|opt|mnt|private|work)/\w|[A-Z]:\\\\?Users"
)
FENCED = re.compile(r"^(`{3,}|:{3,}).*?^\1", re.MULTILINE | re.DOTALL)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


@each_notebook
def test_notebook_opens_with_its_one_title_and_says_what_it_needs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    prose = "\n".join(FENCED.sub("", cell.source) for cell in cells(path, "markdown"))
    assert len(re.findall(r"^# \S", prose, re.MULTILINE)) == 1 and notebook.cells[
        0
    ].source.startswith("# ")
    assert "**You need**" in prose and re.search(r"\*\*It takes\*\*.*(second|minute)", prose)


@each_notebook
def test_parameters_are_one_annotated_assignment_a_line_with_help(path):
    tagged = [c for c in cells(path, "code") if "parameters" in c.metadata.get("tags", [])]
    lines = [line for cell in tagged for line in cell.source.splitlines()]
    assert len(tagged) <= 1 and all(
        isinstance(ast.parse(line).body[0], ast.AnnAssign) for line in lines
    )
    found = papermill.inspect_notebook(path)  # what `papermill --help-notebook` shows
    assert len(found) == len(lines) and all(parameter["help"] for parameter in found.values())


@each_notebook
def test_notebook_defines_nothing_and_is_committed_executed(path):
    code = cells(path, "code")
    trees = [ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.MULTILINE)) for cell in code]
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    assert [
        node.name for tree in trees for node in ast.walk(tree) if isinstance(node, definitions)
    ] == []
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(counts) + 1)), f"run: python book/execute.py {path.stem}"


@each_notebook
def test_outputs_are_the_same_on_every_machine(path):
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in cells(path, "code") for output in cell.outputs]
    assert [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"] == []
    text = [o.get("text", "") for o in outputs]
    text += [
        str(value)
        for o in outputs
        for mime, value in o.get("data", {}).items()
        if "image" not in mime
    ]
    assert PERSONAL_PATH.search("\n".join(text)) is None
    assert "widget-view" not in json.dumps([list(o.get("data", {})) for o in outputs])
    assert notebook.metadata.language_info == {"name": "python", "pygments_lexer": "ipython3"}
    assert {"papermill", "widgets"}.isdisjoint(notebook.metadata)
    assert all({"papermill", "execution"}.isdisjoint(cell.metadata) for cell in notebook.cells)


@each_notebook
def test_every_figure_has_a_caption_and_a_text_for_those_who_do_not_see_it(path):
    for cell in cells(path, "code"):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            shown = cell.metadata.get("mystnb", {})
            assert len(shown.get("figure", {}).get("caption", "")) > 12, cell.source
            assert len(shown.get("image", {}).get("alt", "")) > 12, cell.source


@pytest.mark.parametrize(
    ("notebook", "figure", "file"),
    [
        ("train", "fig-train-gallery", "gallery.png"),
        ("ablation", "fig-ablation-summary", "summary.png"),
    ],
)
def test_the_first_page_shows_the_figures_that_notebooks_made(notebook, figure, file):
    (cell,) = [
        c
        for c in cells(BOOK / f"{notebook}.ipynb", "code")
        if f'"{figure}"' in json.dumps(c.metadata)
    ]
    made = next(o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {}))
    assert base64.b64decode(made) == (BOOK / "images" / file).read_bytes()
    assert f"images/{file}" in read("book/intro.md")
    assert "book/images/summary.png" in read("README.md")


def test_table_of_contents_lists_exactly_the_pages_that_exist():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [
        toc["root"],
        *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"]),
    ]
    pages = [
        p
        for p in BOOK.rglob("*")
        if p.suffix in (".md", ".ipynb") and ".ipynb_checkpoints" not in p.parts
    ]
    there = [page.relative_to(ROOT).with_suffix("").as_posix() for page in pages]
    assert sorted(listed) == sorted([*there, "CHANGELOG"])


def test_the_reference_opens_with_every_name_that_the_package_offers():
    shown = re.findall(r"^   ~(\S+)$", (BOOK / "api.md").read_text(), flags=re.MULTILINE)
    assert {name.split(".")[-1] for name in shown} == set(cibr.__all__) - {"__version__"}
    for name in shown:
        module, _, member = name.rpartition(".")
        assert getattr(importlib.import_module(module), member) is getattr(cibr, member)


@pytest.mark.parametrize("page", ["book/intro.md", "README.md"])
def test_the_first_pages_say_what_the_chapter_says_with_differences_of_the_table_of_runs(page):
    told = re.findall(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]", read(page))
    found = in_points(
        comparisons(read_table()), ("condition", "method", "beta", "hyperparameters", "against")
    )
    assert set(told) <= {text.rstrip(" *") for text in found.stack()}
    statements = re.findall(
        r"- \*\*(.+?)\*\*", cells(BOOK / "ablation.ipynb", "markdown")[0].source
    )[:3]
    plain = " ".join(read(page).replace("$\\beta$", "beta").split())
    assert len(statements) == 3 and all(statement in plain for statement in statements)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8").replace("\u2212", "-")


def test_citation_names_the_version_and_the_licence_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


@pytest.fixture(scope="module")
def policy():
    """book/conftest.py as a module: what nbval is told."""
    sys.path.insert(0, str(BOOK))
    spec = importlib.util.spec_from_file_location("book_conftest", BOOK / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BOOK))


@pytest.mark.parametrize(
    ("printed", "compared"),
    [
        ("loss 0.12341999, 0.12342001.", "loss 0.1234, 0.1234."),
        ("[1.0000, -12345.678, 3.14159e-05]", "[1, -1.235e+04, 3.142e-05]"),
        ("0.05 1.5 12.25 1e-3", "0.05 1.5 12.25 1e-3"),
        ("-0.00 and 1.2e-17 are 0", "0 and 0 are 0"),
        (
            "torch 2.13.0, 2026-11-25, v1.23456, 123456",
            "torch 2.13.0, 2026-11-25, v1.23456, 123456",
        ),
    ],
)
def test_nbval_rounds_long_floats_and_nothing_else(policy, printed, compared):
    assert re.sub(policy.FLOAT, policy.round_float, printed) == compared


def test_executing_twice_leaves_the_same_bytes_and_a_failure_leaves_the_notebook(tmp_path):
    new = nbformat.v4.new_code_cell
    path = tmp_path / "small.ipynb"
    nbformat.write(
        nbformat.v4.new_notebook(cells=[new("import os\nprint(os.environ['TQDM_DISABLE'])\n2")]),
        path,
    )
    broken = path.with_name("broken.ipynb")
    nbformat.write(nbformat.v4.new_notebook(cells=[new("1 / 0")]), broken)
    before = broken.read_bytes()
    run = (
        "import pathlib, sys, execute; path, broken = map(pathlib.Path, sys.argv[1:])\n"
        "execute.prepare_environment()\n"
        "execute.execute(path); first = path.read_bytes(); execute.execute(path)\n"
        "assert path.read_bytes() == first; execute.execute(broken)"
    )
    command = [sys.executable, "-c", run, str(path), str(broken)]
    done = subprocess.run(command, cwd=BOOK, capture_output=True, text=True)
    assert "ZeroDivisionError" in done.stderr and "AssertionError" not in done.stderr
    assert cells(path, "code")[0].outputs[0].text == "1\n"
    assert broken.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_the_commands_under_the_figures_name_sweeps_that_exist():
    pages = [*NOTEBOOKS, *BOOK.glob("howto/*.md"), ROOT / "README.md"]
    named = {
        name
        for path in pages
        for name in re.findall(r"make rows SWEEP=(\w+)", path.read_text("utf-8"))
    }
    assert len(named) >= 4 and named <= {
        path.stem for path in (ROOT / "experiments").glob("*.yaml")
    }
    done = subprocess.run(
        ["make", "-n", "rows", "SWEEP=glyphs"], cwd=ROOT, capture_output=True, text=True
    )
    assert (
        "sweep=experiments/glyphs.yaml results=again.csv" in done.stdout
        and "only" not in done.stdout
    )
