"""`fit`: what it leaves and reports, what decides the weights, and what it warns of."""

import json
import warnings
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from helpers import picture, same
from small_runs import HELD_OUT, PAIRS, Stopped, before_step, settings, small_model, train

from cibr import DualEncoder, fit
from cibr.data import Pairs
from cibr.models import features
from cibr.models.features import prepare
from cibr.train import configure, loop
from cibr.train.checkpoint import checkpoints
from cibr.train.loop import epoch_rows, rows_of_steps, set_up


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three epochs of three steps: the folder, the model, the history and the steps' values."""
    folder = tmp_path_factory.mktemp("run")
    values = []
    real = loop.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", lambda *given: values.append(real(*given)))
        model, history = train(folder, epochs=3)
    return folder, model, history, values


def test_a_run_leaves_its_model_history_and_configuration(run):
    folder, model, history, _ = run
    assert same(DualEncoder.from_pretrained(folder), model) and not model.training
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv"), history)
    record = json.loads((folder / "run.json").read_text())
    assert record["configuration"]["beta"] == 0.1 and {"torch", "cibr"} <= record["versions"].keys()
    names = {path.name for path in folder.iterdir()}
    assert not [name for name in names if name.endswith(".part") or name.startswith(".")]
    assert "checkpoints" not in names


def test_the_history_has_the_means_of_the_steps(run):
    _, model, history, values = run
    assert history["epoch"].tolist() == [1, 2, 3] and history["step"].tolist() == [3, 6, 9]
    assert history["beta"].tolist() == pytest.approx([0, (1 / 30 + 2 / 30) / 3, 0.1])
    for name in ("loss", "clip_loss", "penalty_loss", "residual_text_nats", "text_mean_cosine"):
        means = [sum(step[name] for step in values[i : i + 3]) / 3 for i in (0, 3, 6)]
        assert history[name].tolist() == pytest.approx(means)
    total = history["clip_loss"] + history["penalty_loss"]
    assert history["loss"].tolist() == pytest.approx(total.tolist(), rel=1e-5)
    assert history["penalty_loss"].iloc[0] == 0 and history["penalty_loss"].iloc[2] > 0
    assert 1 / model.logit_scale.item() == pytest.approx(history["temperature"].iloc[2])
    assert (
        history["text_to_image_recall@10"].iloc[2] == 1
        and history["seconds"].is_monotonic_increasing
    )


def test_neither_validation_nor_other_random_numbers_change_the_weights(run, tmp_path):
    torch.manual_seed(77)
    model, history = train(tmp_path / "sparse", epochs=3, validate_every=4)
    assert same(model, run[1])
    assert history["text_to_image_recall@1"].isna().tolist() == [True, True, False]
    _, stored = train(tmp_path / "sparse", epochs=3, validate_every=4)
    pd.testing.assert_frame_equal(stored, history, check_exact=True)
    assert same(train(tmp_path / "without", held_out=None, epochs=3)[0], run[1])
    for i, changes in enumerate([dict(seed=1), dict(crop_scale=0.3), dict(crop_scale=0.9)]):
        assert not same(train(tmp_path / f"{i}", None, epochs=3, **changes)[0], run[1])


def test_an_epoch_is_every_image_once_with_a_random_one_of_its_texts():
    epochs = [epoch_rows(PAIRS, seed=0, epoch=epoch) for epoch in range(30)]
    seen = set()
    for images, texts in epochs:
        assert sorted(images.tolist()) == list(range(24))
        assert torch.equal(PAIRS.text_to_image()[texts], images)
        seen |= set(texts.tolist())
    assert seen == set(range(len(PAIRS.texts())))
    assert torch.equal(torch.stack(epochs[3]), torch.stack(epoch_rows(PAIRS, 0, 3)))
    orders = {tuple(images.tolist()) for images, _ in [*epochs, epoch_rows(PAIRS, 1, 0)]}
    assert len(orders) == 31


