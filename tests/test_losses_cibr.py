"""`CIBRLoss` against `cibr.information`, loops and numerical gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from cibr.information import (
    sample_vmf,
    vmf_fit_kappa,
    vmf_floor_nats,
    vmf_mean_cosine,
    vmf_residual_nats,
)
from cibr.losses import CIBRLoss, beta_at, clip_loss

ESTIMATORS = ("vmf", "gaussian")  # those in closed form; test_losses_critics.py has the others


def pair(n=12, d=6, dtype=torch.float64, seed=0):
    """Unit features of two related modalities, and a multiplier, all leaves."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, d, generator=generator, dtype=dtype)
    text = image + torch.randn(n, d, generator=generator, dtype=dtype)
    scale = torch.tensor(7.0, dtype=dtype)
    leaves = (F.normalize(image, dim=1), F.normalize(text, dim=1), scale)
    return [leaf.requires_grad_() for leaf in leaves]


def some_labels(n=12):
    return torch.arange(n) % 5 * 3 - 4  # neither sorted nor from zero


def value_and_gradients(function, leaves):
    value = function(*leaves)
    return value, torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("labels", [None, some_labels()])
def test_beta_zero_without_noise_is_bit_equal_to_clip_loss(estimator, labels):
    leaves = pair(dtype=torch.float32)
    variance = torch.zeros(12, 6, requires_grad=True)
    loss = CIBRLoss(0.0, estimator, sample=False)

    def cibr(*x):
        terms = loss(*x, labels, image_log_variance=variance, text_log_variance=variance)
        assert not terms["penalty_loss"].requires_grad
        return terms["loss"]

    value, gradients = value_and_gradients(cibr, leaves)
    expected, expected_gradients = value_and_gradients(lambda *x: clip_loss(*x, labels), leaves)
    assert torch.equal(value, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected_gradients, strict=True))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("sample", [False, True])
def test_loss_is_the_sum_of_its_terms_and_reports_are_detached(estimator, sample):
    leaves = pair()
    variance = torch.full((12, 6), -3.0, dtype=torch.float64, requires_grad=True)
    terms = CIBRLoss(0.3, estimator, sample=sample)(
        *leaves, image_log_variance=variance, text_log_variance=variance
    )
    summed = sum(value for name, value in terms.items() if name.endswith("_loss"))
    assert torch.equal(terms["loss"], summed)
    for name, value in terms.items():
        assert value.shape == ()
        assert value.dtype == torch.float64
        assert value.requires_grad == (name == "loss" or name.endswith("_loss"))
    lower = math.log(12) - terms["clip_loss"].item()
    assert terms["mi_lower_bound_nats"].item() == pytest.approx(lower, rel=1e-12)
    assert set(terms) == {
        "clip_loss", "penalty_loss", "loss", "residual_image_nats",
        "residual_text_nats", "mi_lower_bound_nats", "penalty_excess",
    }  # fmt: skip


def test_vmf_penalty_is_the_mean_residual_at_the_fixed_concentrations():
    image, text, scale = pair()
    terms = CIBRLoss(0.5, kappa_e=60.0, kappa_b=9.0, sample=False)(image, text, scale)
    cosine = (image * text).sum(1)
    residual = vmf_residual_nats(cosine, 60.0, 9.0, 6).mean()
    assert terms["penalty_loss"].item() == pytest.approx(0.5 * residual.item(), rel=1e-12)
    excess = residual - vmf_floor_nats(60.0, 9.0, 6)
    assert terms["penalty_excess"].item() == pytest.approx(excess.item(), rel=1e-10)


def test_vmf_report_uses_the_concentration_that_fits():
    image, text, scale = pair()
    terms = CIBRLoss(0.5, kappa_e=60.0, kappa_b=9.0)(image, text, scale)
    cosine = (image * text).sum(1).mean()
    fitted = vmf_fit_kappa(vmf_mean_cosine(60.0, 6) * cosine, 6)
    expected = vmf_residual_nats(cosine, 60.0, fitted, 6).item()
    assert terms["residual_image_nats"].item() == pytest.approx(expected, rel=1e-10)
    assert expected < vmf_residual_nats(cosine, 60.0, 9.0, 6).item()


def test_vmf_report_is_zero_for_equal_towers_and_finite_for_opposite_ones():
    image, _, scale = pair()
    loss = CIBRLoss(0.5, sample=False)
    same, opposite = loss(image, image, scale), loss(image, -image, scale)
    assert same["residual_image_nats"].item() == pytest.approx(0.0, abs=1e-9)
    assert same["penalty_excess"].item() == pytest.approx(0.0, abs=1e-9)
    assert opposite["residual_image_nats"].item() > 1


