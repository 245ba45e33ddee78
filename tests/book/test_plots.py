"""Figures show the numbers they are given, right and wrong in their colours."""

import matplotlib
import pandas as pd
import pytest
import torch
from helpers import picture

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from cibr.plots import image_grid, training_curves
from cibr_book import plots

PHONE = 330  # px that a telephone leaves for a figure
DIRECTIONS = ("image_to_text", "text_to_image")


@pytest.fixture(autouse=True)
def figures_are_closed():
    with plt.rc_context():
        yield
    plt.close("all")


def history(**columns):
    given = {
        "epoch": [1, 2],
        "clip_loss": [3.0, 2.0],
        "penalty_excess": [2.0, 1.0],
        "loss": [3.5, 7.5],
    }
    return pd.DataFrame(given | {"beta": [0.0, 0.05]} | columns)


@pytest.mark.parametrize("name", ["recall", "label_recall"])
def test_training_curves_show_clip_loss_penalty_excess_and_recall_and_never_the_loss_with_its_floor(
    name,
):
    recalls = {f"{side}_{name}@{k}": [0.1, 0.2] for side in DIRECTIONS for k in (1, 5, 10)}
    loss, penalty, recall = training_curves(history(**recalls))
    assert loss.lines[0].get_ydata().tolist() == [3.0, 2.0] and len(loss.lines) == 1
    assert penalty.lines[0].get_ydata().tolist() == [2.0, 1.0]
    labels = [f"{side.replace('_', ' ')}, k={k}" for k in (1, 10) for side in DIRECTIONS]
    assert [line.get_label() for line in recall.lines] == labels
    assert recall.lines[0].get_ydata().tolist() == pytest.approx([10, 20])
    *_, empty = training_curves(history())  # a run without validation
    assert not empty.lines and empty.get_legend() is None


def test_an_image_grid_shows_every_image_under_its_title_as_it_is_written():
    titles = ["costs $5 or $6", "b_c^", "$\\bad{$", "d"]
    axes = image_grid([picture(i) for i in range(4)], titles, n_columns=3)
    assert [axis.get_title() for axis in axes] == titles and all(
        len(axis.images) == 1 for axis in axes
    )
    axes[0].figure.canvas.draw()


def test_a_gallery_marks_right_and_wrong_and_gives_the_rank_of_the_right_one():
    texts = ["a", "b costs $1 or $2", "c", "d"]
    similarity = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.4, 0.1, 0.3, 0.2]])
    captions = [["a", "c"], ["b costs $1 or $2"]]
    first, second = plots.retrieval_gallery(
        [picture(0), picture(1)], captions, texts, similarity, n_shown=2
    )
    lines = [
        [(t.get_text(), to_hex(t.get_color()).upper()) for t in axis.texts]
        for axis in (first, second)
    ]
    assert lines[0] == [("✓ a", plots.GREEN), ("✓ c", plots.GREEN)]
    rank = ("rank 4: b costs $1 or $2", plots.GREY)
    assert lines[1] == [("✗ a", plots.RED), ("✗ c", plots.RED), rank]
    first.figure.canvas.draw()


def test_a_search_shows_the_first_images_frames_the_right_one_and_adds_it_where_it_is_missing():
    def greys_and_frames(axes):
        spines = [axis.spines["left"] for axis in axes]
        frames = [to_hex(s.get_edgecolor()).upper() if s.get_visible() else None for s in spines]
        return [int(axis.images[0].get_array()[0, 0, 0]) for axis in axes], frames

    def load(i):
        return Image.new("L", (4, 4), i)  # the grey is the number

    similarity = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.4, 0.9, 0.4, 0.8]])
    axes = plots.search_gallery(
        ["a", "costs $1 or $2"], similarity, load, torch.tensor([2, 0]), n_shown=2
    )
    assert greys_and_frames(axes) == ([1, 2, 1, 3, 0], [None, plots.GREEN, None, None, plots.GREY])
    assert axes[0].get_title("left") == "a" and axes[2].get_title("left") == "costs $1 or $2"
    assert axes[-1].get_title() == "rank 4"  # of two that tie, the right one comes last
    axes[0].figure.canvas.draw()
    assert len(plots.search_gallery(["a"], torch.tensor([[0.1, 0.9, 0.5]]), load)) == 3
    mixed = plots.search_gallery(["a", "b"], torch.eye(2), load, torch.tensor([-1, 1]), n_shown=1)
    assert greys_and_frames(mixed)[1] == [None, plots.GREEN]


