"""The study's figures draw what they are given, where it belongs."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import picture
from matplotlib.colors import to_hex

from cibr_book.pages import figures
from cibr_book.pages.plots import BLUE, GREY


def drawn(axis):
    """The y values of the lines of an Axes by their label."""
    return {line.get_label(): list(map(float, line.get_ydata())) for line in axis.get_lines()}


def texts(labels):
    return [label.get_text() for label in labels]


def colour(artist):
    return to_hex(artist.get_color()).upper()


def intervals(**columns):
    """Rows with a mean of 1, 2, 3, ... and intervals of a tenth around it."""
    rows = pd.DataFrame(list(itertools.product(*columns.values())), columns=list(columns))
    rows["mean"] = np.arange(1.0, len(rows) + 1)
    return rows.assign(low=rows["mean"] - 0.1, high=rows["mean"] + 0.2)


def test_a_name_has_its_style_everywhere_and_others_the_next_that_is_free():
    styles = figures.styles(["new", "CLIP", "CIBR", "other", "old"], ["old"])
    colours = [style[0] for style in styles.values()]
    assert styles["CLIP"] == ("black", "D") and styles["CIBR"] == (BLUE, "o")
    assert styles["old"][0] == GREY and len(set(colours)) == 5


def test_curve_panels_have_a_legend_where_there_are_several_curves():
    shared = {"0.9": ([0, 1], [2, 1]), "0.5": ([0, 1], [1, 0])}
    axes = figures.curve_panels({"a": shared, "b": {"0.9": ([0, 1], [3, 0])}}, xlabel="beta")
    assert [axis.get_title() for axis in axes] == ["a", "b"] and axes[1].get_xlabel() == "beta"
    assert drawn(axes[0]) == {"0.9": [2, 1], "0.5": [1, 0]} and drawn(axes[1]) == {"0.9": [3, 0]}
    assert axes[0].get_legend() and not axes[1].get_legend()


def test_interval_lines_have_a_panel_a_value_and_grey_references():
    rows = intervals(batch_size=[16, 64], encoder=["untrained", "InfoNCE"], temperature=[0.1, 1.0])
    how = dict(panel="batch_size", log=True, references=["untrained"])
    axes = figures.interval_lines(rows, "temperature", "encoder", **how)
    assert [axis.get_title() for axis in axes] == ["batch size 16", "batch size 64"]
    bars = [bar for axis in axes for bar in axis.containers]
    assert [bar.get_label() for bar in bars] == ["untrained", "InfoNCE"] * 2
    assert [bar.lines[0].get_ydata().tolist() for bar in bars] == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert [colour(bar.lines[0]) for bar in bars[:2]] == [GREY, BLUE]
    assert texts(axes[0].get_xticklabels()) == ["0.1", "1"]
    ends = [segment[:, 1].tolist() for segment in bars[0].lines[2][0].get_segments()]
    assert np.allclose(ends, [[0.9, 1.2], [1.9, 2.2]])


def test_interval_bars_are_in_the_scale():
    rows = intervals(model=["CLIP", "randomised"], factor=["weight", "slant"])
    axis = figures.interval_bars(rows, "factor", "model", "%", 100, ["randomised"])
    assert [round(bar.get_width()) for bar in axis.patches] == [100, 200, 300, 400]
    places = [bar.get_y() + bar.get_height() / 2 for bar in axis.patches]
    assert places == pytest.approx([-1 / 6, 5 / 6, 1 / 6, 7 / 6])
    assert axis.collections[0].get_segments()[0][:, 0].tolist() == pytest.approx([90, 120])
    assert texts(axis.get_yticklabels()) == ["weight", "slant"]


def test_information_planes_show_every_run_below_the_optimum_and_join_the_means():
    runs = {"temperature": 0.05, "beta": [0, 0, 1], "n_steps": 300, "seed": [0, 1, 0]}
    runs |= {"method": "CIBR vMF", "residual": [0.4, 0.2, 0.1], "shared": [0.8, 0.6, 0.5]}
    longer = {**runs, "n_steps": 1200, "shared": [0.1, 0.1, 0.1]}
    optimum = {"method": "optimum", "residual": [0.4, 0.0], "shared": [0.98, 0.7]}
    rows = pd.concat([pd.DataFrame(part) for part in (runs, longer, optimum)])
    rows = pd.concat([rows.assign(kappa=kappa) for kappa in (20.0, 100.0)])
    axes = figures.information_planes(rows, 1.0)
    assert [axis.get_title() for axis in axes] == [
        f"noise of concentration {kappa}" for kappa in (20, 100)
    ]
    lines = drawn(axes[0])
    assert lines["optimum"] == [0.7, 0.98] and lines["CIBR vMF"] == pytest.approx([0.7, 0.5])
    assert 6 in [len(line.get_xdata()) for line in axes[0].get_lines()]
    assert texts(axes[1].texts) == ["I(image; text)"]


def test_attribution_lies_over_each_image_a_row_for_each_map():
    maps = {"a": torch.tensor([[[-1.0, 2.0], [1.0, 0.0]]] * 2), "flat": torch.zeros(2, 2, 2)}
    axes = figures.attribution_rows([picture(0), picture(1)], ["one", "two"], maps)
    assert len(axes) == 6 and [axis.get_title() for axis in axes[:2]] == ["one", "two"]
    assert axes[2].images[1].get_array().tolist() == [[0, 1], [0.5, 0]]
    assert axes[2].get_ylabel() == "a" and axes[4].images[1].get_array().max() == 0
    axes[0].figure.canvas.draw()
