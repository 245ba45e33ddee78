"""A run beside its twin at beta 0: the same photos and batches, and what is called chance."""

import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import cibr
from cibr.data import load_pairs
from cibr.evaluate import Evaluation
from cibr.metrics import retrieval_recalls
from cibr.models.inputs import embed_pairs, prepare
from cibr_book.experiments import twins

STORED = pd.read_csv(twins.RESULTS / twins.SPREAD)
TRAIN = load_pairs("photos", "train")
TEST = load_pairs("photos", "test")
SHORT = dict(dataset="photos", model="names", epochs=2)


def twins_of(folder, beta=0.3, seed=5, n_photos=80, **options):
    """A short run on a few photos, and its twin."""
    plan = twins.plan(n_photos, beta, output_dir=str(folder), seed=seed, **(SHORT | options))
    pairs = twins.drawn(TRAIN, n_photos, seed)
    models = []
    for config in (plan.clip_config, plan.config):
        model = cibr.build_model(config, pairs)
        cibr.fit(model, pairs, None, config)
        models.append(model)
    return plan, models


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return twins_of(tmp_path_factory.mktemp("twins"))


def evaluation(scores):
    """An evaluation with the given numbers of items, by data set, kind and metric."""
    scores = {key: np.array(values, dtype=float) for key, values in scores.items()}
    return Evaluation("m", "s", scores, dict.fromkeys(scores, 0.0), {})


def test_twins_differ_in_beta_and_their_folder_alone(tmp_path):
    plan = twins.plan(600, 0.05, output_dir=str(tmp_path), **SHORT, penalty="mine", seed=3)
    ours, theirs = asdict(plan.config), asdict(plan.clip_config)
    different = {name for name in ours if ours[name] != theirs[name]}
    # At beta = 0 every penalty is CLIP, and vmf is the one that trains nothing of its own.
    assert different == {"beta", "output_dir", "penalty"}
    assert (plan.config.beta, plan.clip_config.beta) == (0.05, 0.0)
    assert ours["cca"] is False and ours["epochs"] == 2


@pytest.mark.parametrize(("n", "batch_size"), [(150, 64), (600, 128), (3000, 256)])
def test_settings_are_those_that_were_tuned_for_the_number_of_photos(tmp_path, n, batch_size):
    plan = twins.plan(n, 0.05, output_dir=str(tmp_path), dataset="photos", model="names")
    assert plan.config.batch_size == plan.clip_config.batch_size == batch_size


def test_at_beta_zero_a_run_is_its_own_twin(tmp_path):
    plan = twins.plan(600, 0.0, output_dir=str(tmp_path), **SHORT)
    assert plan.config is plan.clip_config


def test_runs_with_other_settings_have_other_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("CIBR_RUNS", str(tmp_path))
    plans = [twins.plan(n, 0.05, seed=seed, **SHORT) for n in (80, 90) for seed in (0, 1)]
    folders = {plan.config.output_dir for plan in plans}
    assert len(folders) == 4 and all(folder.startswith(str(tmp_path)) for folder in folders)
    again = twins.plan(80, 0.05, seed=0, temperature=None, **SHORT)
    assert again.config.output_dir == plans[0].config.output_dir


def test_a_draw_is_of_its_seed_and_never_more_than_there_are():
    keys = [twins.drawn(TRAIN, 50, seed).keys for seed in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2] and len(set(keys[0])) == 50
    assert twins.drawn(TRAIN, 10**6, 0).keys == TRAIN.keys


def test_the_penalty_draws_pairs_and_modalities_together(short):
    _, (clip, model) = short
    clip, model = (twins.geometry(each, TEST) for each in (clip, model))
    assert model["1 - cos"] < clip["1 - cos"] - 0.005
    assert model["gap"] < clip["gap"] - 0.005


def test_distances_are_those_of_a_loop_over_the_pairs(short):
    _, (clip, _) = short
    test = TEST.subset(range(7))
    images, texts = embed_pairs(clip, prepare(clip, test))
    own = [images[i] for i, captions in enumerate(test.captions) for _ in captions]
    distances = [1 - image @ text for image, text in zip(own, texts, strict=True)]
    gap = math.dist(sum(own) / len(own), texts.mean(0))
    found = twins.geometry(clip, test)
    assert found["1 - cos"] == pytest.approx(sum(distances).item() / len(own), rel=1e-4)
    assert found["gap"] == pytest.approx(gap, rel=1e-4)


def test_search_is_by_text_and_text_retrieval_by_image(short):
    _, (clip, _) = short
    scores = twins.headline(twins.evaluations(clip, TEST, "clip"))
    recalls = retrieval_recalls(*embed_pairs(clip, prepare(clip, TEST)), *TEST.retrieval_targets())
    for name, way in {"search": "text_to_image", "text retrieval": "image_to_text"}.items():
        expected = sum(recalls[f"{way}_recall@{k}"] for k in (1, 5, 10)) / 3
        assert scores[f"{name} on Flickr8k"].mean() == pytest.approx(expected)
    assert list(scores) == [*(STORED["measure"].unique()[:5])]


def test_a_change_is_after_minus_before_with_its_interval_over_photos():
    key = ("photos", "retrieval", "text_to_image_recall@1")
    before = evaluation({key: [0, 0, 1, 0]})
    after = evaluation({key: [1, 0, 1, 1]})
    found = twins.findings([before], [after], None).loc["search on Flickr8k"]
    changes = 100 * np.array([1, 0, 0, 1])
    half_width = stats.t.ppf(0.975, 3) * stats.sem(changes)
    assert (found["clip"], found["cibr"], found["change"]) == pytest.approx((25, 75, 50))
    assert (found["low"], found["high"]) == pytest.approx((50 - half_width, 50 + half_width))


