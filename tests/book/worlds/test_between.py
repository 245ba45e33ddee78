"""The world between: exact information against determinants, batched training against PyTorch."""

import math
import runpy
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from cibr.losses import CIBRLoss
from cibr.losses.cca import RegularisedCCA
from cibr.losses.vmf import vmf_mean_cosine
from cibr.metrics.retrieval import recall_at_k
from cibr_book.worlds import between
from cibr_book.worlds.between import Cell, lacking
from cibr_book.worlds.between_training import DIM, embed, fit_closed_form, noisy, start_at, train
from cibr_book.worlds.between_tuning import Range, Tuning
from cibr_book.worlds.between_world import (
    N_GALLERY,
    N_SHARED,
    closed_form,
    draw_sample,
    exact_nats,
    recall,
)
from cibr_book.worlds.exact import gaussian_information_nats

PLAIN = {"temperature": 0.2, "rate": 0.01, "steps": 12, "decay": 0.5, "dropout": 0.0}
PLAIN |= {"beta": 0.3, "kappa": math.inf, "width": DIM}


@pytest.fixture
def samples():
    return [draw_sample(96, 2.0, seed) for seed in (0, 1)]


def test_pairs_have_the_stated_covariance_and_a_mean_square_of_one():
    sample = draw_sample(40_000, 2.0, 0)
    image, text = sample.train.double()
    rotations = sample.world.mix_image, sample.world.mix_text
    scale = math.sqrt((8 + 56 * 4) / 64)
    assert image.square().mean().item() == pytest.approx(1, abs=0.01)
    factors = [x @ rotation * scale for x, rotation in zip((image, text), rotations, strict=True)]
    spread = torch.cat([torch.ones(N_SHARED), torch.full((56,), 2.0)])
    for own in factors:
        assert torch.allclose(own.std(0), spread.double(), atol=0.05)
    across = factors[0].T @ factors[1] / len(image)
    assert across[:8, :8].diagonal().mean().item() == pytest.approx(0.95, abs=0.01)
    across[range(8), range(8)] = 0
    assert across.abs().max() < 0.15


def test_smaller_samples_are_parts_of_larger_ones_with_the_same_validation_and_test():
    small, large = (draw_sample(n, 1.0, 3) for n in (50, 100))
    assert torch.equal(small.train, large.train[:, :50])
    assert torch.equal(small.validation, large.validation) and torch.equal(small.test, large.test)
    other = draw_sample(50, 1.0, 4)
    assert not torch.allclose(small.test, other.test)


def test_exact_information_equals_determinants_over_codes_and_inputs():
    sample = draw_sample(10, 0.7, 0)
    maps = torch.randn(2, 64, 5, generator=torch.Generator().manual_seed(0))
    stretch = torch.block_diag(*sample.stretch)
    inputs = stretch @ sample.world.covariance @ stretch.T
    codes = [side.double() for side in maps]
    own = (inputs[:64, :64], inputs[64:, 64:])
    codes = [w / (w.T @ c @ w).trace().sqrt() for w, c in zip(codes, own, strict=True)]
    both = torch.block_diag(*codes)
    noise = 0.05 * torch.eye(10, dtype=torch.float64)
    whole = torch.cat([both, torch.eye(128, dtype=torch.float64)], 1)
    covariance = whole.T @ inputs @ whole
    covariance[:10, :10] += noise
    z, images, texts = range(10), range(10, 74), range(74, 138)
    nats = gaussian_information_nats
    residuals = [
        nats(covariance, z[:5], images, texts).item(),
        nats(covariance, z[5:], texts, images).item(),
    ]
    found = exact_nats(sample, maps, 0.05)
    assert found["shared_nats"] == pytest.approx(nats(covariance, z[:5], z[5:]).item())
    assert found["residual_nats"] == pytest.approx(sum(residuals) / 2)
    assert 0 < found["nuisance_nats"] < found["residual_nats"]
    assert exact_nats(sample, 7 * maps, 0.05) == pytest.approx(found)


