"""On a GPU: losses, gradients, accumulation, bf16 and resume agree with the CPU and with one
another.
"""

import pytest
import torch
from processes import finish, run_together, start
from small_runs import HELD_OUT, PAIRS, settings, small_model, train
from test_train_survival import die_before_six

from cibr import CIBRLoss, DualEncoder, clip_loss, fit
from cibr.losses.penalties import PENALTIES

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
GPU = "cuda"
UNPOOLED = [
    name
    for name in PENALTIES
    if name in ("vmf", "crossfit", "cosine", "cyclip", "alignment_uniformity")
]


def pair(n, d):
    """Unit features of two related modalities, and a multiplier."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(n, d, generator=generator)
    text = image + torch.randn(n, d, generator=generator)
    return *(torch.nn.functional.normalize(side, dim=1) for side in (image, text)), torch.tensor(
        7.0
    )


def on(device, leaves, function):
    """Value and gradients of a function of leaves, computed on a device, in float64 on the CPU."""
    leaves = [leaf.detach().to(device).requires_grad_() for leaf in leaves]
    value = function(*leaves)
    return [t.double().cpu() for t in (value, *torch.autograd.grad(value, leaves))]


@pytest.mark.parametrize("n", [12, 3000])  # whole, and in blocks
def test_the_loss_and_its_gradients_are_those_of_the_cpu(n):
    leaves = pair(n, 64)
    torch.testing.assert_close(
        on(GPU, leaves, clip_loss), on("cpu", leaves, clip_loss), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("penalty", UNPOOLED)
def test_a_penalty_and_its_gradients_are_those_of_the_cpu(penalty):
    loss_fn, leaves = CIBRLoss(0.2, penalty), pair(40, 16)
    found, expected = (on(d, leaves, lambda *x: loss_fn(*x)["loss"]) for d in (GPU, "cpu"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_micro_batches_take_the_steps_of_the_whole_batch(tmp_path, precision):
    options = dict(mixed_precision=precision, dropout=0.0, epochs=2)
    model, one, _ = train(tmp_path / "whole", **options)
    _, other, _ = train(tmp_path / "parts", micro_batch_size=3, **options)
    assert next(model.parameters()).device.type == GPU
    tolerance = (
        1e-3 if precision == "no" else 3e-2
    )  # bf16 has eight bits, and kernels differ with the shape
    assert other["loss"].tolist() == pytest.approx(one["loss"].tolist(), rel=tolerance)


def test_a_run_learns_as_on_the_cpu(tmp_path):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    config = settings(tmp_path / "gpu", dropout=0.0)
    gpu = fit(small_model(config), PAIRS, HELD_OUT, config)
    AcceleratorState._reset_state(reset_partial_state=True)
    config = settings(tmp_path / "cpu", dropout=0.0)
    cpu = fit(small_model(config), PAIRS, HELD_OUT, config, Accelerator(cpu=True))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert gpu["loss"].tolist() == pytest.approx(cpu["loss"].tolist(), rel=1e-2)


def run(folder, arrange=None):
    return finish(start(_train, folder, arrange))


def _train(folder, arrange=None):
    if arrange:
        arrange()
    model, _, _ = train(folder, checkpoint_every=1, mixed_precision="bf16")
    assert next(model.parameters()).device.type == GPU


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    assert run(tmp_path / "whole") == 0
    assert run(tmp_path / "killed", die_before_six) != 0
    assert run(tmp_path / "killed") == 0
    whole, killed = (
        DualEncoder.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "killed")
    )
    torch.testing.assert_close(killed, whole, rtol=1e-3, atol=1e-5)  # some kernels sum in any order


def test_one_process_under_nccl_is_a_run_without_a_launcher(tmp_path):
    assert run(tmp_path / "alone") == 0
    run_together(1, _train, tmp_path / "launched")
    alone, launched = (
        DualEncoder.from_pretrained(tmp_path / n).state_dict() for n in ("alone", "launched")
    )
    torch.testing.assert_close(launched, alone, rtol=1e-3, atol=1e-5)
