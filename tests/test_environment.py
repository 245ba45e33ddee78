"""pyproject.toml, environment.yml and constraints.txt describe one environment."""

import tomllib
from datetime import date
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import cibr

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
PYPI_NAMES = {"pytorch": "torch"}  # of packages that conda-forge spells otherwise


def ranges(lines: list[str]) -> dict[str, SpecifierSet]:
    """Maps each required package to its range."""
    parsed = [Requirement(line) for line in lines]
    found = {canonicalize_name(each.name): each.specifier for each in parsed}
    assert len(found) == len(parsed), "a package is listed twice"
    return found


CONSTRAINTS = ranges(
    [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
)


def test_conda_environment_equals_pyproject_in_names_and_ranges():
    (pip_lines,) = [entry["pip"] for entry in CONDA if isinstance(entry, dict)]
    assert pip_lines[-1] == "-e .[dev]"  # the extras come with it, in pyproject's own ranges
    found = ranges([entry for entry in CONDA if isinstance(entry, str)] + pip_lines[:-1])
    found = {PYPI_NAMES.get(name, name): specifier for name, specifier in found.items()}
    assert found.pop("python") == SpecifierSet(PROJECT["requires-python"])
    assert found.pop("pip") == SpecifierSet("")
    assert found == ranges(PROJECT["dependencies"] + EXTRAS["book"])


def test_the_citation_has_the_version_and_a_date():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == cibr.__version__
    assert date.fromisoformat(cited["date-released"]).year >= 2026
    entry = (ROOT / "book" / "intro.md").read_text("utf-8").partition("```bibtex")[2]
    (author,) = cited["authors"]
    title, year = cited["title"].replace("CIBR", "{CIBR}"), cited["date-released"][:4]
    for field in (author["name"], title.replace("CLIP", "{CLIP}"), cited["version"], year):
        assert f"{{{field}}}" in entry


def test_every_requirement_has_a_lower_bound():
    lines = sum(EXTRAS.values(), PROJECT["dependencies"])
    stated = ranges([line for line in lines if not line.startswith("cibr[")])
    assert all({s.operator for s in each} & {">=", "=="} for each in stated.values())


def test_constraints_are_exact_but_for_torch_and_lie_within_pyproject():
    stated = ranges(PROJECT["dependencies"] + EXTRAS["book"])
    for name, specifier in CONSTRAINTS.items():
        (exact,) = specifier
        assert exact.operator == ("<=" if name in ("torch", "torchvision") else "=="), name
        assert stated.get(name, SpecifierSet()).contains(exact.version), name
