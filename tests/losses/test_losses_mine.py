"""MINE: its value and gradient, who gets which gradient, what is saved, what the estimates are
worth.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from cibr.losses import CIBRLoss
from cibr.losses.critics import MovingAverage, ResidualCritics, mine_nats

N, DIM, DIM_IMAGE, DIM_TEXT = 16, 6, 10, 7


def build(beta=0.3, seed=0, **options):
    torch.manual_seed(seed)
    return CIBRLoss(beta, "mine", dims=(DIM, DIM_IMAGE, DIM_TEXT), kappa_e=30.0, **options).double()


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    image, text, image_pooled, text_pooled = (
        torch.randn(N, d, generator=generator, dtype=torch.float64)
        for d in (DIM, DIM, DIM_IMAGE, DIM_TEXT)
    )
    features = [F.normalize(x, dim=1).requires_grad_() for x in (image, text)]
    return features, dict(
        image_pooled=image_pooled.requires_grad_(), text_pooled=text_pooled.requires_grad_()
    )


def test_mine_is_donsker_varadhan_in_value_with_the_moving_average_in_its_gradient():
    scores = torch.randn(
        5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True
    )
    average = torch.tensor(0.7, dtype=torch.float64)
    value = mine_nats(scores, average)
    off = [scores[i, j] for i in range(5) for j in range(5) if i != j]
    joint, mean = scores.diagonal().mean(), sum(torch.exp(x) for x in off) / 20
    torch.testing.assert_close(value, joint - mean.log())
    (got,) = torch.autograd.grad(value, scores, retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(joint - mean / average.exp(), scores)[0])


def test_the_moving_average_weighs_the_past_by_its_decay():
    average, expected = MovingAverage().double(), None
    for seed in range(4):
        scores = torch.randn(
            4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        mean = sum(math.exp(scores[i, j]) for i in range(4) for j in range(4) if i != j) / 12
        assert average.read(scores).item() == pytest.approx(math.log(expected or mean))
        expected = mean if expected is None else 0.9 * expected + 0.1 * mean
        assert average.update(scores).item() == pytest.approx(math.log(expected))


def test_the_penalty_is_the_mean_residual():
    features, pooled = batch()
    terms = build()(*features, 7.0, **pooled)
    mean = (terms["residual_image_nats"] + terms["residual_text_nats"]) / 2
    torch.testing.assert_close(terms["penalty_loss"], 0.3 * mean)
    torch.testing.assert_close(terms["penalty_excess"], mean)


def test_encoders_learn_from_the_loss_and_critics_from_the_critic_loss_alone():
    features, pooled = batch()
    loss = build()
    loss(*features, 7.0, **pooled)["penalty_loss"].backward()
    assert all(x.grad.abs().sum() > 0 for x in features)
    assert all(p.grad is None for p in loss.parameters())
    assert all(x.grad is None for x in pooled.values())
    for x in features:
        x.grad = None
    loss.critic_loss(*features, **pooled).backward()
    assert all(x.grad is None for x in features)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.critics.parameters())


def test_only_training_the_critics_moves_the_averages_and_all_is_saved():
    features, pooled = batch()
    loss, other = build(), build(seed=1)
    loss.critic_loss(*features, **pooled)
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    expected = loss(*features, 7.0, **pooled)
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())
    other.load_state_dict(before)
    restored = other(*features, 7.0, **pooled)
    assert all(torch.equal(restored[name], expected[name]) for name in expected)


def test_trained_critics_order_encoders_by_their_residual_information(unchecked):
    # Texts know one of four factors of the images; z = gain * factors + noise keeps more of the
    # other three with a larger gain, I(Z;X|T) = 3/2 log(1 + gain^2) nats and a little of the shared
    # one.
    found, n, generator = [], 64, torch.Generator().manual_seed(4)
    gains = torch.tensor([[2.0, 0.2, 0.2, 0.2], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    for gain in gains:
        torch.manual_seed(5)
        critics = ResidualCritics(4, 4, 1).double()
        optimizer = torch.optim.Adam(critics.parameters(), lr=5e-3)
        for _ in range(60):
            image = torch.randn(n, 4, generator=generator, dtype=torch.float64)
            text = image[:, :1] + 0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
            z = image * gain + torch.randn(n, 4, generator=generator, dtype=torch.float64)
            inputs = {"image": z / 4, "text": z / 4}, {"image": image, "text": text}
            optimizer.zero_grad()
            critics.loss(*inputs).backward()
            optimizer.step()
        with torch.no_grad():
            found.append(critics(*inputs)["image"].item())
    assert found[1] - found[0] > 0.5
