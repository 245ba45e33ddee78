"""The figures of the ablation show intervals where they lie, and say by shape what an interval says."""

import itertools

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from cibr import plots_ablation
from cibr.plots import BLUE, GREY, RED

MEASURES = ["zero-shot mean", "image to text"]
VERDICTS = {"up": (0.01, 0.03, "above 0"), "none": (-0.01, 0.02, "around 0"), "down": (-0.03, -0.01, "below 0")}


@pytest.fixture(autouse=True)
def drawn_and_closed():
    yield
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    plt.close("all")


def rows(**columns):
    """A row for each arm of `VERDICTS`, measure and value of the columns."""
    columns = {"arm": list(VERDICTS), "measure": MEASURES} | columns
    found = pd.DataFrame(list(itertools.product(*columns.values())), columns=list(columns))
    found[["low", "high", "verdict"]] = [VERDICTS[arm] for arm in found["arm"]]
    return found.assign(difference=(found["low"] + found["high"]) / 2)


def shapes(axis):
    """Marker, edge and face of what is marked on an Axes, from top to bottom."""
    marked = [line for line in axis.get_lines() if line.get_marker() not in ("None", None, "")]
    return [
        (line.get_marker(), to_hex(line.get_markeredgecolor()).upper(), to_hex(line.get_markerfacecolor()).upper())
        for line in marked
    ]


def legend(axis):
    """The names in the legend under a figure."""
    return [text.get_text() for text in axis.figure.legends[0].get_texts()]


def test_a_forest_has_a_line_an_arm_with_its_interval_in_points_and_a_shape_for_its_verdict():
    axes = plots_ablation.arm_forest(rows(setting=["photos", "glyphs"]), MEASURES)
    assert [axis.get_title() for axis in axes] == [
        "zero-shot mean", "photos\nimage to text", "zero-shot mean", "glyphs\nimage to text",
    ]  # fmt: skip
    assert shapes(axes[1]) == [("^", BLUE, BLUE), ("o", GREY, "#FFFFFF"), ("v", RED, RED)]
    intervals = [list(line.get_xdata()) for line in axes[2].get_lines() if len(line.get_xdata()) == 2][1:]
    assert intervals == [pytest.approx(ends) for ends in ([1, 3], [-1, 2], [-3, -1])]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == list(VERDICTS)


def test_a_single_seed_is_marked_as_such():
    axes = plots_ablation.arm_forest(rows(setting=["a"]).assign(verdict="one seed"), MEASURES[:1])
    assert {shape for shape, *_ in shapes(axes[0])} == {"x"}


def test_a_map_is_shaded_and_signed_by_the_interval_and_leaves_blank_what_is_not_there():
    table = rows(setting=["full", "a tenth"])
    table = table[(table["arm"] != "up") | (table["setting"] == "full")]
    axes = plots_ablation.verdict_map(table, MEASURES)
    assert [text.get_text() for text in axes[0].texts] == ["▲ +2.0", "○ +0.5", "○ +0.5", "▼ -2.0", "▼ -2.0"]
    codes = axes[0].images[0].get_array()
    assert codes.filled(-1).tolist() == [[0, -1], [1, 1], [2, 2]]
    assert [label.get_text() for label in axes[1].get_xticklabels()] == ["full", "a tenth"]


def test_beta_curves_have_a_line_an_arm_and_measure_and_setting():
    table = rows(beta=[0.1, 0.01], setting=["photos", "glyphs"])
    table = table[(table["arm"] != "down") | (table["beta"] == 0.1)]
    axes = plots_ablation.beta_curves(table, MEASURES)
    assert [axis.get_title() for axis in axes] == [
        "zero-shot mean",
        "photos\nimage to text",
        "zero-shot mean",
        "glyphs\nimage to text",
    ]
    lines = {bar.get_label(): bar.lines[0].get_ydata().tolist() for bar in axes[0].containers}
    assert lines == {"up": pytest.approx([2, 2]), "none": pytest.approx([0.5, 0.5]), "down": pytest.approx([-2])}
    assert axes[0].get_xscale() == "log" and legend(axes[0]) == ["down", "none", "up"]


def test_the_plane_has_a_path_an_arm_in_order_and_leaves_out_what_is_not_known():
    curves = pd.DataFrame({"arm": ["a", "a", "CIBR b"], "epoch": [2, 1, 1], "residual_nats": [3.0, 4.0, 1.0]})
    curves = curves.assign(setting="photos", mi_lower_bound_nats=[2.0, 1.0, float("nan")])
    ends = pd.DataFrame({"setting": "photos", "arm": ["a", "CIBR b"], "residual_nats": [3.0, 2.0]})
    over, end = plots_ablation.plane_over_training(curves, ends.assign(mi_lower_bound_nats=[2.0, 1.0]))
    assert [list(line.get_xdata()) for line in over.get_lines()] == [[4.0, 3.0], [3.0]]
    assert [(line.get_marker(), line.get_label()) for line in end.get_lines()] == [("$A$", "a"), ("$B$", "CIBR b")]
    assert legend(over) == ["a", "CIBR b"]


def test_leakage_and_score_cross_at_their_arm():
    table = pd.DataFrame({"setting": ["photos"], "arm": ["CIBR"], "x": [1.0], "x_low": [0.5], "x_high": [2.0]})
    table = table.assign(y=3.0, y_low=2.0, y_high=5.0)
    (axis,) = plots_ablation.leakage_against_score(table, "leakage", "score")
    crosses = [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()[2:]]
    cross = [([0.5, 2.0], [3.0, 3.0]), ([1.0, 1.0], [2.0, 5.0]), ([1.0], [3.0])]
    assert crosses == [([0.0], [0.0]), *cross] and legend(axis) == ["CLIP", "CIBR"]


def test_every_run_is_a_point_in_each_panel():
    table = pd.DataFrame(
        {"setting": ["a", "b", "a"], "r": [1.0, 2.0, 3.0], "s": [4.0, 5.0, 6.0], "gap": [7.0, 8, 9]}
    )
    axes = plots_ablation.measure_against_gap(table, {"r": "training", "s": "validation"}, "gap")
    points = [[list(line.get_xdata()) for line in axis.get_lines()] for axis in axes]
    assert points == [[[1.0, 3.0], [2.0]], [[4.0, 6.0], [5.0]]]
    assert [axis.get_xlabel() for axis in axes] == ["training", "validation"]
