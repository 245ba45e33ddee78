"""A run's steps: equal to those in plain PyTorch, however a batch is cut; what is not finite stops
before the step.
"""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from helpers import same
from small_runs import PAIRS, before_step, settings, small_model
from twin import CASES, model_of, plain_run, settings_of

from cibr.models.inputs import prepare
from cibr.train.grad_cache import GradCache
from cibr.train.loop import Training

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def assert_equal(module, twin, tolerance=1e-9):
    found, expected = (dict(side.cpu().named_parameters()) for side in (module, twin))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_a_run_equals_one_in_plain_pytorch(tmp_path, case):
    config = settings_of(case, tmp_path)
    model = model_of(config)
    twin = copy.deepcopy(model)
    training = Training(model, config, prepare(model, PAIRS))
    history = training.run()
    loss_fn, epochs = plain_run(config, twin)
    tolerance = 1e-9 if model.device.type == "cpu" else 1e-6
    assert_equal(model, twin, tolerance)
    assert_equal(training.loss_fn, loss_fn, tolerance)
    for name in epochs[0]:
        expected = [epoch[name] for epoch in epochs]
        assert history[name].tolist() == pytest.approx(expected, rel=tolerance), name


def test_steps_over_frozen_towers_equal_plain_ones(build, tmp_path):
    config = settings(tmp_path / "out", model="frozen", cca=False, seed=3)
    model = build("frozen", dropout=0.3).double()
    twin = copy.deepcopy(model)
    Training(model, config, prepare(model, PAIRS)).run()
    plain_run(config, twin)
    assert_equal(model, twin)


def test_bf16_encoders_in_parts_have_the_gradients_of_all_parts_at_once(tmp_path):
    config = settings_of("vmf, sampled", tmp_path, bf16=True)
    model = model_of(config).float()
    twin, exact = copy.deepcopy(model), copy.deepcopy(model)
    history = Training(model, config, prepare(model, PAIRS)).run()
    expected = plain_run(config, twin, bf16=True)[1][0]["clip_loss"]
    float32 = plain_run(config, exact)[1][0]["clip_loss"]
    found = history["clip_loss"].iloc[0]
    assert found == pytest.approx(expected, rel=1e-4)
    assert abs(found - expected) < 0.1 * abs(found - float32)


def test_micro_batches_hold_no_activations_until_the_backward_pass():
    model = small_model(settings())
    rows = torch.arange(10)
    batch = prepare(model, PAIRS)[rows, rows]

    def n_saved(size=None):
        saved = []
        pack = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()), id)
        with pack:
            GradCache(model, batch, Accelerator(), micro_batch_size=size)
        return sum(saved)

    assert n_saved(2) < 0.01 * n_saved()


def times(factor):
    return lambda module, inputs, output: output * factor


def overflow(module, inputs, output):
    output.register_hook(lambda gradient: gradient * math.inf)


BROKEN = [  # a part of a training, and what its output or its gradient becomes
    ("loss_fn.penalty", times(math.nan)),
    ("loss_fn.penalty", overflow),
    ("model.head.image", times(math.nan)),
]


@pytest.mark.parametrize(("part", "hook"), BROKEN)
def test_what_is_not_finite_stops_before_the_step(part, hook, monkeypatch):
    config = settings(penalty="mine")
    model = small_model(config)
    training = Training(model, config, prepare(model, PAIRS))
    handles = []
    kept = []

    def break_it():
        holder, _, name = part.partition(".")
        kept.append(copy.deepcopy(model))
        module = getattr(training, holder).get_submodule(name)
        handles.append(module.register_forward_hook(hook))

    before_step(5, break_it, monkeypatch.setattr)
    with pytest.raises(FloatingPointError, match="step 5 was not taken: .*: lower learning_rate"):
        training.run()
    handles[0].remove()
    assert same(model, kept[0])


def test_all_processes_gather_inputs_in_one_order():
    model, rows = small_model(settings()), torch.arange(10)
    batch = prepare(model, PAIRS)[rows, rows]
    names = ["image_features", "text_features", "image_pooled", "text_pooled"]
    for needs in (names[2:], names[:1:-1]):  # a set has another order in each process
        assert [*GradCache(model, batch, Accelerator(), needs=needs).features] == names
