"""What a notebook's parameters may be."""

import pytest

from cibr.train import configure
from cibr_book.pages.notebooks import check_parameters, given


def test_parameters_that_papermill_injected_are_known():
    namespace = {"beta": 0.1, "seed": 3, "other": 5}
    for injected in ([], ["other = 5", "# Parameters\nseed = 3\n"]):
        checked = check_parameters(namespace | {"In": injected}, "beta seed")
        assert checked == {"beta": 0.1, "seed": 3}
    injected = ["# Parameters\nseed = 3\nbetta = 0.3\n"]
    with pytest.raises(ValueError, match="unknown parameter 'betta', did you mean 'beta'.*seed"):
        check_parameters(namespace | {"In": injected}, "beta seed")
    with pytest.raises(ValueError, match="parameter 'alpha' is not set: give it a default"):
        check_parameters(namespace, "alpha")


def test_a_preset_fills_what_a_reader_leaves_and_nothing_that_is_given():
    parameters = {"preset": "few-pairs", "beta": 0.05, "model": "tiny", "dropout": 0.3, "seed": 0}
    settings = given(parameters, {})
    assert settings == {"preset": "few-pairs", "dropout": 0.3}
    assert (configure(**settings).model, configure(**settings).dropout) == ("frozen", 0.3)
    settings = given(parameters, {"In": ["seed = 1", "# Parameters\nbeta = 0.05\n"]})
    assert settings == {"preset": "few-pairs", "beta": 0.05, "dropout": 0.3}
    assert configure(**settings).beta == 0.05
