"""environment.yml and pyproject.toml ask for the same packages in the same ranges, and say why."""

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
THIS_PACKAGE_WITH_TESTS = "-e .[dev]"


def ranges(requirements: list[str]) -> dict[str, SpecifierSet]:
    """Map each required package to its range."""
    parsed = [Requirement(text) for text in requirements]
    assert len({p.name for p in parsed}) == len(parsed), "a package is listed twice"
    return {p.name: p.specifier for p in parsed}


def test_conda_environment_equals_pyproject_in_names_and_ranges():
    (pip_lines,) = [entry["pip"] for entry in CONDA if isinstance(entry, dict)]
    assert (
        pip_lines[-1] == THIS_PACKAGE_WITH_TESTS
    )  # the extras come with it, in pyproject's own ranges
    found = ranges([entry for entry in CONDA if isinstance(entry, str)] + pip_lines[:-1])
    found = {PYPI_NAMES.get(name, name): specifier for name, specifier in found.items()}
    assert found.pop("python") == SpecifierSet(PROJECT["requires-python"])
    assert found.pop("pip") == SpecifierSet("")
    assert found == ranges(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["book"])


def test_every_requirement_says_why():
    text = (ROOT / "pyproject.toml").read_text().split("[tool.")[0]
    lines = [line.strip() for line in text.splitlines()]
    stated = [line for line in lines if re.match(r'"[A-Za-z][\w.-]*\s*[=<>~!]', line)]
    extras = [text for group in PROJECT["optional-dependencies"].values() for text in group]
    extras = [text for text in extras if not text.startswith("cibr[")]
    assert len(stated) == len(PROJECT["dependencies"]) + len(extras)
    stated += [line for line in lines if line.startswith(("requires-python", "requires ="))]
    assert [line for line in stated if not re.search(r",?\s+# \S+ \S+", line)] == []


def test_the_two_files_give_the_same_reasons():
    def reasons(path: str) -> set[str]:
        return set(
            re.findall(r"[=<>]\S*  # (.+)", (ROOT / path).read_text().split("experiments = [")[0])
        )

    assert reasons("environment.yml") == reasons("pyproject.toml") - {
        "editable installs of a flat package without configuration"
    }


def test_every_pin_has_a_lower_bound():
    found = {
        name: {s.operator for s in each} for name, each in ranges(PROJECT["dependencies"]).items()
    }
    assert [name for name, operators in found.items() if not operators & {">=", "=="}] == []