def test_a_code_of_the_shared_factors_has_no_nuisance_and_one_of_its_own_factors_nothing_else():
    sample = draw_sample(10, 2.0, 0)
    rotations = torch.stack([sample.world.mix_image, sample.world.mix_text]).float()
    shared = exact_nats(sample, rotations[:, :, :N_SHARED], 0.01)
    own = exact_nats(sample, rotations[:, :, N_SHARED:], 0.01)
    assert shared["nuisance_nats"] == pytest.approx(0, abs=1e-6) and shared["shared_nats"] > 5
    assert own["shared_nats"] == pytest.approx(0, abs=1e-6)
    assert own["nuisance_nats"] == pytest.approx(own["residual_nats"], rel=1e-6)


def test_recall_equals_the_librarys_over_galleries_and_ties_are_misses():
    generator = torch.Generator().manual_seed(0)
    pairs = F.normalize(torch.randn(2, 2 * N_GALLERY, 8, generator=generator), dim=2)
    pairs[1] = F.normalize(pairs[0] + 0.8 * pairs[1], dim=1)
    halves = [
        recall_at_k(*part, torch.arange(N_GALLERY), ks=(1,)) for part in pairs.split(N_GALLERY, 1)
    ]
    expected = sum(sum(half.values()) for half in halves) / 4
    assert recall(pairs) == pytest.approx(expected) and 0.1 < expected < 0.9
    assert recall(torch.ones(2, N_GALLERY, 1)) == 0


def test_closed_form_is_the_librarys_cca_at_power_one_half(samples):
    maps = closed_form(samples[0], {"ridge": 0.3, "power": 0.5, "dim": 6})
    library = RegularisedCCA.fit(*samples[0].train, 6, 0.3, 0.3)
    assert torch.allclose(maps[0].T, library.image_map, atol=1e-5)
    assert torch.allclose(maps[1].T, library.text_map, atol=1e-5)


def test_power_of_the_closed_form_weighs_directions_by_their_correlation(samples):
    maps = [closed_form(samples[0], {"ridge": 0.3, "power": p, "dim": 6}) for p in (0, 1, 2)]
    rho = (maps[1] / maps[0]).mean(1)
    assert torch.allclose(rho[0], rho[1], atol=1e-4) and ((rho > 0) & (rho < 1)).all()
    assert torch.allclose(maps[2], maps[0] * rho[:, None] ** 2, atol=1e-4)


def test_closed_forms_are_padded_and_scored_by_validation_recall(samples):
    trials = [{"ridge": 0.3, "power": 0.5, "dim": dim} for dim in (2, 8)]
    fitted = fit_closed_form(samples, trials)
    assert fitted.weights[0].shape == (2, 2, 2, 64, 8)
    assert not fitted.weights[0][:, 0, :, :, 2:].any()
    for (i, trial), (j, sample) in product(enumerate(trials), enumerate(samples)):
        embedded = F.normalize(sample.validation @ closed_form(sample, trial), dim=2)
        assert fitted.validation[i, j].item() == pytest.approx(recall(embedded), abs=1e-6)


@pytest.mark.parametrize("hidden", [False, True])
def test_batched_training_equals_pytorch_one_run_at_a_time(samples, hidden):
    trials = [PLAIN, PLAIN | {"temperature": 0.5, "rate": 0.003, "decay": 0.0, "beta": 0.1}]
    fitted = train(samples, trials, hidden)
    first = train(samples, [t | {"rate": 0.0} for t in trials], hidden).weights
    for (i, trial), (j, sample) in product(enumerate(trials), enumerate(samples)):
        towers = [[layer[side, i, j].clone() for layer in first] for side in (0, 1)]
        parameters = [layer.requires_grad_() for tower in towers for layer in tower]
        rate, decay, n_steps = trial["rate"], trial["decay"], trial["steps"]
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=n_steps, cycle_momentum=False
        )
        cibr_loss = CIBRLoss(trial["beta"], kappa_e=1e6)
        scores, snapshots = [], []
        for step in range(n_steps):
            features = []  # 96 pairs are one batch, whose order does not matter
            for tower, inputs in zip(towers, sample.train, strict=True):
                inputs = torch.relu(inputs @ tower[0]) if hidden else inputs
                features.append(F.normalize(inputs @ tower[-1], dim=1))
            optimizer.zero_grad()
            cibr_loss(*features, 1 / trial["temperature"], output_dict=False).backward()
            optimizer.step()
            cycle.step()
            if step + 1 in (2, 5, 7, 10, 12):
                layers = [torch.stack(pair).detach() for pair in zip(*towers, strict=True)]
                scores.append(recall(embed(layers, sample.validation)))
                snapshots.append(layers)
        best = snapshots[scores.index(max(scores))]
        assert fitted.validation[i, j].item() == pytest.approx(max(scores), abs=2e-3)
        for ours, theirs in zip(fitted.weights, best, strict=True):
            assert torch.allclose(ours[:, i, j], theirs, atol=2e-4)


