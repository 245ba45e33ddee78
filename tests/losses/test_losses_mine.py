"""MINE: its value and gradient, what its critics read, learn and save."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from losses_pairs import build, pair, pooled_features
from torch.nn import functional as F
from torch.testing import assert_close

from cibr.losses import CIBRLoss
from cibr.losses.critics import MineNats
from cibr.losses.vmf import sample_vmf

POOLED = pooled_features(dtype=torch.float64)


def mine(**options):
    return build(0.3, "mine", **options).double()


def random_scores(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 5, generator=generator, dtype=torch.float64, requires_grad=True)


def mean_mismatch(scores):
    """The mean of e^T over the pairs off the diagonal, by a loop."""
    n = len(scores)
    return sum(scores[i, j].exp() for i in range(n) for j in range(n) if i != j) / (n * n - n)


def donsker_varadhan(scores):
    return scores.diagonal().mean() - mean_mismatch(scores).log()


def assert_is_mine(estimate, scores, average):
    """The value is Donsker-Varadhan's; the gradient divides by the moving average."""
    assert_close(estimate, donsker_varadhan(scores))
    surrogate = scores.diagonal().mean() - mean_mismatch(scores) / average
    [gradient] = torch.autograd.grad(estimate, scores)
    [expected] = torch.autograd.grad(surrogate, scores)
    assert_close(gradient, expected)


def test_before_any_update_the_average_is_that_of_the_batch():
    scores = random_scores(0)
    assert_is_mine(MineNats().double()(scores), scores, mean_mismatch(scores).item())


def test_an_update_moves_the_average_by_a_tenth_before_the_gradient():
    estimator = MineNats().double()
    average = mean_mismatch(random_scores(0)).item()
    for seed in range(3):
        scores = random_scores(seed)
        average = 0.9 * average + 0.1 * mean_mismatch(scores).item()
        assert_is_mine(estimator(scores, update_average=True), scores, average)


def test_without_an_update_the_average_stays():
    estimator = MineNats().double()
    estimator(random_scores(0), update_average=True)
    average = mean_mismatch(random_scores(0)).item()
    for seed in (1, 2):
        scores = random_scores(seed)
        assert_is_mine(estimator(scores), scores, average)


def test_residuals_are_differences_of_estimates_on_inputs_of_unit_variance():
    image, text, scale = pair()
    loss_fn = mine(sample=True)
    generator = torch.Generator().manual_seed(1)
    z = {
        "image": sample_vmf(image, 48, generator),  # 8 times the width
        "text": sample_vmf(text, 48, generator),
    }
    nats = {}
    for name, critic in loss_fn.penalty.critics.items():
        z_name, x_name = name.split("_")
        x = POOLED[f"{x_name}_pooled"]
        x = (x - x.mean(1, keepdim=True)) / x.var(1, correction=0, keepdim=True).sqrt()
        nats[name] = donsker_varadhan(critic(math.sqrt(6) * z[z_name], x))
    residual_image = nats["image_image"] - nats["image_text"]
    residual_text = nats["text_text"] - nats["text_image"]

    generator = torch.Generator().manual_seed(1)
    terms = loss_fn(image, text, scale, **POOLED, generator=generator)
    reports = loss_fn.reports()
    tolerance = {"rtol": 1e-3, "atol": 1e-6}  # layer_norm adds an epsilon to the variance
    assert_close(reports["residual_image_nats"], residual_image.detach(), **tolerance)
    assert_close(reports["residual_text_nats"], residual_text.detach(), **tolerance)
    expected = 0.3 * (residual_image + residual_text) / 2
    assert_close(terms["penalty_loss"], expected, **tolerance)


def test_scale_and_offset_of_pooled_features_do_not_matter():
    image, text, scale = pair()
    loss_fn = mine()
    moved = {name: 8 * features + 5 for name, features in POOLED.items()}
    expected = loss_fn(image, text, scale, **POOLED)
    assert_close(loss_fn(image, text, scale, **moved), expected, rtol=1e-3, atol=1e-6)


