"""Backward encoders of the penalty: siblings, prototypes and ridge predictions against loops."""

import pytest
import torch
from torch.nn import functional as F

from cibr.losses import CIBRLoss
from cibr.losses.backward import DECAY, RIDGE, Prototypes, crossfitted_means, sibling_means
from cibr.losses.penalties import vmf_penalty

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


def test_a_prototype_is_the_running_mean_of_what_its_label_was_in_earlier_batches():
    prototypes, means = Prototypes(10, 4).double(), {}
    for step in range(4):
        features = unit(seed=step).requires_grad_()
        centres, known = prototypes(features, LABELS)
        assert not centres.requires_grad
        for i, label in enumerate(LABELS.tolist()):
            assert known[i].item() == (label in means)
            torch.testing.assert_close(centres[i], F.normalize(means.get(label, features[i].detach()), dim=0))
        for label in set(LABELS.tolist()):
            of_batch = features.detach()[label == LABELS].mean(0)
            means[label] = DECAY * means[label] + (1 - DECAY) * of_batch if step else of_batch


def test_prototypes_stay_in_evaluation_and_are_part_of_the_state():
    first, second = Prototypes(10, 4).double(), Prototypes(10, 4).double()
    first(unit(), LABELS)
    second.load_state_dict(first.state_dict())
    before = second.eval()(unit(seed=1), LABELS)[0]
    assert torch.equal(before, second(unit(seed=2), LABELS)[0])
    assert torch.equal(before, first(unit(seed=3), LABELS)[0])


def test_a_label_without_a_prototype_does_not_count_and_one_with_it_is_pulled_there():
    loss = CIBRLoss(0.5, "prototype", sample=False, dims=(6, 6, 6), n_labels=10)
    image, text = (side.float().requires_grad_() for side in (unit(10, 6), unit(10, 6, seed=1)))
    first = loss(image, text, 4.0, LABELS)
    assert first["penalty_excess"] == pytest.approx(0, abs=1e-6)
    first["loss"].backward()
    expected = CIBRLoss(0.0, "vmf", sample=False)(image, text, 4.0, LABELS)["loss"]
    torch.testing.assert_close(image.grad, torch.autograd.grad(expected, image)[0])
    known = torch.tensor([0, 1, 3])  # labels 4 and 7; the other label is new
    some = loss(image[[0, 1, 3, 4]], text[[0, 1, 3, 4]], 4.0, torch.tensor([4, 7, 4, 3]))
    of_label = torch.stack([image.detach()[label == LABELS].mean(0) for label in LABELS])
    near, far = (vmf_penalty({"image": c, "text": c}, 6, 1024.0, 10.0)[0] for c in torch.tensor([1.0, 0.0]))
    (gradient,) = torch.autograd.grad(some["penalty_loss"], image)
    # beta and the images' share, both a half, of the slope over the cosine, in the mean of three rows
    expected = -0.25 * (far - near).float() * F.normalize(of_label[known], dim=1) / 3
    torch.testing.assert_close(gradient[known], expected)
    assert gradient[4].abs().sum() == 0


@pytest.mark.parametrize(
    ("options", "labels", "message"),
    [
        (dict(dims=(6, 6, 6)), LABELS, "n_labels"),
        (dict(n_labels=10), LABELS, "dims"),
        (dict(dims=(6, 6, 6), n_labels=10), None, "'prototype' compares rows that share a label: pass labels"),
        (dict(dims=(6, 6, 6), n_labels=9), LABELS, "labels go from 1 to 9: prototypes were made for n_labels=9"),
        (dict(dims=(6, 6, 6), n_labels=1), LABELS, "two labels at least"),
    ],
)
def test_prototypes_without_what_they_need_are_refused(options, labels, message):
    with pytest.raises(ValueError, match=message):
        CIBRLoss(0.5, "prototype", **options)(unit(10, 6).float(), unit(10, 6, seed=1).float(), 4.0, labels)


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


def test_a_batch_without_siblings_has_nothing_to_pull_and_one_without_labels_is_refused():
    image, text = (side.requires_grad_() for side in (unit(10, 6), unit(10, 6, seed=1)))
    terms = CIBRLoss(0.5, "siblings", sample=False)(image, text, 4.0, torch.arange(10))
    assert terms["penalty_excess"] == pytest.approx(0, abs=1e-6)
    pulled = torch.autograd.grad(terms["loss"], image)[0]
    alone = CIBRLoss(0.0, "vmf", sample=False)(image, text, 4.0, torch.arange(10))["loss"]
    torch.testing.assert_close(pulled, torch.autograd.grad(alone, image)[0])
    with pytest.raises(ValueError, match="'siblings' compares rows that share a label: pass labels"):
        CIBRLoss(0.5, "siblings")(image, text, 4.0)