def test_the_rows_of_a_step_depend_on_seed_and_step_alone(tmp_path):
    config = settings(tmp_path, crop_scale=0.5)
    model = small_model(config)
    state = set_up(model, prepare(model, PAIRS), config, Accelerator(), 6)

    def steps(first, rank, n_processes):
        state.progress.step = first
        state.accelerator = SimpleNamespace(num_processes=n_processes, process_index=rank)
        order = lambda epoch: epoch_rows(PAIRS, 0, epoch)  # noqa: E731
        return [*rows_of_steps(order, state, 3, 8 // n_processes)]

    whole = steps(0, 0, 1)
    assert len(whole) == 6 and whole[0][0].tolist() == epoch_rows(PAIRS, 0, 0)[0][:8].tolist()
    assert whole[4][1].tolist() == epoch_rows(PAIRS, 0, 1)[1][8:16].tolist()
    assert len({seed for _, _, seeds in whole for seed in seeds.tolist()}) == 48
    torch.testing.assert_close(steps(4, 0, 1), whole[4:])
    for one, first, second in zip(whole, steps(0, 0, 2), steps(0, 1, 2), strict=True):
        torch.testing.assert_close([*map(torch.cat, zip(first, second, strict=True))], [*one])


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        before_step(5, patch=patch.setattr)
        train(tmp_path)
    refusals = {
        r"beta \(0.1 there, 0.2 here\)\. ": dict(beta=0.2),
        r"training pairs \('24 with digest .*' there, '23 with": dict(
            pairs=PAIRS.subset(range(23))
        ),
        r"validation pairs \('10 with digest .*' there, '9 with": dict(
            held_out=HELD_OUT.subset(range(9))
        ),
        r"order \('.*' there, ": dict(
            additions={"order": lambda epoch: epoch_rows(PAIRS, 9, epoch)}
        ),
    }
    for message, changes in refusals.items():
        with pytest.raises(
            ValueError, match=f"an unfinished run of another configuration: .*{message}"
        ):
            train(tmp_path, **changes)
    assert [file.name for file in checkpoints(tmp_path)] == ["step-000000003.pt"]


def test_a_batch_larger_than_the_set_is_the_whole_set_with_a_warning(tmp_path):
    message = "batch_size 1,000 is larger than the 24 pairs of the split 'train' of 'noise', so an"
    with pytest.warns(UserWarning, match=message):
        model, history = train(tmp_path, batch_size=1000, epochs=1, learning_rate=1e-2)
    assert history["step"].tolist() == [1]
    start = small_model(settings(tmp_path)).state_dict()
    moved = [(start[name] - tensor).abs().max() for name, tensor in model.state_dict().items()]
    assert max(moved) > 1e-3  # the only step is not one at the end of a schedule


def test_the_temperature_is_fixed_unless_it_is_learned(tmp_path):
    _, history = train(tmp_path, temperature=0.1, learn_temperature=False)
    assert history["temperature"].tolist() == pytest.approx([0.1, 0.1], rel=1e-6)


@pytest.mark.parametrize("kind", ["frozen", "clip"])
def test_pretrained_models_train_and_frozen_towers_do_not_move(build, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path / "cache")
    options = dict(output_dir=str(tmp_path / "out"), epochs=1, batch_size=8, temperature=0.05)
    config = configure(model={"clip": "some/clip"}.get(kind, kind), learning_rate=1e-3, **options)
    model = build(kind)
    fit(model, PAIRS, HELD_OUT, config)
    start = build(kind).state_dict()
    moved = {name for name, value in model.state_dict().items() if not value.equal(start[name])}
    assert any("projection" in name or "head" in name for name in moved)
    assert any("tower" in name or "_model" in name for name in moved) == (kind == "clip")
    assert same(DualEncoder.from_pretrained(tmp_path / "out"), model)


def test_collapse_and_repeated_captions_are_warned_of_once_after_a_third_of_the_run(tmp_path):
    captions = [["a red cat"]] * 38 + [["a blue dog"]] * 2
    keys = [str(i) for i in range(40)]
    pairs = Pairs("same", "train", captions, keys, lambda i: picture(0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(tmp_path, pairs, None, batch_size=40, epochs=4, dropout=0.0)
    messages = [str(warning.message) for warning in caught]
    images = [message for message in messages if "image_mean_cosine" in message]
    assert len(images) == 1 and images[0].startswith("epoch 2: image_mean_cosine is 1.0000: ")
    [repeats] = [message for message in messages if "repeated_captions" in message]
    assert repeats.startswith("epoch 2: repeated_captions is 0.9500: repeats are no negatives")


NOT_FINITE = FloatingPointError("step 5 was not taken")
FULL = torch.OutOfMemoryError("CUDA out of memory")
LAST_GOOD = "; the last good checkpoint is '.*step-000000003.pt'. "


@pytest.mark.parametrize(
    ("error", "size", "message"),
    [
        (NOT_FINITE, 0, f"step 5 was not taken{LAST_GOOD}Lower learning_rate or raise temperature"),
        (FULL, 0, f"step 5 .* 8 rows at once{LAST_GOOD}Set micro_batch_size to 4 and start again"),
        (FULL, 3, f"step 5 .* 3 rows at once{LAST_GOOD}Set micro_batch_size to 1 and start again"),
        (FULL, 1, f"step 5 .* 1 rows at once{LAST_GOOD}Use a GPU with more memory and start"),
    ],
)
def test_a_step_that_fails_names_the_last_good_checkpoint_and_the_remedy(
    tmp_path, monkeypatch, error, size, message
):
    def fail():
        raise error

    before_step(5, fail, monkeypatch.setattr)
    with pytest.raises((FloatingPointError, ValueError), match=message):
        train(tmp_path, micro_batch_size=size)
