"""Figures show the numbers they are given, right and wrong in their colours."""

import pandas as pd
import torch
from helpers import picture
from matplotlib.colors import to_hex
from PIL import Image

from cibr_book.pages import plots
from cibr_book.pages.plots import BLUE, GREEN, GREY, RED, RIGHT, WRONG

PHONE = 330  # px that a telephone leaves for a figure


def colour(artist):
    return to_hex(artist.get_color()).upper()


def test_a_gallery_marks_right_and_wrong_and_gives_the_rank_of_the_right_one():
    texts = ["a", "b costs $1 or $2", "c", "d"]
    similarity = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.4, 0.25, 0.3, 0.2]])
    captions = [["a", "c"], ["b costs $1 or $2"]]
    images = [picture(0), picture(1)]
    axes = plots.retrieval_gallery(images, captions, texts, similarity, n_shown=2)
    lines = [[(text.get_text(), colour(text)) for text in axis.texts] for axis in axes]
    assert lines[0] == [("✓ a", RIGHT), ("✓ c", RIGHT)]
    assert lines[1] == [("✗ a", WRONG), ("✗ c", WRONG), ("rank 3: b costs $1 or $2", GREY)]
    axes[0].figure.canvas.draw()


def test_a_search_frames_the_right_image_and_adds_it_where_it_is_missing():
    def load(i):
        return Image.new("L", (4, 4), i)  # the grey is the number

    def greys_and_frames(axes):
        spines = [axis.spines["left"] for axis in axes]
        frames = [to_hex(s.get_edgecolor()).upper() if s.get_visible() else None for s in spines]
        return [int(axis.images[0].get_array()[0, 0, 0]) for axis in axes], frames

    similarity = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.4, 0.9, 0.4, 0.8]])
    queries = ["a", "costs $1 or $2"]
    axes = plots.search_gallery(queries, similarity, load, torch.tensor([2, 0]), n_shown=2)
    assert greys_and_frames(axes) == ([1, 2, 1, 3, 0], [None, GREEN, None, None, GREY])
    assert [axes[i].get_title("left") for i in (0, 2)] == queries
    assert axes[-1].get_title() == "rank 4"  # of two that tie, the right one comes last
    assert all(axis.axison for axis in axes)
    axes[0].figure.canvas.draw()
    assert greys_and_frames(plots.search_gallery(["a"], similarity[:1], load))[1] == [None] * 4


SUITE = pd.DataFrame(
    [
        ("cats", "accuracy@1", 0.02, 0.01, 0.03),
        ("cats", "accuracy@5", 0.5, 0.4, 0.6),
        ("pacs-photo", "accuracy@1", -0.04, -0.06, -0.02),
        ("dogs", "accuracy@1", 0.01, -0.01, 0.03),
        ("flickr8k", "image_to_text_recall@1", 0.03, 0.02, 0.04),
        ("glyphs", "text_to_image_label_recall@1", -0.01, -0.02, 0.01),
        ("pacs", "accuracy@1", -0.02, -0.03, -0.01),
        ("mean of 3", "accuracy@1", 0.003, -0.01, 0.01),
    ],
    columns=["dataset", "metric", "difference", "low", "high"],
)
LABELS = ["zero-shot accuracy", "cats", "dogs", "pacs", "· pacs-photo"]
LABELS += ["mean, each set counts once", "mean of 3"]
LABELS += ["recall@1, image → text", "flickr8k", "recall@1, text → image", "glyphs"]


def test_a_forest_draws_every_main_score_with_its_interval_and_the_mean_apart():
    axis = plots.forest(SUITE, "plain", "new")
    assert [label.get_text() for label in axis.get_yticklabels()] == LABELS
    places = axis.get_yticks()
    labels = dict(zip(places, LABELS, strict=True))
    shown = {}
    for bar, point in zip(axis.lines[1::2], axis.lines[2::2], strict=True):  # after zero's line
        assert bar.get_ydata().tolist() == [point.get_ydata()[0]] * 2
        numbers = [*bar.get_xdata(), *point.get_xdata()]
        label = labels[point.get_ydata()[0]]
        shown[label] = ([round(x, 6) for x in numbers], colour(bar), point.get_marker())
    assert shown["cats"] == ([1, 3, 2], BLUE, "o") and len(shown) == 7
    assert shown["· pacs-photo"][1] == RED and shown["dogs"][1] == GREY
    assert shown["mean of 3"] == ([-1, 1, 0.3], GREY, "D")
    assert places[5] - places[4] > places[4] - places[3]  # the mean stands apart
    bold = [label for label in axis.get_yticklabels() if label.get_fontweight() == "bold"]
    assert [label.get_text() for label in bold] == [LABELS[i] for i in (0, 5, 7, 9)]
    assert axis.get_xlim()[0] == -axis.get_xlim()[1] <= -6
    assert axis.get_xlabel() == "new minus plain, percentage points"
    assert axis.get_title() == "← plain better    new better →"


def test_the_text_of_a_forest_is_readable_on_a_telephone():
    plots.set_style()
    axis = plots.forest(SUITE)
    axis.figure.canvas.draw()
    labels = axis.get_yticklabels() + axis.get_xticklabels()
    shrunk = PHONE / (axis.figure.get_figwidth() * 72)
    assert min(label.get_fontsize() for label in labels) * shrunk >= 9  # px
    assert all(label.get_window_extent().x0 >= 0 for label in labels)


def test_a_gallery_gets_as_many_of_each_group_as_there_are():
    groups = torch.tensor([5] * 40 + [7, 7, 9, 9])
    for n, counts in ((6, [2, 2, 2]), (9, [5, 2, 2]), (99, [40, 2, 2])):
        chosen = plots.pick_evenly(groups, n)
        assert groups[chosen].unique_consecutive(return_counts=True)[1].tolist() == counts
        assert chosen.unique().numel() == chosen.numel()
        assert chosen.tolist() == plots.pick_evenly(groups, n).tolist()


def test_long_texts_are_shortened_and_short_ones_are_not():
    assert plots.shorten("abc", 3) == "abc" and plots.shorten("ab de", 4) == "ab…"
    assert plots.wrap("one two three four five six seven eight", 9).count("\n") == 2
