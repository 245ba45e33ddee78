"""The ablation's figures: what stands in them is what stands in the rows."""

import numpy as np
import pandas as pd
import pytest

from cibr_book.experiments.ablation_figures import beta_curves, method_forest, summary_figure
from cibr_book.pages.figures import STYLES

COLUMNS = ["condition", "method", "measure", "difference", "low", "high", "significance"]
EXTRA = dict(beta=0.0, against="CLIP", n_seeds=5)


def marks(axis):
    """Marker, fill and vertical place by the horizontal place, without the lines of intervals."""
    points = [line for line in axis.get_lines() if len(line.get_xdata()) == 1]
    return {
        p.get_xdata()[0]: (p.get_marker(), p.get_markerfacecolor() != "white", p.get_ydata()[0])
        for p in points
    }


def test_curves_are_paired_differences_to_clip_in_the_order_of_beta():
    generator = np.random.default_rng(0)
    table = []
    for condition in ("many", "few"):
        table += [(condition, "CLIP", 0.0, seed, *generator.normal(30, 1, 2)) for seed in range(3)]
        for beta in (0.1, 1.0, 0.01):  # seed 3 has no CLIP
            runs = [(beta, seed, *generator.normal(30, 1, 2)) for seed in range(4)]
            table += [(condition, "CIBR vMF", *run) for run in runs]
    rows = pd.DataFrame(table, columns=["condition", "method", "beta", "seed", "zero-shot", "text"])
    rows = rows.assign(validation=0.0, hyperparameters="")
    titles = {"accuracy": "zero-shot", "recall": "text"}
    axes = beta_curves(rows, titles, limits=[None, (-4.0, 4.0)])
    assert [axis.get_title() for axis in axes] == ["accuracy", "recall", "", ""]
    few = rows[(rows["condition"] == "few") & (rows["seed"] < 3)].set_index("seed")
    clip = few.loc[few["method"] == "CLIP", "text"]
    expected = [(few.loc[few["beta"] == beta, "text"] - clip).mean() for beta in (0.01, 0.1, 1.0)]
    line = next(line for line in axes[3].get_lines() if line.get_label() == "CIBR vMF")
    assert line.get_xdata().tolist() == pytest.approx([0.01, 0.1, 1.0], rel=0.2)
    assert axes[3].get_ylim() == (-4, 4)
    assert line.get_ydata().tolist() == pytest.approx(expected)
    band = axes[3].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() < min(expected) and max(expected) < band.max()


def test_a_forest_names_method_and_seeds_and_marks_the_side_of_zero():
    table = [("many", "vMF", "accuracy", 1.0, 0.5, 1.5, "gain")]
    table += [("few", "vMF", "accuracy", -1.0, -1.5, -0.5, "loss")]
    table += [("few", "noise", "accuracy", 0.1, -1, 1.2, "not significant")]
    table = pd.DataFrame(table, columns=COLUMNS).assign(**EXTRA)
    table.loc[:1, "beta"] = 0.1
    many, few = method_forest(table)
    assert [axis.get_title(loc="left") for axis in (many, few)] == ["many", "few"]
    labels = [label.get_text() for label in few.get_yticklabels()]
    assert labels == ["vMF, beta 0.1 (5)", "noise (5)"]
    assert marks(few) == {-1.0: ("v", True, 0), 0.1: ("o", False, 1)}
    assert marks(many) == {1.0: ("^", True, 0)}
    assert few.get_lines()[1].get_xdata().tolist() == [-1.5, -0.5]
    long = dict(method="CCA anchor + noise", against="CLIP, CCA start + noise")
    (axis,) = method_forest(table.tail(1).assign(**long))
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["CCA anchor vs CCA start, with noise (5)"]


def test_the_summary_has_photos_above_glyphs_and_fills_what_leaves_zero_out():
    table = [("Flickr8k", "CCA anchor", "zero-shot", 1.0, 0.5, 1.5, "gain")]
    table += [("Flickr8k", "CLIP, two captions", "zero-shot", 0.1, -1, 1.2, "not significant")]
    table += [("glyphs", "CLIP + cosine", "zero-shot", -1, -2, -0.5, "loss")]
    kinds = ["the anchor, over the CCA start", "best other control", "best other control"]
    photos, glyphs = summary_figure(pd.DataFrame(table, columns=COLUMNS).assign(kind=kinds))
    labels = [axis.get_yticklabels()[0].get_text() for axis in (photos, glyphs)]
    assert labels == ["photos, all pairs\n(two captions)", "glyphs\n(cosine)"]
    anchor, control = (STYLES[kind][1] for kind in kinds[:2])
    (first, second), (third,) = marks(photos).items(), marks(glyphs).items()
    assert first == (1.0, (anchor, True, pytest.approx(0, abs=0.4)))
    assert second == (0.1, (control, False, pytest.approx(0, abs=0.4)))
    assert third == (-1, (control, True, pytest.approx(0, abs=0.4)))
