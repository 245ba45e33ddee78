"""The study's suites and the published scores."""

import pandas as pd
import pytest

from cibr.evaluate import SUITES
from cibr_book.experiments.tables import RESULTS


def test_published_scores_are_of_the_papers_sets():
    known = pd.read_csv(RESULTS / "published.csv")
    sets = {task.dataset for suite in ("paper", "paper-extras") for task in SUITES[suite]}
    assert set(known["dataset"]) == sets and known["value"].between(1, 100).all()


@pytest.mark.parametrize("suite", ["paper", "mini", "glyphs", "glyphs-validation"])
def test_a_mean_is_over_seven_zero_shot_sets(suite):
    of_captions = {"glyphs", "flickr8k", "flickr30k", "mscoco_captions"}
    assert len({t.group or t.title for t in SUITES[suite] if t.dataset not in of_captions}) == 7