def test_weights_stay_finite_where_all_images_are_opposite_to_all_texts(samples):
    positive = samples[0].train[0].abs()
    apart = replace(samples[0], train=torch.stack([positive, -positive]))
    start = torch.zeros(2, 1, 1, 64, DIM)
    start[..., 0] = 1
    fitted = train([apart], [PLAIN | {"temperature": 0.02, "beta": 0.0}], start=start)
    assert fitted.weights[0].isfinite().all()


def test_a_trial_does_not_depend_on_its_companions(samples):
    noisy_trial = PLAIN | {"dropout": 0.4, "kappa": 32.0}
    alone = train(samples, [noisy_trial])
    others = [PLAIN, noisy_trial, noisy_trial | {"kappa": 64.0}]
    together = train(samples, others)
    assert torch.allclose(alone.weights[0][:, 0], together.weights[0][:, 1], atol=1e-4)
    assert not torch.allclose(together.weights[0][:, 0], together.weights[0][:, 1], atol=1e-2)
    assert not torch.allclose(together.weights[0][:, 2], together.weights[0][:, 1], atol=1e-3)


def test_outputs_beyond_the_width_stay_at_zero(samples):
    fitted = train(samples, [PLAIN | {"width": 5}, PLAIN])
    narrow, full = fitted.weights[0].unbind(1)
    assert narrow[..., :5].all() and not narrow[..., 5:].any() and full.all()


def test_noise_has_the_mean_cosine_of_its_concentration():
    means = F.normalize(torch.randn(2, 3, 1, 4000, DIM), dim=-1)
    kappas = torch.tensor([16.0, 64.0, math.inf])
    drawn = noisy(means, kappas, [torch.Generator().manual_seed(0)])
    assert torch.allclose(drawn.norm(dim=-1), torch.ones(()), atol=1e-4)
    cosines = (means * drawn).sum(-1).mean((0, 2, 3))
    expected = [vmf_mean_cosine(kappa, DIM).item() for kappa in (16.0, 64.0)]
    assert cosines.tolist() == pytest.approx([*expected, 1.0], abs=0.01)
    # Orthogonal to the mean direction, noise has no preferred direction.
    off = (drawn - (means * drawn).sum(-1, keepdim=True) * means)[:, 0].mean((0, 1, 2))
    assert off.abs().max() < 0.02


def test_a_start_at_cca_has_its_directions_and_keeps_them_at_rate_zero(samples):
    settings = {"ridge": 0.3, "power": 1.0, "dim": 24}
    start = start_at(samples, settings)
    assert start.shape == (2, 1, 2, 64, DIM)
    kept = train(samples, [PLAIN | {"rate": 0.0}], start=start).validation
    assert torch.allclose(kept, fit_closed_form(samples, [settings | {"dim": DIM}]).validation)


def peak(trials):
    """A concave score with its top at a = 4, b = 0."""
    return [-((math.log2(trial["a"]) - 2) ** 2) - trial["b"] for trial in trials]


RANGES = {
    "a": Range((0.5, 1, 2, 4, 8, 16), (0.5, 1)),
    "b": Range((0, 1, 2, 3), (1, 3), low=True),
}


def test_rounds_around_the_best_climb_beyond_the_range_of_random_trials():
    tuning = Tuning(RANGES, peak)
    tuning.try_at_random(4)
    assert len(tuning.scores) == 4 and tuning.best["a"] <= 1
    for _ in range(3):
        tuning.try_around(5)
    assert len(tuning.scores) <= 4 + 3 * 5
    assert tuning.best == {"a": 4, "b": 0} and tuning.at_boundary == []


