"""The bounds `vmf` and `crossfit` against their centres, by a loop."""

import math

import numpy as np
import pytest
import torch
from losses_pairs import LABELS, pair
from torch.nn import functional as F
from torch.testing import assert_close

from cibr.losses import CIBRLoss
from cibr.losses.vmf import vmf_fit_kappa, vmf_mean_cosine, vmf_residual_nats

ORDINARY = 1 / math.tanh(60) - 1 / 60  # the mean cosine on the ordinary sphere, d = 3


def predicted(source, target, labels):
    """Ridge predictions of each row from the other half, in which no row has its label."""
    ranks = np.unique(labels.numpy(), return_inverse=True)[1]
    is_odd = torch.from_numpy(ranks % 2 == 1)
    rows = []
    for i in range(len(source)):
        x, y = (side[is_odd != is_odd[i]].detach() for side in (source, target))
        d = x.shape[1]
        weights = torch.linalg.inv(x.T @ x + len(x) / d * torch.eye(d).double()) @ x.T @ y
        rows.append(F.normalize(source[i].detach() @ weights, dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize(("penalty", "d"), [("vmf", 3), ("crossfit", 3), ("crossfit", 16)])
def test_penalty_gradient_and_reports_are_those_of_the_centres_of_b(penalty, d, labels):
    image, text, scale = pair(12, d)
    loss_fn = CIBRLoss(0.5, penalty, kappa_e=60.0, kappa_b=9.0)
    value = loss_fn(image, text, scale, labels)["penalty_loss"]
    rows = torch.arange(12) if labels is None else labels
    centres = [text, image]
    if penalty == "crossfit":
        centres = [predicted(text, image, rows), predicted(image, text, rows)]
    cosines = [(x * c).sum(1).mean() for x, c in zip((image, text), centres, strict=True)]
    mean_cosine = ORDINARY if d == 3 else vmf_mean_cosine(60.0, d)
    expected = 0.5 * 9 * mean_cosine * (1 - sum(cosines) / 2)
    assert_close(value, expected)
    gradients = [torch.autograd.grad(x, (image, text)) for x in (value, expected)]
    assert_close(*gradients)
    reports = loss_fn.reports()
    if penalty == "vmf":
        assert_close(reports["pair_cosine_distance"], 1 - cosines[0].detach())
        return
    for cosine, nats in zip(cosines, [*reports.values()][1:3], strict=True):
        fitted = vmf_fit_kappa(mean_cosine * cosine, d)
        assert_close(nats, vmf_residual_nats(cosine.detach(), 60.0, fitted, d))


def test_a_batch_of_one_label_has_a_finite_penalty():
    terms = CIBRLoss(0.5, "crossfit")(*pair(), torch.zeros(12, dtype=torch.long))
    assert terms["penalty_loss"].isfinite()
