"""The losses that CIBR is compared with, against loops, closed forms and a bracketed bias."""

import pytest
import torch
from losses_pairs import pair
from scipy.optimize import brentq
from torch.nn import functional as F

from cibr.losses import CIBRLoss, siglip_loss
from cibr.losses.baselines import HYCD_ALPHA, alignment_uniformity, cyclip, hycd_loss, soft_targets


def test_alignment_and_uniformity_equal_a_loop():
    image, text, _ = (leaf.detach() for leaf in pair(9, 5))
    n = len(image)
    expected = sum((image[i] - text[i]).square().sum() for i in range(n)) / n
    for side in (image, text):
        distances = [
            (side[i] - side[j]).square().sum() for i in range(n) for j in range(n) if i != j
        ]
        expected = (
            expected + torch.log(sum(torch.exp(-2 * x) for x in distances) / len(distances)) / 2
        )
    torch.testing.assert_close(alignment_uniformity(image, text), expected)


def test_cyclip_equals_a_loop():
    image, text, _ = (leaf.detach() for leaf in pair(9, 5))
    total = 0.0
    for j in range(9):
        for k in range(9):
            total += (image[j] @ text[k] - image[k] @ text[j]) ** 2
            total += (image[j] @ image[k] - text[j] @ text[k]) ** 2
    torch.testing.assert_close(cyclip(image, text), total / 9)


def test_soft_targets_equal_a_loop_and_leave_the_pair_itself_out():
    image, text, _ = (leaf.detach() for leaf in pair(9, 5))
    generator = torch.Generator().manual_seed(2)
    pooled = [2 + torch.randn(9, d, generator=generator, dtype=torch.float64) for d in (4, 3)]
    centred = [F.normalize(side - side.mean(0), dim=1) for side in pooled]
    total = 0.0
    for i in range(9):
        others = [j for j in range(9) if j != i]
        weights = [sum(side[i] @ side[j] for side in centred) / 2 / 0.1 for j in others]
        weights = torch.softmax(torch.stack(weights), 0)
        for own, other in ((image, text), (text, image)):
            log_shares = torch.log_softmax(7.0 * own[i] @ other.T, 0)
            total -= sum(w * log_shares[j] for w, j in zip(weights, others, strict=True)) / 2 / 9
    torch.testing.assert_close(soft_targets(image, text, 7.0, *pooled), total)


LABELLED = pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 1, 2, 3, 3, 3, 4, 5])])


@LABELLED
def test_hycd_equals_a_loop(labels):
    image, text, scale = (leaf.detach() for leaf in pair(9, 5))
    names = torch.arange(9) if labels is None else labels
    teacher, total = torch.randn(9, 9, generator=torch.Generator().manual_seed(3)).double(), 0.0
    for logits, taught in ((scale * image @ text.T, teacher), (scale * text @ image.T, teacher.T)):
        for i in range(9):
            matches = [names[i] == names[j] for j in range(9)]
            for j in range(9):
                target = (
                    HYCD_ALPHA * matches[j] / sum(matches)
                    + (1 - HYCD_ALPHA) * taught[i].softmax(0)[j]
                )
                total -= target * logits[i].log_softmax(0)[j] / 2 / 9
    torch.testing.assert_close(hycd_loss(image, text, scale, labels, teacher), total)


def test_rafa_draws_both_embeddings_of_a_pair_to_one_vector_that_the_generator_decides():
    image, text, scale = pair(9, 5)
    given = dict(image_projected=3 * image, text_projected=2 * text)
    terms = CIBRLoss(0.5, "rafa")(
        image, text, scale, **given, generator=torch.Generator().manual_seed(4)
    )
    reference = torch.randn(9, 5, generator=torch.Generator().manual_seed(4)).double()
    total = 0.0
    for i in range(9):
        total += ((3 * image[i] - reference[i]) ** 2).sum() + (
            (2 * text[i] - reference[i]) ** 2
        ).sum()
    torch.testing.assert_close(terms["penalty_loss"], 0.5 * total / 45)
    (gradient,) = torch.autograd.grad(terms["penalty_loss"], image)
    torch.testing.assert_close(gradient, 0.5 * 2 * 3 * (3 * image - reference) / 45)


@LABELLED
def test_siglip_takes_the_bias_at_which_its_slope_is_zero(labels):
    image, text, _ = pair(9, 5)
    names = torch.arange(9) if labels is None else labels
    signs = torch.where(names[:, None] == names[None], 1.0, -1.0).double()

    def written_out(bias):
        return -F.logsigmoid(signs * (6.0 * image @ text.T + bias)).sum() / 9

    def slope(bias):
        leaf = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(written_out(leaf), leaf)[0].item()

    found, expected = (
        siglip_loss(image, text, 6.0, labels),
        written_out(brentq(slope, -50, 50, xtol=1e-13)),
    )
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(loss, (image, text)) for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
