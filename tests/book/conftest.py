"""What the study's tests share."""

import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def figures_are_closed():
    """Closes figures and takes the style back after each test."""
    with plt.rc_context():
        yield
    plt.close("all")
