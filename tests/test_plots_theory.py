"""The figures of the theory chapters draw what they are given, where it belongs."""

import itertools

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from cibr import plots_theory


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn(axis) -> dict[str, list[float]]:
    """The y values of the lines of an Axes by their label."""
    return {line.get_label(): list(map(float, line.get_ydata())) for line in axis.get_lines()}


def intervals(**columns) -> pd.DataFrame:
    """Rows with a mean of 1, 2, 3, ... and intervals of a tenth around it."""
    rows = pd.DataFrame(list(itertools.product(*columns.values())), columns=list(columns))
    rows["mean"] = range(1, len(rows) + 1)
    return rows.assign(low=rows["mean"] - 0.1, high=rows["mean"] + 0.1)


def test_information_plane_shows_the_curve_in_order_and_every_run_at_beta_zero():
    curve = pd.DataFrame({"beta": [0.1, 1.0], "residual_nats": [0.4, 0.1], "shared_nats": [0.98, 0.9]})
    clip = pd.DataFrame({"codes": [4, 8, 8], "residual_nats": [0.4, 0.5, 0.6], "shared_nats": [0.98, 0.97, 0.96]})
    axis = plots_theory.information_plane(curve, clip, 1.0)
    lines = drawn(axis)
    assert lines["CIB, β rising to the left"] == [0.9, 0.98]
    assert lines["β=0, 4 codes"] == [0.98]
    assert lines["β=0, 8 codes"] == [0.97, 0.96]
    assert {text.get_text() for text in axis.texts} == {"I(image; text)", "β=0.1", "β=1"}


def test_noise_runs_to_the_right_as_it_vanishes():
    axes = plots_theory.noise_and_floor([1, 0.1], [2, 3], [0, 1], {"floor": [5, 4], "excess": [1, 0]})
    assert axes[0].xaxis_inverted()
    assert drawn(axes[1]) == {"floor": [5, 4], "excess": [1, 0]}


def test_gaussian_optimum_has_one_panel_a_part_and_one_line_a_direction():
    axes = plots_theory.gaussian_optimum([0.1, 1], {"shared": {"0.9": [2, 1]}, "residual": {"0.9": [3, 0]}})
    assert [axis.get_title() for axis in axes] == ["shared", "residual"]
    assert [drawn(axis)["0.9"] for axis in axes] == [[2, 1], [3, 0]]


def test_before_after_puts_untrained_and_trained_side_by_side_for_each_panel():
    rows = intervals(batch_size=[16, 64], temperature=[0.1, 1.0], trained=[False, True])
    axes = plots_theory.before_after(rows, "batch_size", "nats")
    assert [axis.get_title() for axis in axes] == ["batch size 16", "batch size 64"]
    values = [[list(map(float, bar.lines[0].get_ydata())) for bar in axis.containers] for axis in axes]
    assert values == [[[1, 3], [2, 4]], [[5, 7], [6, 8]]]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["0.1", "1"]
    assert axes[0].get_ylim()[1] > 8  # the panels share an axis that holds every value


def test_factor_bars_stand_by_factor_under_their_ceilings():
    rows = intervals(layer=["pixels", "embedding"], factor=["weight", "slant"])
    axis = plots_theory.factor_bars(rows, {"weight": 0.7, "slant": 0.6})
    heights = [[bar.get_height() for bar in bars] for bars in axis.containers if hasattr(bars, "patches")]
    assert heights == [[1, 2], [3, 4]]
    assert [line.get_ydata()[0] for line in axis.get_lines() if line.get_color() == "black"][-2:] == [0.7, 0.6]


def test_estimates_stand_over_their_truth_beside_the_diagonal():
    axis = plots_theory.estimates_against_truth(intervals(estimator=["nce", "ksg"], truth=[1.0, 4.0]), 2.0)
    assert [list(map(float, bar.lines[0].get_ydata())) for bar in axis.containers] == [[1, 2], [3, 4]]
    diagonal = axis.get_lines()[0]
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 4.0]


def test_error_table_writes_every_error_and_the_truth_beside_its_task():
    errors = pd.DataFrame({"nce": [-0.25, 0.1], "nwj": [float("-inf"), 512.0]}, index=["easy", "hard"])
    axis = plots_theory.error_table(errors, pd.Series({"easy": 1.0, "hard": 0.5}))
    assert [text.get_text() for text in axis.texts] == ["-0.25", "-∞", "+0.10", "+512"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["easy (1.00)", "hard (0.50)"]


def test_batch_values_have_a_line_an_estimator_and_the_truth():
    rows = pd.DataFrame(
        {"estimator": ["DV", "DV"], "batch_size": [8, 32], "mean": [7.0, 6.2], "deviation": [2, 1]}
    )
    axis = plots_theory.batch_values(rows, 6.0)
    assert list(axis.containers[0].lines[0].get_ydata()) == [7.0, 6.2]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["8", "32"]
