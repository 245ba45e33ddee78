"""`fit`: what it leaves and reports, what decides the weights, and what it warns of."""

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from helpers import picture, same
from small_runs import HELD_OUT, PAIRS, fail_before, forks, settings, small_model, stop_at, train

from cibr import DualEncoder, fit
from cibr.data import Pairs
from cibr.models import features
from cibr.models.features import prepare
from cibr.train import configure, loop
from cibr.train.loop import epoch_rows, rows_of_steps, set_up


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three epochs of three steps: the folder, the model, the history and the steps' values."""
    folder, values, real = tmp_path_factory.mktemp("run"), [], loop.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", lambda *given: values.append(real(*given)))
        return folder, *train(folder, epochs=3), values


def test_a_run_leaves_its_model_history_and_configuration(run):
    folder, model, history, _ = run
    assert same(DualEncoder.from_pretrained(folder), model) and not model.training
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv"), history)
    record = json.loads((folder / "run.json").read_text())
    assert record["configuration"]["beta"] == 0.1 and {"torch", "cibr"} <= record["versions"].keys()


def test_the_history_has_the_means_of_the_steps(run):
    _, model, history, values = run
    assert history["epoch"].tolist() == [1, 2, 3] and history["step"].tolist() == [3, 6, 9]
    assert history["beta"].tolist() == pytest.approx([0, (1 / 30 + 2 / 30) / 3, 0.1])
    for name in ("loss", "clip_loss", "penalty_loss", "residual_text_nats", "text_mean_cosine"):
        means = [sum(step[name] for step in values[i : i + 3]) / 3 for i in (0, 3, 6)]
        assert history[name].tolist() == pytest.approx(means)
    assert history["temperature"].iloc[-1] == pytest.approx(1 / model.logit_scale.item())
    assert history["text_to_image_recall@10"].iloc[-1] == 1
    assert history["seconds"].is_monotonic_increasing


@forks
def test_neither_validation_nor_other_random_numbers_change_the_weights(run, tmp_path):
    torch.manual_seed(77)
    model, history = train(tmp_path / "sparse", epochs=3, validate_every=4)
    assert same(model, run[1])
    assert history["text_to_image_recall@1"].isna().tolist() == [True, True, False]
    _, stored = train(tmp_path / "sparse", epochs=3, validate_every=4)
    pd.testing.assert_frame_equal(stored, history, check_exact=True)
    assert same(train(tmp_path / "without", held_out=None, epochs=3)[0], run[1])
    for name, value in dict(seed=1, crop_scale=0.9, dropout=0.0).items():
        assert not same(train(tmp_path / name, epochs=3, **{name: value})[0], run[1])


def test_an_epoch_is_every_image_once_with_a_random_one_of_its_texts():
    epochs = [epoch_rows(PAIRS, seed=0, epoch=epoch) for epoch in range(30)]
    for images, texts in epochs:
        assert sorted(images.tolist()) == list(range(24))
        assert torch.equal(PAIRS.text_to_image()[texts], images)
    assert set(torch.cat([texts for _, texts in epochs]).tolist()) == set(range(len(PAIRS.texts())))
    torch.testing.assert_close(epoch_rows(PAIRS, 0, 3), epochs[3])
    epochs.append(epoch_rows(PAIRS, seed=1, epoch=0))
    assert len({tuple(images.tolist()) for images, _ in epochs}) == 31


