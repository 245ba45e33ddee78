"""The study's figures draw what they are given, where it belongs."""

import itertools
import math

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import picture
from matplotlib.colors import to_hex, to_rgba

from cibr_book import figures
from cibr_book.plots import BLUE, GREEN, GREY, RED


@pytest.fixture(autouse=True)
def figures_are_closed():
    yield
    plt.close("all")


def drawn(axis):
    """The y values of the lines of an Axes by their label."""
    return {line.get_label(): list(map(float, line.get_ydata())) for line in axis.get_lines()}


def of_bars(axis):
    """The y values of an Axes' lines with intervals, by their label."""
    return {bar.get_label(): list(map(float, bar.lines[0].get_ydata())) for bar in axis.containers}


def intervals(**columns):
    """Rows with a mean of 1, 2, 3, ... and intervals of a tenth around it."""
    rows = pd.DataFrame(list(itertools.product(*columns.values())), columns=list(columns))
    rows["mean"] = np.arange(1.0, len(rows) + 1)
    return rows.assign(low=rows["mean"] - 0.1, high=rows["mean"] + 0.1)


def test_curve_panels_have_a_panel_a_title_and_a_line_a_name():
    panels = {
        "shared": {"0.9": ([0, 1], [2, 1]), "0.5": ([0, 1], [1, 0])},
        "residual": {"0.9": ([0, 1], [3, 0])},
    }
    axes = figures.curve_panels(panels, xlabel="beta")
    assert [(axis.get_title(), axis.get_xlabel()) for axis in axes] == [
        ("shared", "beta"),
        ("residual", "beta"),
    ]
    assert drawn(axes[0]) == {"0.9": [2, 1], "0.5": [1, 0]} and drawn(axes[1]) == {"0.9": [3, 0]}


def test_interval_lines_have_a_panel_a_value_and_grey_references():
    rows = intervals(batch_size=[16, 64], encoder=["untrained", "InfoNCE"], temperature=[0.1, 1.0])
    axes = figures.interval_lines(
        rows, "temperature", "encoder", "batch_size", log=True, references=["untrained"]
    )
    assert [axis.get_title() for axis in axes] == ["batch size 16", "batch size 64"]
    assert [of_bars(axis) for axis in axes] == [
        {"untrained": [1, 2], "InfoNCE": [3, 4]}, {"untrained": [5, 6], "InfoNCE": [7, 8]},
    ]  # fmt: skip
    colours = [to_hex(bar.lines[0].get_color()).upper() for bar in axes[0].containers]
    assert colours == [GREY.upper(), BLUE.upper()]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["0.1", "1"]
    ends = [segment[:, 1].tolist() for segment in axes[0].containers[0].lines[2][0].get_segments()]
    assert np.allclose(ends, [[0.9, 1.1], [1.9, 2.1]])


def test_interval_bars_stand_by_group_in_the_scale_under_their_ceilings():
    rows = intervals(model=["CLIP", "randomised"], factor=["weight", "slant"])
    axis = figures.interval_bars(
        rows, "factor", "model", "%", 100, ["randomised"], {"weight": 7.0, "slant": 6.0}
    )
    assert sorted(round(bar.get_width()) for bar in axis.patches) == [100, 200, 300, 400]
    assert axis.patches[0].get_facecolor()[:3] == to_rgba("black")[:3]  # CLIP, in every figure
    assert axis.patches[2].get_facecolor()[:3] == to_rgba(GREY)[:3]
    assert axis.collections[0].get_segments()[0][:, 0].tolist() == pytest.approx([90, 110])
    assert [line.get_xdata()[0] for line in axis.get_lines()][-3:] == [700, 600, 0]


