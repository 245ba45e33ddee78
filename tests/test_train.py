"""`fit`: what it leaves, the same weights twice and after a kill, and what it refuses before it begins."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch
from conftest import noise_pairs
from test_train_config import write_folder

from cibr import DualEncoder, fit
from cibr.train import __main__ as command_line
from cibr.train import build_model, configure, loop
from cibr.train.checkpoint import checkpoints

PAIRS, HELD_OUT = noise_pairs(48, n_captions=3), noise_pairs(20, n_captions=2, split="validation")


@pytest.fixture
def run(tmp_path):
    """Trains the tiny model for two epochs of three steps on noise, or as the options say; returns all of it."""

    def run(folder="out", held_out=HELD_OUT, **options):
        settings = dict(dropout=0.2, beta=0.1, epochs=2, batch_size=16, learning_rate=1e-3) | options
        config = configure(output_dir=str(tmp_path / folder), **settings)
        model = build_model(config, PAIRS)
        return model, fit(model, PAIRS, held_out, config), tmp_path / folder

    return run


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_run_leaves_model_history_and_configuration_and_no_checkpoints(run):
    model, history, folder = run()
    wanted = ["epoch", "step", "loss", "clip_loss", "penalty_loss", "temperature", "seconds", "beta"]
    wanted += [f"{s}_recall@{k}" for s in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    assert set(wanted) <= set(history.columns) and not history.isna().any().any()
    assert history["epoch"].tolist() == [1, 2] and history["step"].tolist() == [3, 6]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv"), history)
    record = json.loads((folder / "run.json").read_text())
    assert record["configuration"]["beta"] == 0.1 and {"torch", "cibr"} <= record["versions"].keys()
    assert same(DualEncoder.from_pretrained(folder), model) and not model.training
    assert not (folder / "checkpoints").exists()
    assert not [path.name for path in folder.iterdir() if path.suffix == ".part" or path.name.startswith(".")]


def test_the_penalty_is_really_on_at_the_end_and_off_before_its_ramp(run):
    _, history, _ = run(epochs=3)
    assert history["penalty_loss"].iloc[0] == 0 and history["penalty_loss"].iloc[-1] > 0.1
    assert history["beta"].iloc[-1] == pytest.approx(0.1)
    loss = history["clip_loss"] + history["penalty_loss"]
    assert history["loss"].tolist() == pytest.approx(loss.tolist(), rel=1e-5)
    _, plain, _ = run("plain", beta=0.0)
    assert (plain["penalty_loss"] == 0).all() and (plain["loss"] == plain["clip_loss"]).all()


def test_the_penalty_changes_what_is_learned(run):
    assert not same(run("a", beta=0.0)[0], run("b", beta=0.1)[0])


def test_the_same_seed_gives_the_same_weights_and_another_others(run):
    first, torch_state = run("a")[0], torch.manual_seed(77)
    second = run("b")[0]
    assert torch_state is not None and same(first, second)
    assert not same(first, run("c", seed=1)[0])


def test_weights_depend_on_training_alone_and_not_on_validation(run):
    assert same(run("a")[0], run("b", held_out=None)[0])


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def stop_at(monkeypatch, step):
    """Makes `fit` stop in the middle, before this step is taken."""
    real = loop.contrastive_backward
    n_calls = iter(range(1, 1000))

    def backward(*args, **options):
        if next(n_calls) == step:
            raise Killed
        return real(*args, **options)

    monkeypatch.setattr(loop, "contrastive_backward", backward)


@pytest.mark.parametrize(
    "options", [{}, dict(estimator="gaussian", learn_temperature=True)], ids=["vmf", "gaussian"]
)
@pytest.mark.parametrize("step", [2, 5])
def test_a_stopped_run_goes_on_to_the_same_weights_bit_for_bit(run, monkeypatch, step, options):
    whole, history, _ = run("whole", **options)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Killed):
            run("stopped", **options)
    model, resumed, folder = run("stopped", **options)
    assert same(model, whole)
    same_columns = history.columns.drop("seconds")
    pd.testing.assert_frame_equal(resumed[same_columns], history[same_columns], check_exact=True)
    assert not (folder / "checkpoints").exists()


def stopped_run(run, monkeypatch, **options):
    with monkeypatch.context() as patch:
        stop_at(patch, 8)
        with pytest.raises(Killed):
            run(epochs=4, **options)


def test_a_checkpoint_of_another_configuration_or_other_pairs_is_refused(run, monkeypatch, tmp_path):
    stopped_run(run, monkeypatch)
    with pytest.raises(ValueError, match=r"unfinished run of another configuration: beta \(0.1 there, 0.2 here\)"):
        run(epochs=4, beta=0.2)
    config = configure(
        dropout=0.2, beta=0.1, epochs=4, batch_size=16, learning_rate=1e-3, output_dir=str(tmp_path / "out")
    )
    fewer = PAIRS.subset(range(40))
    with pytest.raises(ValueError, match=r"pairs \('48 with digest .*' there, '40 with digest"):
        fit(build_model(config, PAIRS), fewer, HELD_OUT, config)
    assert len(checkpoints(tmp_path / "out" / "checkpoints")) == 2  # a refusal loses nothing


def test_a_damaged_newest_checkpoint_is_passed_over(run, monkeypatch, tmp_path):
    whole = run("whole", epochs=4)[0]
    stopped_run(run, monkeypatch)
    newest = checkpoints(tmp_path / "out" / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="step-000000006.pt' cannot be read and is passed over"):
        model = run(epochs=4)[0]
    assert same(model, whole)


def test_an_output_folder_that_cannot_be_written_is_refused_before_anything_is_read(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    config = configure(output_dir=str(tmp_path / "file" / "x"))
    monkeypatch.setattr(loop, "prepare", None)
    with pytest.raises(ValueError, match="output_dir .*file/x' cannot be written: .*choose another"):
        fit(build_model(config, PAIRS), PAIRS, HELD_OUT, config)


def test_fewer_than_two_pairs_are_refused(tmp_path):
    config = configure(output_dir=str(tmp_path))
    with pytest.raises(ValueError, match="train of noise has 1 pair: a contrast needs two at least"):
        fit(build_model(config, PAIRS), PAIRS.subset([0]), HELD_OUT, config)


def test_a_batch_larger_than_the_set_is_the_whole_set(run):
    assert run(batch_size=1000)[1]["step"].tolist() == [1, 2]


def test_the_temperature_moves_only_if_asked(run):
    assert run("a", temperature=0.1)[1]["temperature"].tolist() == pytest.approx([0.1, 0.1])
    model, history, _ = run("b", temperature=0.1, learn_temperature=True)
    assert abs(history["temperature"].iloc[-1] - 0.1) > 1e-5
    assert 1 / model.logit_scale.item() == pytest.approx(history["temperature"].iloc[-1])


def test_the_gaussian_estimator_learns_its_variances(run):
    model, history, folder = run(estimator="gaussian", epochs=3)
    assert model.image_log_variance.weight.abs().sum() > 0 and model.text_log_variance.weight.abs().sum() > 0
    assert history["residual_image_nats"].iloc[-1] > 0
    assert same(DualEncoder.from_pretrained(folder), model)


@pytest.mark.parametrize("kind", ["frozen", "clip"])
def test_pretrained_models_train_and_frozen_towers_do_not_move(build, tmp_path, monkeypatch, kind):
    from cibr import inputs

    monkeypatch.setattr(inputs, "data_folder", lambda: tmp_path / "data")
    config = configure(model={"clip": "some/clip"}.get(kind, kind), output_dir=str(tmp_path / "out"), epochs=2,
                       batch_size=16, learning_rate=1e-3, temperature=0.05)  # fmt: skip
    model, before = build(kind), build(kind).state_dict()
    model.set_temperature(0.05, learn=False)
    fit(model, PAIRS, HELD_OUT, config)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any("projection" in name or "head" in name for name in moved)
    assert any("tower" in name or "_model" in name for name in moved) == (kind == "clip")
    assert same(DualEncoder.from_pretrained(tmp_path / "out"), model)


def test_siblings_are_refused_where_every_text_is_of_one_picture_and_every_picture_has_one(tmp_path):
    pairs = noise_pairs(12, n_captions=1)
    pairs.captions = [[f"picture {i}"] for i in range(12)]
    options = dict(estimator="siblings", group_size=2, epochs=1, batch_size=8, output_dir=str(tmp_path))
    config = configure(dataset=str(write_folder(tmp_path / "mine", train=24)), **options)
    with pytest.raises(ValueError, match="'siblings' compares pictures of one text.*train of noise has none"):
        fit(build_model(config, pairs), pairs, None, config)


def test_looks_of_one_thing_are_siblings_though_their_texts_differ(tmp_path):
    pairs = noise_pairs(16, n_captions=1)
    pairs.captions, pairs.groups = [[f"picture {i}"] for i in range(16)], torch.arange(16) // 2
    options = dict(estimator="siblings", group_size=2, group_share=0.5, epochs=2, batch_size=8)
    options |= dict(dataset=str(write_folder(tmp_path / "mine", train=24)), output_dir=str(tmp_path / "out"))
    config = configure(**options)
    history = fit(build_model(config, pairs), pairs, None, config)
    assert (history["penalty_excess"] > 0).all()  # by the distance of looks that differ


def test_the_command_line_trains_on_a_folder_of_pictures(tmp_path):
    config = dict(dataset=str(write_folder(tmp_path / "mine", train=24)), beta=0, epochs=2, batch_size=8)
    (tmp_path / "config.json").write_text(json.dumps(config | {"output_dir": "out"}))
    command = [sys.executable, "-m", "cibr.train", "config.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "image_to_text_recall@1" in done.stdout
    model = DualEncoder.from_pretrained(tmp_path / "out")
    assert model.embed_texts(["a red cat"]).shape == (1, 128) and model.image_size == 64


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "an object with the parameters"),
        ('{"betta": 1}', "did you mean 'beta'"),
        (None, "No such file"),
    ],
)
def test_the_command_line_says_what_is_wrong_with_the_configuration(
    tmp_path, monkeypatch, capsys, config, message
):
    file = tmp_path / "config.json"
    if config is not None:
        file.write_text(config)
    monkeypatch.setattr(sys, "argv", ["cibr.train", str(file)])
    with pytest.raises(SystemExit, match="2"):
        command_line.main()
    assert message in capsys.readouterr().err.replace("\n", " ")