def test_vmf_gradient_is_that_of_a_weighted_cosine_distance():
    image, text, scale = pair()
    loss = CIBRLoss(0.5, kappa_e=60.0, kappa_b=9.0, sample=False)(image, text, scale)
    (got,) = torch.autograd.grad(loss["penalty_loss"], image)
    weight = 0.5 * 9.0 * vmf_mean_cosine(60.0, 6)
    assert torch.allclose(got, -weight * text / len(image), rtol=1e-12)


def test_gaussian_penalty_is_the_mean_of_both_divergences_in_a_loop():
    image, text, scale = pair(n=4, d=3)
    generator = torch.Generator().manual_seed(1)
    variances = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    terms = CIBRLoss(2.0, "gaussian", sample=False)(
        image, text, scale, image_log_variance=variances[0], text_log_variance=variances[1]
    )
    means, kls = (image.detach(), text.detach()), []
    for e, b in ((0, 1), (1, 0)):
        total = 0.0
        for i in range(4):
            for k in range(3):
                var_e, var_b = variances[e, i, k].exp().item(), variances[b, i, k].exp().item()
                gap = (means[e][i, k] - means[b][i, k]).item()
                total += (math.log(var_b / var_e) + (var_e + gap**2) / var_b - 1) / 2
        kls.append(total / 4)
    assert terms["residual_image_nats"].item() == pytest.approx(kls[0], rel=1e-12)
    assert terms["residual_text_nats"].item() == pytest.approx(kls[1], rel=1e-12)
    assert terms["penalty_loss"].item() == pytest.approx(sum(kls), rel=1e-12)


def test_noise_comes_from_the_generator_alone():
    leaves, variance = pair(), torch.full((12, 6), -2.0)
    for estimator in ESTIMATORS:
        loss = CIBRLoss(0.1, estimator)
        state = torch.get_rng_state()
        first, second, other = (
            loss(
                *leaves,
                image_log_variance=variance,
                text_log_variance=variance,
                generator=torch.Generator().manual_seed(seed),
            )["clip_loss"]
            for seed in (1, 1, 2)
        )
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
        assert torch.equal(state, torch.get_rng_state())


def test_noisy_branch_compares_samples_of_both_encoders():
    image, text, scale = pair()
    terms = CIBRLoss(0.0, kappa_e=50.0)(image, text, scale, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    z_image, z_text = sample_vmf(image, 50.0, generator), sample_vmf(text, 50.0, generator)
    assert torch.equal(terms["clip_loss"], clip_loss(z_image, z_text, scale))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_of_the_whole_are_those_of_finite_differences(estimator):
    image, text, scale = pair(n=4, d=3)
    variances = torch.full((2, 4, 3), -2.0, dtype=torch.float64, requires_grad=True)
    loss = CIBRLoss(0.1, estimator, kappa_e=30.0)

    def total(image, text, scale, variances):
        return loss(
            image,
            text,
            scale,
            image_log_variance=variances[0],
            text_log_variance=variances[1],
            generator=torch.Generator().manual_seed(4),
        )["loss"]

    leaves = (image, text, scale, variances)
    assert torch.autograd.gradcheck(total, leaves)


def test_a_passed_beta_overrides_that_of_the_module():
    leaves = pair()
    loss = CIBRLoss(0.5, sample=False)
    assert loss(*leaves, beta=0)["penalty_loss"].item() == 0
    doubled = loss(*leaves, beta=1.0)["penalty_loss"]
    assert torch.allclose(doubled, 2 * loss(*leaves)["penalty_loss"], rtol=1e-12)


def test_beta_is_held_at_zero_then_raised_then_constant():
    assert [beta_at(p, 0.6) for p in (0, 0.2, 1 / 3)] == [0.0, 0.0, 0.0]
    assert beta_at(0.5, 0.6) == pytest.approx(0.3)
    assert [beta_at(p, 0.6) for p in (0.7, 1)] == [0.6, 0.6]
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\].*n_steps"):
        beta_at(20, 0.6)


def test_cibr_errors_name_the_thing_the_rule_and_the_fix(unchecked):
    image, text, scale = pair()
    with pytest.raises(ValueError, match="one of vmf, .*, mine, club, got 'gausian'.*'gaussian'"):
        CIBRLoss(0.1, "gausian")
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="beta must be finite and not negative"):
            CIBRLoss(bad)
        with pytest.raises(ValueError, match="beta must be finite and not negative"):
            CIBRLoss(0.1)(image, text, scale, beta=bad)
    with pytest.raises(ValueError, match="kappa_e must be positive"):
        CIBRLoss(0.1, kappa_e=0)
    with pytest.raises(ValueError, match="kappa_b must be positive"):
        CIBRLoss(0.1, kappa_b=-3.0)
    loss = CIBRLoss(0.1, "gaussian")
    with pytest.raises(ValueError, match="image_log_variance must be .*got None"):
        loss(image, text, scale)
    zeros = torch.zeros(12, 6)
    with pytest.raises(ValueError, match="text_log_variance must be finite"):
        loss(image, text, scale, image_log_variance=zeros, text_log_variance=zeros / 0)