def test_information_plane_shows_the_curve_in_order_and_every_run_at_beta_zero():
    curve = pd.DataFrame(
        {"beta": [0.1, 1.0], "residual_nats": [0.4, 0.1], "shared_nats": [0.98, 0.9]}
    )
    clip = pd.DataFrame(
        {"codes": [4, 8, 8], "residual_nats": [0.4, 0.5, 0.6], "shared_nats": [0.98, 0.97, 0.96]}
    )
    axis = figures.information_plane(curve, clip, 1.0)
    lines = drawn(axis)
    assert lines["CIB, β rising to the left"] == [0.9, 0.98]
    assert lines["β=0, 4 codes"] == [0.98] and lines["β=0, 8 codes"] == [0.97, 0.96]
    assert {text.get_text() for text in axis.texts} == {"I(image; text)", "β=0.1", "β=1"}


def test_error_table_writes_every_error_and_the_truth_beside_its_task():
    errors = pd.DataFrame({"nce": [-0.25, 0.1], "nwj": [-math.inf, 512.0]}, index=["easy", "hard"])
    axis = figures.error_table(errors, {"easy": 1.0, "hard": 0.5})
    assert [text.get_text() for text in axis.texts] == ["-0.25", "-∞", "+0.10", "+512"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["easy (1.00)", "hard (0.50)"]


def test_confusions_are_per_cent_of_the_images_of_a_class():
    labels, answers = torch.tensor([0, 0, 0, 2]), torch.tensor([0, 0, 1, 2])
    axes = figures.confusion_matrices(
        labels, {"CLIP": answers, "CIBR": labels}, ["cat", "dog", "bird"]
    )
    assert [axis.get_title() for axis in axes] == ["CLIP", "CIBR"]
    assert [text.get_text() for text in axes[0].texts] == ["67", "33", "", "", "", "100"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["cat", "bird"]


def test_maps_have_a_row_a_factor_and_a_column_a_model_and_name_common_values():
    places = {"CLIP": np.random.default_rng(0).normal(size=(20, 2)), "CIBR": np.zeros((20, 2))}
    factors = {"kind": ["a"] * 10 + ["b"] * 10, "face": [str(i) for i in range(20)]}
    axes = figures.space_maps(places, factors)
    titles = ["CLIP, by kind", "CIBR, by kind", "CLIP, by face", "CIBR, by face"]
    assert [axis.get_title() for axis in axes] == titles
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["a", "b"]
    assert len(axes[3].get_legend().get_texts()) == 7  # the rest is grey


def test_neighbours_that_are_alike_have_a_green_frame():
    images = [picture(i) for i in range(4)]
    nearest = {"CLIP": torch.tensor([[1, 2]] * 4), "CIBR": torch.tensor([[3, 2]] * 4)}
    alike = {"CLIP": torch.tensor([[True, False]] * 4), "CIBR": torch.tensor([[False, False]] * 4)}
    axes = figures.neighbour_rows(images, [0, 1], nearest, alike)
    frames = [to_hex(axis.spines["left"].get_edgecolor()).upper() for axis in axes]
    assert len(axes) == 2 * 5 and frames[:5].count(GREEN.upper()) == 1
    assert axes[1].images[0].get_array().tolist() == np.asarray(images[1]).tolist()


def test_answers_are_marked_right_or_wrong_as_they_are_written():
    words = figures.answer_rows(
        [picture(0)], ["costs $5"], {"CLIP": ["costs $5"], "CIBR": ["x" * 90]}
    )
    texts = words[0].texts
    assert [t.get_color() for t in texts] == ["black", GREEN, RED]
    assert texts[1].get_text() == "✓ CLIP: costs $5" and texts[2].get_text().endswith("…")


def test_attribution_lies_over_each_image_a_row_a_kind():
    maps = {"a": torch.rand(2, 4, 4), "flat": torch.zeros(2, 4, 4)}
    axes = figures.attribution_rows([picture(0), picture(1)], ["one", "two"], maps)
    assert len(axes) == 6 and [axis.get_title() for axis in axes[:2]] == ["one", "two"]
    assert len(axes[2].images) == 2 and axes[2].get_ylabel() == "a"
    axes[0].figure.canvas.draw()
