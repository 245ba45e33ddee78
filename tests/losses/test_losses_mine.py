"""MINE: its value and gradient, what its critics read, learn and save."""

import copy
import math

import pytest
import torch
from losses_pairs import build, pair, pooled_features
from torch.testing import assert_close

from cibr.losses.critics import MovingAverage, mine_nats
from cibr.losses.vmf import sample_vmf

POOLED = pooled_features(dtype=torch.float64)


def scores_and_mean(seed):
    """Scores of five pairs, and the mean of e^T over the mismatched ones."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(5, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    return scores, sum(scores[i, j].exp() for i in range(5) for j in range(5) if i != j) / 20


def mine(**options):
    return build(0.3, "mine", **options).double()


def test_mine_is_donsker_varadhan_in_value_with_the_moving_average_in_its_gradient():
    scores, mean = scores_and_mean(0)
    joint = scores.diagonal().mean()
    average = torch.tensor(0.7, dtype=torch.float64)
    value = mine_nats(scores, average)
    assert_close(value, joint - mean.log())
    gradients = [torch.autograd.grad(x, scores) for x in (value, joint - mean / average.exp())]
    assert_close(*gradients)


def test_the_moving_average_weighs_the_past_by_nine_tenths():
    average = MovingAverage().double()
    expected = None
    for seed in range(3):
        scores, mean = scores_and_mean(seed)
        assert average.read(scores).exp().item() == pytest.approx(expected or mean.item())
        expected = 0.9 * (expected or mean.item()) + 0.1 * mean.item()
        assert average.update(scores).exp().item() == pytest.approx(expected)


def test_the_critics_read_inputs_of_unit_variance_and_teach_the_encoders_alone():
    loss_fn, features = mine(), pair()[:2]
    pooled = {name: (8 * value + 5).requires_grad_() for name, value in POOLED.items()}
    value = loss_fn(*features, 7.0, **pooled)["penalty_loss"]
    residuals = []
    for side, own, other in (("image", 0, 1), ("text", 1, 0)):
        nats = []
        for of in (own, other):
            critic = loss_fn.penalty.critics[f"{side}_{('image', 'text')[of]}"]
            x = [*POOLED.values()][of]
            x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True)).sqrt()
            scores = critic(features[own] * math.sqrt(6), x)
            others = scores[~torch.eye(12, dtype=torch.bool)]
            nats.append(scores.diagonal().mean() - others.exp().mean().log())
        residuals.append(nats[0] - nats[1])
        report = loss_fn.reports()[f"residual_{side}_nats"]
        assert_close(report, residuals[-1].detach(), rtol=1e-3, atol=1e-6)  # its own epsilon
    assert_close(value, 0.3 * sum(residuals) / 2, rtol=1e-3, atol=1e-6)
    value.backward()
    assert all(side.grad.abs().sum() > 0 for side in features)
    assert all(leaf.grad is None for leaf in (*pooled.values(), *loss_fn.parameters()))
    assert not any(p.requires_grad for p in loss_fn.parameters())  # by another optimiser


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
    loss_fn.penalty.critics["text_text"].f[0].weight.data[0, 0] = 1e300
    with pytest.raises((FloatingPointError, ValueError), match="critic"):
        loss_fn.update(*features, **POOLED)


def test_with_samples_the_critics_read_the_samples():
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    image, text, _ = pair()
    value = mine(sample=True)(image, text, 7.0, **POOLED, generator=generators[0])
    samples = [sample_vmf(side, 1024, generators[1]) for side in (image, text)]
    assert_close(value, mine()(*samples, 7.0, **POOLED))


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