def test_the_penalty_has_gradients_to_the_embeddings_alone():
    image, text, scale = pair()
    pooled = {name: features.clone().requires_grad_() for name, features in POOLED.items()}
    loss_fn = mine()
    loss_fn.update(image, text, **pooled)
    gradients_of_the_update = [parameter.grad.clone() for parameter in loss_fn.parameters()]
    loss_fn(image, text, scale, **pooled)["penalty_loss"].backward()
    assert image.grad.abs().sum() > 0
    assert text.grad.abs().sum() > 0
    assert all(features.grad is None for features in pooled.values())
    gradients = [parameter.grad for parameter in loss_fn.parameters()]
    assert all(map(torch.equal, gradients, gradients_of_the_update))


@pytest.mark.parametrize(("options", "rate"), [({}, 0.001), ({"critic_rate": 0.02}, 0.02)])
def test_an_update_is_a_step_of_adam_that_raises_the_estimates(options, rate):
    image, text, _ = pair()
    loss_fn = mine(**options)
    before = mine(**options).penalty.critics.requires_grad_(True)
    nats = 0.0
    for name, critic in before.items():
        z_name, x_name = name.split("_")
        z = math.sqrt(6) * {"image": image, "text": text}[z_name].detach()
        x = F.layer_norm(POOLED[f"{x_name}_pooled"], POOLED[f"{x_name}_pooled"].shape[1:])
        nats = nats + donsker_varadhan(critic(z, x))
    gradients = torch.autograd.grad(nats, list(before.parameters()))
    loss_fn.update(image, text, **POOLED)
    after = loss_fn.penalty.critics
    for old, new, gradient in zip(before.parameters(), after.parameters(), gradients, strict=True):
        is_clear = gradient.abs() > 1e-5  # where a first step of Adam is rate * sign
        assert is_clear.any()
        expected = rate * gradient[is_clear].sign()
        assert_close((new - old)[is_clear], expected, rtol=2e-3, atol=0)


def test_an_update_leaves_the_embeddings_alone():
    image, text, _ = pair()
    mine().update(image, text, **POOLED)
    assert image.grad is None
    assert text.grad is None


def assert_same_critics(one, other):
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    assert all(map(torch.equal, one.buffers(), other.buffers()))


def test_two_critic_steps_are_two_updates():
    image, text, _ = pair()
    one_step = mine()
    one_step.update(image, text, **POOLED)
    one_step.update(image, text, **POOLED)
    two_steps = mine(critic_steps=2)
    two_steps.update(image, text, **POOLED)
    assert_same_critics(two_steps, one_step)


def test_a_saved_loss_continues_as_it_would_have():
    image, text, _ = pair()
    loss_fn = mine()
    loss_fn.update(image, text, **POOLED)
    restored = mine()
    restored.load_state_dict(copy.deepcopy(loss_fn.state_dict()))
    for each in (loss_fn, restored):
        each.update(image, text, **POOLED)
    assert_same_critics(restored, loss_fn)


def test_a_forward_pass_and_old_gradients_do_not_change_an_update():
    image, text, scale = pair()
    expected = mine()
    expected.update(image, text, **POOLED)
    loss_fn = mine()
    loss_fn(image, text, scale, **POOLED)
    for parameter in loss_fn.parameters():
        parameter.grad = torch.ones_like(parameter)
    loss_fn.update(image, text, **POOLED)
    assert_same_critics(loss_fn, expected)


MODEL = SimpleNamespace(dim=6, dim_image_pooled=5, dim_text_pooled=4)


def test_for_a_model_the_critics_have_its_widths():
    torch.manual_seed(0)
    loss_fn = CIBRLoss.for_model(MODEL, 0.3, "mine")
    expected = build(0.3, "mine", d=6)  # dims=(6, 5, 4), from seed 0
    assert all(map(torch.equal, loss_fn.parameters(), expected.parameters()))


def test_widths_that_are_given_replace_those_of_the_model():
    critics = CIBRLoss.for_model(MODEL, 0.3, "mine", dims=(3, 2, 1)).penalty.critics
    assert [critics["image_text"].f[0].in_features, critics["image_text"].g[0].in_features] == [
        3,
        1,
    ]


def test_for_a_model_the_loss_has_all_its_options():
    loss_fn = CIBRLoss.for_model(MODEL, 0.3, "mine", kappa_e=50.0, sample=True, critic_steps=2)
    options = [loss_fn.beta, loss_fn.kappa_e, loss_fn.sample, loss_fn.penalty.critic_steps]
    assert options == [0.3, 50.0, True, 2]
