"""Every notebook has the agreed shape and is committed executed; lists of pages and names are complete."""

import ast
import base64
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import yaml
from browsing import book_pages

import cibr

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
NOTEBOOKS = sorted([*BOOK.glob("*.ipynb"), *BOOK.glob("howto/*.ipynb")])
PERSONAL_PATH = re.compile(r"/(?:home|root|tmp|Users|var|usr|opt|mnt|private)/\w|[A-Z]:\\\\?Users")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def parameter_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]


def without_magics(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if not line.startswith(("%", "!")))


@each_notebook
def test_notebook_is_valid_and_has_one_title(path):
    notebook = read(path)
    nbformat.validate(notebook)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    prose = re.sub(r"^(`{3,}|:{3,}).*?^\1", "", prose, flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^# \S", prose, flags=re.MULTILINE)) == 1
    assert notebook.cells[0].source.startswith("# ")


@each_notebook
def test_parameters_are_one_annotated_assignment_a_line_with_help(path):
    cells = parameter_cells(path)
    assert len(cells) <= 1
    lines = [line for cell in cells for line in cell.source.splitlines()]
    for line in lines:
        (statement,) = ast.parse(line).body
        assert isinstance(statement, ast.AnnAssign), line
    # papermill's own reading is what `papermill --help-notebook` shows.
    found = papermill.inspect_notebook(path)
    assert len(found) == len(lines), f"papermill reads only {sorted(found)}"
    assert [name for name, parameter in found.items() if not parameter["help"]] == []


@each_notebook
def test_notebook_defines_no_function_and_no_class(path):
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    trees = [ast.parse(without_magics(cell.source)) for cell in code_cells(path)]
    assert [n.name for tree in trees for n in ast.walk(tree) if isinstance(n, definitions)] == []


@each_notebook
def test_notebook_is_committed_executed_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in code_cells(path) if cell.source.strip()]
    assert counts == list(range(1, len(counts) + 1)), f"run: python book/execute.py {path.stem}"
    errors = [output for cell in code_cells(path) for output in cell.outputs if output.output_type == "error"]
    assert errors == []


@each_notebook
def test_outputs_hold_no_path_of_a_machine_no_widget_and_no_stderr(path):
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    text = json.dumps([{k: v for k, v in o.items() if k != "data"} for o in outputs])
    text += json.dumps(
        [value for o in outputs for mime, value in o.get("data", {}).items() if "image" not in mime]
    )
    personal = PERSONAL_PATH.search(text)
    assert personal is None, personal
    assert str(ROOT) not in text
    assert "widget-view" not in json.dumps([list(o.get("data", {})) for o in outputs])
    assert [o.text for o in outputs if o.get("name") == "stderr"] == []


@each_notebook
def test_metadata_is_the_same_on_every_machine(path):
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python", "pygments_lexer": "ipython3"}
    assert {"papermill", "widgets"}.isdisjoint(notebook.metadata)
    assert all({"papermill", "execution"}.isdisjoint(cell.metadata) for cell in notebook.cells)


def test_the_first_page_and_the_readme_show_the_figure_that_the_notebook_made():
    cell = next(
        c
        for c in code_cells(BOOK / "train.ipynb")
        if c.metadata.get("mystnb", {}).get("figure", {}).get("name") == "fig-train-gallery"
    )
    made = next(o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {}))
    assert base64.b64decode(made) == (BOOK / "images" / "gallery.png").read_bytes()
    assert "book/images/gallery.png" in (ROOT / "README.md").read_text()


def test_table_of_contents_lists_exactly_the_pages_that_exist():
    pages = [p for p in BOOK.rglob("*") if p.suffix in (".md", ".ipynb") and ".ipynb_checkpoints" not in p.parts]
    there = sorted(page.relative_to(ROOT).with_suffix("").as_posix() for page in pages)
    assert sorted(book_pages()) == there


def test_the_reference_opens_with_every_name_that_the_package_offers():
    shown = re.findall(r"^   ~(\S+)$", (BOOK / "api.md").read_text(), flags=re.MULTILINE)
    assert sorted(name.split(".")[-1] for name in shown) == sorted(cibr.__all__)
    for name in shown:
        module, _, member = name.rpartition(".")
        assert getattr(importlib.import_module(module), member) is getattr(cibr, member)


@pytest.fixture
def book_modules(monkeypatch):
    """The modules of book/ that the build of the pages uses."""
    monkeypatch.syspath_prepend(BOOK)
    return importlib.import_module("front"), importlib.import_module("explorer")


