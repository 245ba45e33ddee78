"""The penalties and losses that CIBR is compared with, written out with their papers' numbers."""

import itertools

import pytest
import torch
from losses_pairs import LABELS, build, optional_inputs, pair, pooled_features
from torch.nn import functional as F
from torch.testing import assert_close

from cibr.losses import CIBRLoss
from cibr.losses.vmf import vmf_fit_kappa, vmf_mean_cosine, vmf_residual_nats
from cibr_book.experiments.controls import LOSSES

TEACHER = torch.randn(12, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def cyclip(image, text):
    total = 0.0
    for j, k in itertools.product(range(12), repeat=2):
        total = total + (image[j] @ text[k] - image[k] @ text[j]) ** 2
        total = total + (image[j] @ image[k] - text[j] @ text[k]) ** 2
    return total / 12


def rafa(image, text):
    reference = torch.randn(12, 6, generator=torch.Generator().manual_seed(4)).double()
    return sum(((side - reference) ** 2).sum() / 72 for side in (3 * image, 2 * text))


@pytest.mark.parametrize("written_out", [cyclip, rafa])
def test_a_control_is_what_its_paper_says_and_reports_what_vmf_does(written_out):
    image, text, scale = pair()
    loss_fn, vmf = CIBRLoss(0.5, written_out.__name__), CIBRLoss(0.5)
    given = {"image_projected": 3 * image, "text_projected": 2 * text}
    given = {name: given[name] for name in loss_fn.needs}
    generator = torch.Generator().manual_seed(4)
    value = loss_fn(image, text, scale, **given, generator=generator)["penalty_loss"]
    assert_close(value, written_out(image, text) / 2)
    vmf(image, text, scale)
    assert loss_fn.reports() == vmf.reports() | {"penalty_excess": 2 * value}


def test_an_anchor_pulls_to_a_statistic_of_the_pooled_features_without_a_gradient_to_them():
    image, text, scale = pair()
    pooled = {name: value.requires_grad_() for name, value in pooled_features().items()}
    loss_fn = build(0.5, "anchor", kappa_e=60.0, kappa_b=9.0)
    value = loss_fn(image, text, scale, **pooled)["penalty_loss"]
    centres = loss_fn.penalty.statistic(*pooled.values())
    cosines = [(x * c).sum(1).mean() for x, c in zip((image, text), centres, strict=True)]
    assert_close(value, 0.5 * 9 * vmf_mean_cosine(60.0, 6) * (1 - sum(cosines) / 2))
    value.backward()
    assert all(part.grad is None for part in pooled.values())


class Fixed(torch.nn.Module):
    """A statistic that is what it was made with."""

    def __init__(self, *centres):
        super().__init__()
        self.centres = centres

    def forward(self, *pooled):
        return self.centres


def test_the_anchor_at_the_start_is_the_anchor_at_the_embeddings_of_the_start():
    image, text, scale = pair()
    taught = [side.detach() for side in pair(seed=5)[:2]]
    given = {"teacher_image": taught[0], "teacher_text": taught[1]}
    value = CIBRLoss(0.5, "start")(image, text, scale, **given)["penalty_loss"]
    anchor = CIBRLoss(0.5, "anchor", statistic=Fixed(*taught))
    pooled = {"image_pooled": image.detach(), "text_pooled": text.detach()}
    assert_close(value, anchor(image, text, scale, **pooled)["penalty_loss"])


def test_the_anchor_bounds_what_goes_beyond_its_statistic_which_gets_no_gradient():
    image, text, scale = pair()
    pooled = {name: value.requires_grad_() for name, value in pooled_features().items()}
    loss_fn = build(0.5, "anchor", kappa_e=60.0, kappa_b=9.0)
    value = loss_fn(image, text, scale, **pooled)["penalty_loss"]
    centres = [side.detach().double() for side in loss_fn.penalty.statistic(*pooled.values())]
    cosines = [(x * c).sum(1).mean() for x, c in zip((image, text), centres, strict=True)]
    mean_cosine = vmf_mean_cosine(60.0, 6)
    assert_close(value, 0.5 * 9 * mean_cosine * (1 - sum(cosines) / 2))
    for side, cosine in zip(("image", "text"), cosines, strict=True):
        fitted = vmf_fit_kappa(mean_cosine * cosine, 6)
        bound = vmf_residual_nats(cosine.detach(), 60.0, fitted, 6)
        assert_close(loss_fn.reports()[f"beyond_statistic_{side}_nats"], bound)
    value.backward()
    assert all(side.grad is None for side in pooled.values())
    assert image.grad.abs().sum() > 0


@pytest.mark.parametrize("penalty", ["anchor", "cyclip", "rafa", "start"])
def test_gradients_of_the_study_s_penalties_are_those_of_finite_differences(penalty):
    loss_fn = build(0.3, penalty, d=3).double()
    assert loss_fn.penalty.ramps == (penalty == "cyclip")

    def total(*leaves):
        features = [F.normalize(leaf, dim=1) for leaf in leaves[:2]]
        optional = optional_inputs(penalty, *features)
        optional["generator"] = torch.Generator().manual_seed(4)
        return loss_fn(*features, leaves[2], **optional, output_dict=False)

    assert torch.autograd.gradcheck(total, pair(n=4, d=3), fast_mode=True)


def hycd(logits, matches):
    matches, total = matches / matches.sum(1), 0.0
    for student, taught in ((logits, TEACHER), (logits.T, TEACHER.T)):
        total = total + F.cross_entropy(student, 0.5 * matches + 0.5 * taught.softmax(1)) / 2
    return total


@pytest.mark.parametrize("labels", [None, LABELS])
def test_distillation_is_what_its_paper_says_beside_the_penalty(labels):
    image, text, scale = pair()
    loss_fn = LOSSES["hycd"](0.3).double()
    terms = loss_fn(image, text, scale, labels, teacher_logits=TEACHER)
    names = torch.arange(12) if labels is None else labels
    expected = hycd(scale * image @ text.T, (names[:, None] == names).double())
    losses = terms["clip_loss"], expected
    assert_close(*[(loss, torch.autograd.grad(loss, (image, text))) for loss in losses])
    assert_close(terms["penalty_loss"], CIBRLoss(0.3)(image, text, scale)["penalty_loss"])
    assert "mi_lower_bound_nats" not in loss_fn.reports()