def test_the_range_over_seeds_holds_a_further_seed_in_nineteen_of_twenty():
    drawn = np.random.default_rng(0).normal(1.0, 2.0, (4000, 17))
    inside = 0
    for *seen, further in drawn:
        low, high = twins.seed_range(pd.Series(seen))
        inside += low < further < high
    assert inside / 4000 == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(
    ("photos", "seeds", "said"),
    [
        ((0.1, 0.9), (0.2, 0.8), twins.MORE),
        ((-0.9, -0.1), (-0.8, -0.2), twins.MORE),
        ((-0.1, 0.9), (0.2, 0.8), twins.CHANCE),
        ((0.1, 0.9), (-0.2, 0.8), twins.CHANCE),
        ((0.1, 0.9), (-0.8, -0.2), twins.CHANCE),
        ((0.1, 0.9), None, twins.ONE_SEED),
        ((0.0, 0.0), None, "no change"),
    ],
)
def test_more_than_chance_is_beyond_both_photos_and_seeds(photos, seeds, said):
    assert twins.verdict(photos, seeds) == said


@pytest.mark.parametrize(
    ("change", "is_stored"),
    [
        ({}, True),
        ({"seed": 7}, True),
        ({"output_dir": "elsewhere"}, True),
        ({"beta": 0.1}, False),
        ({"n_photos": 300}, False),
        ({"penalty": "mine"}, False),
        ({"temperature": 0.08}, False),
        ({"epochs": 21}, False),
    ],
)
def test_the_stored_spread_is_that_of_runs_which_differ_in_their_seed_alone(change, is_stored):
    plan = twins.plan(**(dict(n_photos=600, beta=0.05, dataset="photos", model="names") | change))
    assert (twins.spread_of(plan) is not None) == is_stored


def test_the_stored_spread_has_sixteen_seeds_other_than_the_page_and_adds_up():
    assert STORED.groupby("measure")["seed"].apply(list).map(lambda x: x == [*range(1, 17)]).all()
    difference = STORED["cibr"] - STORED["clip"]
    assert difference.to_numpy() == pytest.approx(STORED["difference"].to_numpy(), abs=2e-3)


@pytest.mark.slow
def test_a_seed_of_the_stored_spread_comes_out_again():
    again = twins.measure_spread([4]).set_index("measure")
    stored = STORED[STORED["seed"] == 4].set_index("measure")
    for side in ("clip", "cibr"):
        assert again[side].to_dict() == pytest.approx(stored[side].to_dict(), abs=0.6)
    assert again.loc["gap", "difference"] == pytest.approx(
        stored.loc["gap", "difference"], abs=0.01
    )


def test_differences_of_several_seeds_pair_each_seed_with_itself():
    key = ("photos", "retrieval", "text_to_image_recall@1")
    clip = [evaluation({key: [0, 0, 1, 1]}), evaluation({key: [1, 1, 0, 0]})]
    other = [evaluation({key: [0, 1, 1, 1]}), evaluation({key: [1, 1, 0, 1]})]
    found = twins.compared({"clip": clip, "other": other}, "clip")
    assert found[["model", "mean"]].to_numpy().tolist() == [["other", 25.0]]
    scores = {("vmf", 0.0, s): twins.headline([of]) for s, of in enumerate(clip)}
    scores |= {("vmf", 0.1, s): twins.headline([of]) for s, of in enumerate(other)}
    changes = twins.changes(scores, [("vmf", 0.0), ("vmf", 0.1)], range(2))
    assert changes[["mean", "low", "high"]].equals(found[["mean", "low", "high"]])
    means = {run: {k: 100 * v.mean() for k, v in of.items()} for run, of in scores.items()}
    by_seed = twins.changes_by_seed(means, ("vmf", 0.0), [("vmf", 0.1)])
    assert by_seed["change"].tolist() == [25.0, 25.0]


def test_the_stored_differences_are_of_the_default_page():
    stored = pd.read_csv(twins.RESULTS / "benchmarks.csv")
    assert stored["model"].unique().tolist() == ["start", "CIBR (vMF)", "CIBR (MINE)"]
    # Half of the seeds of the spread: the means agree within its standard error.
    seeds = STORED[STORED["seed"] <= 8]
    of_vmf = stored[stored["model"] == "CIBR (vMF)"].set_index("measure")["mean"]
    for measure, mean in of_vmf.items():
        own = seeds.loc[seeds["measure"] == measure, "difference"].mean()
        assert mean == pytest.approx(own, abs=0.05)


def test_training_beside_the_twin_is_repeatable(short, tmp_path):
    _, (_, model) = short
    _, (_, again) = twins_of(tmp_path)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_number_of_photos_is_the_books_or_a_sensible_one():
    assert twins.photos_to_train(None, TRAIN) == 600
    assert twins.photos_to_train(None, load_pairs("photos-coco", "test")) == 407
    assert twins.photos_to_train(10, TRAIN) == 10
    for n_photos in (0, 9, 3001):
        with pytest.raises(ValueError, match=f"n_photos is {n_photos}: give a whole number"):
            twins.photos_to_train(n_photos, TRAIN)
