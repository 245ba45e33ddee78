"""The public names: all there, all documented, and the examples in the documentation run."""

import doctest
import importlib
import inspect
import pkgutil
from functools import cached_property
from types import FunctionType

import pytest

import cibr
import cibr_book

MODULES = [
    module.name
    for package in (cibr, cibr_book)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]
LOADED = {name: importlib.import_module(name) for name in ["cibr", "cibr_book", *MODULES]}
PACKAGES = [name for name, module in LOADED.items() if getattr(module, "__all__", None)]
WITH_EXAMPLES = [
    name for name, module in LOADED.items() if ">>>" in (inspect.getsource(module) or "")
]


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
    module = LOADED[name]
    assert len(module.__all__) == len(set(module.__all__))
    assert [member for member in module.__all__ if not hasattr(module, member)] == []
    assert set(own_members(module)) <= set(module.__all__)


def test_type_checkers_see_the_names_that_the_package_loads_on_use():
    block = inspect.getsource(cibr).partition("if TYPE_CHECKING")[2].partition("\n\n")[0]
    seen = {}
    exec("\n".join(line.strip() for line in block.splitlines()[1:]), seen)
    assert {name for name in seen if name[0] != "_"} == {*cibr.__all__} - {"__version__"}
    assert all(getattr(cibr, name) is value for name, value in seen.items() if name[0] != "_")


def documentable(name):
    """A module and all that is public in it, methods included, by name."""
    members = {name: LOADED[name], **own_members(LOADED[name])}
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


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_in_the_documentation_run(name):
    results = doctest.testmod(LOADED[name], optionflags=doctest.ELLIPSIS)
    assert results.failed == 0
