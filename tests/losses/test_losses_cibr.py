"""`CIBRLoss`: what beta, sampling and labels do, whatever the penalty; compiled and eager."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from losses_pairs import assert_same, some_labels, value_and_gradients
from losses_pairs import pair as pair_of
from torch.nn import functional as F

from cibr.losses import PENALTIES, CIBRLoss, RegularisedCCA, beta_at, clip_loss, siglip_loss
from cibr.losses.baselines import hycd_loss
from cibr.losses.vmf import sample_vmf

EVERY = pytest.mark.parametrize("penalty", PENALTIES)
DIM = 104  # from here on the Bessel functions of the reports need no recurrence


def pair(n=12, d=DIM, dtype=torch.float64):
    return pair_of(n, d, dtype)


def build(beta, penalty="vmf", **options):
    torch.manual_seed(0)
    if penalty == "mine":
        options["dims"] = (DIM, 5, 4)
    if penalty == "anchor":
        options["statistic"] = RegularisedCCA.fit(*pooled().values(), dim=DIM)
    return CIBRLoss(beta, penalty, **options)


def pooled():
    generator = torch.Generator().manual_seed(3)
    return {
        f"{side}_pooled": torch.randn(12, d, generator=generator)
        for side, d in (("image", 5), ("text", 4))
    }


def given(image, text):
    """Pooled features, and embeddings of twice their length."""
    return pooled() | {"image_projected": 2 * image, "text_projected": 2 * text}


@EVERY
def test_beta_zero_without_noise_is_bit_equal_to_clip_loss(penalty):
    leaves, labels = pair(dtype=torch.float32), some_labels()
    terms = build(0.0, penalty)(*leaves, labels, **given(*leaves[:2]))
    assert terms["penalty_loss"].item() == 0
    assert not terms["penalty_loss"].requires_grad
    got = terms["loss"], torch.autograd.grad(terms["loss"], leaves)
    assert_same(got, value_and_gradients(lambda *x: clip_loss(*x, labels), leaves), rtol=0, atol=0)


@EVERY
def test_a_small_beta_tends_to_clip_in_value_and_gradient(penalty):
    leaves, labels = pair(), some_labels()
    loss = build(1e-9, penalty)
    got = value_and_gradients(lambda *x: loss(*x, labels, **given(*x[:2]))["loss"], leaves)
    assert_same(
        got, value_and_gradients(lambda *x: clip_loss(*x, labels), leaves), rtol=0, atol=1e-6
    )


@EVERY
def test_loss_is_the_sum_of_its_terms_and_reports_are_detached(penalty):
    leaves = pair(dtype=torch.float32)
    terms = build(0.3, penalty, sample=True)(*leaves, some_labels(), **given(*leaves[:2]))
    assert torch.equal(terms["loss"], terms["clip_loss"] + terms["penalty_loss"])
    for name, value in terms.items():
        assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
        assert value.requires_grad == (name == "loss" or name.endswith("_loss"))
    lower = math.log(12) - terms["clip_loss"].item()
    assert terms["mi_lower_bound_nats"].item() == pytest.approx(lower, rel=1e-6)
    assert {"penalty_excess", "residual_image_nats", "residual_text_nats"} < set(terms) and len(
        terms
    ) == 7


def test_beta_is_read_at_each_step():
    leaves, loss = pair(), build(0.5)
    once = loss(*leaves)["penalty_loss"]
    loss.beta = 1.0
    torch.testing.assert_close(loss(*leaves)["penalty_loss"], 2 * once)
    loss.beta = math.nan
    with pytest.raises(ValueError, match="beta must be from 0"):
        loss(*leaves)


def test_beta_is_held_at_zero_then_raised_then_constant():
    assert [beta_at(p, 0.6) for p in (0, 1 / 3, 0.5, 0.7, 1)] == pytest.approx(
        [0, 0, 0.3, 0.6, 0.6]
    )


def test_noise_without_penalty_is_the_contrast_of_samples_from_the_generator_alone():
    image, text, scale = pair()
    state = torch.get_rng_state()
    terms = build(0.0, sample=True, kappa_e=50.0)(
        image, text, scale, generator=torch.Generator().manual_seed(3)
    )
    assert torch.equal(state, torch.get_rng_state())
    generator = torch.Generator().manual_seed(3)
    z_image, z_text = sample_vmf(image, 50.0, generator), sample_vmf(text, 50.0, generator)
    assert torch.equal(terms["loss"], clip_loss(z_image, z_text, scale))


@pytest.mark.parametrize(("name", "contrast"), [("siglip", siglip_loss), ("hycd", hycd_loss)])
def test_another_contrastive_term_takes_the_place_of_clip_beside_the_penalty(name, contrast):
    leaves, labels = pair(), some_labels()
    teacher = (
        {"teacher_logits": torch.randn(12, 12).double().requires_grad_()} if name == "hycd" else {}
    )
    terms = build(0.3, contrastive=name)(*leaves, labels, **teacher)
    assert torch.equal(terms["clip_loss"], contrast(*leaves, labels, *teacher.values()))
    torch.testing.assert_close(terms["penalty_loss"], build(0.3)(*leaves, labels)["penalty_loss"])
    terms["loss"].backward()
    assert "mi_lower_bound_nats" not in terms and all(
        logits.grad is None for logits in teacher.values()
    )


@pytest.mark.parametrize(
    "penalty", ["vmf", "consistency", "cyclip"]
)  # crossfit holds its centres fixed
def test_gradients_of_the_whole_are_those_of_finite_differences(penalty):
    loss, labels = (
        build(0.1, penalty, kappa_e=30.0, sample=penalty == "vmf"),
        torch.tensor([0, 1, 0, 1]),
    )

    def total(*directions):
        generator = torch.Generator().manual_seed(4)
        return loss(*(F.normalize(x, dim=1) for x in directions), 7.0, labels, generator=generator)[
            "loss"
        ]

    assert torch.autograd.gradcheck(total, pair(n=4, d=3)[:2], fast_mode=True)


def test_bfloat16_features_pass_as_unit_vectors_and_autocast_changes_no_bit():
    image, text, scale = (leaf.detach() for leaf in pair(64, dtype=torch.float32))
    labels, loss = torch.arange(64) // 2, build(0.3, "crossfit")
    expected = loss(image, text, scale, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(image, text, scale, labels) == expected
    terms = loss(image.bfloat16(), text.bfloat16(), scale, labels)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in terms.values())


@pytest.mark.parametrize("penalty", ["vmf", "crossfit", "consistency"])
def test_values_are_checked_in_one_device_transfer(penalty, monkeypatch, unchecked):
    leaves, labels, loss, transfers = pair(), some_labels(), build(0.3, penalty), []
    loss(*leaves, labels)  # constants are computed once
    for name in ("tolist", "item", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, original=original):
            transfers.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    loss(*leaves, labels)["loss"].backward()
    assert transfers == ["tolist"]


@pytest.mark.slow
def test_compiled_losses_equal_eager_ones_in_value_and_gradient():
    script = Path(__file__).with_name("compiled_losses.py")
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
