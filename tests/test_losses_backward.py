"""Backward encoders of the penalty: siblings and ridge predictions against loops, and what they cannot know."""

import pytest
import torch
from torch.nn import functional as F

from cibr.losses import CIBRLoss
from cibr.losses.backward import RIDGE, crossfitted_means, sibling_means

LABELS = torch.tensor([4, 7, 4, 4, 1, 7, 9, 9, 2, 1])


def unit(n=10, d=4, seed=0):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=1)


def test_siblings_are_the_other_rows_of_a_label():
    features = unit()
    means, counted = sibling_means(features, LABELS)
    for i, label in enumerate(LABELS.tolist()):
        others = [features[j] for j in range(10) if j != i and LABELS[j] == label]
        assert counted[i].item() == bool(others)
        expected = F.normalize(sum(others), dim=0) if others else features[i]
        torch.testing.assert_close(means[i], expected)


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


def test_the_prediction_finds_a_rotation_between_the_modalities():
    source = unit(4000, 4)
    rotation = torch.linalg.qr(unit(4, 4, seed=3))[0]
    found = crossfitted_means(source, source @ rotation, None)
    assert (found * (source @ rotation)).sum(1).min() > 0.999


@pytest.mark.parametrize("estimator", ["siblings", "crossfit"])
def test_the_penalty_is_that_of_vmf_with_the_centres_moved(estimator):
    image, text = unit(10, 6), unit(10, 6, seed=1)
    options = dict(kappa_e=100.0, kappa_b=8.0, sample=False, text_weight=0.3)
    terms = CIBRLoss(0.5, estimator, **options)(image, text, 4.0, LABELS)
    plain = CIBRLoss(0.5, "vmf", **options)(image, text, 4.0, LABELS)
    if estimator == "siblings":
        centres = [sibling_means(side, LABELS) for side in (image, text)]
        cosines = [(x[c] * m[c]).sum(1).mean() for x, (m, c) in zip((image, text), centres, strict=True)]
    else:
        centres = crossfitted_means(text, image, LABELS), crossfitted_means(image, text, LABELS)
        cosines = [(x * m).sum(1).mean() for x, m in zip((image, text), centres, strict=True)]
    slope = plain["penalty_excess"] / (1 - (image * text).sum(1).mean())
    expected = slope * (1 - (0.7 * cosines[0] + 0.3 * cosines[1]))
    torch.testing.assert_close(terms["penalty_excess"], expected)
    torch.testing.assert_close(terms["clip_loss"], plain["clip_loss"])


@pytest.mark.parametrize("estimator", ["vmf", "siblings"])
def test_a_stopped_gradient_moves_only_the_encoder_that_is_penalised(estimator):
    image, text = (side.requires_grad_() for side in (unit(10, 6), unit(10, 6, seed=1)))
    options = dict(sample=False, text_weight=0.0, stop_gradient=True)
    CIBRLoss(0.5, estimator, **options)(image, text, 4.0, LABELS)["penalty_loss"].backward()
    assert image.grad.abs().sum() > 0
    assert text.grad is None or text.grad.abs().sum() == 0


@pytest.mark.parametrize("labels", [None, torch.arange(10)])
def test_siblings_without_rows_that_share_a_label_are_refused(labels):
    with pytest.raises(ValueError, match=r"'siblings' needs rows that share a label.*group_size=2"):
        CIBRLoss(0.5, "siblings")(unit(10, 6), unit(10, 6, seed=1), 4.0, labels)
