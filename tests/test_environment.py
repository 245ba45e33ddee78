"""environment.yml and pyproject.toml ask for the same packages, and the latter says why."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]

# Names that conda-forge spells otherwise.
PYPI_NAMES = {"pytorch": "torch"}


def ranges(requirements: list[str]) -> dict[str, SpecifierSet]:
    """Map each required package to its range."""
    parsed = [Requirement(text) for text in requirements]
    assert len({p.name for p in parsed}) == len(parsed), "a package is listed twice"
    return {p.name: p.specifier for p in parsed}


def test_conda_environment_equals_pyproject_in_names_and_ranges():
    (pip_lines,) = [entry["pip"] for entry in CONDA if isinstance(entry, dict)]
    assert pip_lines[-1] == "-e .[dev]"  # the extras come with it, in pyproject's own ranges
    found = ranges([entry for entry in CONDA if isinstance(entry, str)] + pip_lines[:-1])
    found = {PYPI_NAMES.get(name, name): specifier for name, specifier in found.items()}
    assert found.pop("python") == SpecifierSet(PROJECT["requires-python"])
    assert found.pop("pip") == SpecifierSet("")
    assert found == ranges(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["book"])


def test_every_requirement_has_a_lower_bound_and_says_why():
    required = ranges(PROJECT["dependencies"]).values()
    assert all({s.operator for s in each} & {">=", "=="} for each in required)
    text = (ROOT / "pyproject.toml").read_text().split("[tool.")[0]
    lines = [line.strip() for line in text.splitlines()]
    stated = [line for line in lines if re.match(r'"[A-Za-z][\w.-]*\s*[=<>~!]', line)]
    extras = [text for group in PROJECT["optional-dependencies"].values() for text in group]
    extras = [text for text in extras if not text.startswith("cibr[")]
    assert len(stated) == len(PROJECT["dependencies"]) + len(extras)
    stated += [line for line in lines if line.startswith(("requires-python", "requires ="))]
    assert [line for line in stated if not re.search(r",?\s+# \S+ \S+", line)] == []
