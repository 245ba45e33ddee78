"""The penalties against closed forms, loops and limits."""

import pytest
import torch
from losses_pairs import pair
from torch.nn import functional as F

from cibr.losses import CIBRLoss
from cibr.losses.penalties import RIDGE, crossfitted_means, label_index, other_means
from cibr.losses.vmf import vmf_fit_kappa, vmf_floor_nats, vmf_mean_cosine, vmf_residual_nats

LABELS = torch.tensor([4, 7, 4, 4, 1, 7, 9, 9, 2, 1])
KAPPAS = dict(kappa_e=60.0, kappa_b=9.0)


def unit(n=10, d=4, seed=0):
    return F.normalize(
        torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double(), dim=1
    )


def test_vmf_penalty_is_the_mean_residual_at_the_fixed_concentrations():
    image, text, scale = pair()
    terms = CIBRLoss(0.5, **KAPPAS)(image, text, scale)
    residual = vmf_residual_nats((image * text).sum(1), 60.0, 9.0, 6).mean()
    torch.testing.assert_close(terms["penalty_loss"], 0.5 * residual)
    torch.testing.assert_close(terms["penalty_excess"], residual - vmf_floor_nats(60.0, 9.0, 6))
    (gradient,) = torch.autograd.grad(terms["penalty_loss"], image)
    torch.testing.assert_close(gradient, -0.5 * 9.0 * vmf_mean_cosine(60.0, 6) * text / len(image))


@pytest.mark.parametrize("penalty", ["vmf", "cosine", "cyclip", "alignment_uniformity"])
def test_reported_residuals_use_the_concentration_that_fits(penalty):
    image, text, scale = pair()
    terms = CIBRLoss(0.5, penalty, **KAPPAS)(image, text, scale)
    cosine = (image * text).sum(1).mean()
    fitted = vmf_fit_kappa(vmf_mean_cosine(60.0, 6) * cosine, 6)
    expected = vmf_residual_nats(cosine, 60.0, fitted, 6)
    torch.testing.assert_close(terms["residual_image_nats"], expected.detach())
    assert expected < vmf_residual_nats(cosine, 60.0, 9.0, 6)


@pytest.mark.parametrize(
    "labels", [LABELS, torch.arange(10).flip(0), torch.zeros(10, dtype=torch.int64)]
)
def test_label_index_is_the_inverse_of_unique(labels):
    assert torch.equal(label_index(labels), torch.unique(labels, return_inverse=True)[1])


def test_other_means_are_the_other_rows_of_a_label():
    features = unit()
    means, counted = other_means(features, LABELS)
    for i, label in enumerate(LABELS.tolist()):
        others = [features[j] for j in range(10) if j != i and LABELS[j] == label]
        assert counted[i].item() == bool(others)
        torch.testing.assert_close(
            means[i], F.normalize(sum(others), dim=0) if others else features[i]
        )


def test_a_ridge_prediction_comes_from_the_other_half_and_never_from_a_row_of_its_label():
    source, target = unit(40, 4), unit(40, 4, seed=1)
    labels = torch.arange(40) // 2
    found = crossfitted_means(source, target, labels)
    half = (labels % 2).bool()
    for i in range(40):
        x, y = source[half != half[i]], target[half != half[i]]
        weights = torch.linalg.inv(x.T @ x + RIDGE * len(x) / 4 * torch.eye(4).double()) @ x.T @ y
        torch.testing.assert_close(found[i], F.normalize(source[i] @ weights, dim=0))
    moved = target.clone()
    moved[6:8] = unit(2, 4, seed=2)  # both rows of label 3
    again = crossfitted_means(source, moved, labels)
    assert torch.equal(found[half == half[6]], again[half == half[6]])
    assert not torch.allclose(found[half != half[6]], again[half != half[6]])


@pytest.mark.parametrize("penalty", ["consistency", "crossfit"])
def test_the_penalty_is_that_of_vmf_with_the_centres_moved_and_weighted(penalty):
    image, text = unit(10, 6), unit(10, 6, seed=1)
    options = dict(**KAPPAS, text_weight=0.3)
    terms, plain = (
        CIBRLoss(0.5, name, **options)(image, text, 4.0, LABELS) for name in (penalty, "vmf")
    )
    if penalty == "consistency":
        centres = [other_means(side, LABELS) for side in (image, text)]
        cosines = [
            (x[c] * m[c]).sum(1).mean() for x, (m, c) in zip((image, text), centres, strict=True)
        ]
    else:
        centres = crossfitted_means(text, image, LABELS), crossfitted_means(image, text, LABELS)
        cosines = [(x * m).sum(1).mean() for x, m in zip((image, text), centres, strict=True)]
    slope = plain["penalty_excess"] / (1 - (image * text).sum(1).mean())
    torch.testing.assert_close(
        terms["penalty_excess"], slope * (1 - (0.7 * cosines[0] + 0.3 * cosines[1]))
    )
    torch.testing.assert_close(terms["clip_loss"], plain["clip_loss"])


def test_rows_alone_with_their_label_pay_no_consistency():
    image, text = (side.requires_grad_() for side in (unit(10, 6), unit(10, 6, seed=1)))
    terms = CIBRLoss(0.5, "consistency")(image, text, 4.0, torch.arange(10))
    assert terms["penalty_excess"].item() == pytest.approx(0, abs=1e-9)
    assert all(
        slope.abs().max() == 0
        for slope in torch.autograd.grad(terms["penalty_loss"], (image, text))
    )
