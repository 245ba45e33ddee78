"""The moving average of the weights, against a loop, and what a run with one keeps."""

import pytest
import torch
from helpers import same
from small_runs import PAIRS, settings, small_model, train

from cibr import DualEncoder
from cibr.metrics import retrieval_recalls
from cibr.models.features import embed_pairs, prepare
from cibr.train.averaging import WeightAverage


def moved(model, seed):
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def test_the_average_equals_a_loop_over_steps(tmp_path):
    model = small_model(settings(tmp_path))
    average, seen = WeightAverage(model, decay=0.7), []
    for step in range(6):
        moved(model, step)
        average.update(model, step)
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        weights = [0.7 ** (step - s) for s in range(step + 1)]
        for name, found in average.state_dict().items():
            expected = sum(w * state[name] for w, state in zip(weights, seen, strict=True)) / sum(
                weights
            )
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_interpolation_keeps_its_share_of_the_start(tmp_path, decay):
    model, start = small_model(settings(tmp_path)), small_model(settings(tmp_path)).state_dict()
    average, plain = (
        WeightAverage(model, decay, interpolation=0.25),
        WeightAverage(model, decay or 1e-9),
    )
    for step in range(3):
        moved(model, step)
        average.update(model, step)
        plain.update(model, step)
    again = WeightAverage(model, decay, interpolation=0.25)
    again.load_state_dict(average.state_dict())
    again.copy_to(model)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, 0.25 * start[name] + 0.75 * plain.average[name])


def test_within_the_context_a_model_has_the_average_and_after_it_its_own_weights(tmp_path):
    model, other = small_model(settings(tmp_path)), small_model(settings(tmp_path))
    average = WeightAverage(model, decay=0.9)
    moved(model, 0)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with average.applied(model):
        assert same(model, other)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("options", [dict(ema_decay=0.9), dict(interpolation=0.3)])
def test_a_run_validates_and_keeps_the_average(tmp_path, options):
    model, history, folder = train(tmp_path / "averaged", held_out=PAIRS, **options)
    plain, _, _ = train(tmp_path / "plain", held_out=PAIRS)
    assert not same(model, plain) and same(DualEncoder.from_pretrained(folder), model)
    recalls = retrieval_recalls(PAIRS, *embed_pairs(model, prepare(model, PAIRS)))
    assert {name: history.iloc[-1][name] for name in recalls} == recalls
