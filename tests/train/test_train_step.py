"""A step: equal to one in plain PyTorch, however its batch is cut; what is not finite stops it."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from small_runs import PAIRS, settings, small_model
from twin import CASES, model_of, plain_steps, real_steps, rows_of_steps, settings_of

from cibr.losses import RegularisedCCA
from cibr.models import features
from cibr.models.features import prepare
from cibr.train.grad_cache import GradCache
from cibr.train.loop import set_up, train_step

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, GPU])]


@pytest.fixture
def accelerator():
    """Makes an accelerator of one process, by default on the CPU."""

    def make(precision="no", device="cpu"):
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=device == "cpu", mixed_precision=precision)

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


def assert_equal(module, twin, tolerance=1e-9):
    found, expected = (dict(side.cpu().named_parameters()) for side in (module, twin))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_steps_equal_those_in_plain_pytorch(accelerator, case, device):
    config = settings_of(case, dropout=0.2 if device == "cpu" else 0.0)  # masks are the device's
    model = model_of(config)
    twin = copy.deepcopy(model)
    tolerance = 1e-9 if device == "cpu" else 1e-6
    state, values = real_steps(config, model, accelerator(device=device))
    assert model.log_logit_scale.device.type == device
    loss_fn, steps = plain_steps(config, twin)
    assert_equal(model, twin, tolerance)
    assert_equal(state.loss_fn, loss_fn, tolerance)
    for found, expected in zip(values, steps, strict=True):
        loss = expected["clip_loss"] + expected["penalty_loss"]
        assert found["loss"] == pytest.approx(loss.item(), rel=tolerance)
        for side in ("image", "text"):
            x = expected[f"{side}_features"]
            cosines = [(x[i] @ x[j]).item() for i in range(8) for j in range(8) if i != j]
            assert found[f"{side}_mean_cosine"] == pytest.approx(sum(cosines) / 56, rel=tolerance)
        assert found["repeated_captions"] == 1 - len(set(expected["labels"].tolist())) / 8


def test_steps_over_frozen_towers_start_at_cca_with_noise_and_equal_plain_ones(
    accelerator, build, monkeypatch, tmp_path
):
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path)
    options = dict(penalty="anchor", cca_start=True, feature_noise=0.3, seed=3)
    config = settings(model="frozen", **options)
    model = build("frozen", dropout=0.3)
    inputs = prepare(model, PAIRS)
    inputs.images = inputs.images.double()
    inputs.texts = (inputs.texts[0].double(),)
    twin = copy.deepcopy(model.double())
    real_steps(config, model, accelerator(), inputs)
    images = inputs.images[PAIRS.text_to_image()]
    cca = RegularisedCCA.fit(images, inputs.texts[0], 16, 3.0, 1.0)
    twin.backbone.image_head.start_at(cca.image_mean, cca.image_map)
    twin.backbone.text_head.start_at(cca.text_mean, cca.text_map)
    plain_steps(config, twin, inputs, statistic=cca)
    assert_equal(model, twin)


def test_a_step_of_bf16_encoders_in_parts_has_the_gradients_of_all_parts_at_once(accelerator):
    config = settings_of("vmf, sampled")
    model = model_of(config).float()
    twin, exact = copy.deepcopy(model), copy.deepcopy(model)
    _, [values] = real_steps(config, model, accelerator("bf16"), n_steps=1)
    _, [terms] = plain_steps(config, twin, n_steps=1, bf16=True)
    _, [exact_terms] = plain_steps(config, exact, n_steps=1)
    assert values["clip_loss"] == pytest.approx(terms["clip_loss"].item(), rel=1e-6)
    assert values["clip_loss"] != pytest.approx(exact_terms["clip_loss"].item(), rel=1e-5)
    expected = {name: p.grad for name, p in twin.named_parameters()}
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-3 * largest)


def test_micro_batches_hold_no_activations_until_the_backward_pass(accelerator):
    model = model_of(settings())
    rows = torch.arange(10)
    batch = prepare(model, PAIRS)[rows, rows]

    def n_saved(size):
        saved = []
        pack = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()), id)
        with pack:
            GradCache(model, batch, accelerator(), micro_batch_size=size)
        return sum(saved)

    assert n_saved(2) < 0.01 * n_saved(0)


def times(factor):
    return lambda module, inputs, output: output * factor


def overflow(module, inputs, output):
    output.register_hook(lambda gradient: gradient * math.inf)


BROKEN = [  # a part of the state, what it outputs or its gradient becomes, and the message
    ("model.backbone.image_head", times(math.nan), "image_features must be finite"),
    ("model.backbone.text_head", times(0.0), "text_features must be unit vectors"),
    ("loss_fn.contrastive", times(math.nan), r"it is not finite \(loss nan, clip_loss nan, "),
    ("loss_fn.contrastive", overflow, r"it is not finite \(loss \d.*, gradient norm (inf|nan)"),
    ("loss_fn.penalty.critics.image_image", overflow, "the critics' loss is"),
]


@pytest.mark.parametrize(("part", "hook", "message"), BROKEN)
def test_what_is_not_finite_stops_before_the_step(accelerator, part, hook, message):
    config = settings(penalty="mine")
    model = small_model(config)
    inputs = prepare(model, PAIRS)
    state = set_up(model, inputs, config, accelerator(), 6)
    holder, _, name = part.partition(".")
    getattr(state, holder).get_submodule(name).register_forward_hook(hook)
    with pytest.raises(FloatingPointError, match=f"step 1 was not taken: {message}"):
        train_step(state, inputs[rows_of_steps(1)[0]])
    assert not state.optimizer.state and state.progress.step == 0
