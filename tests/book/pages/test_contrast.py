"""Print in figures can be read, on white and on the dark page, which shows figures inverted."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from cibr_book.pages.plots import GREY, RIGHT, WRONG

DARK_PAGE = np.array(to_rgb("#121212"))  # the theme's background
LEGIBLE = 4.5  # WCAG 2.1, 1.4.3
# hue-rotate(180deg) of the CSS filters: the luminance stays, the other parts change their sign.
_GREY_PART = np.array([[0.213, 0.715, 0.072]] * 3)
TURN = 2 * _GREY_PART - np.eye(3)


def luminance(colour):
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    low, high = sorted(luminance(np.array(to_rgb(colour))) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def in_the_dark(colour):
    """The colour as custom.css shows it: inverted, its hue turned back, screened with the page."""
    turned = np.clip(TURN @ (1 - np.array(to_rgb(colour))), 0, 1)
    return 1 - (1 - turned) * (1 - DARK_PAGE)


def least_contrast(ink, paper):
    return min(contrast(ink, paper), contrast(in_the_dark(ink), in_the_dark(paper)))


@pytest.mark.parametrize("ink", ["black", "0.15", GREY, RIGHT, WRONG])
def test_print_stands_out_from_the_page(ink):
    assert least_contrast(ink, "white") >= LEGIBLE
