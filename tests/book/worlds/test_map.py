"""The map: its world, exact information against determinants, its stored rows again, who wins."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cibr.losses.cca import RegularisedCCA
from cibr.metrics.retrieval import recall_at_k
from cibr_book.intervals import student_interval
from cibr_book.pages.between_explorer import _in_words, as_page, cells
from cibr_book.pages.between_figures import gain_maps, information_maps
from cibr_book.worlds.gaussian import gaussian_information_nats
from cibr_book.worlds.map import (
    CELL,
    CONTENDERS,
    METHODS,
    NUISANCES,
    PAIRS,
    SEEDS,
    TABLE,
    closed_form,
    draw_sample,
    exact_nats,
    fit,
    gains,
    make_map,
    method_rows,
    recall,
    tune,
    winners,
)


@pytest.fixture(scope="module")
def stored():
    return pd.read_csv(TABLE)


def test_pairs_have_the_stated_covariance_and_a_mean_square_of_one():
    sample = draw_sample(40_000, 2.0, 0)
    scale = math.sqrt((8 + 56 * 4) / 64)
    rotations = sample.world.mix_image, sample.world.mix_text
    sides = zip(sample.train.double(), rotations, strict=True)
    factors = [x @ rotation * scale for x, rotation in sides]
    spread = torch.cat([torch.ones(8), torch.full((56,), 2.0)]).double()
    for own in factors:
        assert torch.allclose(own.std(0), spread, atol=0.05)
    across = factors[0].T @ factors[1] / len(factors[0])
    assert across[:8, :8].diagonal().mean().item() == pytest.approx(0.95, abs=0.01)
    across[range(8), range(8)] = 0
    assert across.abs().max() < 0.15
    assert sample.train[0].square().mean().item() == pytest.approx(1, abs=0.01)


def test_smaller_samples_are_parts_of_larger_ones_and_test_pairs_are_no_others():
    small, large = (draw_sample(n, 1.0, 3) for n in (50, 100))
    assert torch.equal(small.train, large.train[:, :50])
    assert torch.equal(small.validation, large.validation) and torch.equal(small.test, large.test)
    assert [side.shape[1] for side in (large.validation, large.test)] == [1000, 4000]
    pairs = torch.cat([large.train, large.validation, large.test], 1)[0]
    assert len(pairs.unique(dim=0)) == 5100
    assert not torch.allclose(small.test, draw_sample(50, 1.0, 4).test)


def test_exact_information_equals_determinants_over_codes_and_inputs():
    sample = draw_sample(10, 0.7, 0)
    maps = torch.randn(2, 64, 5, generator=torch.Generator().manual_seed(0))
    stretch = torch.block_diag(*sample.stretch)
    inputs = stretch @ sample.world.covariance @ stretch.T
    own = inputs[:64, :64], inputs[64:, 64:]
    codes = [w / (w.T @ c @ w).trace().sqrt() for w, c in zip(maps.double(), own, strict=True)]
    whole = torch.cat([torch.block_diag(*codes), torch.eye(128, dtype=torch.float64)], 1)
    covariance = whole.T @ inputs @ whole
    covariance[:10, :10] += 0.05 * torch.eye(10, dtype=torch.float64)
    z, images, texts = range(10), range(10, 74), range(74, 138)
    sides = (z[:5], images, texts), (z[5:], texts, images)
    residuals = [gaussian_information_nats(covariance, *side).item() for side in sides]
    shared = gaussian_information_nats(covariance, z[:5], z[5:]).item()
    found = exact_nats(sample, maps, 0.05)
    assert found["shared_nats"] == pytest.approx(shared)
    assert found["residual_nats"] == pytest.approx(sum(residuals) / 2)
    assert exact_nats(sample, 7 * maps, 0.05) == pytest.approx(found)
    # A code of own factors is nothing but nuisance, one of shared factors has none.
    rotations = torch.stack([sample.world.mix_image, sample.world.mix_text]).float()
    parts = [exact_nats(sample, rotations[:, :, part], 0.01) for part in (slice(8), slice(8, 64))]
    assert parts[0]["nuisance_nats"] == pytest.approx(0, abs=1e-6) and parts[0]["shared_nats"] > 5
    assert parts[1]["nuisance_nats"] == pytest.approx(parts[1]["residual_nats"], rel=1e-6)


def test_recall_equals_the_librarys_over_galleries_and_ties_are_misses():
    generator = torch.Generator().manual_seed(0)
    pairs = F.normalize(torch.randn(2, 2000, 8, generator=generator), dim=2)
    pairs[1] = F.normalize(pairs[0] + 0.8 * pairs[1], dim=1)
    halves = [recall_at_k(*part, torch.arange(1000), ks=(1,)) for part in pairs.split(1000, 1)]
    expected = sum(sum(half.values()) for half in halves) / 4
    assert recall(pairs) == pytest.approx(expected) and 0.1 < expected < 0.9
    assert recall(torch.ones(2, 1000, 1)) == 0


def test_closed_form_is_the_librarys_cca_at_power_one_half_and_weighs_by_correlation():
    sample = draw_sample(96, 2.0, 0)
    powers = (0, 0.5, 1, 2)
    maps = [closed_form(sample, {"ridge": 0.3, "power": p, "dim": 6}) for p in powers]
    library = RegularisedCCA.fit(*sample.train, 6, 0.3, 0.3)
    torch.testing.assert_close(maps[1][0].T, library.image_map, atol=1e-5, rtol=0)
    torch.testing.assert_close(maps[1][1].T, library.text_map, atol=1e-5, rtol=0)
    rho = (maps[2] / maps[0]).mean(1)
    assert torch.allclose(rho[0], rho[1], atol=1e-4) and ((rho > 0) & (rho < 1)).all()
    torch.testing.assert_close(maps[3], maps[0] * rho[:, None] ** 2, atol=1e-4, rtol=0)


def test_a_start_at_cca_has_its_directions_and_keeps_them_at_rate_zero():
    samples = [draw_sample(96, 2.0, seed) for seed in (0, 1)]
    cca = {"ridge": 0.3, "power": 1.0, "dim": 24}
    still = fit(samples, "CLIP, CCA start", [{"rate": 0.0, "steps": 5}], cca)
    narrow = fit(samples, "ridge CCA", [cca | {"dim": 16}], {})
    torch.testing.assert_close(still.scores, narrow.scores)
    two = fit(samples, "ridge CCA", [cca | {"dim": 2}, cca], {})
    assert two.weights[0][0].shape == (2, 2, 64, 24) and not two.weights[0][0][0, ..., 2:].any()
    means = F.normalize(samples[1].validation @ closed_form(samples[1], cca), dim=2)
    assert two.scores[1, 1].item() == pytest.approx(recall(means), abs=1e-6)


@pytest.mark.parametrize(
    ("pairs", "nuisance", "method"),
    [
        (64, 0.25, "ridge CCA"),
        (64, 0.25, "CLIP, CCA start"),
        (2048, 0.25, "noise only"),
        (256, 2.0, "CIBR vMF"),
    ],
)
def test_stored_rows_come_out_again(stored, pairs, nuisance, method):
    cell = stored[(stored["pairs"] == pairs) & (stored["nuisance"] == nuisance)]
    trials = cell.drop_duplicates("method").set_index("method")["settings"].map(json.loads)
    rows = method_rows(pairs, nuisance, method, trials[method], trials["ridge CCA"], seeds=(5,))
    old = cell[(cell["method"] == method) & (cell["seed"] == 5)].reset_index(drop=True)
    assert len(old) == 1 and old["test_recall"].min() > 5
    for name in [name for name in old if "recall" in name or "nats" in name]:
        # The table has three decimals; a rank that flips is 0.0125 points.
        np.testing.assert_allclose(rows[name], old[name], atol=0.03, rtol=0)


def test_the_table_has_every_method_in_every_cell(stored):
    assert len(stored) == len(PAIRS) * len(NUISANCES) * len(METHODS) * len(SEEDS)
    assert not stored.duplicated([*CELL, "method", "seed"]).any()


def test_a_rerun_tunes_the_cells_that_a_table_lacks(tmp_path, monkeypatch):
    def rows(pairs, nuisance):
        return pd.DataFrame([{"pairs": pairs, "nuisance": nuisance, "seed": 0}])

    monkeypatch.setattr("cibr_book.worlds.map._cell_rows", rows)
    monkeypatch.setattr("cibr_book.worlds.map.PAIRS", (64, 128))
    monkeypatch.setattr("cibr_book.worlds.map.NUISANCES", (0.5,))
    file = tmp_path / "map.csv"
    rows(64, 0.5).assign(seed=9).to_csv(file, index=False)
    make_map(file, n_processes=1)
    assert pd.read_csv(file)[["pairs", "seed"]].to_numpy().tolist() == [[64, 9], [128, 0]]


def test_methods_are_tuned_on_draws_that_are_not_reported(monkeypatch):
    asked = []

    def scores(samples, method, trials, cca):
        asked.append((method, [sample.seed for sample in samples], len(trials)))
        recalls = [[float(t.get("beta", 0) + t.get("ridge", 0))] * len(samples) for t in trials]
        return type("Fitted", (), {"scores": torch.tensor(recalls)})

    monkeypatch.setattr("cibr_book.worlds.map.fit", scores)
    tune.cache_clear()
    best = {method: tune(64, 0.5, method)[0][1] for method in METHODS}
    n_trials = {method: len(tune(64, 0.5, method)) for method in METHODS}
    tune.cache_clear()
    assert all(not set(seeds) & set(SEEDS) and n <= 8 for _, seeds, n in asked)
    assert best["CIBR vMF"]["beta"] == 10 and best["ridge CCA"]["ridge"] == 100
    assert best["CLIP, untuned"] == {"temperature": 0.07, "rate": 1e-3, "steps": 300}
    assert best["CLIP, 4 x the steps"]["steps"] == 4 * best["CLIP"]["steps"]
    tuned = [n_trials[name] for name in ("CLIP", "CLIP, CCA start", *CONTENDERS[:3])]
    assert max(tuned) - min(tuned) < 10 and min(tuned) > 100


def made_up(effects, n_seeds=8):
    """Rows in which a method is so many points above CLIP, by cell and method."""
    random = np.random.default_rng(0)
    rows = []
    for (pairs, nuisance), by_method in effects.items():
        level = random.normal(50, 5, n_seeds)
        for method, gain in ({"CLIP": 0.0} | by_method).items():
            noise = 0 if method == "CLIP" else random.normal(0, 0.3, n_seeds)
            row = {"pairs": pairs, "nuisance": nuisance, "method": method}
            row |= {"shared_nats_at_0.01": 5.0, "residual_nats_at_0.01": 4.0}
            row |= {"settings": '{"rate": 0.01, "kappa": Infinity}'}
            scores = pd.DataFrame({"seed": range(n_seeds), "test_recall": level + gain + noise})
            rows.append(scores.assign(**row))
    return pd.concat(rows, ignore_index=True).sample(frac=1, random_state=0)


@settings(max_examples=10, deadline=None)
@given(effects=st.dictionaries(st.sampled_from(CONTENDERS), st.floats(-20, 20), min_size=1))
def test_gains_are_mean_differences_from_clip_of_the_same_seed(effects):
    rows = made_up({(64, 0.5): effects | {"CLIP, untuned": -30.0}, (64, 1.0): effects})
    table = gains(rows)
    assert len(table) == 2 * len(effects) + 1 and "CLIP" not in set(table["method"])
    by_seed = rows.pivot(index=["nuisance", "seed"], columns="method", values="test_recall")
    for row in table.itertuples():
        differences = (by_seed[row.method] - by_seed["CLIP"]).loc[row.nuisance].dropna()
        assert (row.mean, row.low, row.high) == pytest.approx(student_interval(differences))
        assert row.mean == pytest.approx(effects.get(row.method, -30.0), abs=0.5) and row.n == 8
        assert (row.method == "CLIP, untuned") == math.isnan(row.q_value)


def test_the_simplest_of_equally_good_certain_gains_wins():
    three = {"CIBR vMF": 6.0, "CLIP, CCA start": 5.9, "ridge CCA": 3.0}
    effects = {(64, 0.5): three, (64, 1.0): three | {"CIBR vMF": 8.0}}
    effects |= {(64, 2.0): {"CIBR vMF": 0.0}, (64, 4.0): three | {"ridge CCA": 5.8}}
    effects |= {(64, 8.0): {"CLIP, untuned": 20.0, "CIBR vMF": 0.35}}
    best = winners(gains(made_up(effects))).sort_values("nuisance")
    expected = ["CLIP, CCA start", "CIBR vMF", "CLIP", "ridge CCA", "CLIP"]
    assert best["method"].tolist() == expected
    assert best["mean"].tolist()[2] == 0


EFFECTS = {
    (64, 0.5): {"ridge CCA": 8.0, "CIBR vMF": 2.0},
    (64, 4.0): {"ridge CCA": -6.0, "CIBR vMF": 2.0},
    (4096, 0.5): {"ridge CCA": -6.0, "CIBR vMF": 0.0},
}


def test_the_page_holds_the_numbers_of_every_cell(tmp_path):
    made_up(EFFECTS).to_csv(tmp_path / "map.csv", index=False)
    page = as_page(tmp_path / "map.csv")
    data = json.loads(re.search(r'json" id="between-data">(.*?)</script>', page)[1])
    assert data == json.loads(json.dumps(cells(pd.read_csv(tmp_path / "map.csv"))))
    assert data["pairs"] == [64, 4096] and data["nuisances"] == [0.5, 4.0]
    assert [cell["best"] for cell in data["cells"]] == ["ridge CCA", "CIBR vMF", "CLIP"]
    methods = {method["name"]: method for method in data["cells"][0]["methods"]}
    clip, cca = methods["CLIP"], methods["ridge CCA"]
    assert clip["mean"] is None and clip["settings"] == "rate 0.01"
    assert cca["recall"] - clip["recall"] == pytest.approx(cca["mean"], abs=0.011)
    assert _in_words('{"temperature": 0.5, "steps": 1000}') == "temperature 0.5, steps 1000"


def test_figures_show_most_pairs_at_the_top_bold_certain_gains_and_every_run():
    rows = made_up(EFFECTS)
    (axis,) = gain_maps(gains(rows), ["ridge CCA"])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["4,096", "64"]
    assert {text.get_fontweight() for text in axis.texts} == {"bold"}
    (axis,) = information_maps(rows, [(64, 0.5)], 0.01)
    assert sum(len(line.get_xdata()) for line in axis.lines) == 24
