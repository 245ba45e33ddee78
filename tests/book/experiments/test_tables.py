"""The tables as chapters read them: tuned methods and paired differences."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cibr_book.experiments.tables import differences, in_points, read_table


def test_differences_are_from_the_best_clip_of_the_condition_paired_by_seed():
    # Three seeds of CLIP at two temperatures, and three of a penalty, of which CLIP has two.
    table = [("CLIP", "temperature 0.1", seed, 30 + seed, 50 + seed) for seed in (1, 2, 3)]
    table += [("CLIP", "temperature 0.2", seed, (40, 20, 20)[seed - 1], 90) for seed in (1, 2, 3)]
    table += [("ours", "", seed, 30, 53 + seed**2) for seed in (2, 3, 4)]
    names = ["method", "hyperparameters", "seed", "validation", "zero-shot"]
    rows = pd.DataFrame(table, columns=names).assign(condition="toys", beta=0.0)
    alone = rows[rows["method"] == "ours"].assign(condition="without CLIP")
    other = rows.assign(condition="other", validation=-rows["validation"])
    table = differences(pd.concat([rows, alone, other], ignore_index=True), ["zero-shot"])
    assert table["condition"].tolist() == ["toys", "toys", "other", "other"]
    assert table["hyperparameters"].tolist() == ["temperature 0.2", "", "temperature 0.1", ""]
    by_seed = [57 - 52, 62 - 53]  # CLIP has no seed 4
    ours = table.iloc[1]
    interval = stats.ttest_1samp(by_seed, 0).confidence_interval(0.95)
    found = ours[["difference", "low", "high", "n_seeds"]].tolist()
    assert found == pytest.approx([np.mean(by_seed), *interval, 2])
    text = in_points(table.iloc[:1], ["hyperparameters"]).loc["temperature 0.2", "zero-shot"]
    assert text == "+38.00 [+35.52, +40.48]"


def test_scores_of_a_table_are_means_in_per_cent_of_test_and_validation_columns(tmp_path):
    settings = '{"learning_rate": 0.3, "beta": 1, "corruption": {"fraction": 0.5}}'
    row = {"run": "0012", "commit": "12", "configuration": settings}
    scores = """mini/mean of 7/accuracy@1 0.5
        mini/dtd10/accuracy@1 0.9
        mini/flickr8k/image_to_text_recall@1 0.1
        mini/flickr8k/text_to_image_recall@10 0.3
        mini/flickr8k/text_to_image_recall@2 0.9
        confirmation/coco/text_to_image_recall@1 0.9
        validation_image_to_text_recall@5 0.6
        validation_text_to_image_label_recall@1 0.8
        validation_recall@1 0.1"""
    row |= dict(line.strip().rsplit(" ", 1) for line in scores.splitlines())
    pd.DataFrame([row]).to_csv(tmp_path / "rows.csv", index=False)
    found = read_table(tmp_path / "rows.csv").iloc[0]
    assert found[["zero-shot", "recall", "validation"]].tolist() == pytest.approx([50, 20, 70])
    words = found[["run", "commit", "hyperparameters"]].tolist()
    assert words == ["0012", "12", "learning rate 0.3"]
