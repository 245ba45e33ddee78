"""MINE: its value and gradient, who gets which gradient, what is saved, what the estimates are
worth.
"""

import copy
import math

import pytest
import torch
from losses_pairs import build, pair, pooled_features

from cibr.losses.critics import MovingAverage, ResidualCritics, mine_nats


def draw(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, n, generator=generator, dtype=torch.float64, requires_grad=True)


def mismatched(scores):
    n = len(scores)
    return [scores[i, j].exp() for i in range(n) for j in range(n) if i != j]


def mine(critic_steps=1, **options):
    loss_fn = build(0.3, "mine", critic_steps=critic_steps, **options).double()
    return loss_fn, [*pair()[:2]], pooled_features(dtype=torch.float64)


def test_mine_is_donsker_varadhan_in_value_with_the_moving_average_in_its_gradient():
    scores, average = draw(5, 0), torch.tensor(0.7, dtype=torch.float64)
    joint, mean = scores.diagonal().mean(), sum(mismatched(scores)) / 20
    value = mine_nats(scores, average)
    torch.testing.assert_close(value, joint - mean.log())
    (got,) = torch.autograd.grad(value, scores, retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(joint - mean / average.exp(), scores)[0])


def test_the_moving_average_weighs_the_past_by_nine_tenths():
    average, expected = MovingAverage().double(), None
    for seed in range(4):
        scores = draw(4, seed)
        mean = sum(mismatched(scores)).item() / 12
        assert average.read(scores).item() == pytest.approx(math.log(expected or mean))
        expected = mean if expected is None else 0.9 * expected + 0.1 * mean
        assert average.update(scores).item() == pytest.approx(math.log(expected))


def test_the_penalty_weighs_both_residuals_and_teaches_the_encoders_alone():
    loss_fn, features, pooled = mine(text_weight=0.2)
    pooled = {name: value.requires_grad_() for name, value in pooled.items()}
    terms = loss_fn(*features, 7.0, **pooled)
    image, text = (loss_fn.reports()[f"residual_{side}_nats"] for side in ("image", "text"))
    torch.testing.assert_close(terms["penalty_loss"].detach(), 0.3 * (0.8 * image + 0.2 * text))
    terms["penalty_loss"].backward()
    assert all(side.grad.abs().sum() > 0 for side in features)
    assert all(leaf.grad is None for leaf in (*pooled.values(), *loss_fn.parameters()))


def test_an_update_takes_steps_of_adam_with_the_averaged_gradient_and_moves_no_encoder():
    loss_fn, features, pooled = mine(critic_rate=0.02)
    before = [parameter.clone() for parameter in loss_fn.parameters()]
    synchronised = []
    loss_fn.update(*features, **pooled, synchronise=synchronised.append)
    after = list(loss_fn.parameters())
    assert [id(parameter) for parameter in synchronised] == [id(parameter) for parameter in after]
    assert all(side.grad is None for side in features)
    for old, new in zip(before, after, strict=True):  # a first step of Adam is rate * sign
        clear = new.grad.abs() > 1e-5
        steps = (new - old)[clear] / 0.02
        torch.testing.assert_close(steps, -new.grad[clear].sign(), rtol=0, atol=2e-3)
    assert all(parameter.grad.abs().max() > 1e-5 for parameter in after)


def test_two_steps_at_once_are_two_updates_between_which_all_can_be_saved():
    (once, features, pooled), (restored, *_), (twice, *_) = map(mine, (1, 1, 2))
    once.update(*features, **pooled)
    restored.load_state_dict(copy.deepcopy(once.state_dict()))
    once(*features, 7.0, **pooled)  # moves no average
    for loss_fn in (once, restored, twice):
        loss_fn.update(*features, **pooled)
    for other in (restored, twice):
        assert all(map(torch.equal, once.parameters(), other.parameters()))
        assert all(map(torch.equal, once.buffers(), other.buffers()))


def test_a_gradient_that_is_not_finite_stops_the_critics():
    loss_fn, features, pooled = mine()

    def spoil(parameter):
        parameter.grad += math.nan

    with pytest.raises(FloatingPointError, match="the critics' loss is .*norm nan"):
        loss_fn.update(*features, **pooled, synchronise=spoil)


def test_trained_critics_order_encoders_by_their_residual_information(unchecked):
    # Texts know one of four factors of the images; z = gain * factors + noise keeps more of the
    # other three with a larger gain, I(Z;X|T) = 3/2 log(1 + gain^2) nats and a little of the shared
    # one.
    estimates, n, generator = [], 64, torch.Generator().manual_seed(4)
    for gain in ([2.0, 0.2, 0.2, 0.2], [2.0, 2.0, 2.0, 2.0]):
        torch.manual_seed(5)
        critics = ResidualCritics(4, 4, 1)
        optimizer = torch.optim.Adam(critics.parameters(), lr=5e-3)
        for _ in range(60):
            image, noise = torch.randn(2, n, 4, generator=generator)
            text = image[:, :1] + 0.5 * torch.randn(n, 1, generator=generator)
            z = (image * torch.tensor(gain) + noise) / 4
            inputs = {"image": z, "text": z}, {"image": image, "text": text}
            optimizer.zero_grad()
            critics.loss(*inputs).backward()
            optimizer.step()
        with torch.no_grad():
            estimates.append(critics(*inputs)["image"].item())
    assert estimates[1] - estimates[0] > 0.5
