"""The public names: all there, all documented, and the examples in the documentation run."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import cibr
from cibr.data import glyphs

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(cibr.__path__, "cibr.") if not module.name.endswith("__main__")
)
PACKAGES = ("cibr", "cibr.data", "cibr.information", "cibr.interpret", "cibr.losses", "cibr.models", "cibr.train")


def public_members(module):
    """The public classes and functions of a module: what its package offers, or else what it defines itself."""
    package = importlib.import_module(".".join(module.__name__.split(".")[:2]))
    by_package = package.__name__ in ("cibr.information", "cibr.losses")  # their modules share small checks
    names = package.__all__ if by_package else [name for name in vars(module) if not name.startswith("_")]
    members = {name: vars(module)[name] for name in names if name in vars(module)}
    return {
        name: member
        for name, member in members.items()
        if (inspect.isclass(member) or inspect.isfunction(member)) and member.__module__ == module.__name__
    }


def documented(member):
    text = member.__doc__
    return bool(text) and not text.startswith(f"{member.__name__}(")  # which dataclass writes by itself


@pytest.mark.parametrize("name", PACKAGES)
def test_all_names_what_a_package_offers_and_nothing_else(name):
    module = importlib.import_module(name)
    assert sorted(module.__all__, key=str.lower) == sorted(set(module.__all__), key=str.lower)
    assert [n for n in module.__all__ if not hasattr(module, n)] == []
    offered = {
        n
        for n, member in vars(module).items()
        if not n.startswith("_") and getattr(member, "__module__", "").startswith("cibr")
    }
    helpers = offered - set(module.__all__)
    own = {n for n in helpers if vars(module)[n].__module__ == name}
    assert own == set(), "public in the package itself, but not in __all__"
    if name == "cibr":
        assert helpers == set(), "imported into cibr, but not in __all__"


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_all_that_is_public_in_it_is_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert [n for n, member in public_members(module).items() if not documented(member)] == []


@pytest.mark.parametrize("owner", [cibr.DualEncoder, cibr.Pairs, cibr.RunConfig])
def test_the_public_methods_of_the_main_classes_are_documented(owner):
    own = {name: m for name, m in vars(owner).items() if not name.startswith("_")}
    methods = [n for n, m in own.items() if inspect.isfunction(m) or isinstance(m, (classmethod, property))]
    assert [name for name in methods if not getattr(own[name], "__doc__", None)] == []


@pytest.mark.parametrize("name", ["cibr", *MODULES])
def test_the_examples_in_the_documentation_run(name, monkeypatch, tmp_path):
    monkeypatch.setattr(glyphs, "data_folder", lambda: tmp_path)
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0
