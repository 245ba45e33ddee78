"""The world of the map with shortcuts: its runs, and what theory predicts of them."""

import itertools
import json

import pandas as pd
import pytest
import torch

from cibr_book.worlds import shortcuts
from cibr_book.worlds.map import draw_sample

CCA = {"pairs": 512, "shortcut": 0.9, "ridge": 0.1, "power": 1, "dim": 12}


def test_shortcuts_are_the_first_own_factors_and_change_no_image():
    kept, without = (draw_sample(64, 1.0, 3, shortcut) for shortcut in (0.9, 0.0))
    world = kept.world
    across = world.covariance[:64, 64:]
    factors = (world.mix_image.T @ across @ world.mix_text).diagonal()
    expected = torch.tensor([0.95] * 8 + [0.9] * 8 + [0.0] * 48, dtype=torch.float64)
    torch.testing.assert_close(factors, expected)
    assert torch.equal(kept.test[0], without.test[0])
    assert not torch.equal(kept.test[1], without.test[1])


def test_a_run_measures_each_shift_and_the_mean_of_its_draws():
    found = [shortcuts.train_and_measure(CCA | {"seed": seed}, "") for seed in (1, 2, [1, 2])]
    for name, value in found[2].items():
        assert value == pytest.approx((found[0][name] + found[1][name]) / 2, abs=1e-6)
    for measure in ("validation_recall@1", "recall@1", "accuracy@1"):
        kept, removed, reverse = (found[0][f"{shift}/{measure}"] for shift in shortcuts.SHIFTS)
        assert kept > removed + 0.1 and removed > reverse + 0.1


def test_accuracy_is_that_of_the_nearest_of_two_hundred_texts_without_their_own_factors():
    sample = draw_sample(512, 1.0, 1, 0.9)
    maps = torch.randn(2, 1, 1, 64, 12, generator=torch.Generator().manual_seed(0))
    (accuracy,) = shortcuts._accuracies([[side] for side in maps], [sample])
    named = sample.world.mix_text[:, :16].float()
    images, texts = sample.test[0] @ maps[0, 0, 0], sample.test[1] @ named @ named.T @ maps[1, 0, 0]
    hits = 0
    for i in range(len(images)):
        group = range(i // 200 * 200, i // 200 * 200 + 200)
        cosines = torch.cosine_similarity(images[i], texts[list(group)])
        hits += group[int(cosines.argmax())] == i
    assert accuracy == pytest.approx(hits / len(images))


def test_a_dose_is_the_weight_of_the_penalty_times_the_temperature():
    run = {"pairs": 64, "shortcut": 0.5, "seed": 0, "temperature": 0.4, "steps": 20}
    by_dose = shortcuts.train_and_measure(run | {"dose": 2.0, "choose": "any"}, "")
    assert by_dose == shortcuts.train_and_measure(run | {"beta": 0.5}, "")
    assert by_dose != shortcuts.train_and_measure(run, "")


def test_differences_are_paired_by_draw_within_a_cell_and_trials_are_left_out():
    rows = []
    for method, dose, gain in (("CLIP", None, 0.0), ("curve", 0.3, 0.1), ("curve", 1, 0.2)):
        for pairs, seed in itertools.product((256, 1024), (0, 1)):
            settings = {"pairs": pairs, "shortcut": 0.9, "choose": "kept"}
            settings |= {"dose": dose} if dose else {}
            row = {"method": method, "seed": seed, "configuration": json.dumps(settings)}
            level = pairs / 1e4 + seed / 10
            scores = [
                f"{shift}/{s}@1" for shift in shortcuts.SHIFTS for s in ("recall", "accuracy")
            ]
            rows.append(row | dict.fromkeys(scores, level + gain * (1 + seed)))
    trial = {"pairs": 256, "shortcut": 0.9}
    rows.append(rows[0] | {"seed": "[100, 101]", "configuration": json.dumps(trial)})
    found = shortcuts.map_differences(pd.DataFrame(rows))
    assert len(found) == 2 * 2 * 6 and set(found["n"]) == {2}
    assert found.set_index("dose")["mean"].round(9).to_dict() == {0.3: 15.0, 1.0: 30.0}


def test_a_run_stands_beside_what_its_training_pairs_alone_predict():
    run = {"pairs": 1024, "shortcut": 0.8, "seed": 0, "rate": 0.03, "steps": 500}
    low, high = (
        shortcuts.train_and_predict(run | point, "")
        for point in ({"temperature": 0.2, "dose": 0.6}, {"temperature": 0.57, "dose": 0.0})
    )
    for found in (low, high):
        assert found["loss/ratio"] == pytest.approx(found["trained/ratio"], abs=0.04)
        for name in ("kept/recall@1", "removed/recall@1", "removed/validation_recall@1"):
            assert found[f"loss/{name}"] == pytest.approx(found[f"trained/{name}"], abs=0.05)
    assert high["limit/ratio"] == pytest.approx(high["trained/ratio"], abs=0.07)
    assert low["limit/ratio"] > low["trained/ratio"] + 0.1  # its squared gains are near log 128
    assert high["squared_gains"] < 0.5 < 1.5 < low["squared_gains"]
    assert high["trained/kept/recall@1"] > high["trained/removed/recall@1"] + 0.2
