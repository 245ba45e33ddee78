"""`CIBRLoss` with critics: who gets which gradient, what is saved, and that the estimates are worth something."""

import math

import pytest
import torch
from torch.nn import functional as F

from cibr.information import (
    MovingAverage,
    gaussian_world,
    linear_encoder_nats,
    sample_vmf,
)
from cibr.losses import CIBRLoss, clip_loss
from cibr.losses.critics import ResidualCritics

N, DIM, DIM_IMAGE, DIM_TEXT = 16, 6, 10, 7
both = pytest.mark.parametrize("estimator", ["mine", "club"])


def build(estimator, beta=0.3, seed=0, **options):
    torch.manual_seed(seed)
    return CIBRLoss(beta, estimator, dims=(DIM, DIM_IMAGE, DIM_TEXT), kappa_e=30.0, **options).double()


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    image, text, image_pooled, text_pooled = (
        torch.randn(N, d, generator=generator, dtype=torch.float64) for d in (DIM, DIM, DIM_IMAGE, DIM_TEXT)
    )
    features = [F.normalize(x, dim=1).requires_grad_() for x in (image, text)]
    return features, dict(image_pooled=image_pooled.requires_grad_(), text_pooled=text_pooled.requires_grad_())


@both
def test_beta_zero_without_noise_is_bit_equal_to_clip_loss(estimator):
    features, pooled = batch()
    terms = build(estimator, 0.0, sample=False)(*features, 7.0, **pooled)
    assert torch.equal(terms["loss"], clip_loss(*features, 7.0))
    assert not terms["penalty_loss"].requires_grad


@both
def test_loss_is_the_sum_of_its_terms_and_the_penalty_the_mean_residual(estimator):
    features, pooled = batch()
    terms = build(estimator)(*features, 7.0, **pooled)
    assert torch.equal(terms["loss"], terms["clip_loss"] + terms["penalty_loss"])
    mean = (terms["residual_image_nats"] + terms["residual_text_nats"]) / 2
    assert terms["penalty_loss"].item() == pytest.approx(0.3 * mean.item(), rel=1e-12)
    assert terms["penalty_excess"].item() == pytest.approx(mean.item(), rel=1e-12)
    assert not terms["residual_image_nats"].requires_grad


@both
def test_encoders_learn_from_the_loss_and_critics_from_the_critic_loss_alone(estimator):
    features, pooled = batch()
    loss = build(estimator)
    loss(*features, 7.0, **pooled)["penalty_loss"].backward()
    assert all(x.grad.abs().sum() > 0 for x in features)
    assert all(p.grad is None for p in loss.parameters())
    assert all(x.grad is None for x in pooled.values())
    for x in features:
        x.grad = None
    loss.critic_loss(*features, **pooled).backward()
    assert all(x.grad is None for x in features)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.critics.parameters())


@both
def test_gradient_of_the_penalty_is_that_of_finite_differences(estimator):
    features, pooled = batch()
    loss = build(estimator)
    loss.critic_loss(*features, **pooled)  # the moving averages get a value
    if estimator == "mine":
        # The corrected gradient is no gradient of the value: with averages of this very batch it would be.
        loss.critics.averages = torch.nn.ModuleDict({name: MovingAverage() for name in loss.critics.averages})

    def penalty(image, text):
        generator = torch.Generator().manual_seed(1)
        return loss(image, text, 7.0, **pooled, generator=generator)["penalty_loss"]

    assert torch.autograd.gradcheck(penalty, tuple(features), fast_mode=True)


@both
def test_noise_comes_from_the_generator_and_both_branches_share_it(estimator):
    features, pooled = batch()
    loss = build(estimator)
    first, second = (loss(*features, 7.0, **pooled, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first["loss"], second["loss"])
    generator = torch.Generator().manual_seed(2)
    z = [sample_vmf(x, 30.0, generator) for x in features]
    assert torch.equal(first["clip_loss"], clip_loss(*z, 7.0))
    plain = build(estimator, sample=False)(*z, 7.0, **pooled)
    assert first["residual_image_nats"].item() == pytest.approx(plain["residual_image_nats"].item(), rel=1e-10)


def test_club_residual_is_the_upper_bound_minus_what_the_contrast_certifies():
    features, pooled = batch()
    loss = build("club", sample=False)
    terms = loss(*features, 7.0, **pooled)
    q, z = loss.critics.critics["image"], features[0] * DIM**0.5
    upper = q.club_nats(F.layer_norm(pooled["image_pooled"], (DIM_IMAGE,)), z)
    expected = upper - (math.log(N) - terms["clip_loss"])
    assert terms["residual_image_nats"].item() == pytest.approx(expected.item(), rel=1e-10)


@both
def test_critics_and_averages_are_saved_and_restored(estimator):
    features, pooled = batch()
    loss, other = build(estimator), build(estimator, seed=1)
    loss.critic_loss(*features, **pooled)
    other.load_state_dict(loss.state_dict())
    results = [x(*features, 7.0, **pooled, generator=torch.Generator().manual_seed(3)) for x in (loss, other)]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_only_training_the_critics_moves_the_averages():
    features, pooled = batch()
    loss = build("mine")
    loss.critic_loss(*features, **pooled)
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    loss(*features, 7.0, **pooled)
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())


def test_trained_critics_order_encoders_by_their_residual_information():
    # Gaussian images and texts, noisy linear codes, exact truths: one keeps image-only factors, one drops them.
    world, n = gaussian_world((0.9,), 3, 3), 128
    root, generator = torch.linalg.cholesky(world.covariance), torch.Generator().manual_seed(4)
    found, truths = {"mine": [], "club": []}, []
    for gain in (0.2, 2.0):
        weights = torch.diag(torch.tensor([2.0, gain, gain, gain], dtype=torch.float64)) @ world.mix_image.T
        truths.append(linear_encoder_nats(world, weights)["residual_image_nats"].item())
        for estimator in found:
            torch.manual_seed(5)
            critics = ResidualCritics(estimator, 4, 4, 4).double()
            optimizer = torch.optim.Adam(critics.parameters(), lr=2e-3)
            for _ in range(150):
                pairs = torch.randn(n, 8, generator=generator, dtype=torch.float64) @ root.T
                z = pairs[:, :4] @ weights.T + torch.randn(n, 4, generator=generator, dtype=torch.float64)
                inputs = {"image": z / 4, "text": z / 4}, {"image": pairs[:, :4], "text": pairs[:, 4:]}
                optimizer.zero_grad()
                critics.loss(*inputs).backward()
                optimizer.step()
            with torch.no_grad():
                found[estimator].append(critics(*inputs, torch.tensor(0.0).double())["image"].item())
    assert truths[1] - truths[0] > 1.5
    for estimator, values in found.items():
        assert values[1] - values[0] > 0.5, estimator


def test_errors_name_the_missing_part(unchecked):
    features, pooled = batch()
    with pytest.raises(ValueError, match="dims must be the widths.*'mine'"):
        CIBRLoss(0.1, "mine")
    with pytest.raises(ValueError, match=r"image_pooled must be \[16, p\].*None"):
        build("club")(*features, 7.0)
    with pytest.raises(ValueError, match="text_pooled must be finite"):
        build("mine")(*features, 7.0, **{**pooled, "text_pooled": pooled["text_pooled"] * math.nan})
    with pytest.raises(ValueError, match="'vmf' has no critics"):
        CIBRLoss(0.1).critic_loss(*features, **pooled)