def test_the_rows_of_a_step_depend_on_seed_and_step_alone():
    config = settings(crop_scale=0.5)
    model = small_model(config)
    state = set_up(model, prepare(model, PAIRS), config, Accelerator(), 6)
    order = [epoch_rows(PAIRS, seed=0, epoch=epoch) for epoch in range(2)]

    def steps(first, rank=0, n_processes=1):
        state.progress.step = first
        state.accelerator = SimpleNamespace(num_processes=n_processes, process_index=rank)
        return [*rows_of_steps(order.__getitem__, state, 3, 8 // n_processes)]

    whole = steps(0)
    for i in (0, 1):  # images and texts
        assert torch.cat([rows[i] for rows in whole]).tolist() == [*order[0][i], *order[1][i]]
    assert len(torch.cat([seeds for _, _, seeds in whole]).unique()) == 48
    torch.testing.assert_close(steps(4), whole[4:])
    for rows, first, second in zip(whole, steps(0, 0, 2), steps(0, 1, 2), strict=True):
        torch.testing.assert_close(tuple(map(torch.cat, zip(first, second, strict=True))), rows)


OTHER_KEYS = replace(PAIRS, keys=PAIRS.keys[::-1])
OTHER_CAPTIONS = replace(HELD_OUT, captions=HELD_OUT.captions[::-1])
OTHER_RUNS = {
    r"beta \(0.1 there, 0.2 here\)\. ": dict(beta=0.2),
    r"training pairs \('24 with digest .*' there, '24 ": dict(pairs=OTHER_KEYS),
    r"validation pairs \('10 with .*' there, '10 ": dict(held_out=OTHER_CAPTIONS),
    r"average \(False there, True here\)": dict(additions={"average": lambda model: None}),
    r"order \('.*' there": dict(additions={"order": lambda epoch: epoch_rows(PAIRS, 9, epoch)}),
}


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path):
    stop_at(5, tmp_path)
    for difference, changes in OTHER_RUNS.items():
        message = f"an unfinished run of another configuration: .*{difference}"
        with pytest.raises(ValueError, match=message):
            train(tmp_path, **changes)
    assert [file.stem for file in tmp_path.glob("checkpoints/*")] == ["step-000000003"]
    assert pd.read_csv(tmp_path / "history.csv")["step"].tolist() == [3]


def test_a_batch_larger_than_the_set_is_the_whole_set_with_a_warning(tmp_path):
    message = "batch_size 1,000 is larger than the 24 pairs of the split 'train' of 'noise', so an"
    options = dict(epochs=1, learning_rate=1e-2)
    with pytest.warns(UserWarning, match=message):
        model, history = train(tmp_path / "larger", batch_size=1000, **options)
    assert same(model, train(tmp_path / "whole", batch_size=24, **options)[0])
    assert history["step"].tolist() == [1]
    start = small_model(settings()).state_dict()
    moved = [(start[name] - tensor).abs().max() for name, tensor in model.state_dict().items()]
    assert max(moved) > 1e-3  # the only step is not one at the end of a schedule


@pytest.mark.parametrize(("kind", "name"), [("frozen", "frozen"), ("hub", "some/clip")])
def test_pretrained_models_train_and_frozen_towers_do_not_move(
    build, tmp_path, monkeypatch, kind, name
):
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path / "cache")
    options = dict(model=name, output_dir=str(tmp_path / "out"), epochs=1, batch_size=8)
    model = build(kind)
    fit(model, PAIRS, HELD_OUT, configure(learning_rate=1e-3, **options))
    start = build(kind).state_dict()
    moved = {name for name, value in model.state_dict().items() if not value.equal(start[name])}
    assert any("projection" in name or "head" in name for name in moved)
    assert any("tower" in name or "_model" in name for name in moved) == (kind == "hub")
    assert same(DualEncoder.from_pretrained(tmp_path / "out"), model)


def test_collapse_and_repeated_captions_are_warned_of_once_after_a_third_of_the_run(tmp_path):
    captions = [["a red cat"]] * 39 + [["a text that is cut " * 40]]  # two labels: enough
    pairs = Pairs("same", "train", captions, [str(i) for i in range(40)], lambda i: picture(0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(tmp_path, pairs, None, batch_size=40, epochs=5, dropout=0.0)
    messages = [str(warning.message) for warning in caught]
    for start in ("image_mean_cosine is 1.0000: image", "repeated_captions is 0.9500: repeats"):
        [message] = [message for message in messages if start in message]
        assert message.startswith(f"epoch 2: {start}")


FULL = torch.OutOfMemoryError("CUDA out of memory")
FAILURES = [
    (FloatingPointError("step 5 was not taken"), 0, "step 5 was not taken", "Lower learning_rate"),
    (FULL, 0, "step 5 was not taken: .* 8 rows at once", "Set micro_batch_size to 4 and start"),
    (FULL, 3, "step 5 was not taken: .* 3 rows at once", "Set micro_batch_size to 1 and start"),
    (FULL, 1, "step 5 was not taken: .* 1 rows at once", "Use a GPU with more memory and start"),
]


@pytest.mark.parametrize(("error", "size", "reason", "fix"), FAILURES)
def test_a_step_that_fails_names_the_last_good_checkpoint_and_the_remedy(
    tmp_path, monkeypatch, error, size, reason, fix
):
    fail_before(5, error, monkeypatch.setattr)
    message = f"{reason}; the last good checkpoint is '.*step-000000003.pt'. {fix}"
    with pytest.raises((FloatingPointError, ValueError), match=message):
        train(tmp_path, micro_batch_size=size)
