"""The house rules: imports point one way, the library never uses the study, and losses import in a
moment.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "cibr"

# What each room may import of ours; all may use utils.
MAY_IMPORT = {
    "utils": set(),
    "data": set(),
    "losses": set(),
    "metrics": set(),
    "models": {"data"},
    "evaluate": {"models", "metrics", "data"},
    "train": {"models", "losses", "data", "metrics"},
    "cli": {"models", "evaluate", "train", "data"},
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
UNUSED = ["datasets", "matplotlib", "scipy", "sklearn", "timm", "torchvision"]
OF_TRANSFORMERS = ["scipy", "sklearn"]  # some of its releases import them where they are installed
USES = {
    "from cibr import CIBRLoss, clip_loss": [*UNUSED, "accelerate", "transformers"],
    "import cibr; cibr.DualEncoder.from_pretrained('cibr-tiny').embed_texts(['a letter'])": [
        name for name in UNUSED if name not in OF_TRANSFORMERS
    ],
}


def room(path: Path) -> str:
    """cibr/data/glyphs.py -> data."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """The first two parts of the modules that a syntax tree imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import in full, from cibr..."
            of_cibr = node.module == "cibr"
            names |= {f"cibr.{a.name}" for a in node.names} if of_cibr else {node.module}
    return {".".join(name.split(".")[:2]) for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    names = imported(ast.parse(path.read_text()))
    rooms = {name.split(".")[1] for name in names if name.startswith("cibr.")}
    too_much = rooms - MAY_IMPORT[room(path)] - {room(path), "utils"}
    assert not too_much, f"cibr.{room(path)} imports {sorted(too_much)}"
    study = [name for name in names if name.startswith("cibr_book")]
    assert not study, "the library never uses the study"


@pytest.mark.parametrize(("statement", "unused"), USES.items())
def test_losses_and_tiny_models_are_used_without_the_libraries_of_what_is_larger(statement, unused):
    code = f"import sys\n{statement}\nprint([name for name in {unused} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_no_folder_of_tests_is_left_out(pytestconfig):
    patterns = pytestconfig.getini("norecursedirs")
    folders = {file.parent for file in Path(__file__).parent.rglob("test_*.py")}
    assert len(folders) > 5
    assert [folder for folder in folders if any(map(folder.match, patterns))] == []
