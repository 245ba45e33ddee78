"""The ablation's figures: what stands in them is what stands in the rows."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cibr_book.ablation_figures import CURVES, beta_curves, method_forest, summary_figure
from cibr_book.analysis import mean_intervals
from cibr_book.figures import STYLES

SCORES = {"accuracy": "zero-shot", "recall": "image to text"}


@pytest.fixture
def rows():
    """Two conditions with CLIP and two penalties at three weights, four seeds, of which CLIP lacks
    one.
    """
    generator, table = np.random.default_rng(0), []
    for condition in ("many", "few"):
        for seed in range(4):
            runs = [("CLIP", 0.0)] * (seed < 3) + [
                (m, b) for m in list(CURVES)[:2] for b in (0.1, 1.0, 0.01)
            ]
            table += [(condition, *run, seed, *generator.normal(30, 1, 2)) for run in runs]
    return pd.DataFrame(table, columns=["condition", "method", "beta", "seed", *SCORES.values()])


def test_curves_are_paired_differences_to_clip_in_the_order_of_beta(rows):
    axes = beta_curves(rows, SCORES, limits=[None, (-4.0, 4.0)])
    assert len(axes) == 4 and [axis.get_title() for axis in axes] == ["accuracy", "recall", "", ""]
    few = rows[rows["condition"] == "few"].set_index("seed")
    clip, own = (few[few["method"] == method] for method in ("CLIP", "CIBR vMF"))
    difference = own[own.index < 3].assign(
        shown=lambda part: part["image to text"] - clip["image to text"]
    )
    expected = mean_intervals(difference.reset_index(), ["beta"], "shown").sort_values("beta")
    line = next(line for line in axes[3].get_lines() if line.get_label() == "CIBR vMF")
    assert line.get_xdata().tolist() == [0.01, 0.1, 1.0] and axes[3].get_ylim() == (-4, 4)
    np.testing.assert_allclose(line.get_ydata(), expected["mean"])
    band = axes[3].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(expected["low"].min())
    assert band[:, 1].max() == pytest.approx(expected["high"].max())


def test_a_forest_has_a_block_a_condition_and_marks_the_side_of_zero():
    columns = [
        "condition",
        "method",
        "beta",
        "against",
        "measure",
        "difference",
        "low",
        "high",
        "n_seeds",
    ]
    table = [("many", "vMF", 0.1, "CLIP", "accuracy", 1.0, 0.5, 1.5, 5, "gain")]
    table += [("few", "vMF", 0.1, "CLIP", "accuracy", -1.0, -1.5, -0.5, 5, "loss")]
    table += [("few", "noise", 0.0, "CLIP", "accuracy", 0.1, -1, 1.2, 3, "not significant")]
    table = pd.DataFrame(table, columns=[*columns, "significance"])
    axes = method_forest(table)
    assert [axis.get_title(loc="left") for axis in axes] == ["many", "few"]
    assert [text.get_text() for text in axes[1].get_yticklabels()] == [
        "vMF, beta 0.1 (5)",
        "noise (3)",
    ]
    assert [line.get_marker() for line in axes[1].get_lines() if len(line.get_xdata()) == 1] == [
        "v",
        "o",
    ]
    pair = dict(method="CIBR anchor + crops + noise", against="CLIP, CCA start + crops + noise")
    (axis,) = method_forest(table.tail(1).assign(**pair))
    labels = [text.get_text() for text in axis.get_yticklabels()]
    assert labels == ["anchor vs CCA start, with crops + noise (3)"]


def test_the_summary_has_a_row_a_condition_and_fills_what_leaves_zero_out():
    columns = [
        "condition",
        "kind",
        "method",
        "measure",
        "difference",
        "low",
        "high",
        "significance",
    ]
    table = [("Flickr8k", "the anchor", "CIBR anchor", "zero-shot", 1.0, 0.5, 1.5, "gain")]
    table += [
        (
            "Flickr8k",
            "best other method",
            "CLIP, two captions",
            "zero-shot",
            0.1,
            -1,
            1.2,
            "not significant",
        )
    ]
    table += [("glyphs", "best other method", "CLIP + cosine", "zero-shot", -1, -2, -0.5, "loss")]
    (axis,) = summary_figure(pd.DataFrame(table, columns=columns))
    labels = [text.get_text() for text in axis.get_yticklabels()]
    assert labels == ["photos, all pairs\n(two captions)", "glyphs\n(cosine)"]
    marks = {line.get_xdata()[0]: line for line in axis.get_lines() if len(line.get_xdata()) == 1}
    assert [marks[x].get_markerfacecolor() != "white" for x in (1.0, 0.1, -1)] == [
        True,
        False,
        True,
    ]
    colours = {x: STYLES[kind][0] for x, kind in ((1.0, "the anchor"), (-1, "best other method"))}
    assert all(
        marks[x].get_color() == colours[x] or marks[x].get_markeredgecolor() == colours[x]
        for x in colours
    )


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")
