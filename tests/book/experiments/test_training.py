"""What the study adds to `cibr.fit`: rows in groups, and averages of the weights."""

from dataclasses import replace

import pytest
import torch
from helpers import noise_pairs, same
from small_runs import PAIRS, settings, small_model, train
from transformers import TrainerState

from cibr import DualEncoder
from cibr.metrics import retrieval_recalls
from cibr.models.features import embed_pairs, prepare
from cibr_book.experiments.training import StudyTrainer, WeightAverage, grouped_rows

TWICE = [*range(20), *range(0, 20, 2)]  # ten come twice, ten are alone


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_groups_are_different_captions_of_one_image():
    pairs = noise_pairs(30, n_captions=4)
    images, texts = grouped_rows(pairs, 2, seed=3, epoch=0)
    assert len(images) == 30 and torch.equal(pairs.text_to_image()[texts], images)
    for (i, j), (a, b) in zip(images.view(-1, 2), texts.view(-1, 2), strict=True):
        assert i == j and (a != b) == (len(pairs.captions[i]) > 1)
    seen = torch.cat([grouped_rows(pairs, 2, seed=3, epoch=epoch)[1] for epoch in range(16)])
    assert len(seen.unique()) == len(pairs.texts())


@torch.no_grad()
@pytest.mark.parametrize(("decay", "interpolation"), [(0.7, 0.0), (0.7, 0.25), (0.0, 0.25)])
def test_the_average_is_a_loop_over_steps_mixed_with_the_start(decay, interpolation):
    model = small_model(settings())
    average, state = WeightAverage(decay, interpolation), TrainerState()
    average.on_train_begin(None, state, None, model)
    start = flat(model)
    expected, total = 0.0, 0.0
    for step in range(4):
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape)
        state.global_step = step + 1
        average.on_step_end(None, state, None, model)
        expected = decay * expected + flat(model)
        total = decay * total + 1
    average.on_train_end(None, state, None, model)
    expected = interpolation * start + (1 - interpolation) * expected / total
    torch.testing.assert_close(flat(model), expected)


@pytest.mark.parametrize("numbers", [(1.0, 0.0), (-0.1, 0.0), (float("nan"), 0.0), (0.5, 1.0)])
def test_an_average_needs_a_decay_and_a_share(numbers):
    with pytest.raises(ValueError, match="decay is .* from 0 to less than 1"):
        WeightAverage(*numbers)


def test_another_average_is_another_run(tmp_path):
    averaged = {"trainer": StudyTrainer, "additions": {"average": WeightAverage(decay=0.9)}}
    train(tmp_path, **averaged)
    averaged["additions"] = {"average": WeightAverage(0.0)}
    with pytest.raises(ValueError, match=r"decay \(0.9 there, 0.0 here\)"):
        train(tmp_path, **averaged)


def test_a_run_in_groups_validates_and_keeps_the_average(tmp_path):
    groups = {"trainer": StudyTrainer, "held_out": PAIRS}
    additions = {"group_size": 2}
    plain, _ = train(tmp_path / "plain", additions=additions, **groups)
    averaged = {"average": WeightAverage(decay=0.9)} | additions
    model, history = train(tmp_path / "averaged", additions=averaged, **groups)
    assert not same(model, plain)
    assert same(DualEncoder.from_pretrained(tmp_path / "averaged"), model)
    embedded = embed_pairs(model, prepare(model, PAIRS))
    recalls = retrieval_recalls(*embedded, *PAIRS.retrieval_targets())
    assert {name: history.iloc[-1][name] for name in recalls} == recalls


def test_a_run_is_that_of_its_study_settings(tmp_path):
    """RaFA and HyCD have their inputs, and another setting is another run."""
    options = dict(penalty="rafa", trainer=StudyTrainer, micro_batch_size=3)
    _, history = train(tmp_path, additions={"contrastive": "hycd"}, **options)
    assert (history["penalty_loss"] > 0).all() and "mi_lower_bound_nats" not in history
    with pytest.raises(ValueError, match=r"contrastive \('hycd' there, 'clip' here\), group_size"):
        train(tmp_path, additions={"group_size": 2}, **options)
    _, still = train(tmp_path / "still", trainer=StudyTrainer, additions={"ramps": False})
    assert still["beta"].tolist() == pytest.approx([0.1, 0.1], rel=1e-12)
    config = settings(tmp_path / "first", penalty="rafa")
    trainer = StudyTrainer(small_model(config), config, PAIRS, contrastive="hycd")
    trainer.set_up()
    rows = torch.arange(8)
    features = trainer.encode_batch(trainer.model, trainer.inputs[rows, rows]).features
    logits = trainer.model.logit_scale * features["image_features"] @ features["text_features"].T
    torch.testing.assert_close(
        features["teacher_logits"], logits
    )  # the initial model, in eval mode
    trainer = StudyTrainer(small_model(config), replace(config, penalty="start"), PAIRS)
    trainer.set_up()
    at_start = trainer.encode_batch(trainer.model, trainer.inputs[rows, rows]).features
    for name in ("image", "text"):
        torch.testing.assert_close(at_start[f"teacher_{name}"], features[f"{name}_features"])
    projected = torch.nn.functional.normalize(features["image_projected"], dim=1)
    torch.testing.assert_close(projected, features["image_features"])