SUITE = pd.DataFrame(
    [
        ("cats", "accuracy@1", 0.02, 0.01, 0.03),
        ("cats", "accuracy@5", 0.5, 0.4, 0.6),
        ("pacs-photo", "accuracy@1", -0.04, -0.06, -0.02),
        ("pacs-sketch", "accuracy@1", 0.0, -0.02, 0.02),
        ("dogs", "accuracy@1", 0.01, -0.01, 0.03),
        ("flickr8k", "image_to_text_recall@1", 0.03, 0.02, 0.04),
        ("flickr8k", "text_to_image_recall@1", -0.01, -0.02, 0.01),
        ("glyphs", "image_to_text_label_recall@1", 0.03, 0.02, 0.04),
        ("pacs", "accuracy@1", -0.02, -0.03, -0.01),
        ("mean of 3", "accuracy@1", 0.003, -0.01, 0.01),
    ],
    columns=["dataset", "metric", "difference", "low", "high"],
)
LABELS = [
    "zero-shot accuracy", "cats", "dogs", "pacs", "· pacs-photo", "· pacs-sketch", plots.MEAN, "mean of 3",
    "recall@1, image → text", "flickr8k", "glyphs", "recall@1, text → image", "flickr8k",
]  # fmt: skip


def test_a_forest_draws_every_main_score_with_its_interval_and_the_mean_apart():
    axis = plots.forest(SUITE, "plain", "new")
    assert [label.get_text() for label in axis.get_yticklabels()] == LABELS
    labels = dict(zip(axis.get_yticks(), LABELS, strict=True))
    found = {}
    for bar, point in zip(
        axis.lines[1::2], axis.lines[2::2], strict=True
    ):  # the first line is zero
        values = pytest.approx((*bar.get_xdata(), *point.get_xdata()))
        found[labels[bar.get_ydata()[0]]] = (
            values,
            to_hex(bar.get_color()).upper(),
            point.get_marker(),
        )
    assert found["cats"] == ((1, 3, 2), plots.BLUE, "o")
    assert found["· pacs-photo"][1] == plots.RED and found["dogs"][1] == plots.GREY
    assert found["mean of 3"][2] == "D" and len(axis.lines) == 1 + 2 * 9
    places = axis.get_yticks()
    assert places[6] - places[5] > places[5] - places[4]  # the mean stands apart
    bold = [
        label.get_text() for label in axis.get_yticklabels() if label.get_fontweight() == "bold"
    ]
    assert bold == [LABELS[i] for i in (0, 6, 8, 11)]
    assert axis.get_xlim()[0] == -axis.get_xlim()[1] <= -6
    assert axis.get_xlabel() == "new minus plain, percentage points"
    assert axis.get_title() == "← plain better    new better →"


def test_the_text_of_a_forest_is_readable_on_a_telephone():
    plots.set_style()
    axis = plots.forest(SUITE)
    axis.figure.canvas.draw()
    shrunk = PHONE / (axis.figure.get_figwidth() * 72)
    sizes = [
        label.get_fontsize() * shrunk for label in axis.get_yticklabels() + axis.get_xticklabels()
    ]
    assert min(sizes) >= 9  # px
    assert all(label.get_window_extent().x0 >= 0 for label in axis.get_yticklabels())
    assert plt.rcParams["axes.prop_cycle"].by_key()["color"][0] == to_rgb(plots.BLUE)


@pytest.mark.parametrize(("n", "counts"), [(6, [2, 2, 2]), (9, [5, 2, 2]), (99, [40, 2, 2])])
def test_a_gallery_gets_as_many_of_each_group_as_there_are(n, counts):
    groups = torch.tensor([5] * 40 + [7, 7, 9, 9])
    chosen = plots.pick_evenly(groups, n)
    assert groups[chosen].unique_consecutive(return_counts=True)[1].tolist() == counts
    assert len(set(chosen.tolist())) == len(chosen) and torch.equal(
        chosen, plots.pick_evenly(groups, n)
    )
    assert plots.pick_evenly(groups == 5, 4).shape == (4,)


def test_long_texts_are_shortened_and_short_ones_are_not():
    assert plots.shorten("abc", 3) == "abc" and plots.shorten("abc d", 4) == "abc…"
    assert plots.wrap("one two three four five six seven eight", 9).count("\n") == 2
