"""Figures of evaluations show the numbers they are given, right and wrong in their colours."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import picture

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex

from cibr import plots
from cibr import plots_evaluation as figures

PHONE = 330  # px that a telephone leaves for a figure


@pytest.fixture(autouse=True)
def figures_are_closed():
    with plt.rc_context():
        yield
    plt.close("all")


def differences(*rows):
    columns = ["dataset", "kind", "metric", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


SUITE = differences(
    ("cats", "zero-shot", "accuracy@1", 0.02, 0.01, 0.03),
    ("cats", "zero-shot", "accuracy@5", 0.5, 0.4, 0.6),
    ("pacs-photo", "zero-shot", "accuracy@1", -0.04, -0.06, -0.02),
    ("pacs-sketch", "zero-shot", "accuracy@1", 0.0, -0.02, 0.02),
    ("dogs", "zero-shot", "accuracy@1", 0.01, -0.01, 0.03),
    ("flickr8k", "retrieval", "image_to_text_recall@1", 0.03, 0.02, 0.04),
    ("flickr8k", "retrieval", "text_to_image_recall@1", -0.01, -0.02, 0.01),
    ("pacs", "zero-shot", "accuracy@1", -0.02, -0.03, -0.01),
    ("mean of 3", "zero-shot", "accuracy@1", 0.003, -0.01, 0.01),
)


def drawn(axis):
    """The lines of a forest by label: ends of the interval, the point, the colour and the marker."""
    labels = {
        place: label.get_text() for place, label in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)
    }
    found = {}
    intervals = axis.lines[1:]  # the first is zero
    for bar, point in zip(intervals[0::2], intervals[1::2], strict=True):
        ends, place = bar.get_xdata(), bar.get_ydata()[0]
        found[labels[place]] = (*ends, point.get_xdata()[0], to_hex(bar.get_color()).upper(), point.get_marker())
    return found


def test_a_forest_draws_every_main_score_with_its_interval_and_the_mean_apart():
    axis = figures.forest(SUITE)
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == [
        "zero-shot accuracy", "cats", "dogs", "pacs", "· pacs-photo", "· pacs-sketch",
        "mean, each set counts once", "mean of 3",
        "recall@1, image → text", "flickr8k", "recall@1, text → image", "flickr8k",
    ]  # fmt: skip
    found = drawn(axis)
    assert found["cats"] == (pytest.approx(1), pytest.approx(3), pytest.approx(2), plots.BLUE, "o")
    assert found["· pacs-photo"][3] == plots.RED and found["dogs"][3] == plots.GREY
    assert found["mean of 3"][-1] == "D"
    assert len(axis.lines) == 1 + 2 * 8
    places = axis.get_yticks()
    assert places[6] - places[5] > places[5] - places[4]  # the mean stands apart
    bold = [label.get_fontweight() == "bold" for label in axis.get_yticklabels()]
    assert [text for text, heading in zip(labels, bold, strict=True) if heading] == [
        labels[i] for i in (0, 6, 8, 10)
    ]


def test_zero_is_a_line_in_the_middle_of_a_forest_and_both_sides_are_named():
    axis = figures.forest(SUITE, "plain", "new")
    assert axis.lines[0].get_xdata() == [0, 0]
    assert axis.get_xlim()[0] == -axis.get_xlim()[1] <= -6
    assert axis.get_xlabel() == "new minus plain, percentage points"
    assert "plain better" in axis.get_title() and "new better" in axis.get_title()


def test_the_text_of_a_forest_is_readable_on_a_telephone():
    plots.set_style()
    axis = figures.forest(SUITE)
    axis.figure.canvas.draw()
    shrunk = PHONE / (axis.figure.get_figwidth() * 72)
    sizes = [label.get_fontsize() * shrunk for label in axis.get_yticklabels() + axis.get_xticklabels()]
    assert min(sizes) >= 9  # px
    inside = axis.figure.bbox
    assert all(inside.x0 <= label.get_window_extent().x0 for label in axis.get_yticklabels())


def test_a_forest_of_one_kind_has_its_heading_alone_and_one_of_no_known_score_is_refused():
    labels = [label.get_text() for label in figures.forest(SUITE[SUITE["kind"] == "retrieval"]).get_yticklabels()]
    assert labels == ["recall@1, image → text", "flickr8k", "recall@1, text → image", "flickr8k"]
    with pytest.raises(ValueError, match="none of the rows is one of accuracy@1"):
        figures.forest(SUITE[SUITE["metric"] == "accuracy@5"])


def test_confusions_are_shares_of_each_class_that_has_a_picture():
    labels = torch.tensor([0, 0, 0, 0, 2, 2])
    predicted = {"a": torch.tensor([0, 0, 0, 1, 2, 2]), "b": torch.tensor([1, 1, 1, 1, 0, 2])}
    a, b = figures.confusion_matrices(labels, predicted, ["cat", "dog", "sea $lion"])
    assert [a.get_title(), b.get_title()] == ["a", "b"]
    values = [np.asarray(axis.collections[0].get_array()) for axis in (a, b)]
    assert values[0].tolist() == [[75, 25, 0], [0, 0, 100]] and values[1].tolist() == [[0, 100, 0], [50, 0, 50]]
    assert [text.get_text() for text in a.texts] == ["75", "25", "", "", "", "100"]
    assert [t.get_text() for t in a.get_yticklabels()] == ["cat", "sea $lion"]
    assert [t.get_text() for t in b.get_xticklabels()] == ["cat", "dog", "sea $lion"] and not b.get_yticklabels()
    a.figure.canvas.draw()
    (axis,) = figures.confusion_matrices(
        labels, {"a": labels}, ["digit one sign", "digit two sign", "digit ten sign"]
    )
    assert [t.get_text() for t in axis.get_xticklabels()] == ["one", "two", "ten"]


def test_confusions_of_many_classes_have_no_numbers_and_no_names():
    labels = torch.arange(40)
    (axis,) = figures.confusion_matrices(labels, {"a": labels}, [str(i) for i in range(40)])
    assert not axis.texts and not axis.get_xticklabels() and not axis.get_yticklabels()


@pytest.mark.parametrize(("n", "counts"), [(6, [2, 2, 2]), (9, [5, 2, 2]), (99, [40, 2, 2])])
def test_a_gallery_gets_as_many_of_each_group_as_there_are(n, counts):
    groups = torch.tensor([5] * 40 + [7, 7, 9, 9])
    chosen = figures.pick_evenly(groups, n)
    assert groups[chosen].tolist() == sorted(groups[chosen].tolist())
    assert [int((groups[chosen] == group).sum()) for group in (5, 7, 9)] == counts
    assert len(set(chosen.tolist())) == len(chosen) and torch.equal(chosen, figures.pick_evenly(groups, n))


def lines_of(axis):
    return [(text.get_text(), to_hex(text.get_color()).upper()) for text in axis.texts]


def test_a_prediction_gallery_names_the_class_and_marks_each_models_answer():
    predicted = {"CLIP": torch.tensor([0, 1]), "CIBR": torch.tensor([1, 1])}
    axes = figures.prediction_gallery([picture(0), picture(1)], torch.tensor([0, 1]), predicted, ["cat", "$dog"])
    assert lines_of(axes[0]) == [("cat", "#000000"), ("✓ CLIP: cat", plots.GREEN), ("✗ CIBR: $dog", plots.RED)]
    assert lines_of(axes[1]) == [("$dog", "#000000"), ("✓ CLIP: $dog", plots.GREEN), ("✓ CIBR: $dog", plots.GREEN)]
    axes[0].figure.canvas.draw()


def frame(axis):
    spine = axis.spines["left"]
    return to_hex(spine.get_edgecolor()).upper() if spine.get_visible() else None


def shown(axes):
    """The greys of the pictures, which are their numbers."""
    return [int(axis.images[0].get_array()[0, 0, 0]) for axis in axes]


def numbered(i):
    return plots.Image.new("L", (4, 4), i)


def test_a_search_shows_the_first_pictures_in_order_frames_the_right_one_and_adds_it_where_it_is_missing():
    similarity = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.4, 0.9, 0.4, 0.8]])
    axes = figures.search_gallery(["a", "costs $1 or $2"], similarity, numbered, torch.tensor([2, 0]), n_shown=2)
    assert shown(axes) == [1, 2, 1, 3, 0]
    assert [frame(axis) for axis in axes] == [None, plots.GREEN, None, None, plots.GREY]
    assert axes[0].get_title("left") == "a" and axes[2].get_title("left") == "costs $1 or $2"
    assert axes[-1].get_title() == "rank 4"  # of two that tie, the right one comes last
    axes[0].figure.canvas.draw()


def test_a_search_without_a_known_answer_frames_nothing():
    axes = figures.search_gallery(["a"], torch.tensor([[0.1, 0.9, 0.5]]), numbered)
    assert shown(axes) == [1, 2, 0] and [frame(axis) for axis in axes] == [None] * 3
    mixed = figures.search_gallery(["a", "b"], torch.eye(2), numbered, torch.tensor([-1, 1]), n_shown=1)
    assert [frame(axis) for axis in mixed] == [None, plots.GREEN]
