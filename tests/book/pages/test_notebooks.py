"""What a notebook's parameters may be."""

import pytest

from cibr_book.pages.notebooks import check_parameters


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
