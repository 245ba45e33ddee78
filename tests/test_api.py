"""The public names: all there, all documented, and the examples in the documentation run."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import cibr
import cibr_book

MODULES = sorted(
    m.name for m in pkgutil.walk_packages(cibr.__path__, "cibr.") if not m.name.endswith("__main__")
)
STUDY = sorted(m.name for m in pkgutil.walk_packages(cibr_book.__path__, "cibr_book."))
PACKAGES = [
    "cibr",
    *(name for name in MODULES if hasattr(importlib.import_module(name), "__path__")),
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
    module = importlib.import_module(name)
    assert len(module.__all__) == len(set(module.__all__))
    assert [member for member in module.__all__ if not hasattr(module, member)] == []
    assert set(own_members(module)) <= set(module.__all__)


@pytest.mark.parametrize("name", [*MODULES, *STUDY])
def test_every_module_and_all_that_is_public_in_it_is_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    # A dataclass without a docstring gets its signature for one.
    documented = {n: m.__doc__ or "" for n, m in own_members(module).items()}
    assert [n for n, text in documented.items() if not text or text.startswith(f"{n}(")] == []


@pytest.mark.parametrize("owner", [cibr.DualEncoder, cibr.Pairs, cibr.RunConfig, cibr.CIBRLoss])
def test_the_public_methods_of_the_main_classes_are_documented(owner):
    own = {name: member for name, member in vars(owner).items() if not name.startswith("_")}
    methods = [
        n for n, m in own.items() if inspect.isfunction(m) or isinstance(m, classmethod | property)
    ]
    assert [name for name in methods if not inspect.getdoc(getattr(owner, name))] == []


@pytest.mark.parametrize("name", ["cibr", *MODULES, *STUDY])
def test_the_examples_in_the_documentation_run(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0
