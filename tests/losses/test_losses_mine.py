"""MINE: its value and gradient, what its critics read, learn and save."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from losses_pairs import build, pair, pooled_features
from torch.testing import assert_close

from cibr.losses import CIBRLoss
from cibr.losses.critics import MineNats
from cibr.losses.vmf import sample_vmf

POOLED = pooled_features(dtype=torch.float64)


def mine(**options):
    return build(0.3, "mine", **options).double()


def test_mine_is_donsker_varadhan_in_value_with_the_moving_average_in_its_gradient():
    mine_nats, average = MineNats().double(), None
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(5, 5, generator=generator, dtype=torch.float64, requires_grad=True)
        joint = scores.diagonal().mean()
        mean = sum(scores[i, j].exp() for i in range(5) for j in range(5) if i != j) / 20
        before = average or mean.item()
        average = 0.9 * before + 0.1 * mean.item()
        for is_update, divisor in ((False, before), (True, average), (False, average)):
            value = mine_nats(scores, is_update)
            assert_close(value, joint - mean.log())
            expected = torch.autograd.grad(joint - mean / divisor, scores, retain_graph=True)
            assert_close(torch.autograd.grad(value, scores), expected)


def test_the_critics_read_samples_and_inputs_of_unit_variance_and_teach_the_encoders_alone():
    loss_fn, features = mine(sample=True), pair()[:2]
    pooled = {name: (8 * value + 5).requires_grad_() for name, value in POOLED.items()}
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    value = loss_fn(*features, 7.0, **pooled, generator=generators[0])["penalty_loss"]
    samples = [sample_vmf(side, 1024, generators[1]) for side in features]
    z = dict(zip(("image", "text"), samples, strict=True))
    nats = {}
    for name, critic in loss_fn.penalty.critics.items():
        side, of = name.split("_")
        x = POOLED[f"{of}_pooled"]
        x = (x - x.mean(1, keepdim=True)) / x.var(1, correction=0, keepdim=True).sqrt()
        scores = critic(math.sqrt(6) * z[side], x)
        others = scores[~torch.eye(12, dtype=torch.bool)]
        nats[name] = scores.diagonal().mean() - others.exp().mean().log()
    image = nats["image_image"] - nats["image_text"]
    text = nats["text_text"] - nats["text_image"]
    expected = 0.3 * (image + text) / 2, image, text
    reports = [loss_fn.reports()[f"residual_{side}_nats"] for side in z]
    assert_close((value, *reports), expected, rtol=1e-3, atol=1e-6)  # its own epsilon
    value.backward()
    assert all(side.grad.abs().sum() > 0 for side in features)
    assert all(leaf.grad is None for leaf in (*pooled.values(), *loss_fn.parameters()))


@pytest.mark.parametrize(("options", "rate"), [({}, 0.001), ({"critic_rate": 0.02}, 0.02)])
def test_an_update_is_a_step_of_adam_on_critics_only(options, rate):
    loss_fn, features = mine(**options), pair()[:2]
    before = [parameter.clone() for parameter in loss_fn.parameters()]
    loss_fn.update(*features, **POOLED)
    for old, new in zip(before, loss_fn.parameters(), strict=True):
        clear = new.grad.abs() > 1e-5  # where a first step of Adam is rate * sign
        assert clear.any()
        assert_close((old - new)[clear], rate * new.grad[clear].sign(), rtol=2e-3, atol=0)
    assert all(side.grad is None for side in features)


def test_two_steps_at_once_are_two_updates_between_which_all_can_be_saved():
    once, restored, twice = mine(), mine(), mine(critic_steps=2)
    features = pair()[:2]
    once.update(*features, **POOLED)
    restored.load_state_dict(copy.deepcopy(once.state_dict()))
    once(*features, 7.0, **POOLED)  # moves no average
    for parameter in restored.parameters():
        parameter.grad = torch.ones_like(parameter)  # of an earlier step
    for loss_fn in (once, restored, twice):
        loss_fn.update(*features, **POOLED)
    for other in (restored, twice):
        assert all(map(torch.equal, once.parameters(), other.parameters()))
        assert all(map(torch.equal, once.buffers(), other.buffers()))


def test_for_a_model_mine_has_its_widths_unless_others_are_given():
    model = SimpleNamespace(dim=6, dim_image_pooled=5, dim_text_pooled=4)
    torch.manual_seed(0)
    loss_fn = CIBRLoss.for_model(model, 0.3, "mine", kappa_e=50.0, sample=True, critic_steps=2)
    expected = build(0.3, "mine", d=6)  # with dims=(6, 5, 4), from the same seed
    assert loss_fn.beta == 0.3
    assert loss_fn.kappa_e == 50.0
    assert loss_fn.sample
    assert loss_fn.penalty.critic_steps == 2
    assert all(map(torch.equal, loss_fn.parameters(), expected.parameters()))
    narrow = CIBRLoss.for_model(model, 0.3, "mine", dims=(3, 2, 1))
    assert narrow.penalty.critics["image_text"].g[0].in_features == 1
