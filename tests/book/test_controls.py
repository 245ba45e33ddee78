"""The penalties and losses that CIBR is compared with, against loops with their papers' numbers."""

import pytest
import torch
from losses_pairs import pair, pooled_features
from scipy.special import ive
from torch.nn import functional as F

import cibr_book  # noqa: F401  registers the controls
from cibr.losses import CIBRLoss

N = range(9)
LABELS = torch.tensor([3, 1, 1, 2, 0, 0, 0, 4, 5])
TEACHER = torch.randn(9, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
POOLED = pooled_features(9, torch.float64)


def cosine(image, text, scale):
    return 1 - sum(image[i] @ text[i] for i in N) / 9


def alignment_uniformity(image, text, scale):
    total = sum((image[i] - text[i]).square().sum() for i in N) / 9
    for side in (image, text):
        distances = [(side[i] - side[j]).square().sum() for i in N for j in N if i != j]
        total = total + torch.log(sum(torch.exp(-2 * x) for x in distances) / 72) / 2
    return total


def cyclip(image, text, scale):
    total = 0.0
    for j in N:
        for k in N:
            total = total + (image[j] @ text[k] - image[k] @ text[j]) ** 2
            total = total + (image[j] @ image[k] - text[j] @ text[k]) ** 2
    return total / 9


def soft_targets(image, text, scale):
    centred = [F.normalize(side - side.mean(0), dim=1) for side in POOLED.values()]
    total = 0.0
    for i in N:
        others = [j for j in N if j != i]  # the pair itself is excluded
        weights = torch.stack([sum(side[i] @ side[j] for side in centred) / 2 for j in others])
        for own, other in ((image, text), (text, image)):
            log_shares = torch.log_softmax(scale * other @ own[i], 0)[others]
            total = total - torch.softmax(weights / 0.1, 0) @ log_shares / 18
    return total


def rafa(image, text, scale):
    reference = torch.randn(9, 5, generator=torch.Generator().manual_seed(4)).double()
    return sum(((side - reference) ** 2).sum() / 45 for side in (3 * image, 2 * text))


def consistency(image, text, scale):
    total = 0.0
    for side in (image, text):
        for i in (1, 2, 4, 5, 6):  # the rows that share their label
            others = [j for j in N if j != i and LABELS[j] == LABELS[i]]
            total = total + (1 - side[i] @ F.normalize(side[others].mean(0), dim=0)) / 10
    return 10 * ive(2.5, 1024) / ive(1.5, 1024) * total  # kappa_b A_d(kappa_e), d = 5


CONTROLS = [cosine, alignment_uniformity, cyclip, soft_targets, rafa, consistency]


@pytest.mark.parametrize("loop", CONTROLS)
def test_a_control_equals_its_loop_and_reports_the_residuals_of_vmf(loop):
    leaves = pair(9, 5)
    image, text = (F.normalize(leaf, dim=1) for leaf in leaves[:2])  # gradients along the sphere
    inputs = POOLED | {"image_projected": 3 * image, "text_projected": 2 * text}
    loss_fn, vmf = CIBRLoss(0.5, loop.__name__), CIBRLoss(0.5)
    generator = torch.Generator().manual_seed(4)
    got = loss_fn(image, text, 7.0, LABELS, **inputs, generator=generator)["penalty_loss"]
    expected = loop(image, text, 7.0) / 2
    gradients = [torch.autograd.grad(x, leaves[:2], retain_graph=True) for x in (got, expected)]
    torch.testing.assert_close((got, gradients[0]), (expected, gradients[1]))
    vmf(image, text, 7.0, LABELS)
    if loop is not consistency:
        assert vmf.reports() | loss_fn.reports() == vmf.reports() | {"penalty_excess": 2 * got}


def test_consistency_says_where_no_label_is_shared_and_costs_nothing():
    loss_fn, leaves = CIBRLoss(0.5, "consistency"), pair()
    with pytest.warns(UserWarning, match="every label of the batch is unique"):
        value = loss_fn(*leaves, torch.arange(12))["penalty_loss"]
    assert value == 0
    assert not any(x.any() for x in torch.autograd.grad(value, leaves[:2]))


def siglip(image, text, scale, bias, names):
    signs = 2.0 * (names[:, None] == names) - 1
    return -F.logsigmoid(signs * (scale * image @ text.T + bias)).sum() / 9


def hycd(image, text, scale, bias, names):
    total = 0.0
    for own, other, taught in ((image, text, TEACHER), (text, image, TEACHER.T)):
        for i in N:
            matches = (names == names[i]).double()
            target = 0.5 * matches / matches.sum() + 0.5 * taught[i].softmax(0)
            total = total - target @ (scale * other @ own[i]).log_softmax(0) / 18
    return total


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("loop", [siglip, hycd])
def test_another_contrastive_loss_equals_its_loop_beside_the_penalty(loop, labels):
    leaves, bias = pair(9, 5), torch.tensor(-10.0, dtype=torch.float64, requires_grad=True)
    loss_fn = CIBRLoss(0.3, contrastive=loop.__name__)
    terms = loss_fn(*leaves, labels, teacher_logits=TEACHER)
    expected = loop(*leaves, bias, torch.arange(9) if labels is None else labels)
    got = terms["clip_loss"], torch.autograd.grad(terms["clip_loss"], leaves, retain_graph=True)
    torch.testing.assert_close(
        got, (expected, torch.autograd.grad(expected, leaves, retain_graph=True))
    )
    torch.testing.assert_close(terms["penalty_loss"], CIBRLoss(0.3)(*leaves)["penalty_loss"])
    assert "mi_lower_bound_nats" not in loss_fn.reports()
    for parameter in loss_fn.parameters():  # the bias, in units of 10
        (slope,) = torch.autograd.grad(terms["clip_loss"], parameter)
        torch.testing.assert_close(slope.double(), 10 * torch.autograd.grad(expected, bias)[0])
    assert len(list(loss_fn.parameters())) == (loop is siglip)
