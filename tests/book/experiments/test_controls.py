"""The penalties and losses that CIBR is compared with, written out with their papers' numbers."""

import pytest
import torch
from losses_pairs import pair, pooled_features
from scipy.special import ive
from torch.nn import functional as F
from torch.testing import assert_close

import cibr_book  # noqa: F401  registers the controls
from cibr.losses import CIBRLoss

N = range(9)
LABELS = torch.tensor([3, 1, 1, 2, 0, 0, 0, 4, 5])
TEACHER = torch.randn(9, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
POOLED = pooled_features(9, torch.float64)


def cosine(image, text):
    return 1 - sum(image[i] @ text[i] for i in N) / 9


def alignment_uniformity(image, text):
    potentials = [torch.pdist(side).square().mul(-2).exp().mean() for side in (image, text)]
    alignment = sum((image[i] - text[i]).square().sum() for i in N) / 9
    return alignment + sum(potential.log() for potential in potentials) / 2


def cyclip(image, text):
    total = 0.0
    for j in N:
        for k in N:
            total = total + (image[j] @ text[k] - image[k] @ text[j]) ** 2
            total = total + (image[j] @ image[k] - text[j] @ text[k]) ** 2
    return total / 9


def soft_targets(image, text):
    centred = [F.normalize(side - side.mean(0), dim=1) for side in POOLED.values()]
    weights = sum(side @ side.T for side in centred) / 2 / 0.1
    target = (weights - torch.diag(torch.full((9,), 1e9))).softmax(1)  # others than the pair
    logits = 7 * image @ text.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def rafa(image, text):
    reference = torch.randn(9, 5, generator=torch.Generator().manual_seed(4)).double()
    return sum(((side - reference) ** 2).sum() / 45 for side in (3 * image, 2 * text))


def consistency(image, text):
    distances = []
    for side in (image, text):
        for i in (1, 2, 4, 5, 6):  # the rows that share their label
            others = [j for j in N if j != i and LABELS[j] == LABELS[i]]
            distances.append(1 - side[i] @ F.normalize(side[others].sum(0), dim=0))
    return 10 * ive(2.5, 1024) / ive(1.5, 1024) * sum(distances) / 10  # kappa_b A_5(kappa_e)


CONTROLS = [cosine, alignment_uniformity, cyclip, soft_targets, rafa, consistency]


@pytest.mark.parametrize("written_out", CONTROLS)
def test_a_control_is_what_its_paper_says_and_reports_the_residuals_of_vmf(written_out):
    image, text, _ = pair(9, 5)
    projected = {"image_projected": 3 * image, "text_projected": 2 * text}
    generator = torch.Generator().manual_seed(4)
    loss_fn, vmf = CIBRLoss(0.5, written_out.__name__), CIBRLoss(0.5)
    others = {name: x for name, x in projected.items() if name in loss_fn.needs}
    value = loss_fn(image, text, 7.0, LABELS, **POOLED, **others, generator=generator)
    assert_close(value["penalty_loss"], written_out(image, text) / 2)
    vmf(image, text, 7.0, LABELS)
    if written_out is not consistency:
        excess = {"penalty_excess": 2 * value["penalty_loss"]}
        assert loss_fn.reports() == vmf.reports() | excess


def test_consistency_says_where_no_label_is_shared_and_costs_nothing():
    leaves = pair()
    with pytest.warns(UserWarning, match="every label of the batch is unique"):
        value = CIBRLoss(0.5, "consistency")(*leaves, torch.arange(12))["penalty_loss"]
    assert value == 0
    assert not any(x.any() for x in torch.autograd.grad(value, leaves[:2]))


def siglip(logits, bias, matches):
    return -F.logsigmoid((2 * matches - 1) * (logits + bias)).sum() / 9


def hycd(logits, bias, matches):
    matches, total = matches / matches.sum(1), 0.0
    for student, taught in ((logits, TEACHER), (logits.T, TEACHER.T)):
        total = total + F.cross_entropy(student, 0.5 * matches + 0.5 * taught.softmax(1)) / 2
    return total


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("written_out", [siglip, hycd])
def test_another_contrastive_loss_is_what_its_paper_says_beside_the_penalty(written_out, labels):
    image, text, scale = pair(9, 5)
    loss_fn = CIBRLoss(0.3, contrastive=written_out.__name__).double()
    others = {"teacher_logits": TEACHER} if "teacher_logits" in loss_fn.needs else {}
    terms = loss_fn(image, text, scale, labels, **others)
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)  # in units of 10
    names = torch.arange(9) if labels is None else labels
    matches = (names[:, None] == names).double()
    expected = written_out(scale * image @ text.T, 10 * bias, matches)
    assert_close(terms["clip_loss"], expected)
    leaves = image, text, *loss_fn.trained_parameters()
    assert len(leaves) == (3 if written_out is siglip else 2)
    twins = (image, text, bias)[: len(leaves)]
    gradients = torch.autograd.grad(terms["clip_loss"], leaves)
    assert_close(gradients, torch.autograd.grad(expected, twins, retain_graph=True))
    assert_close(terms["penalty_loss"], CIBRLoss(0.3)(image, text, scale)["penalty_loss"])
    assert "mi_lower_bound_nats" not in loss_fn.reports()
