"""`CIBRLoss`: what beta, sampling and labels do, whatever the penalty; compiled and eager."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from losses_pairs import assert_same, build, optional_inputs, pair, some_labels, value_and_gradients
from torch.nn import functional as F

import cibr_book  # noqa: F401  registers the study's penalties
from cibr.losses import PENALTIES, CIBRLoss, Term, beta_at, clip_loss
from cibr.losses.vmf import sample_vmf

EVERY = pytest.mark.parametrize("penalty", PENALTIES)


def run(*arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@EVERY
def test_beta_zero_is_bit_equal_to_clip_loss_and_a_small_beta_tends_to_it(penalty):
    leaves, labels = pair(), some_labels()
    inputs = optional_inputs(*leaves[:2])
    terms = build(0.0, penalty)(*leaves, labels, **inputs)
    assert terms["penalty_loss"].item() == 0
    assert not terms["penalty_loss"].requires_grad
    expected = value_and_gradients(lambda *x: clip_loss(*x, labels), leaves)
    loss = sum(terms.values())
    assert_same((loss, torch.autograd.grad(loss, leaves)), expected, rtol=0, atol=0)
    small = build(1e-7, penalty)(*leaves, labels, **inputs, output_dict=False)
    gradients = torch.autograd.grad(small, leaves)
    assert_same((small, gradients), expected, rtol=0, atol=1e-5)
    assert not torch.equal(gradients[0], expected[1][0])


@EVERY
def test_terms_are_summed_and_reports_are_detached_nats_under_their_names(penalty):
    image, text, scale = pair(dtype=torch.float32)
    loss_fn = build(0.3, penalty, sample=True)
    every = image, text, scale, some_labels()
    inputs = optional_inputs(image, text)
    draw = [torch.Generator().manual_seed(1) for _ in range(2)]
    terms = loss_fn(*every, **inputs, generator=draw[0])
    assert list(terms) == ["clip_loss", "penalty_loss"]
    total = loss_fn(*every, **inputs, generator=draw[1], output_dict=False)
    assert torch.equal(total, terms["clip_loss"] + terms["penalty_loss"])
    reports = loss_fn.reports()
    bounded = {"anchor": "beyond_statistic", "consistency": "beyond_other_renderings"}
    sides = [f"{bounded.get(penalty, 'residual')}_{side}_nats" for side in ("image", "text")]
    assert list(reports) == ["penalty_excess", *sides, "mi_lower_bound_nats"]
    for value in (*terms.values(), *reports.values()):
        assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
    assert all(term.requires_grad for term in terms.values())
    assert not any(report.requires_grad for report in reports.values())
    lower = math.log(12) - terms["clip_loss"].item()
    assert reports["mi_lower_bound_nats"].item() == pytest.approx(lower, rel=1e-6)
    torch.testing.assert_close(0.3 * reports["penalty_excess"], terms["penalty_loss"].detach())


@pytest.mark.parametrize("penalty", sorted({*PENALTIES} - {"crossfit"}))  # its centres are fixed
def test_gradients_of_the_whole_are_those_of_finite_differences(penalty):
    loss_fn = build(0.3, penalty, d=3, kappa_e=30.0, sample=True).double()
    labels = torch.tensor([0, 1, 0, 1])

    def total(*leaves):
        features = [F.normalize(leaf, dim=1) for leaf in leaves[:2]]
        optional = optional_inputs(*features) | {"generator": torch.Generator().manual_seed(4)}
        return loss_fn(*features, leaves[2], labels, **optional, output_dict=False)

    assert torch.autograd.gradcheck(total, pair(n=4, d=3), fast_mode=True)


def test_beta_is_read_at_each_step_and_ramps_from_zero_to_a_constant():
    leaves, loss_fn = pair(), build(0.5)
    once = loss_fn(*leaves)["penalty_loss"]
    loss_fn.beta = 1.0
    torch.testing.assert_close(loss_fn(*leaves)["penalty_loss"], 2 * once)
    loss_fn.beta = math.nan
    with pytest.raises(ValueError, match="beta must be a number from 0"):
        loss_fn(*leaves)
    ramp = [beta_at(progress, 0.6) for progress in (0, 1 / 3, 0.5, 0.6, 2 / 3, 0.7, 1)]
    assert ramp == pytest.approx([0, 0, 0.3, 0.48, 0.6, 0.6, 0.6])


def test_noise_without_penalty_is_the_contrast_of_samples_from_the_generator_alone():
    image, text, scale = pair()
    loss_fn = build(0.0, sample=True, kappa_e=50.0).eval()
    state = torch.get_rng_state()
    drawn = [torch.Generator().manual_seed(3) for _ in range(2)]
    loss = loss_fn(image, text, scale, generator=drawn[0])["clip_loss"]
    assert torch.equal(state, torch.get_rng_state())
    z_image, z_text = (sample_vmf(side, 50.0, drawn[1]) for side in (image, text))
    assert torch.equal(loss, clip_loss(z_image, z_text, scale))


def test_bfloat16_features_pass_as_unit_vectors_and_autocast_changes_no_bit():
    image, text, scale = (leaf.detach() for leaf in pair(64, dtype=torch.float32))
    labels, loss_fn = torch.arange(64) // 2, build(0.3, "crossfit")
    expected = loss_fn(image, text, scale, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss_fn(image, text, scale, labels) == expected
    terms = loss_fn(image.bfloat16(), text.bfloat16(), scale, labels)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in terms.values())


@pytest.mark.parametrize("penalty", ["vmf", "crossfit"])
def test_values_are_checked_in_one_device_transfer(penalty, monkeypatch, unchecked):
    leaves, labels, loss_fn, transfers = pair(), some_labels(), build(0.3, penalty), []
    loss_fn(*leaves, labels)  # constants are computed once
    for name in ("tolist", "item", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, original=original):
            transfers.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    loss_fn(*leaves, labels, output_dict=False).backward()
    assert transfers == ["tolist"]


class Spread(Term):
    """A user's penalty: a multiple of the mean entry of the projected images."""

    needs = ("projected",)

    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = factor
        self.n_updates = 0

    def forward(self, inputs):
        self.last = inputs.image_projected.mean()
        return self.factor * self.last

    def reports(self):
        return {"mean_entry": self.last.detach()}


