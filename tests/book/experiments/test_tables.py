"""The tables as chapters read them: tuned methods and paired differences."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cibr_book.experiments import tables
from cibr_book.experiments.tables import KEY, chosen, differences, read_table


@pytest.fixture
def rows():
    """Three seeds of CLIP at two temperatures, and three of a penalty, of which CLIP has two."""
    table = [("CLIP", "temperature 0.1", seed, 30 + seed, 50 + seed) for seed in (1, 2, 3)]
    table += [("CLIP", "temperature 0.2", seed, 20, 90) for seed in (1, 2, 3)]
    table += [("ours", "", seed, 30, 53 + seed**2) for seed in (2, 3, 4)]
    names = ["method", "hyperparameters", "seed", "validation", "zero-shot"]
    return pd.DataFrame(table, columns=names).assign(condition="toys", beta=0.0)


def test_the_settings_of_each_method_are_those_that_are_best_on_validation(rows):
    better = rows[rows["method"] == "ours"].assign(beta=0.1, validation=31)
    best = chosen(pd.concat([rows, better], ignore_index=True))
    assert best.index.tolist() == [0, 1, 2, 9, 10, 11]
    assert set(zip(best["method"], best["beta"], best["hyperparameters"], strict=True)) == {
        ("CLIP", 0.0, "temperature 0.1"),
        ("ours", 0.1, ""),
    }


def test_differences_pair_seeds_and_give_students_interval_and_test(rows):
    first = rows[rows["method"] == "ours"].head(1).assign(seed=1, **{"zero-shot": 54.5})
    alone = first.assign(condition="without CLIP")
    table = differences(pd.concat([rows, first, alone]), ["zero-shot"])
    assert len(table) == 2 and set(table["condition"]) == {"toys"}
    table = table.set_index("hyperparameters")
    by_seed = [54.5 - 51, 57 - 52, 62 - 53]  # CLIP has no seed 4
    test = stats.ttest_1samp(by_seed, 0)
    ours = table.loc[""]
    names = ["control", "value", "difference", "low", "high", "n_seeds", "p_value"]
    expected = [52, (54.5 + 57 + 62) / 3, np.mean(by_seed), *test.confidence_interval(0.95), 3]
    assert ours[names].tolist() == pytest.approx([*expected, test.pvalue])
    assert table.loc["temperature 0.2", "high"] < table.loc["temperature 0.2", "control"]


def test_a_difference_as_text_has_two_decimals(rows):
    table = tables.in_points(differences(rows, ["zero-shot"]), KEY)["zero-shot"]
    assert table.iloc[0] == "+38.00 [+35.52, +40.48]"


def test_scores_of_a_table_are_means_in_per_cent_of_test_and_validation_columns(tmp_path):
    row = {"run": "0012", "commit": "12", "configuration": '{"dropout": 0.3, "beta": 1}'}
    row |= {"mini/mean of 7/accuracy@1": 0.5, "mini/dtd10/accuracy@1": 0.9}
    row |= {
        "mini/flickr8k/image_to_text_recall@1": 0.1,
        "mini/flickr8k/text_to_image_recall@10": 0.3,
    }
    row |= {
        "mini/flickr8k/text_to_image_recall@2": 0.9,
        "confirmation/coco/text_to_image_recall@1": 0.9,
    }
    row |= {
        "validation_image_to_text_recall@5": 0.6,
        "validation_text_to_image_label_recall@1": 0.8,
    }
    pd.DataFrame([row | {"validation_recall@1": 0.1}]).to_csv(tmp_path / "rows.csv", index=False)
    found = read_table(tmp_path / "rows.csv").iloc[0]
    assert found[["zero-shot", "recall", "validation"]].tolist() == pytest.approx([50, 20, 70])
    assert found[["run", "commit", "hyperparameters"]].tolist() == ["0012", "12", "dropout 0.3"]
