"""The house rules: imports point one way, files and functions stay short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cibr"

# What each module may import of ours. Helpers stand below everything; a new module is entered here first.
HELPERS = {"paths", "images", "names"}
MAY_IMPORT = {
    "paths": set(),
    "images": set(),
    "names": set(),
    "information": HELPERS,
    "metrics": HELPERS,
    "plots": HELPERS,
    "plots_theory": HELPERS | {"plots"},
    "plots_ablation": HELPERS | {"plots"},
    "plots_evaluation": HELPERS | {"plots"},
    "data": HELPERS,
    "models": HELPERS,
    "plots_interpret": HELPERS | {"plots"},
    "inputs": HELPERS | {"models", "data"},
    "results": HELPERS,
    "interpret": HELPERS | {"data", "models", "metrics", "information"},
    "losses": HELPERS | {"information"},
    "train": HELPERS | {"inputs", "models", "losses", "information", "data", "metrics", "results"},
    "evaluate": HELPERS | {"inputs", "models", "metrics", "information", "data", "results"},
    "sweep": HELPERS
    | {"inputs", "models", "losses", "information", "data", "metrics", "results", "train", "evaluate"},
}

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50  # its docstring aside: a full one is wanted
SOURCES = sorted(p for folder in ("cibr", "bench", "tests", "book") for p in (ROOT / folder).rglob("*.py"))
MODULES = [path for path in SOURCES if path.is_relative_to(PACKAGE) and path.name != "__init__.py"]
PACKAGE_FILES = [path for path in SOURCES if path.is_relative_to(PACKAGE) and path != PACKAGE / "__init__.py"]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def top_module(path: Path) -> str:
    """The module of the house that a file belongs to: cibr/data/glyphs.py -> data."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """The modules of the house that a syntax tree imports, anywhere in it; `cibr` itself counts as one."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import in full, from cibr..."
            submodules = node.module == "cibr"
            names |= {f"cibr.{a.name}" for a in node.names} if submodules else {node.module}
    return {(name + ".cibr").split(".")[1] for name in names if name.split(".")[0] == "cibr"}


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function from `def` to its end, without its docstring."""
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node, clean=False) is not None:
        lines -= node.body[0].end_lineno - node.body[0].lineno + 1
    return lines


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=relative)
def test_imports_point_one_way(path):
    module = top_module(path)
    assert module in MAY_IMPORT, f"say in {Path(__file__).name} what cibr.{module} may import"
    too_much = imported(ast.parse(path.read_text())) - {module} - MAY_IMPORT[module]
    assert not too_much, f"cibr.{module} imports {sorted(too_much)}; it may import {sorted(MAY_IMPORT[module])}"


def test_the_import_rule_itself_has_no_cycle():
    order = list(MAY_IMPORT)
    assert all(order.index(lower) < order.index(module) for module in order for lower in MAY_IMPORT[module])


def test_imports_are_found_in_every_form():
    code = "import os, cibr\nimport cibr.data.pairs as p\nfrom cibr import losses\nfrom cibr.train import fit"
    assert imported(ast.parse(code)) == {"cibr", "data", "losses", "train"}


def test_a_loss_takes_tensors_and_never_a_model():
    sources = [path for path in MODULES if top_module(path) == "losses"]
    assert [relative(p) for p in sources if "transformers" in p.read_text()] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES, "make it a folder of the same name, split by idea"
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f"{f.name}, line {f.lineno}" for f in functions if function_lines(f) > MAX_FUNCTION_LINES] == []
