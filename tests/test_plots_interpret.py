"""Figures of interpretation return Axes that show what they claim."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import picture

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex, to_rgba

from cibr import plots_interpret
from cibr.plots import BLUE, GREEN, RED


@pytest.fixture(autouse=True)
def figures_are_closed():
    yield
    plt.close("all")


def intervals(**columns):
    return pd.DataFrame({"value": [0.5, 0.2], "low": [0.4, 0.1], "high": [0.6, 0.3]} | columns)


def test_maps_have_a_row_a_factor_and_a_column_a_model_and_name_common_values():
    places = {"CLIP": np.random.default_rng(0).normal(size=(20, 2)), "CIBR": np.zeros((20, 2))}
    factors = {"kind": ["a"] * 10 + ["b"] * 10, "face": [str(i) for i in range(20)]}
    axes = plots_interpret.space_maps(places, factors)
    assert [axis.get_title() for axis in axes] == [
        "CLIP, by kind", "CIBR, by kind", "CLIP, by face", "CIBR, by face",
    ]  # fmt: skip
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["a", "b"]
    assert len(axes[3].get_legend().get_texts()) == 8  # the rest is grey
    axes[0].figure.canvas.draw()


def test_neighbours_that_are_alike_have_a_green_frame():
    pictures = [picture(i) for i in range(4)]
    nearest = {"CLIP": torch.tensor([[1, 2]] * 4), "CIBR": torch.tensor([[3, 2]] * 4)}
    alike = {"CLIP": torch.tensor([[True, False]] * 4), "CIBR": torch.tensor([[False, False]] * 4)}
    axes = plots_interpret.neighbour_rows(pictures, [0, 1], nearest, alike)
    frames = [to_hex(axis.spines["left"].get_edgecolor()).upper() for axis in axes]
    assert len(axes) == 2 * 5 and frames[:5].count(GREEN.upper()) == 1
    axes[0].figure.canvas.draw()


def test_bars_show_values_in_the_scale_with_their_intervals():
    axis = plots_interpret.interval_bars(
        intervals(factor=["size", "size"], model=["CLIP", "shuffled"]), "factor", "model", "%", 100, ["shuffled"]
    )
    assert sorted(round(bar.get_width()) for bar in axis.patches) == [20, 50]
    assert axis.patches[0].get_facecolor()[:3] == to_rgba(BLUE)[:3]
    assert axis.patches[1].get_facecolor()[:3] != to_rgba(BLUE)[:3]
    ends = axis.collections[0].get_segments()[0][:, 0]
    assert ends.tolist() == pytest.approx([40, 60])


def test_histograms_and_curves_have_a_line_or_an_axes_for_each_name():
    cosines = {"CLIP": torch.rand(50), "CIBR": torch.rand(50)}
    axes = plots_interpret.cosine_histograms(cosines, cosines)
    assert [axis.get_title() for axis in axes] == ["CLIP", "CIBR"]
    curves = {"map": intervals(), "random order": intervals()}
    axis = plots_interpret.deletion_curves((0, 0.5), curves, "cosine")
    assert [line.get_label() for line in axis.lines] == ["map", "random order"]
    assert axis.lines[0].get_xdata().tolist() == [0, 50]


def test_answers_are_marked_right_or_wrong_as_they_are_written():
    words = plots_interpret.answer_rows([picture(0)], ["costs $5"], {"CLIP": ["costs $5"], "CIBR": ["x" * 90]})
    texts = words[0].texts
    assert [t.get_color() for t in texts] == ["black", GREEN, RED]
    assert texts[1].get_text() == "✓ CLIP: costs $5" and texts[2].get_text().endswith("…")


def test_attribution_lies_over_each_picture_a_row_a_kind():
    maps = {"a": torch.rand(2, 4, 4), "flat": torch.zeros(2, 4, 4)}
    axes = plots_interpret.attribution_rows([picture(0), picture(1)], ["one", "two"], maps)
    assert len(axes) == 6 and [axis.get_title() for axis in axes[:2]] == ["one", "two"]
    assert len(axes[2].images) == 2 and axes[2].get_ylabel() == "a"
    axes[0].figure.canvas.draw()
