"""The world of the map with shortcuts: its runs, and what theory predicts of them."""

import pandas as pd
import pytest
import torch

from cibr_book.worlds import shortcuts
from cibr_book.worlds.map import draw_sample


def test_shortcuts_are_the_first_own_factors_and_change_no_image():
    kept, without = (draw_sample(64, 1.0, 3, shortcut) for shortcut in (0.9, 0.0))
    world = kept.world
    across = world.covariance[:64, 64:]
    factors = (world.mix_image.T @ across @ world.mix_text).diagonal()
    expected = torch.tensor([0.95] * 8 + [0.9] * 8 + [0.0] * 48, dtype=torch.float64)
    torch.testing.assert_close(factors, expected)
    assert torch.equal(kept.test[0], without.test[0])
    assert not torch.equal(kept.test[1], without.test[1])


def test_the_penalty_is_held_against_the_temperature_that_keeps_as_much():
    one = pd.DataFrame(
        [
            (0.1, 0.0, 0.30, 0.10),
            (0.2, 0.0, 0.50, 0.20),
            (0.4, 0.0, 0.40, 0.30),
            (0.2, 0.6, 0.45, 0.27),  # on the line: 0.25
            (0.4, 0.6, 0.33, 0.35),  # below the best, but another temperature has less
            (0.1, 0.6, 0.60, 0.20),  # above all: 0.20 at 0.50
            (0.8, 0.6, 0.20, 0.90),  # below all: a higher temperature might have it
        ],
        columns=["temperature", "beta", "trained/kept/recall@1", "trained/removed/recall@1"],
    ).assign(pairs=256, shortcut=0.8)
    rows = pd.concat([one.assign(seed=0), one.assign(seed=1, beta=one["beta"] * 1.0)])
    found = shortcuts.beyond_temperature(rows.sample(frac=1, random_state=1))
    found = found.set_index("temperature")["mean"]
    assert found.to_dict() == pytest.approx({0.2: 2.0, 0.4: 5.0, 0.1: 0.0})


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


def test_the_plans_claims_are_of_the_committed_rows_at_the_temperature_that_clip_takes():
    rows = shortcuts.map_rows()
    is_again = rows["condition"].str.endswith("again")
    first, again = (shortcuts.claim_tests(part) for part in (rows[~is_again], rows[is_again]))
    assert len(first) == 17 and len(again) == 16 and (again["outcome"] == "holds").all()
    cell = rows[~is_again & (rows["pairs"] == 1024) & (rows["shortcut"] == 0.7)]
    alone = cell[cell["beta"] == 0].groupby("temperature")
    best = alone[shortcuts.IN_DISTRIBUTION].mean().idxmax()
    means = cell[cell["temperature"] == best].groupby("beta")["trained/removed/recall@1"].mean()
    gain = 100 * (means[0.6] - means[0.0])
    claim = first.set_index(["hypothesis", "claim"]).loc[("correlation 0.7", "beta 0.6")]
    assert claim["difference"] == pytest.approx(gain)
    errors = shortcuts.prediction_errors(rows).set_index(["pairs", "holds", "measure"])
    ratios = rows[(rows["pairs"] == 1024) & (rows["squared_gains"] < 1)]
    error = (ratios["loss/ratio"] - ratios["trained/ratio"]).abs().mean()
    assert errors.loc[(1024, True, "ratio"), "loss"] == pytest.approx(error)
