"""`CIBRLoss`: what beta, sampling and labels do, whatever the penalty."""

import math
from functools import partial

import pytest
import torch
from losses_pairs import LABELS, build, pair, pooled_features, value_and_gradients
from torch.nn import functional as F
from torch.testing import assert_close

from cibr.losses import CIBRLoss, beta_at, clip_loss
from cibr.losses.penalties import Penalty
from cibr.losses.vmf import sample_vmf

RESIDUAL = ["residual_image_nats", "residual_text_nats"]
REPORTS = {"vmf": ["pair_cosine_distance"], "crossfit": RESIDUAL, "mine": RESIDUAL}


@pytest.mark.parametrize("penalty", REPORTS)
def test_beta_weighs_a_penalty_that_is_reported_and_zero_is_bit_equal_to_clip(penalty):
    leaves = pair()
    inputs = pooled_features() | {"labels": LABELS}
    clip, loss_fn = partial(clip_loss, labels=LABELS), build(0.0, penalty)
    total = partial(loss_fn, output_dict=False, **inputs)
    got, expected = (value_and_gradients(f, leaves) for f in (total, clip))
    assert_close(got, expected, rtol=0, atol=0)
    assert not loss_fn(*leaves, **inputs)["penalty_loss"].requires_grad
    loss_fn.beta = 0.3
    terms, reports = loss_fn(*leaves, **inputs), loss_fn.reports()
    assert list(reports) == ["penalty_excess", *REPORTS[penalty], "mi_lower_bound_nats"]
    assert reports["mi_lower_bound_nats"] == math.log(12) - expected[0]
    assert terms["penalty_loss"] == 0.3 * reports["penalty_excess"]
    assert not any(value.requires_grad for value in reports.values())


class Diverged(Penalty):
    """A penalty that is no number, nor has it gradients that are."""

    def forward(self, inputs):
        self.is_in_graph = inputs.image.requires_grad
        return (inputs.image - inputs.image).norm() / 0


def test_with_beta_zero_a_penalty_that_is_not_finite_leaves_clip_as_it_is():
    leaves = pair()
    loss_fn = CIBRLoss(0.0, Diverged())
    total = partial(loss_fn, output_dict=False)
    got, expected = value_and_gradients(total, leaves), value_and_gradients(clip_loss, leaves)
    assert_close(got, expected, rtol=0, atol=0)
    assert not loss_fn.penalty.is_in_graph
    loss_fn.beta = 0.1
    assert not total(*leaves).isfinite() and loss_fn.penalty.is_in_graph


@pytest.mark.parametrize("penalty", ["vmf", "mine"])  # the centres of `crossfit` are fixed
def test_gradients_of_the_whole_are_those_of_finite_differences(penalty):
    loss_fn = build(0.3, penalty, d=3, kappa_e=30.0, sample=True).double()

    def total(*leaves):
        features = [F.normalize(leaf, dim=1) for leaf in leaves[:2]]
        optional = pooled_features(len(features[0])) | {"labels": LABELS[3:7]}
        optional["generator"] = torch.Generator().manual_seed(4)
        return loss_fn(*features, leaves[2], **optional, output_dict=False)

    assert torch.autograd.gradcheck(total, pair(n=4, d=3), fast_mode=True)


def test_the_weight_ramps_from_zero_to_a_constant():
    ramp = [beta_at(progress, 0.6) for progress in (0, 1 / 3, 0.5, 0.6, 2 / 3, 0.7, 1)]
    assert ramp == pytest.approx([0, 0, 0.3, 0.48, 0.6, 0.6, 0.6])


def test_noise_without_penalty_is_the_contrast_of_samples_from_the_generator_alone():
    *features, scale = pair()
    drawn = [torch.Generator().manual_seed(3) for _ in range(2)]
    state = torch.get_rng_state()
    loss_fn = CIBRLoss(0.0, sample=True, kappa_e=50.0).eval()
    loss = loss_fn(*features, scale, generator=drawn[0])["clip_loss"]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(loss, clip_loss(*(sample_vmf(x, 50.0, drawn[1]) for x in features), scale))


def test_an_update_has_the_inputs_of_the_loss():
    class Trained(Penalty):
        needs = ("labels",)

        def forward(self, inputs):
            return inputs.image.sum() * 0

        def update(self, inputs):
            self.seen = inputs.labels

    features, labels = pair()[:2], torch.arange(12) // 2
    loss_fn = CIBRLoss(0.5, term := Trained())
    loss_fn.update(*features, labels=labels)
    assert torch.equal(term.seen, labels)
