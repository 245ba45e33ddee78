"""`CIBRLoss`: what beta, sampling and labels do, whatever the penalty."""

import math
from functools import partial

import pytest
import torch
from losses_pairs import LABELS, build, pair, pooled_features, value_and_gradients
from torch.nn import functional as F
from torch.testing import assert_close

from cibr.losses import CIBRLoss, Penalty, beta_at, clip_loss
from cibr.losses.vmf import sample_vmf, vmf_mean_cosine

RESIDUALS = ["residual_image_nats", "residual_text_nats"]
REPORTS = {"vmf": [], "crossfit": RESIDUALS, "mine": RESIDUALS}
every_penalty = pytest.mark.parametrize("penalty", REPORTS)


@every_penalty
def test_with_beta_zero_value_and_gradients_are_clips_bit_for_bit(penalty):
    leaves = pair()
    loss_fn = build(0.0, penalty)
    total = partial(loss_fn, labels=LABELS, output_dict=False, **pooled_features())
    expected = value_and_gradients(partial(clip_loss, labels=LABELS), leaves)
    assert_close(value_and_gradients(total, leaves), expected, rtol=0, atol=0)


@every_penalty
def test_the_terms_are_clips_loss_and_beta_times_the_penalty(penalty):
    leaves = pair()
    inputs = pooled_features() | {"labels": LABELS}
    loss_fn = build(0.3, penalty)
    terms = loss_fn(*leaves, **inputs)
    assert list(terms) == ["clip_loss", "penalty_loss"]
    assert terms["clip_loss"] == clip_loss(*leaves, LABELS)
    assert terms["penalty_loss"] == 0.3 * loss_fn.reports()["penalty_excess"]
    assert loss_fn(*leaves, **inputs, output_dict=False) == sum(terms.values())


@every_penalty
def test_the_penalty_is_reported_at_every_beta(penalty):
    leaves = pair()
    inputs = pooled_features() | {"labels": LABELS}
    loss_fn = build(0.3, penalty)
    loss_fn(*leaves, **inputs)
    expected = loss_fn.reports()
    loss_fn.beta = 0.0
    loss_fn(*leaves, **inputs)
    assert loss_fn.reports() == expected


@every_penalty
def test_reports_are_named_and_without_gradients(penalty):
    leaves = pair()
    loss_fn = build(0.3, penalty)
    loss_fn(*leaves, LABELS, **pooled_features())
    reports = loss_fn.reports()
    of_every = ["pair_cosine_distance", "modality_gap", "mi_lower_bound_nats"]
    assert list(reports) == ["penalty_excess", *REPORTS[penalty], *of_every]
    assert not any(value.requires_grad for value in reports.values())


def test_the_reported_lower_bound_is_log_n_minus_clips_loss():
    leaves = pair()
    loss_fn = CIBRLoss(0.3)
    loss_fn(*leaves)
    bound = loss_fn.reports()["mi_lower_bound_nats"]
    assert bound.item() == pytest.approx(math.log(12) - clip_loss(*leaves).item())


def test_the_distance_of_the_pairs_and_the_gap_between_the_modalities_are_reported():
    image, text, scale = pair()
    loss_fn = CIBRLoss(0.5)
    loss_fn(image, text, scale)
    reports = loss_fn.reports()
    distances = [1 - image[i] @ text[i] for i in range(12)]
    assert_close(reports["pair_cosine_distance"], torch.stack(distances).mean().detach())
    gap = sum((sum(image[:, j]) / 12 - sum(text[:, j]) / 12) ** 2 for j in range(6)) ** 0.5
    assert_close(reports["modality_gap"], gap.detach())


class Diverged(Penalty):
    """A penalty whose value and gradients are not finite."""

    def forward(self, inputs):
        self.is_in_graph = inputs.image.requires_grad
        return (inputs.image - inputs.image).norm() / 0


def test_with_beta_zero_a_penalty_that_is_not_finite_leaves_clip_as_it_is():
    leaves = pair()
    loss_fn = CIBRLoss(0.0, Diverged())
    total = partial(loss_fn, output_dict=False)
    expected = value_and_gradients(clip_loss, leaves)
    assert_close(value_and_gradients(total, leaves), expected, rtol=0, atol=0)
    assert not loss_fn.penalty.is_in_graph


