"""`fit`: what it leaves, and that the same seed gives the same weights, also after a stop."""

import json

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from helpers import noise_pairs, same
from small_runs import HELD_OUT, PAIRS, settings, small_model
from small_runs import train as train_small

from cibr import DualEncoder, fit
from cibr.losses import RegularisedCCA
from cibr.models import features
from cibr.train import configure, loop
from cibr.train.checkpoint import checkpoints


@pytest.fixture
def run(tmp_path):
    """Two epochs of three steps on noise, or as the options say; returns model, history and folder."""

    def run(folder="out", **options):
        return train_small(tmp_path / folder, **(dict(epochs=2, learn_temperature=False) | options))

    return run


def test_a_run_leaves_model_history_and_configuration_and_no_checkpoints(run):
    model, history, folder = run()
    wanted = [
        "epoch",
        "step",
        "loss",
        "clip_loss",
        "penalty_loss",
        "temperature",
        "seconds",
        "beta",
    ]
    wanted += [f"{s}_recall@{k}" for s in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    assert set(wanted) <= set(history.columns) and not history.isna().any().any()
    assert history["epoch"].tolist() == [1, 2] and history["step"].tolist() == [3, 6]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv"), history)
    record = json.loads((folder / "run.json").read_text())
    assert record["configuration"]["beta"] == 0.1 and {"torch", "cibr"} <= record["versions"].keys()
    assert same(DualEncoder.from_pretrained(folder), model) and not model.training
    left = [path.name for path in folder.iterdir()]
    assert not [n for n in left if n.endswith(".part") or n.startswith(".") or n == "checkpoints"]


def test_validation_by_label_is_reported_as_such(run):
    labelled = noise_pairs(10, split="validation")
    labelled.labels = torch.arange(10) // 2
    columns = run(held_out=labelled)[1].columns
    assert "image_to_text_label_recall@5" in columns and "image_to_text_recall@5" not in columns


def test_the_penalty_is_really_on_at_the_end_and_off_before_its_ramp(run):
    _, history, _ = run(epochs=3)
    assert history["penalty_loss"].iloc[0] == 0 and history["penalty_loss"].iloc[-1] > 0.1
    assert history["beta"].iloc[-1] == pytest.approx(0.1)
    loss = history["clip_loss"] + history["penalty_loss"]
    assert history["loss"].tolist() == pytest.approx(loss.tolist(), rel=1e-5)
    _, plain, _ = run("plain", beta=0.0)
    assert (plain["penalty_loss"] == 0).all() and (plain["loss"] == plain["clip_loss"]).all()


def test_what_is_learned_depends_on_seed_penalty_noise_and_loss_alone(run):
    first, torch_state = run("a")[0], torch.manual_seed(77)
    assert torch_state is not None and same(first, run("b")[0])
    assert same(first, run("c", held_out=None)[0])
    changes = (
        dict(seed=1),
        dict(beta=0.0),
        dict(sample=True),
        dict(contrastive="siglip"),
        dict(penalty="cyclip"),
    )
    assert not [change for change in changes if same(first, run(str(change), **change)[0])]


def test_a_checkpoint_of_another_configuration_or_other_pairs_is_refused(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop.RunFolder, "finish", None)  # it dies when it would write its model
    with pytest.raises(TypeError):
        run()
    message = r"unfinished run of another configuration: beta \(0.1 there, 0.2 here\)\. "
    with pytest.raises(ValueError, match=message):
        run(beta=0.2)
    config = settings(tmp_path / "out", epochs=2, learn_temperature=False)
    fewer = PAIRS.subset([*range(24)][::-1])
    with pytest.raises(
        ValueError, match=r"training pairs \('24 with digest .*' there, '24 with digest"
    ):
        fit(small_model(config), fewer, HELD_OUT, config)
    assert len(checkpoints(tmp_path / "out")) == 2  # a refusal loses nothing


def test_a_batch_larger_than_the_set_is_the_whole_set_and_that_is_said(run):
    message = "batch_size 1,000 is larger than the 24 pairs of the split 'train' of 'noise', so an epoch is one step: "
    with pytest.warns(UserWarning, match=message):
        assert run(batch_size=1000)[1]["step"].tolist() == [1, 2]


def test_epochs_between_validations_change_no_weight_and_are_nan_in_the_history(run):
    model, history, _ = run("every")
    sparse, found, _ = run("sparse", validate_every=4)
    assert same(model, sparse)
    assert found["text_to_image_recall@1"].isna().tolist() == [True, False]
    columns = [name for name in history if name != "seconds"]
    pd.testing.assert_series_equal(found[columns].iloc[-1], history[columns].iloc[-1])
    pd.testing.assert_frame_equal(
        run("sparse", validate_every=4)[1], found
    )  # as a finished run is read


def test_the_temperature_moves_only_if_asked(run):
    assert run("a", temperature=0.1)[1]["temperature"].tolist() == pytest.approx([0.1, 0.1])
    model, history, _ = run("b", temperature=0.1, learn_temperature=True)
    assert abs(history["temperature"].iloc[-1] - 0.1) > 1e-5
    assert 1 / model.logit_scale.item() == pytest.approx(history["temperature"].iloc[-1])


@pytest.mark.parametrize("kind", ["frozen", "clip"])
def test_pretrained_models_train_and_frozen_towers_do_not_move(build, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path / "cache")
    config = configure(model={"clip": "some/clip"}.get(kind, kind), output_dir=str(tmp_path / "out"), epochs=2,
                       batch_size=8, learning_rate=1e-3, temperature=0.05)  # fmt: skip
    model, before = build(kind), build(kind).state_dict()
    model.set_temperature(0.05, learn=False)
    history = fit(model, PAIRS, HELD_OUT, config)
    moved = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert any("projection" in name or "head" in name for name in moved)
    assert any("tower" in name or "_model" in name for name in moved) == (kind == "clip")
    assert same(DualEncoder.from_pretrained(tmp_path / "out"), model)
    again = build(kind)
    assert fit(again, PAIRS, HELD_OUT, config).equals(history) and same(again, model)


def peaks_of(schedule, n_steps):
    """The learning rates of the first group over a run, and those of all groups at their peak."""
    rates = []
    for _ in range(n_steps):
        rates.append([group["lr"] for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return [first for first, *_ in rates], [max(of_group) for of_group in zip(*rates, strict=True)]


@pytest.mark.parametrize(("warm_up", "peak"), [(0.15, 2), (0.5, 9), (0.05, 0), (0.0, 0)])
def test_the_rate_rises_for_its_share_of_the_steps_and_then_falls(build, warm_up, peak):
    config = configure(learning_rate=0.02, warm_up=warm_up)
    rates, _ = peaks_of(loop.build_optimizer(build("tiny"), config, 20)[1], 20)
    assert rates.index(max(rates)) == peak and max(rates) <= 0.02 and rates[-1] < 1e-6
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(
        rates[peak:], reverse=True
    )


@pytest.mark.parametrize("kind", ["tiny", "clip"])
def test_towers_have_rates_of_their_own_and_one_at_rate_zero_neither_moves_nor_drops_out(
    build, tmp_path, kind
):
    rates = dict(image_tower_rate=0.0, text_tower_rate=0.5, learning_rate=1e-3, temperature=0.05)
    config = configure(model={"clip": "some/clip"}.get(kind, kind), output_dir=str(tmp_path), epochs=1,
                       batch_size=8, **rates)  # fmt: skip
    model, start, seen = build(kind), build(kind).state_dict(), []
    (image, _), (text, _) = loop._towers(model, config)
    _, peaks = peaks_of(loop.build_optimizer(build(kind), config, 20)[1], 20)
    assert sorted({round(peak, 5) for peak in peaks}) == [0.0005, 0.001]

    def look(tower, inputs, output):
        values = getattr(output, "pooler_output", output)
        seen.append((tower is text, tower.training, values.requires_grad))

    hooks = [tower.register_forward_hook(look) for tower in (image, text)]
    fit(model, PAIRS, None, config)
    assert set(seen) == {(False, False, False), (True, True, True)} and len(hooks) == 2
    frozen = {id(parameter) for parameter in image.parameters()}
    for name, parameter in model.named_parameters():
        if name != "log_logit_scale":
            assert torch.equal(parameter, start[name]) == (id(parameter) in frozen), name


def test_heads_over_frozen_towers_begin_at_the_cca_of_the_pairs(build, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path / "cache")
    options = dict(
        model="frozen", epochs=1, batch_size=8, cca_start=True, temperature=0.05, dropout=0.0
    )
    still = configure(output_dir=str(tmp_path / "still"), learning_rate=1e-12, **options)
    model = build("frozen")
    fit(model, PAIRS, HELD_OUT, still)
    inputs = features.prepare(model, PAIRS)
    of_text = PAIRS.text_to_image()
    cca = RegularisedCCA.fit(inputs.images[of_text], inputs.texts[0], 16)
    found = (
        model.project_images(inputs.images).features,
        model.project_texts(inputs.texts[0]).features,
    )
    expected = (
        F.normalize(F.layer_norm(x, (16,)), dim=1)
        for x in (cca.images(inputs.images), cca.texts(inputs.texts[0]))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(
            one, other, atol=1e-2, rtol=0
        )  # the head's layer norm has an epsilon
    moved = fit(build("frozen"), PAIRS, HELD_OUT, configure(output_dir=str(tmp_path / "moved"), penalty="anchor",
                beta=1.0, ramp=False, feature_noise=0.3, learning_rate=1e-3, **options))  # fmt: skip
    assert moved["beta"].tolist() == [1.0] and moved["penalty_excess"].iloc[0] > 0


def test_renderings_of_one_item_are_compared_though_their_texts_differ(tmp_path):
    pairs = noise_pairs(16)
    pairs.captions, pairs.groups = [[f"image {i}"] for i in range(16)], torch.arange(16) // 2
    _, history, _ = train_small(
        tmp_path / "out",
        pairs,
        None,
        penalty="consistency",
        group_size=2,
        group_share=0.5,
        epochs=2,
    )
    assert (history["penalty_excess"] > 0).all()  # by the distance of renderings that differ
