"""Figures return Axes that show what they claim."""

import matplotlib
import pandas as pd
import pytest
import torch
from conftest import picture

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex, to_rgb

from cibr import plots


@pytest.fixture(autouse=True)
def figures_are_closed():
    with plt.rc_context():
        yield
    plt.close("all")


def history(**columns):
    return pd.DataFrame(
        {"epoch": [1, 2], "clip_loss": [3.0, 2.0], "penalty_excess": [2.0, 1.0], "beta": [0.0, 0.05]} | columns
    )


def test_training_curves_show_loss_penalty_and_recall_in_percent():
    recalls = {f"{s}_recall@{k}": [0.1, 0.2] for s in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    loss, penalty, recall = plots.training_curves(history(**recalls))
    assert loss.lines[0].get_ydata().tolist() == [3.0, 2.0]
    assert penalty.lines[0].get_ydata().tolist() == [2.0, 1.0]
    assert [line.get_label() for line in recall.lines] == [
        "image to text, k=1", "text to image, k=1", "image to text, k=10", "text to image, k=10",
    ]  # fmt: skip
    assert recall.lines[0].get_ydata().tolist() == pytest.approx([10, 20])
    loss.figure.canvas.draw()


def test_training_curves_of_a_run_without_validation_warn_of_nothing():
    *_, recall = plots.training_curves(history())
    assert not recall.lines and recall.get_legend() is None


def test_an_image_grid_shows_every_picture_under_its_title_as_it_is_written():
    titles = ["costs $5 or $6", "b_c^", "$\\bad{$", "d"]
    axes = plots.image_grid([picture(i) for i in range(4)], titles, n_columns=3)
    assert [axis.get_title() for axis in axes] == titles and all(len(axis.images) == 1 for axis in axes)
    axes[0].figure.canvas.draw()
    assert len(plots.image_grid([picture(0).convert("L")])) == 1


def shown(axis):
    """The lines of a gallery's text Axes, with their colours."""
    return [(text.get_text(), to_hex(text.get_color()).upper()) for text in axis.texts]


def test_a_gallery_marks_right_and_wrong_and_gives_the_rank_of_the_right_one():
    texts = ["a", "b costs $1 or $2", "c", "d"]
    similarity = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.4, 0.1, 0.3, 0.2]])
    captions = [["a", "c"], ["b costs $1 or $2"]]
    first, second = plots.retrieval_gallery([picture(0), picture(1)], captions, texts, similarity, n_shown=2)
    assert shown(first) == [("✓ a", plots.GREEN), ("✓ c", plots.GREEN)]
    assert shown(second) == [
        ("✗ a", plots.RED), ("✗ c", plots.RED), ("rank 4: b costs $1 or $2", plots.GREY),
    ]  # fmt: skip
    first.figure.canvas.draw()


def test_a_gallery_refuses_a_picture_whose_captions_are_no_candidates():
    with pytest.raises(ValueError, match="none of the captions of picture 0 is among the texts: add 'z'"):
        plots.retrieval_gallery([picture(0)], [["z"]], ["a"], torch.ones(1, 1))


@pytest.mark.parametrize(("n_hits", "n_right"), [(20, 4), (2, 2), (39, 7), (0, 0), (40, 8)])
def test_a_gallery_gets_as_many_hits_as_misses_where_there_are_enough(n_hits, n_right):
    hits = torch.arange(40) < n_hits
    chosen = plots.pick_right_and_wrong(hits, 8)
    assert len(set(chosen.tolist())) == 8 and int(hits[chosen].sum()) == n_right
    assert torch.equal(chosen, plots.pick_right_and_wrong(hits, 8))


def test_long_texts_are_shortened_and_short_ones_are_not():
    assert plots.shorten("abc", 3) == "abc" and plots.shorten("abc d", 4) == "abc…"
    assert plots.wrap("one two three four five six seven eight", 9).count("\n") == 2


def test_the_style_is_the_books():
    plots.set_style()
    assert plt.rcParams["axes.prop_cycle"].by_key()["color"][0] == to_rgb(plots.BLUE)
    assert plt.rcParams["figure.facecolor"] == "white"
