"""What a notebook's parameters may be."""

import pytest

from cibr.train import configure
from cibr_book.pages.notebooks import check_parameters, given


def test_parameters_that_papermill_injected_are_known():
    namespace = {
        "beta": 0.1,
        "seed": 3,
        "other": 5,
        "In": ["other = 5", "# Parameters\nseed = 3\n"],
    }
    assert check_parameters(namespace, "beta seed") == {"beta": 0.1, "seed": 3}
    namespace["In"] = ["# Parameters\nseed = 3\nbetta = 0.3\n"]
    with pytest.raises(ValueError, match="'betta'.*'beta'.*seed"):
        check_parameters(namespace, "beta seed")


def test_a_preset_fills_what_a_reader_leaves_and_nothing_that_is_given():
    parameters = {"preset": "few-photos", "beta": 0.05, "model": "", "dropout": 0.3, "seed": 0}
    left = given(parameters, {}, beta=0.05)
    assert left == {"preset": "few-photos", "dropout": 0.3} and configure(**left).model == "frozen"
    cells = {"In": ["seed = 1", "# Parameters\nbeta = 0.05\n"]}
    injected = given(parameters, cells, beta=0.05)
    assert injected == left | {"beta": 0.05} and configure(**injected).beta == 0.05
    assert given(parameters | {"preset": ""}, {}, beta=0.05)["beta"] == 0.05
