"""The bounds `vmf` and `crossfit` against their centres, by a loop."""

import math

import numpy as np
import pytest
import torch
from losses_pairs import LABELS, pair
from torch.nn import functional as F
from torch.testing import assert_close

from cibr.losses import CIBRLoss
from cibr.losses.vmf import vmf_fit_kappa, vmf_mean_cosine, vmf_residual_nats

KAPPA_E = 60.0
# A_d(60): on the ordinary sphere, d = 3, it is coth(kappa) - 1 / kappa.
MEAN_RESULTANT_LENGTH = {
    3: 1 / math.tanh(KAPPA_E) - 1 / KAPPA_E,
    16: vmf_mean_cosine(KAPPA_E, 16).item(),  # against mpmath in test_losses_vmf.py
}


def predicted(source, target, labels):
    """Ridge predictions of each row from the other half, in which no row has its label."""
    labels = torch.arange(len(source)) if labels is None else labels
    label_ranks = np.unique(labels.numpy(), return_inverse=True)[1]
    is_odd = torch.from_numpy(label_ranks % 2 == 1)
    d = source.shape[1]
    rows = []
    for i in range(len(source)):
        is_other_half = is_odd != is_odd[i]
        x = source[is_other_half].detach()
        y = target[is_other_half].detach()
        ridge = len(x) / d * torch.eye(d, dtype=x.dtype)
        weights = torch.linalg.inv(x.T @ x + ridge) @ x.T @ y
        rows.append(F.normalize(source[i].detach() @ weights, dim=0))
    return torch.stack(rows)


def mean_cosines(penalty, image, text, labels):
    """Mean cosine of the images, and of the texts, with the centres of the backward encoders."""
    if penalty == "vmf":
        image_centre, text_centre = text, image
    else:
        image_centre = predicted(text, image, labels)
        text_centre = predicted(image, text, labels)
    return (image * image_centre).sum(1).mean(), (text * text_centre).sum(1).mean()


@pytest.mark.parametrize("scale", [7.0, 70.0])
@pytest.mark.parametrize("penalty", ["vmf", "crossfit"])
def test_by_default_the_cost_is_the_distance_at_the_temperature_of_the_logits(penalty, scale):
    image, text, _ = pair(12, 6)
    value = CIBRLoss(0.5, penalty)(image, text, scale)["penalty_loss"]
    image_cosine, text_cosine = mean_cosines(penalty, image, text, None)
    expected = 0.5 * scale * (1 - (image_cosine + text_cosine) / 2)
    assert_close(value, expected)
    gradients = torch.autograd.grad(value, (image, text))
    assert_close(gradients, torch.autograd.grad(expected, (image, text)))


@pytest.mark.parametrize("penalty", ["vmf", "crossfit"])
def test_the_temperature_gets_no_gradient_from_the_penalty(penalty):
    image, text, scale = pair()
    value = CIBRLoss(0.5, penalty)(image, text, scale)["penalty_loss"]
    assert torch.autograd.grad(value, scale, allow_unused=True) == (None,)


@pytest.mark.parametrize(("options", "kappa_e"), [({}, 8 * 16), ({"kappa_e": KAPPA_E}, KAPPA_E)])
@pytest.mark.parametrize("penalty", ["vmf", "crossfit"])
def test_with_samples_the_cost_is_times_their_mean_cosine(penalty, options, kappa_e):
    image, text, scale = pair(12, 16)
    value = CIBRLoss(0.5, penalty, sample=True, **options)(image, text, scale)["penalty_loss"]
    without = CIBRLoss(0.5, penalty)(image, text, scale)["penalty_loss"]
    assert_close(value, vmf_mean_cosine(kappa_e, 16) * without)


with_labels_or_not = pytest.mark.parametrize("labels", [None, LABELS])


@with_labels_or_not
@pytest.mark.parametrize(("penalty", "d"), [("vmf", 3), ("crossfit", 3), ("crossfit", 16)])
def test_value_and_gradient_are_those_of_the_distance_from_the_centres(penalty, d, labels):
    image, text, scale = pair(12, d)
    loss_fn = CIBRLoss(0.5, penalty, kappa_e=KAPPA_E, kappa_b=9.0)
    value = loss_fn(image, text, scale, labels)["penalty_loss"]
    image_cosine, text_cosine = mean_cosines(penalty, image, text, labels)
    distance = 1 - (image_cosine + text_cosine) / 2
    expected = 0.5 * 9 * MEAN_RESULTANT_LENGTH[d] * distance
    assert_close(value, expected)
    gradients = torch.autograd.grad(value, (image, text))
    assert_close(gradients, torch.autograd.grad(expected, (image, text)))


def test_crossfit_reports_bounds_at_eight_times_the_width_by_default():
    image, text, scale = pair(12, 6)
    reports = []
    for options in ({}, {"kappa_e": 48.0}):
        loss_fn = CIBRLoss(0.5, "crossfit", **options)
        loss_fn(image, text, scale)
        reports.append(loss_fn.reports())
    assert reports[0]["residual_image_nats"] == reports[1]["residual_image_nats"]
    assert reports[0]["residual_text_nats"] == reports[1]["residual_text_nats"]


@with_labels_or_not
@pytest.mark.parametrize("d", [3, 16])
def test_crossfit_reports_bounds_at_the_concentration_that_fits(d, labels):
    image, text, scale = pair(12, d)
    loss_fn = CIBRLoss(0.5, "crossfit", kappa_e=KAPPA_E, kappa_b=9.0)
    loss_fn(image, text, scale, labels)
    reports = loss_fn.reports()
    cosines = [cosine.item() for cosine in mean_cosines("crossfit", image, text, labels)]
    for name, cosine in zip(("image", "text"), cosines, strict=True):
        kappa_b = vmf_fit_kappa(MEAN_RESULTANT_LENGTH[d] * cosine, d)
        expected = vmf_residual_nats(cosine, KAPPA_E, kappa_b, d)
        assert_close(reports[f"residual_{name}_nats"], expected)


def test_a_batch_of_one_label_has_a_finite_penalty():
    image, text, scale = pair()
    terms = CIBRLoss(0.5, "crossfit")(image, text, scale, torch.zeros(12, dtype=torch.long))
    assert terms["penalty_loss"].isfinite()