def test_with_a_positive_beta_a_penalty_that_is_not_finite_is_not_hidden():
    loss_fn = CIBRLoss(0.1, Diverged())
    assert not loss_fn(*pair(), output_dict=False).isfinite()
    assert loss_fn.penalty.is_in_graph


# The centres of `crossfit` are fixed; without a kappa_b, so is the temperature in `vmf`.
@pytest.mark.parametrize(("penalty", "options"), [("vmf", {"kappa_b": 9.0}), ("mine", {})])
def test_gradients_of_the_sampled_loss_are_those_of_finite_differences(penalty, options):
    loss_fn = build(0.3, penalty, d=3, kappa_e=30.0, sample=True, **options).double()

    def total(image, text, logit_scale):
        return loss_fn(
            F.normalize(image, dim=1),
            F.normalize(text, dim=1),
            logit_scale,
            LABELS[3:7],
            **pooled_features(n=4),
            generator=torch.Generator().manual_seed(4),
            output_dict=False,
        )

    assert torch.autograd.gradcheck(total, pair(n=4, d=3), fast_mode=True)


def test_the_weight_ramps_from_zero_to_a_constant():
    ramp = [beta_at(progress, 0.6) for progress in (0, 1 / 3, 0.5, 0.6, 2 / 3, 0.7, 1)]
    assert ramp == pytest.approx([0, 0, 0.3, 0.48, 0.6, 0.6, 0.6])


def test_noise_without_penalty_is_clips_loss_of_samples():
    image, text, scale = pair()
    generator = torch.Generator().manual_seed(3)
    loss_fn = CIBRLoss(0.0, sample=True, kappa_e=50.0).eval()
    loss = loss_fn(image, text, scale, generator=torch.Generator().manual_seed(3))["clip_loss"]
    z_image = sample_vmf(image, 50.0, generator)
    z_text = sample_vmf(text, 50.0, generator)
    assert loss == clip_loss(z_image, z_text, scale)


def test_noise_has_one_angle_at_every_width_unless_a_concentration_is_given():
    image, text, scale = pair(d=6)
    generator = torch.Generator().manual_seed(3)
    loss_fn = CIBRLoss(0.0, sample=True)
    loss = loss_fn(image, text, scale, generator=torch.Generator().manual_seed(3))["clip_loss"]
    z_image = sample_vmf(image, 8 * 6, generator)
    z_text = sample_vmf(text, 8 * 6, generator)
    assert loss == clip_loss(z_image, z_text, scale)
    cosines = [vmf_mean_cosine(8 * d, d).item() for d in (64, 128, 512, 1024)]
    assert cosines == pytest.approx([0.94] * 4, abs=0.005)


def test_noise_is_drawn_from_the_generator_alone():
    state = torch.get_rng_state()
    CIBRLoss(0.1, sample=True)(*pair(), generator=torch.Generator().manual_seed(3))
    assert torch.equal(state, torch.get_rng_state())


class Trained(Penalty):
    """A penalty with parts of its own, which keeps what they were given."""

    needs = ("labels",)

    def forward(self, inputs):
        return inputs.image.sum() * 0

    def update(self, inputs):
        self.inputs = inputs


def test_an_update_has_the_inputs_of_the_loss_without_gradients():
    image, text, _ = pair()
    loss_fn = CIBRLoss(0.5, Trained())
    loss_fn.update(image, text, labels=LABELS)
    inputs = loss_fn.penalty.inputs
    assert torch.equal(inputs.image, image)
    assert torch.equal(inputs.labels, LABELS)
    assert not inputs.image.requires_grad


def test_an_update_of_a_penalty_without_parts_draws_no_noise():
    image, text, _ = pair()
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    CIBRLoss(0.5, "vmf", sample=True).update(image, text, generator=generator)
    assert torch.equal(state, generator.get_state())


@every_penalty
def test_updates_and_reports_under_autocast_are_those_in_float32(penalty):
    def reports(enabled):
        image, text, scale = [leaf.detach().float() for leaf in pair()]
        loss_fn = build(0.3, penalty)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss_fn.update(image, text, **pooled_features())
            loss_fn(image, text, scale, **pooled_features())
            return loss_fn.reports()

    assert reports(enabled=True) == reports(enabled=False)
