"""`CIBRLoss`: what beta, sampling and labels do, whatever the penalty; compiled and eager."""

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from losses_pairs import build, optional_inputs, pair, some_labels, value_and_gradients
from torch.nn import functional as F
from torch.testing import assert_close

import cibr_book  # noqa: F401  registers the study's penalties
from cibr.losses import PENALTIES, CIBRLoss, Term, beta_at, clip_loss
from cibr.losses.vmf import sample_vmf

EVERY = pytest.mark.parametrize("penalty", PENALTIES)


@EVERY
def test_beta_zero_is_bit_equal_to_clip_loss_and_a_small_beta_tends_to_it(penalty):
    leaves, labels = pair(), some_labels()
    inputs = optional_inputs(penalty, *leaves[:2])
    expected = value_and_gradients(partial(clip_loss, labels=labels), leaves)
    for beta, tolerance in ((0.0, 0.0), (1e-7, 1e-5)):
        loss_fn = partial(build(beta, penalty), labels=labels, **inputs)
        got = value_and_gradients(partial(loss_fn, output_dict=False), leaves)
        assert_close(got, expected, rtol=0, atol=tolerance)
        assert loss_fn(*leaves)["penalty_loss"].requires_grad == (beta > 0)


@EVERY
def test_the_penalty_is_weighed_with_beta_and_reported_with_nats_under_their_names(penalty):
    leaves = pair(dtype=torch.float32)
    loss_fn = build(0.3, penalty)
    terms = loss_fn(*leaves, some_labels(), **optional_inputs(penalty, *leaves[:2]))
    reports = loss_fn.reports()
    bounded = "beyond_statistic" if penalty == "anchor" else "residual"
    sides = [f"{bounded}_{side}_nats" for side in ("image", "text")]
    assert list(reports) == ["penalty_excess", *sides, "mi_lower_bound_nats"]
    assert_close(0.3 * reports["penalty_excess"], terms["penalty_loss"].detach())
    assert_close(reports["mi_lower_bound_nats"], math.log(12) - terms["clip_loss"].detach())
    assert not any(value.requires_grad for value in reports.values())
    assert loss_fn.penalty.ramps == (penalty not in ("anchor", "rafa"))


@pytest.mark.parametrize("penalty", sorted({*PENALTIES} - {"crossfit"}))  # its centres are fixed
def test_gradients_of_the_whole_are_those_of_finite_differences(penalty):
    loss_fn = build(0.3, penalty, d=3, kappa_e=30.0, sample=True).double()
    labels = torch.tensor([0, 1, 0, 1])

    def total(*leaves):
        features = [F.normalize(leaf, dim=1) for leaf in leaves[:2]]
        optional = optional_inputs(penalty, *features)
        optional["generator"] = torch.Generator().manual_seed(4)
        return loss_fn(*features, leaves[2], labels, **optional, output_dict=False)

    assert torch.autograd.gradcheck(total, pair(n=4, d=3), fast_mode=True)


def test_the_weight_ramps_from_zero_to_a_constant():
    ramp = [beta_at(progress, 0.6) for progress in (0, 1 / 3, 0.5, 0.6, 2 / 3, 0.7, 1)]
    assert ramp == pytest.approx([0, 0, 0.3, 0.48, 0.6, 0.6, 0.6])


def test_noise_without_penalty_is_the_contrast_of_samples_from_the_generator_alone():
    image, text, scale = pair()
    drawn = [torch.Generator().manual_seed(3) for _ in range(2)]
    state = torch.get_rng_state()
    loss_fn = CIBRLoss(0.0, sample=True, kappa_e=50.0).eval()
    loss = loss_fn(image, text, scale, generator=drawn[0])["clip_loss"]
    assert torch.equal(state, torch.get_rng_state())
    z_image, z_text = (sample_vmf(side, 50.0, drawn[1]) for side in (image, text))
    assert torch.equal(loss, clip_loss(z_image, z_text, scale))


def test_bfloat16_features_pass_as_unit_vectors_and_autocast_changes_no_bit():
    *features, scale = (leaf.detach() for leaf in pair(64, dtype=torch.float32))
    loss_fn = CIBRLoss(0.3, "crossfit")
    expected = loss_fn(*features, scale), loss_fn.reports()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (loss_fn(*features, scale), loss_fn.reports()) == expected
    rounded = [side.bfloat16() for side in features]
    assert_close(loss_fn(*rounded, scale), expected[0], rtol=1e-2, atol=1e-2)


class Mean(Term):
    """A user's own: a multiple of the mean entry of another tensor."""

    needs = ("own",)

    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = factor

    def forward(self, inputs):
        return self.factor * inputs.others["own"].mean()


def test_a_penalty_of_ones_own_works_by_name_and_as_an_object(monkeypatch):
    monkeypatch.setitem(PENALTIES, "mean", Mean)
    *features, scale = pair()
    own = features[0] + 1
    for loss_fn in (CIBRLoss(0.5, "mean", factor=3.0), CIBRLoss(0.5, Mean(3.0))):
        loss_fn.update(*features)  # nothing of it is trained
        assert_close(loss_fn(*features, scale, own=own)["penalty_loss"], 1.5 * own.mean())


@pytest.mark.slow
def test_compiled_losses_equal_eager_ones_in_value_and_gradient():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).with_name("compiled_losses.py")
    subprocess.run([sys.executable, script], check=True, env=environment)