def test_the_answer_of_the_first_page_is_that_of_the_tables(book_modules, tmp_path):
    front, _ = book_modules
    with pytest.raises(FileNotFoundError, match=r"book/mini_suite.py makes it"):
        front.answer(tmp_path)
    said = front.answer(ROOT / "data" / "results")
    rows = pd.read_csv(ROOT / "data" / "results" / "mini_suite.csv")
    row = rows[(rows["dataset"] == "flickr8k") & (rows["metric"] == "text_to_image_recall@1")].iloc[0]
    assert f"{100 * row.a:.1f}\u00a0% | {100 * row.b:.1f}\u00a0% | {front.interval(row)}" in said


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([(-0.01, 0.02), (-0.001, 0.004)], "no difference that shows.*beyond 2.0 points"),
        ([(0.01, 0.02), (-0.001, 0.004)], "yes, a little.*1 of 2"),
        ([(-0.02, -0.01), (-0.001, 0.004)], "no\\..*1 of 2 scores lose"),
        ([(-0.02, -0.01), (0.001, 0.004)], "it depends"),
    ],
)
def test_the_verdict_of_the_first_page_follows_the_intervals(book_modules, ends, words):
    front, _ = book_modules
    assert re.search(words, front.verdict([pd.Series({"low": low, "high": high}) for low, high in ends]))


def test_the_first_page_names_what_gains_in_all_scores_against_every_control(book_modules):
    front, _ = book_modules
    verdicts = {
        ("glyphs", 0.1): ("above 0", "above 0"),
        ("glyphs", 0.3): ("above 0", "around 0"),
        ("glyphs", 1.0): ("above 0", "above 0"),
        ("photos", 0.1): ("above 0", "above 0"),
    }
    rows = pd.DataFrame(
        {"setting": setting, "arm": "CIBR", "beta": beta, "variant": None, "verdict": verdict}
        for (setting, beta), both in verdicts.items()
        for verdict in both
    )
    assert front.gains(rows).endswith("with CIBR on glyphs (β = 0.1, 1), and on photos (β = 0.1).")
    assert front.gains(rows[2:4]) == ""


@each_notebook
def test_every_chapter_says_how_long_it_takes_to_read_and_to_run(book_modules, path):
    about = book_modules[0].chapter(path)
    assert re.fullmatch(r"[1-9]\d?\xa0min", about["reading"]) and re.search(r"second|minute", about["running"])


def test_the_figure_of_beta_has_the_means_of_its_table(book_modules):
    _, explorer = book_modules
    results = ROOT / "data" / "results"
    data = explorer.curves(results)
    rows = pd.read_csv(results / data["source"])
    column = "validation_image_to_text_recall@1"
    for arm in data["arms"]:
        betas = [point["beta"] for point in arm["points"]]
        assert betas[0] == 0 and betas == sorted(betas) and len(betas) > explorer.LEAST_BETAS
        for point in arm["points"][1:]:
            own = rows[(rows["arm"] == arm["name"]) & (rows["beta"] == point["beta"])]
            assert 100 * own[column].min() - 0.01 <= point["scores"][0] <= 100 * own[column].max() + 0.01
    page = explorer.as_page(data)
    assert json.loads(re.search(r'application/json"[^>]*>(.*?)</script>', page)[1]) == data


def test_the_figure_of_beta_needs_a_table(book_modules, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"flickr8k-trials.yaml makes"):
        book_modules[1].curves(tmp_path)


def test_the_drawing_is_what_its_script_draws(monkeypatch):
    monkeypatch.syspath_prepend(BOOK)
    drawings = importlib.import_module("drawings")
    assert drawings.drawing() == drawings.FILE.read_text(encoding="utf-8")


def test_citation_names_the_version_and_the_licence_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert [author["name"] for author in citation["authors"]] == [a["name"] for a in project["authors"]]


@pytest.fixture
def policy(monkeypatch):
    """book/conftest.py as a module: what nbval is told."""
    monkeypatch.syspath_prepend(BOOK)
    spec = importlib.util.spec_from_file_location("book_conftest", BOOK / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("printed", "compared"),
    [
        ("loss 0.12341999, 0.12342001.", "loss 0.1234, 0.1234."),
        ("[1.0000, -12345.678, 3.14159e-05]", "[1, -1.235e+04, 3.142e-05]"),
        ("0.05 1.5 12.25 1e-3", "0.05 1.5 12.25 1e-3"),
        ("-0.00 and 1.2e-17 are 0", "0 and 0 are 0"),
        (
            "torch 2.13.0, 2026-11-25, v1.23456, 123456 images",
            "torch 2.13.0, 2026-11-25, v1.23456, 123456 images",
        ),
    ],
)
def test_nbval_rounds_long_floats_and_nothing_else(policy, printed, compared):
    assert re.sub(policy.FLOAT, policy.round_float, printed) == compared


def test_executing_twice_leaves_the_same_bytes_and_a_failure_leaves_the_notebook(tmp_path):
    cells = [nbformat.v4.new_code_cell("x: int = 2  # help", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell("import os\nprint(x, os.environ['TQDM_DISABLE'])\nx")]
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    run = "import sys, execute; execute.prepare_environment(); execute.execute(execute.Path(sys.argv[1]))"
    command = [sys.executable, "-c", run, str(path)]
    stored = []
    for _ in range(2):
        subprocess.run(command, cwd=BOOK, check=True, capture_output=True)
        stored.append(path.read_bytes())
    assert stored[0] == stored[1]
    assert read(path).cells[1].outputs[0].text == "2 1\n"

    broken = read(path)
    broken.cells[1].source = "1 / 0"
    nbformat.write(broken, path)
    before = path.read_bytes()
    assert subprocess.run(command, cwd=BOOK, capture_output=True).returncode != 0
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
