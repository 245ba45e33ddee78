"""The interactive information curve: its points are optima."""

import json

import pytest

from cibr_book.pages import curve
from cibr_book.pages.curve import FILE, merging_tables, optimum
from cibr_book.worlds import exact as worlds


@pytest.fixture
def data():
    return json.loads(FILE.read_text())


@pytest.mark.parametrize(("beta", "apart"), [(0.1, [1, 1]), (4.0, [0, 0])])
def test_a_stored_optimum_is_found_again(data, beta, apart):
    stored = data["points"][data["ambiguities"].index(0.3)][data["betas"].index(beta)]
    again = optimum(0.3, beta)
    for name in ("shared", "residual", "nuisance"):
        assert again[name] == pytest.approx(stored[name], abs=0.01)
    assert again["apart"] == pytest.approx(stored["apart"]) == apart


def test_along_a_curve_the_residual_falls_and_no_other_point_is_better_for_its_beta(data):
    for limit, points in zip(data["limits"], data["points"], strict=True):
        assert max(p["shared"] for p in points) <= limit + 1e-3
        for beta, own in zip(data["betas"], points, strict=True):
            scores = [p["shared"] - beta * p["residual"] for p in points]
            assert own["shared"] - beta * own["residual"] >= max(scores)
            assert own["nuisance"] < 0.01
        assert points[-1]["residual"] < 0.01 < points[0]["residual"]


def test_no_stored_point_is_beaten_by_an_encoder_that_merges_values_or_by_another_start(data):
    for ambiguity, points in zip(data["ambiguities"], data["points"], strict=True):
        world = worlds.discrete_world((ambiguity, 0.05))
        tables = list(merging_tables(world))
        assert len(tables) == 15**2
        if ambiguity == 0.1:
            tables += worlds.fit_tables(world, 1.2, 6, range(20, 24))
        nats = [worlds.encoder_informations(world, *pair) for pair in tables]
        for beta, own in zip(data["betas"], points, strict=True):
            best = max((n["shared_nats"] - beta * n["residual_nats"]).item() for n in nats)
            # Both terms are rounded to three digits.
            assert own["shared"] - beta * own["residual"] > best - 0.0006 * (1 + beta)


def test_the_optimum_of_another_weight_replaces_one_that_it_beats(data, monkeypatch):
    little = {"shared": 1.0, "residual": 0.5}
    much = {"shared": 1.2, "residual": 1.0}
    monkeypatch.setattr(curve, "_AMBIGUITIES", (0.3,))
    monkeypatch.setattr(curve, "_BETAS", (0.1, 4.0))
    monkeypatch.setattr(curve, "optimum", lambda _, beta: little if beta < 1 else much)
    made = curve.curves()
    assert made["points"] == [[much, little]]
    assert made["limits"] == [data["limits"][data["ambiguities"].index(0.3)]]