def test_a_boundary_is_the_last_value_tried_unless_the_range_ends_for_a_reason():
    tuning = Tuning(RANGES, lambda trials: [trial["a"] - trial["b"] for trial in trials])
    tuning.try_at_random(6)
    assert tuning.best["a"] == 1 and tuning.at_boundary == ["a", "b"]
    for _ in range(5):
        tuning.try_around(6)
    assert tuning.best == {"a": 16, "b": 0} and tuning.at_boundary == ["a"]
    tuning = Tuning(RANGES, lambda trials: [-trial["a"] - trial["b"] for trial in trials])
    tuning.try_at_random(6)
    tuning.try_around(5)
    assert tuning.best == {"a": 0.5, "b": 0} and tuning.at_boundary == ["a"]


def test_a_search_does_not_end_on_a_boundary_that_can_be_left():
    def by_a(trials):
        return peak([trial | {"b": 0} for trial in trials])

    for values, start, n in [((0.5, 1, 2, 4, 8, 16), (0.5, 1), 5), ((1, 2, 4, 8), (4, 8), 3)]:
        tuning = Tuning({"a": Range(values, start)}, by_a)
        tuning.try_at_random(2)
        assert tuning.at_boundary == ["a"]
        tuning.leave_boundary()  # up to 8, which is worse than 4; or down to 2, which is, too
        assert tuning.best["a"] == 4 and tuning.at_boundary == [] and len(tuning.scores) == n


def test_values_beyond_reach_are_tried_alone():
    ranges = {"a": Range((1, 2, 4, 8, 16), (1, 2), reach=4)}
    tuning = Tuning(ranges, lambda trials: [trial["a"] for trial in trials])
    tuning.try_at_random(2)
    for _ in range(3):
        tuning.try_around(5)
    assert tuning.best["a"] == 4
    tuning.leave_boundary()
    assert tuning.best["a"] == 16 and tuning.at_boundary == ["a"]


def test_further_hyperparameters_continue_from_the_trials_in_which_they_are_off():
    first = Tuning(RANGES, peak)
    first.try_at_random(6)
    further = {"c": Range((0, 1, 2), (1, 2), low=True, off=0)}
    other = Tuning.with_further(first, further, 5)
    assert len(first.scores) == 6 and len(other.scores) == 11
    assert {place: other.scores[*place, 0] for place in first.scores} == first.scores
    assert all(place[2] > 0 for place in list(other.scores)[6:])
    same = Tuning.with_further(first, {}, 3)
    assert len(same.scores) == 9 and same.ranges == RANGES


def test_every_method_has_equally_many_trials_or_all_its_settings():
    for method in between.METHODS.values():
        if not method.tuned:
            continue
        ranges = [between.RANGES[name] for name in (*method.tuned, *method.further)]
        n_settings = math.prod(len(each.values) for each in ranges)
        assert n_settings >= 90
        for each in ranges:
            assert list(each.values) == sorted(set(each.values))
            assert each.values[0] <= each.start[0] < each.start[1] <= each.values[-1]
        assert all(between.RANGES[name].off is not None for name in method.further)


@pytest.mark.parametrize(
    ("tower", "of_cca", "learns_at", "n"),
    [
        ("linear", 0.5, 1000, 184),
        ("linear", 0.5, None, 152),
        ("nonlinear", 0.5, 1000, 184),
        ("linear", 0.001, 1000, 120),
    ],
)
def test_a_search_that_missed_what_the_closed_form_finds_starts_again(
    monkeypatch, tower, of_cca, learns_at, n
):
    def scores(method, samples, trials, start):
        if "ridge" in method.tuned:
            return [of_cca] * len(trials)
        return [0.3 if t["steps"] == learns_at and t["dropout"] == 0 else 0.001 for t in trials]

    monkeypatch.setattr(between, "_scores", scores)
    monkeypatch.setattr(Cell, "samples", lambda cell, seeds: [])
    for cached in (between.tune, between._first_trials):
        cached.cache_clear()
    tuning = between.tune(Cell(512, 8.0), tower, "CLIP")
    for cached in (between.tune, between._first_trials):
        cached.cache_clear()
    assert n - 20 < len(tuning.scores) <= n + 5  # a few beyond a boundary
    assert (tuning.best_score == 0.3) == (learns_at is not None and of_cca > 0.1)


