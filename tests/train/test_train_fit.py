"""A run: what it leaves and reports, and what decides the weights."""

import json
import time
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from helpers import same
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from small_runs import (
    HELD_OUT,
    PAIRS,
    before_step,
    forks,
    settings,
    small_model,
    stop_at,
    train,
)

from cibr import DualEncoder, fit
from cibr.models.heads import ResidualHead
from cibr.train import configure
from cibr.train.loop import epoch_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three epochs of three steps: the folder, the model and the history."""
    folder = tmp_path_factory.mktemp("run")
    return folder, *train(folder, epochs=3)


def test_a_run_leaves_its_model_history_and_configuration(run):
    folder, model, history = run
    assert same(DualEncoder.from_pretrained(folder), model) and not model.training
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv"), history)
    record = json.loads((folder / "run.json").read_text())
    assert record["configuration"]["beta"] == 0.1 and {"torch", "cibr"} <= record["versions"].keys()
    assert history["epoch"].tolist() == [1, 2, 3] and history["step"].tolist() == [3, 6, 9]
    assert history["temperature"].iloc[-1] == pytest.approx(1 / model.logit_scale.item())
    assert history["text_to_image_recall@10"].iloc[-1] == 1


@forks
def test_validation_does_not_change_the_weights_but_the_seed_does(run, tmp_path):
    torch.manual_seed(77)
    model, history = train(tmp_path / "without", held_out=None, epochs=3)
    assert same(model, run[1]) and history.filter(regex="recall").empty
    assert not same(train(tmp_path / "seed", epochs=3, seed=1)[0], run[1])


@hypothesis_settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 1000))
def test_an_epoch_is_every_image_once_with_one_of_its_texts(seed, epoch):
    images, texts = epoch_rows(PAIRS, seed, epoch)
    assert sorted(images.tolist()) == list(range(24))
    assert torch.equal(PAIRS.text_to_image()[texts], images)
    drawn = torch.cat([epoch_rows(PAIRS, seed, epoch + later)[1] for later in range(40)])
    assert set(drawn.tolist()) == set(range(len(PAIRS.texts())))
    assert not images.equal(epoch_rows(PAIRS, seed, epoch + 1)[0])


def test_a_checkpoint_of_other_pairs_is_refused_and_kept(tmp_path):
    stop_at(5, tmp_path, save_steps=3)
    others = replace(HELD_OUT, captions=HELD_OUT.captions[::-1])
    with pytest.raises(ValueError, match="holds a run with another validation pairs: choose"):
        train(tmp_path, held_out=others, save_steps=3)
    assert (tmp_path / "checkpoint.pt").exists()


def fitted(build, tmp_path, kind, name):
    """A small model before and after an epoch, and as it was saved."""
    options = dict(model=name, output_dir=str(tmp_path / "out"), epochs=1, batch_size=8)
    start, model = build(kind), build(kind)
    fit(model, PAIRS, HELD_OUT, configure(learning_rate=1e-3, **options))
    return start, model, DualEncoder.from_pretrained(tmp_path / "out")


def test_heads_over_frozen_towers_train_and_the_towers_do_not_move(build, tmp_path):
    start, model, saved = fitted(build, tmp_path, "frozen", "frozen")
    assert same(model.towers.loaded, start.towers.loaded)
    trained_head = model.head.heads[0]
    weights = zip(trained_head.parameters(), start.head.parameters(), strict=True)
    assert not any(torch.equal(after, before) for after, before in weights)
    assert same(saved, model)


def test_all_weights_of_a_dual_encoder_of_transformers_train(build, tmp_path):
    start, model, saved = fitted(build, tmp_path, "clip", "some/clip")
    before = dict(start.named_parameters())
    kept = {name for name, x in model.named_parameters() if torch.equal(x, before[name])}
    assert kept <= {"log_logit_scale"}  # which is not learned unless asked for
    assert same(saved, model)


def test_a_model_remembers_the_images_of_all_its_trainings(tmp_path):
    first = PAIRS.subset(range(12))
    second = PAIRS.subset(range(8, 24))
    config = settings(tmp_path / "first", epochs=1)
    model = small_model(config)
    fit(model, first, None, config)
    assert len(model.trained_on) == 12
    fit(model, second, None, settings(tmp_path / "second", epochs=1))
    assert len(model.trained_on) == 24
    assert DualEncoder.from_pretrained(tmp_path / "second").trained_on == model.trained_on


def test_seconds_are_those_since_the_start_of_the_training(tmp_path, monkeypatch):
    before_step(1, partial(time.sleep, 0.3), monkeypatch.setattr)
    start = time.time()
    seconds = train(tmp_path, epochs=3)[1]["seconds"]
    assert 0.3 < seconds[0] < seconds[1] < seconds[2] < time.time() - start


def test_a_run_of_one_step_takes_it_near_the_peak_of_the_schedule(tmp_path):
    history = train(tmp_path, epochs=1, batch_size=24)[1]
    assert history["learning_rate"].tolist() == [pytest.approx(1e-3, rel=0.05)]


def test_all_settings_decide_a_run_but_its_folder_and_how_it_is_saved_and_logged(run):
    record = json.loads((run[0] / "run.json").read_text())
    without_effect = {"output_dir", "save_steps", "log_with"}
    assert record["configuration"].keys() - record["run"].keys() == without_effect


def test_heads_that_are_trained_on_get_no_cca(build, tmp_path):
    _, model, saved = fitted(
        build, tmp_path, "frozen", str(build("frozen").save_pretrained(tmp_path / "in"))
    )
    assert type(model.head) is type(saved.head) is ResidualHead


def test_the_weight_of_a_penalty_rises_from_scratch_and_is_constant_from_a_start(tmp_path):
    betas = {}
    for is_pretrained in (False, True):
        config = settings(tmp_path / str(is_pretrained), epochs=3)
        model = small_model(config)
        model.is_pretrained = is_pretrained
        betas[is_pretrained] = fit(model, PAIRS, None, config)["beta"].tolist()
        assert model.is_pretrained
    assert betas[True] == pytest.approx([0.1] * 3)
    assert betas[False][0] == 0 and 0 < betas[False][1] < betas[False][2] == pytest.approx(0.1)
