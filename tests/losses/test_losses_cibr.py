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
def test_terms_are_summed_and_reports_are_detached_nats_under_their_names(penalty):
    image, text, scale = pair(dtype=torch.float32)
    inputs = optional_inputs(penalty, image, text) | {"labels": some_labels()}
    loss_fn = build(0.3, penalty)
    terms = loss_fn(image, text, scale, **inputs)
    assert list(terms) == ["clip_loss", "penalty_loss"]
    if penalty != "rafa":  # which draws anew
        assert loss_fn(image, text, scale, **inputs, output_dict=False) == sum(terms.values())
    reports = loss_fn.reports()
    bounded = "beyond_statistic" if penalty == "anchor" else "residual"
    sides = [f"{bounded}_{side}_nats" for side in ("image", "text")]
    assert list(reports) == ["penalty_excess", *sides, "mi_lower_bound_nats"]
    for value in (*terms.values(), *reports.values()):
        assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
        assert value.requires_grad == any(value is term for term in terms.values())
    lower = math.log(12) - terms["clip_loss"].item()
    assert reports["mi_lower_bound_nats"].item() == pytest.approx(lower, rel=1e-6)
    assert loss_fn.penalty.ramps == (penalty not in ("anchor", "rafa"))
    assert_close(0.3 * reports["penalty_excess"], terms["penalty_loss"].detach())


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


def test_beta_is_read_at_each_step_and_ramps_from_zero_to_a_constant():
    leaves, loss_fn = pair(), build(0.5)
    once = loss_fn(*leaves)["penalty_loss"]
    loss_fn.beta = 1.0
    assert_close(loss_fn(*leaves)["penalty_loss"], 2 * once)
    with pytest.raises(ValueError, match="beta"):
        loss_fn.beta = math.nan
    ramp = [beta_at(progress, 0.6) for progress in (0, 1 / 3, 0.5, 0.6, 2 / 3, 0.7, 1)]
    assert ramp == pytest.approx([0, 0, 0.3, 0.48, 0.6, 0.6, 0.6])


def test_noise_without_penalty_is_the_contrast_of_samples_from_the_generator_alone():
    image, text, scale = pair()
    loss_fn = build(0.0, sample=True, kappa_e=50.0).eval()
    drawn = [torch.Generator().manual_seed(3) for _ in range(2)]
    state = torch.get_rng_state()
    loss = loss_fn(image, text, scale, generator=drawn[0])["clip_loss"]
    assert torch.equal(state, torch.get_rng_state())
    z_image, z_text = (sample_vmf(side, 50.0, drawn[1]) for side in (image, text))
    assert torch.equal(loss, clip_loss(z_image, z_text, scale))


def test_bfloat16_features_pass_as_unit_vectors_and_autocast_changes_no_bit():
    *features, scale = (leaf.detach() for leaf in pair(64, dtype=torch.float32))
    loss_fn = build(0.3, "crossfit")
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

    def reports(self, inputs):
        return {"mean_entry": inputs.others["own"].mean()}


def test_a_penalty_of_ones_own_works_by_name_and_as_an_object(monkeypatch):
    monkeypatch.setitem(PENALTIES, "mean", Mean)
    *features, scale = pair()
    own = features[0] + 1
    for loss_fn in (CIBRLoss(0.5, "mean", factor=3.0), CIBRLoss(0.5, Mean(3.0))):
        assert loss_fn.needs == {"own"}
        assert_close(loss_fn(*features, scale, own=own)["penalty_loss"], 1.5 * own.mean())
        assert loss_fn.reports()["mean_entry"] == own.mean()
        loss_fn.update(*features)  # nothing of it is trained


def test_a_subclass_has_another_contrastive_loss_and_no_bound_of_clip():
    class Own(CIBRLoss):
        def contrastive_loss(self, inputs):
            return 5 * inputs.z_image.sum()

    *features, scale = pair()
    loss_fn = Own(0.5)
    terms = loss_fn(*features, scale)
    assert terms["clip_loss"] == 5 * features[0].sum()
    assert terms["penalty_loss"] == CIBRLoss(0.5)(*features, scale)["penalty_loss"]
    assert "mi_lower_bound_nats" not in loss_fn.reports()


def run(*arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


def test_the_library_alone_finds_nothing_of_the_study():
    code = """from cibr import data, evaluate, losses
print("cyclip" in losses.PENALTIES, "glyphs" in evaluate.SUITES, "glyph_digits" in data.DATASETS)"""
    assert run("-c", code).stdout == "False False False\n"
    assert run("-c", f"import cibr_book\n{code}").stdout == "True True True\n"


@pytest.mark.slow
def test_compiled_losses_equal_eager_ones_in_value_and_gradient():
    run(str(Path(__file__).with_name("compiled_losses.py")))
