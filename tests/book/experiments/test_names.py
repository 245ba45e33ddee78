"""What Evidence says of the start that knows names, from the committed rows."""

import numpy as np
import pandas as pd
import pytest

from cibr.metrics import paired_difference
from cibr_book.experiments.names import (
    CLASS_SETS,
    CONTROLS,
    SIZES,
    chance,
    known_names,
    means_of,
    models_table,
    parts_table,
)
from cibr_book.experiments.tables import RESULTS

ROWS = pd.read_csv(RESULTS / "names.csv", dtype={"condition": str})
MEANS = means_of(ROWS)
COCO = ["coco search", "coco text retrieval"]


def test_means_are_those_of_the_rows_and_sets_count_equally():
    own = ROWS[(ROWS["condition"] == "600") & (ROWS["method"] == "fine-tuned")]
    assert len(own) == 14
    found = MEANS.loc["600", "fine-tuned"]
    assert found["coco search"] == pytest.approx(100 * own["coco search"].mean())
    accuracies = [100 * own[name].mean() for name in CLASS_SETS]
    assert found["zero-shot"] == pytest.approx(sum(accuracies) / 7)
    others = [x for x, name in zip(accuracies, CLASS_SETS, strict=True) if name != "imagenette"]
    assert found["zero-shot, other names"] == pytest.approx(sum(others) / 6)


@pytest.mark.parametrize("other", ["heads + CCA", "heads + CCA, ridges as committed"])
@pytest.mark.parametrize(("size", "asked"), [("150", 10), ("600", 10), ("3000", 5)])
def test_mscoco_and_zero_shot_pass_the_gate(size, asked, other):
    gain = MEANS.loc[size, "fine-tuned + CCA"] - MEANS.loc[size, other]
    assert (gain[COCO] >= asked).all() and gain["zero-shot"] >= 10


def test_mscoco_is_searched_better_in_every_draw():
    both = ROWS.pivot(index=["condition", "seed"], columns="method", values="coco search")
    assert (both["fine-tuned + CCA"] > both["heads + CCA"]).all() and len(both) == 40


def test_numbers_of_the_page():
    at_3000 = MEANS.loc["3000"]
    gain = at_3000.loc["fine-tuned + CCA"] - at_3000.loc["heads + CCA"]
    assert gain["zero-shot"].round(1) == 10.5 and gain["coco text retrieval"].round(1) == 5.7
    assert gain["flickr8k text retrieval"].round(1) == -2.1
    at_600 = MEANS.loc["600"]
    searched = at_600.loc[["fine-tuned + CCA", "fine-tuned"], "coco search"]
    assert searched.round(1).tolist() == [39.4, 43.0]
    clothing = at_600.loc[["fine-tuned", "fine-tuned + CCA"], "clothing10"]
    assert clothing.round(1).tolist() == [47.5, 40.2]
    assert chance().__round__(1) == 10.9
    zero_shot = at_600["zero-shot"]
    assert zero_shot["names without definitions, untrained"].round(1) == 55.5
    assert zero_shot["start"].round(1) == 52.9
    start = at_600.loc[["not centred, untrained", "start"], "coco text retrieval"]
    assert start.round(1).tolist() == [18.9, 29.6]


def test_after_3000_photos_no_model_has_all_that_was_asked():
    at_3000 = MEANS.loc["3000"]
    gains = at_3000.drop(index="heads + CCA") - at_3000.loc["heads + CCA"]
    gains = gains.loc[["fine-tuned + CCA", "fine-tuned + CCA + heads"]]
    shown = gains[["coco search", "coco text retrieval", "zero-shot"]].round(1)
    assert shown.to_numpy().tolist() == [[7.2, 5.7, 10.5], [5.4, 5.3, 8.5]]
    assert gains["zero-shot, other names"].round(1).iloc[0] == 8.4
    photos = np.load(RESULTS / "names_photos.npz")
    ends = []
    for method in gains.index:
        name = "flickr8k text retrieval"
        seeds = ROWS.loc[ROWS["condition"] == "3000", "seed"].unique()
        both = [
            np.stack([100.0 * photos[f"3000|{seed}|{of}|{name}"] for seed in seeds])
            for of in ("heads + CCA", method)
        ]
        ends.append(paired_difference(*both))
    assert np.round(ends[0], 1).tolist() == [-2.1, -2.9, -1.4]
    assert ends[1][1] < 0 < ends[1][2]


def test_what_cca_and_definitions_change():
    changes = {}
    for size in SIZES:
        of_size = MEANS.loc[size]
        changes[size] = of_size.loc["fine-tuned + CCA"] - of_size.loc["fine-tuned"]
        names_alone = of_size.loc["names without definitions"] - of_size.loc["fine-tuned"]
        without = names_alone[["flickr8k search", "flickr8k text retrieval", *COCO]]
        assert without.max() < 0.2
        assert size != "3000" or without.abs().max() < 0.5
    assert changes["600"][["intel-scenes", "rsscn7"]].round(1).tolist() == [3.8, 2.0]
    assert changes["150"][[*COCO]].round(1).tolist() == [-0.5, 1.1]
    start = MEANS.loc["600"].loc[["start", "names without definitions, untrained"]]
    before = start.diff().iloc[1]
    assert before[["flickr8k search", "coco search"]].round(1).tolist() == [-2.1, -2.9]
    assert before[["flickr8k text retrieval", "coco text retrieval"]].round(1).min() >= -0.1


def test_parts_and_controls_do_what_the_page_says():
    for size in SIZES:
        of_size = MEANS.loc[size]
        scores = of_size[["flickr8k search", "flickr8k text retrieval", *COCO, "zero-shot"]]
        own = scores.loc["fine-tuned"]
        assert (scores.loc["two maps trained"] - own).abs().max() < 0.5
        assert (scores.loc["two fine-tuned"] - own).max() < 0.65
        assert (own - scores.loc["names without definitions"]).max() < 2.05
        for control in CONTROLS:
            assert 15 <= own["zero-shot"] - of_size.loc[control, "zero-shot"] <= 34.3
            one = ROWS[ROWS["method"].eq(f"{control}, untrained") & ROWS["condition"].eq(size)]
            of_draws = 100 * one[[*CLASS_SETS]].mean(axis=1)
            assert abs(of_draws.mean() - chance()) <= 1.65 * of_draws.sem()


def test_tables_have_every_method_once():
    shown = models_table(ROWS).index.append(parts_table(ROWS).index)
    assert set(shown) == set(MEANS.index)


def test_only_imagenettes_names_are_mostly_imagenets():
    assert known_names()["imagenette"] == 1
    assert all(share < 0.5 for name, share in known_names().items() if name != "imagenette")
