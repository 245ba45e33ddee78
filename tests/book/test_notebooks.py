"""What a notebook's parameters may be."""

import pytest

from cibr_book.notebooks import check_parameters


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
