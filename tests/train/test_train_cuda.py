"""On a GPU: steps are those in plain PyTorch on the CPU; runs learn, resume and use bf16."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from small_runs import stop_at, train
from twin import CASES, model_of, plain_steps, real_steps, settings_of

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.fixture(autouse=True)
def new_state():
    """No accelerator of an earlier test, which may be on the CPU, is used."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("case", CASES)
def test_steps_equal_those_on_the_cpu(case):
    config = settings_of(case).model_copy(update={"dropout": 0.0})
    model, twin = model_of(config), model_of(config)
    state, _ = real_steps(config, model, Accelerator())
    loss_fn, _ = plain_steps(config, twin)
    assert next(model.parameters()).device.type == "cuda"
    for found, expected in ((model, twin), (state.loss_fn, loss_fn)):
        found, expected = dict(found.cpu().named_parameters()), dict(expected.named_parameters())
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_stopped_run_resumes_to_the_weights_of_a_whole_one(tmp_path, precision):
    additions = {"accelerator": Accelerator(mixed_precision=precision)}
    whole, _ = train(tmp_path / "whole", additions=additions)
    stop_at(5, tmp_path / "stopped", additions=additions)
    resumed, _ = train(tmp_path / "stopped", additions=additions)
    # Some kernels sum in any order.
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=1e-3, atol=1e-5)