def test_a_rerun_works_only_on_what_the_table_lacks():
    cells = [Cell(64, 0.5), Cell(128, 0.5)]
    everything = lacking(pd.DataFrame(columns=between.KEY), cells)
    assert sum(len(keys) for _, keys in everything) == 2 * len(between.METHODS)
    rows = [(64, 0.5, *key) for key in between.METHODS if key != between.CCA]
    table = pd.DataFrame(rows, columns=between.KEY)
    assert lacking(table, cells[:1]) == [(cells[0], [between.CCA])]


def test_a_killed_run_continues_with_the_rows_that_its_table_lacks(tmp_path, monkeypatch):
    made = []

    def made_up(cell, *key):
        made.append(key)
        if made.count(key) == 1 and key == list(between.METHODS)[-1]:
            raise KeyboardInterrupt
        row = dict(zip(between.KEY, (cell.pairs, cell.nuisance, *key), strict=True))
        return pd.DataFrame([row | {"test_recall": 12.34567}])

    monkeypatch.setattr(between, "method_rows", made_up)
    file = tmp_path / "map.csv"
    with pytest.raises(KeyboardInterrupt):
        between.run(file, [Cell(64, 0.5)], 1)
    assert set(pd.read_csv(file)["tower"]) == {"linear"}
    between.run(file, [Cell(64, 0.5)], 1)
    table = pd.read_csv(file)
    assert len(table) == len(between.METHODS) and table["test_recall"].eq(12.346).all()
    before = len(made)
    between.run(file, [Cell(64, 0.5)], 1)
    assert len(made) == before


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_command_runs_functions_that_other_processes_can_import(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(between, "run", lambda *given: asked.append(given))
    table = str(tmp_path / "map.csv")
    options = ["--pairs", "64", "128", "--nuisances", "2", "--table", table, "--processes", "3"]
    monkeypatch.setattr("sys.argv", ["between", *options])
    runpy.run_module("cibr_book.worlds.between", run_name="__main__")
    assert asked == [(Path(table), [Cell(64, 2.0), Cell(128, 2.0)], 3)]


def test_more_steps_are_those_of_the_tuned_settings(monkeypatch):
    tuned = Tuning(RANGES, peak)
    tuned.ranges = {"steps": Range((10, 20), (10, 20)), "rate": Range((0.1, 0.2), (0.1, 0.2))}
    tuned.scores = {(0, 0): 1.0, (1, 1): 2.0}
    asked = []
    monkeypatch.setattr(between, "tune", lambda *key: asked.append(key) or tuned)
    cell = Cell(64, 0.5)
    settings, _ = between.chosen(cell, "linear", "CLIP, 4 x the steps")
    assert settings == {"steps": 80, "rate": 0.2} and asked == [(cell, "linear", "CLIP")]
    assert between.chosen(cell, "linear", "CLIP") == ({"steps": 20, "rate": 0.2}, tuned)


def test_rows_have_scores_information_and_settings(monkeypatch):
    for name, n in {"_N_AT_RANDOM": 4, "_N_AROUND": 2, "_N_FURTHER": 2}.items():
        monkeypatch.setattr(between, name, n)
    quick = Range((5, 10, 20), (5, 10))
    monkeypatch.setitem(between.RANGES, "steps", quick)
    rows = between.method_rows(Cell(64, 0.5), "linear", "CLIP, CCA start")
    assert rows["seed"].tolist() == list(between.SEEDS)
    assert rows["trials"].between(14, 17).all() and rows["settings"].nunique() == 1
    assert rows["test_recall"].between(5, 100).all()
    assert (rows["nuisance_nats_at_0.01"] <= rows["residual_nats_at_0.01"]).all()
    assert (rows["residual_nats_at_0.1"] < rows["residual_nats_at_0.01"]).all()
