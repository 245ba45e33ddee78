"""The public names: all there, all documented, and the examples in the documentation run."""

import doctest
import importlib
import inspect
import pkgutil
import re
from functools import cached_property
from pathlib import Path
from types import FunctionType

import pytest

import cibr
import cibr_book

MODULES = [
    module.name
    for package in (cibr, cibr_book)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]
PACKAGES = [
    "cibr",
    *(name for name in MODULES if hasattr(importlib.import_module(name), "__path__")),
]
STUDY = (Path(__file__).resolve().parents[1] / "book" / "api" / "study.md").read_text("utf-8")
RENDERED = [name for name in MODULES if name.startswith("cibr.") or name in STUDY]


def own_members(module):
    """The public classes and functions that a module defines."""
    return {
        name: member
        for name, member in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(member) or inspect.isfunction(member))
        and member.__module__ == module.__name__
    }


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_offers_what_its_all_names(name):
    module = importlib.import_module(name)
    assert len(module.__all__) == len(set(module.__all__))
    assert [member for member in module.__all__ if not hasattr(module, member)] == []
    assert set(own_members(module)) <= set(module.__all__)


def documentable(name):
    """A module and all that is public in it, methods included, by name."""
    module = importlib.import_module(name)
    members = {name: module, **own_members(module)}
    methods = FunctionType | classmethod | property | cached_property
    for owner in [member for member in members.values() if inspect.isclass(member)]:
        for n, member in vars(owner).items():
            if not n.startswith("_") and isinstance(member, methods):
                members[f"{owner.__name__}.{n}"] = getattr(owner, n)
    return members


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_all_that_is_public_in_it_is_documented(name):
    documented = {n: inspect.getdoc(member) or "" for n, member in documentable(name).items()}
    # A dataclass without a docstring gets its signature for one.
    assert [n for n, text in documented.items() if not text or text.startswith(f"{n}(")] == []


@pytest.mark.parametrize("name", RENDERED)
def test_no_words_of_a_docstring_are_rendered_as_a_type(name):
    """Of a result and of a property, Sphinx takes the first line up to a colon for the type."""
    for n, member in documentable(name).items():
        text = inspect.cleandoc(member.__doc__ or "")
        first = re.findall(r"^(?:Returns|Yields):\n +(.*)", text, re.MULTILINE)
        if isinstance(member, property | cached_property):
            first.append(text.partition("\n")[0])
        assert ":" not in re.sub("`[^`]*`", "", " ".join(first)), n


@pytest.mark.parametrize("name", ["cibr", *MODULES])
def test_the_examples_in_the_documentation_run(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0
