"""Notebooks have the agreed shape and are committed executed; what pages name exists."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
BOOK = ROOT / "book"
NOTEBOOKS = sorted([*BOOK.glob("*.ipynb"), *BOOK.glob("howto/*.ipynb")])
PERSONAL_PATH = re.compile(r"/(?:home|root|tmp|Users|var|usr|opt|mnt|work)/\w|[A-Z]:\\\\?Users")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@each_notebook
def test_a_notebook_shows_what_it_defines_and_its_parameters_are_annotated(path):
    for cell in code_cells(path):
        tree = ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.MULTILINE))
        nodes = [*ast.walk(tree)]
        assert not any(isinstance(node, ast.ClassDef | ast.AsyncFunctionDef) for node in nodes)
        defined = [node for node in nodes if isinstance(node, ast.FunctionDef)]
        assert all(map(ast.get_docstring, defined))
        assert not (defined and "hide-input" in cell.metadata.get("tags", []))
        if "parameters" in cell.metadata.get("tags", []):
            assert all(isinstance(statement, ast.AnnAssign) for statement in tree.body)


@each_notebook
def test_a_notebook_is_committed_executed_without_errors_and_personal_paths(path):
    code = code_cells(path)
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(counts) + 1)), f"run: python book/execute.py {path.stem}"
    for output in [output for cell in code for output in cell.outputs]:
        assert output.output_type != "error" and output.get("name") != "stderr"
        data = output.get("data", {})
        assert not any("widget-view" in mime for mime in data)
        texts = [str(value) for mime, value in data.items() if "image" not in mime]
        assert not PERSONAL_PATH.search("\n".join([output.get("text", ""), *texts]))


def test_table_of_contents_lists_exactly_the_pages_that_exist():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    pages = [page for page in BOOK.rglob("*") if page.suffix in (".md", ".ipynb")]
    pages = [page for page in pages if ".ipynb_checkpoints" not in page.parts]
    names = [page.relative_to(ROOT).with_suffix("").as_posix() for page in pages]
    assert sorted([toc["root"], *chapters]) == sorted([*names, "CHANGELOG"])


def test_the_commands_that_pages_print_exist():
    pages = [*NOTEBOOKS, *BOOK.rglob("*.md"), ROOT / "README.md"]
    text = "".join(path.read_text("utf-8") for path in pages)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    sweeps = [path.stem for path in (ROOT / "experiments").glob("*.yaml")]
    kinds = {r"[`\"\n]make ([a-z]+)\b": targets, r"make rows SWEEP=([\w-]+)": sweeps}
    for pattern, known in kinds.items():
        printed = set(re.findall(pattern, text))
        assert printed and printed <= set(known)


def test_executing_twice_leaves_the_same_bytes_and_a_failure_leaves_the_notebook(tmp_path):
    seen = "import os\nprint(os.environ['TQDM_DISABLE'], os.environ.get('CIBR_DATA'))\n2"
    small, broken = tmp_path / "small.ipynb", tmp_path / "broken.ipynb"
    for path, source in {small: seen, broken: "1 / 0"}.items():
        cells = [nbformat.v4.new_code_cell(source)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
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
    assert code_cells(small)[0].outputs[0].text == "1 None\n"
    assert broken.read_bytes() == before and len(list(tmp_path.iterdir())) == 2
