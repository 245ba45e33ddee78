"""Figures show the numbers they are given, right and wrong in their colours."""

import torch
from helpers import picture
from matplotlib.colors import to_hex
from PIL import Image

from cibr_book.pages import plots
from cibr_book.pages.plots import GREY, RIGHT, WRONG


def colour(artist):
    return to_hex(artist.get_color()).upper()


def test_a_gallery_marks_right_and_wrong_and_gives_the_rank_of_the_right_one():
    texts = ["a", "b costs $1 or $2", "c", "d"]
    similarity = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.4, 0.25, 0.3, 0.2]])
    captions = [["a", "c", "d"], ["b costs $1 or $2"]]
    images = [picture(0), picture(1)]
    axes = plots.retrieval_gallery(images, captions, texts, similarity, n_shown=2)
    lines = [[(text.get_text(), colour(text)) for text in axis.texts] for axis in axes]
    assert lines[0] == [("✓ a", RIGHT), ("✓ c", RIGHT)]
    assert lines[1] == [("✗ a", WRONG), ("✗ c", WRONG), ("rank 3: b costs $1 or $2", GREY)]
    axes[0].figure.canvas.draw()


def test_a_search_shows_the_nearest_first_and_ties_in_order():
    similarity = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.4, 0.9, 0.4, 0.8]])
    queries = ["a", "costs $1 or $2"]
    axes = plots.search_gallery(queries, similarity, lambda i: Image.new("L", (4, 4), i), 3)
    shown = [int(axis.images[0].get_array()[0, 0, 0]) for axis in axes]
    assert shown == [1, 2, 3, 1, 3, 0]
    assert [axes[i].get_title("left") for i in (0, 3)] == queries
    axes[0].figure.canvas.draw()


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
