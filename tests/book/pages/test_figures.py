"""Figures of the study draw the numbers that they are given."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import picture
from matplotlib.colors import to_hex
from PIL import Image

from cibr_book.pages import figures, plots
from cibr_book.pages.plots import BLUE, GREY, RIGHT, WRONG
from cibr_book.worlds.map import TABLE, gains


def drawn(axis):
    """The y values of the lines of an Axes by their label."""
    return {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}


def intervals(**columns):
    """Rows with a mean of 1, 2, 3, ... and intervals of a tenth around it."""
    rows = pd.DataFrame(list(itertools.product(*columns.values())), columns=list(columns))
    rows["mean"] = np.arange(1.0, len(rows) + 1)
    return rows.assign(low=rows["mean"] - 0.1, high=rows["mean"] + 0.2)


def test_interval_lines_have_a_panel_a_value_and_a_line_a_name():
    rows = intervals(data=["photos", "sheets"], encoder=["new", "InfoNCE"], batch_size=[16, 64])
    backwards = rows.sort_values("batch_size", ascending=False, kind="stable")
    axes = figures.interval_lines(backwards, "batch_size", "encoder", panel="data", log=True)
    assert [axis.get_title() for axis in axes] == ["photos", "sheets"]
    assert [axis.get_xlabel() for axis in axes] == ["batch size"] * 2
    bars = [bar for axis in axes for bar in axis.containers]
    assert [bar.get_label() for bar in bars] == ["new", "InfoNCE"] * 2
    assert [bar.lines[0].get_ydata().tolist() for bar in bars] == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert {to_hex(bar.lines[0].get_color()).upper() for bar in bars[1::2]} == {BLUE}
    ends = [segment[:, 1].tolist() for segment in bars[0].lines[2][0].get_segments()]
    assert np.allclose(ends, [[0.9, 1.2], [1.9, 2.2]])


def test_predictions_are_points_around_the_line_where_they_are_right():
    columns = ["of", "holds", "predicted", "measured"]
    values = [("ratio", "yes", 1, 2), ("ratio", "no", 3, 0), ("recall", "no", 5, 6)]
    ratio, recall = figures.predictions(pd.DataFrame(values, columns=columns), "of", "holds")
    assert [ratio.get_title(), recall.get_title()] == ["ratio", "recall"]
    assert [line.get_xydata().tolist() for line in ratio.get_lines()] == [[[0, 0], [3, 3]]]
    points = {dots.get_label(): dots.get_offsets().tolist() for dots in ratio.collections}
    assert points == {"no": [[3, 0]], "yes": [[1, 2]]}


def test_maps_show_the_gain_of_each_cell():
    rows = pd.read_csv(TABLE)
    table = gains(rows)
    axis = figures.gain_maps(table, ["CIBR vMF", "ridge CCA"])[-1]
    of_cca = table[table["method"] == "ridge CCA"].sort_values(["nuisance", "pairs"])
    shown = {float(text.get_text()) for text in axis.texts}
    assert shown == {float(f"{x:+.0f}" if abs(x) >= 9.5 else f"{x:+.1f}") for x in of_cca["mean"]}
    bold = sum(text.get_fontweight() == "bold" for text in axis.texts)
    assert bold == (of_cca["low"] * of_cca["high"] > 0).sum()


def test_a_search_gallery_frames_the_image_of_the_text_alone():
    similarity = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    image = Image.new("RGB", (4, 4))
    axes = plots.search_gallery(["a", "b"], similarity, lambda i: image, [2, 2], n_shown=2)
    framed = [axis.spines["top"].get_visible() for axis in axes]
    assert framed == [False, True, False, False]  # images 1 and 2, then 0 and 1


def test_a_gallery_marks_right_and_wrong_and_gives_the_rank_of_the_right_one():
    texts = ["a", "b costs $1 or $2", "c", "d"]
    similarity = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.4, 0.25, 0.3, 0.2]])
    captions = [["a", "c", "d"], ["b costs $1 or $2"]]
    images = [picture(0), picture(1)]
    axes = plots.retrieval_gallery(images, captions, texts, similarity, n_shown=2)
    lines = [[(text.get_text(), text.get_color()) for text in axis.texts] for axis in axes]
    assert lines[0] == [("✓ a", RIGHT), ("✓ c", RIGHT)]
    assert lines[1] == [("✗ a", WRONG), ("✗ c", WRONG), ("rank 3: b costs $1 or $2", GREY)]
    axes[0].figure.canvas.draw()


def test_forms_over_beta_start_at_zero_with_a_band_and_the_spread_of_clip():
    rows = []
    for method, slope in (("vMF", -1.0), ("MINE", 10.0)):
        for beta in (0.1, 1.0):
            row = {"method": method, "beta": beta, "difference": slope * beta}
            row |= {"low": slope * beta - 0.5, "high": slope * beta + 0.5}
            rows += [row | {"measure": "search"}, row | {"measure": "gap", "difference": 0.1}]
    table = pd.DataFrame(rows)
    table.loc[table["measure"] == "gap", ["low", "high"]] = 0.0, 0.2
    axes = figures.forms_over_beta(table, {"search": 0.3, "gap": 0.01})
    assert [axis.get_title() for axis in axes] == ["search", "gap"]
    [vmf, mine, _] = axes[0].lines
    assert vmf.get_label() == "vMF" and mine.get_label() == "MINE"
    assert vmf.get_xydata().tolist() == [[0, 0], [0.1, -0.1], [1, -1]]
    strip = axes[0].patches[0].get_extents().transformed(axes[0].transData.inverted())
    assert (strip.y0, strip.y1) == pytest.approx((-0.3, 0.3))
    assert [axis.get_yscale() for axis in axes] == ["symlog", "linear"]
    assert [text.get_text() for text in axes[0].get_xticklabels()] == ["0", "0.1", "1"]
