"""Training curves and grids of images show what they are given."""

import pandas as pd
import pytest
from helpers import picture

from cibr_book.pages.overviews import image_grid, training_curves


@pytest.mark.parametrize("name", ["recall", "label_recall"])
def test_training_curves_show_loss_penalty_excess_and_recall_and_not_the_loss_with_its_floor(name):
    history = pd.DataFrame({"epoch": [1, 2], "clip_loss": [3.0, 2.0], "loss": [3.5, 7.5]})
    history = history.assign(penalty_excess=[2.0, 1.0], beta=[0.0, 0.05])
    *_, empty = training_curves(history)  # a run without validation
    sides = ("image_to_text", "text_to_image")
    recalls = {f"{side}_{name}@{k}": [0.1, 0.2] for side in sides for k in (1, 5, 10)}
    loss, excess, recall = training_curves(history.assign(**recalls))
    assert [line.get_ydata().tolist() for line in (*loss.lines, *excess.lines)] == [[3, 2], [2, 1]]
    labels = [f"{side.replace('_', ' ')}, k={k}" for k in (1, 10) for side in sides]
    assert [line.get_label() for line in recall.lines] == labels
    assert recall.lines[0].get_ydata().tolist() == pytest.approx([10, 20]) and not empty.lines


def test_an_image_grid_shows_every_image_under_its_title_as_it_is_written():
    titles = ["costs $5 or $6", "b_c^", "$\\bad{$", "d"]
    axes = image_grid([picture(i) for i in range(4)], titles, n_columns=3)
    assert [(axis.get_title(), len(axis.images)) for axis in axes] == [(t, 1) for t in titles]
    axes[0].figure.canvas.draw()
