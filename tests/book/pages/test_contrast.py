"""Print in figures can be read, on white and on the dark page, which shows figures inverted."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb

from cibr_book.pages import figures
from cibr_book.pages.plots import GREY, RIGHT, WRONG, set_style

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


def test_numbers_stand_out_from_the_colour_of_their_cell():
    set_style()
    errors = pd.DataFrame({"a": [-9.0, -0.5, 0.0], "b": [0.4, 1.0, math.inf]}, index=list("xyz"))
    table = figures.error_table(errors, dict.fromkeys("xyz", 1.0))
    labels = torch.arange(11).repeat_interleave(10)
    answers = torch.cat([torch.arange(10) >= k for k in range(11)]).long() * labels
    (matrix,) = figures.confusion_matrices(labels, {"CLIP": answers}, list("abcdefghijk"))
    for axis in (table, matrix):
        (mesh,) = axis.collections
        axis.figure.canvas.draw()
        papers = mesh.get_facecolors()[:, :3]
        written = [(text, paper) for text, paper in zip(axis.texts, papers, strict=True)]
        inks = [(text.get_color(), paper) for text, paper in written if text.get_text()]
        assert len({tuple(paper) for _, paper in inks}) > 4  # pale and strong ones
        assert min(least_contrast(*pair) for pair in inks) >= LEGIBLE