def test_a_term_of_ones_own_works_by_name_and_as_an_object(monkeypatch):
    monkeypatch.setitem(PENALTIES, "spread", Spread)
    leaves = pair()
    projected = {"image_projected": leaves[0] + 1, "text_projected": leaves[1]}
    for loss_fn in (CIBRLoss(0.5, "spread", factor=3.0), CIBRLoss(0.5, Spread(3.0))):
        assert loss_fn.needs == {"projected"}
        terms = loss_fn(*leaves, **projected)
        torch.testing.assert_close(terms["penalty_loss"], 1.5 * (leaves[0] + 1).mean())
        assert loss_fn.reports()["mean_entry"] == (leaves[0] + 1).mean()
        loss_fn.update(*leaves[:2])  # nothing of it is trained
    loss_fn = CIBRLoss(0.5, contrastive=Spread())
    torch.testing.assert_close(
        loss_fn(*leaves, **projected)["clip_loss"], 2 * (leaves[0] + 1).mean()
    )
    assert list(loss_fn.reports()) == [
        "penalty_excess",
        "residual_image_nats",
        "residual_text_nats",
        "mean_entry",
    ]


REGISTRIES = """
from cibr import cli, data, evaluate, losses, train
registries = losses.PENALTIES, losses.CONTRASTIVE, evaluate.SUITES, data.DATASETS
print(*({} & registry.keys() for registry in registries), sep="; ")
"""
STUDY = {"consistency", "cosine", "rafa", "siglip", "hycd", "mini", "glyphs-validation"}


def test_the_library_alone_finds_nothing_of_the_study():
    code = REGISTRIES.format(
        {*STUDY, "alignment_uniformity", "cyclip", "soft_targets", "glyph_digits"}
    )
    assert run("-c", code) == "set(); set(); set(); set()\n"
    assert "set()" not in run("-c", f"import cibr_book{code}")


@pytest.mark.slow
def test_compiled_losses_equal_eager_ones_in_value_and_gradient():
    run(str(Path(__file__).with_name("compiled_losses.py")))
