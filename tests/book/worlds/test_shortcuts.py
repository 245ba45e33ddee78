"""The world of the map with shortcuts: its runs, and what theory predicts of them."""

import itertools

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


def made_up_rows(pairs=1024, shortcuts=(0.7, 0.8, 0.9, 0.95, 0.99), seeds=range(8)):
    """Runs in which doses lose what is kept and gain what is removed, and `loss` is nearer."""
    rows = []
    for shortcut, temperature, dose, seed in itertools.product(
        shortcuts, (0.1, 0.2, 0.4), (0.0, 0.2, 0.6), seeds
    ):
        kept = 0.5 - (temperature - 0.2) ** 2 - dose / 10
        gain = (1 if shortcut < 0.95 else -1) * (1 + seed / 100)
        removed = 0.3 + gain * (temperature + dose) / 10
        row = dict(pairs=pairs, shortcut=shortcut, temperature=temperature, dose=dose, seed=seed)
        row |= {f"trained/kept/{name}": kept for name in ("recall@1", "validation_recall@1")}
        row |= {f"trained/removed/{name}": removed for name in ("recall@1", "validation_recall@1")}
        row |= {"trained/ratio": 0.5, "limit/ratio": 0.7, "loss/ratio": 0.4, "squared_gains": dose}
        row |= {f"{of}/{s}/recall@1": 0.4 for of in ("limit", "loss") for s in ("kept", "removed")}
        rows.append(row)
    return pd.DataFrame(rows)


def test_the_plans_claims_are_at_the_temperature_that_clip_takes():
    rows = made_up_rows()
    rows.loc[rows["temperature"] != 0.2, "trained/removed/recall@1"] = 0.5
    rows = pd.concat([rows, made_up_rows(256).assign(**{"loss/ratio": 9.0})])
    tests = shortcuts.claim_tests(rows.sample(frac=1, random_state=0))
    assert len(tests) == 4 * 2 + 1 and (tests["p_value"] == 1 / 2**8).all()
    expected = [2.07, 6.21] * 4 + [0.1]
    assert tests["difference"].to_numpy() == pytest.approx(expected)
    again = shortcuts.claim_tests(rows[rows["temperature"] == 0.2])
    assert len(again) == 8 and (again["holm"] == 8 / 2**8).all()
    rows["loss/ratio"] = 0.9
    assert shortcuts.claim_tests(rows)["outcome"].iloc[-1] == "contradicted"


def test_errors_are_of_runs_that_meet_the_limits_condition_and_of_the_others():
    errors = shortcuts.prediction_errors(made_up_rows().assign(squared_gains=lambda x: 5 * x.dose))
    errors = errors.set_index(["holds", "measure"])
    assert errors.loc[True, "n"].tolist() == [120] * 3
    assert errors.loc[(False, "ratio"), ["limit", "loss"]].tolist() == pytest.approx([0.2, 0.1])
    kept = [abs(0.5 - (t - 0.2) ** 2 - 0.4) for t in (0.1, 0.2, 0.4)]
    assert errors.loc[(True, "kept/recall@1"), "loss"] == pytest.approx(100 * sum(kept) / 3)


def test_a_dose_is_held_against_the_temperature_that_keeps_as_much():
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
        columns=["temperature", "dose", "trained/kept/recall@1", "trained/removed/recall@1"],
    ).assign(pairs=256, shortcut=0.8)
    rows = pd.concat([one.assign(seed=0), one.assign(seed=1, dose=one["dose"] * 1.0)])
    found = shortcuts.beyond_temperature(rows.sample(frac=1, random_state=1))
    found = found.set_index("temperature")["mean"]
    assert found.to_dict() == pytest.approx({0.2: 2.0, 0.4: 5.0, 0.1: 0.0})


def test_points_are_chosen_in_each_cell_by_the_mean_over_draws():
    rows = pd.concat([made_up_rows(seeds=(0, 1)), made_up_rows(256, (0.99,), seeds=(0, 1))])
    best = shortcuts.best_points(rows, shortcuts.UNDER_SHIFT)
    assert len(best) == 6 * 2
    points = best.drop_duplicates(shortcuts.CELL).set_index(shortcuts.CELL)
    assert points.loc[(1024, 0.7), shortcuts.POINT].tolist() == [0.4, 0.6]
    assert points.loc[(256, 0.99), shortcuts.POINT].tolist() == [0.1, 0.0]
    kept = shortcuts.best_points(rows, shortcuts.IN_DISTRIBUTION)
    assert (kept["temperature"] == 0.2).all() and (kept["dose"] == 0).all()


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
