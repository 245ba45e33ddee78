"""The bounds `vmf`, `crossfit` and `anchor` against closed forms on the sphere and a loop."""

import math

import numpy as np
import pytest
import torch
from losses_pairs import build, pair, pooled_features, some_labels
from scipy.optimize import brentq
from torch.nn import functional as F
from torch.testing import assert_close


def mean_cosine(kappa):
    return 1 / math.tanh(kappa) - 1 / kappa  # on the ordinary sphere, d = 3


def log_density(kappa, cosine):
    log_normalizer = math.log(kappa / (2 * math.pi)) - kappa - math.log1p(-math.exp(-2 * kappa))
    return log_normalizer + kappa * cosine


def bound_nats(cosine):
    """E log e - E log b, on the ordinary sphere, with the concentration of b that is the best."""
    expected = mean_cosine(60.0) * cosine
    if expected <= 0:  # the uniform distribution fits best
        return log_density(60.0, mean_cosine(60.0)) + math.log(4 * math.pi)
    fitted = brentq(lambda kappa: mean_cosine(kappa) - expected, 1e-3, 1e4, xtol=1e-12)
    return log_density(60.0, mean_cosine(60.0)) - log_density(fitted, expected)


def predicted(source, target, labels):
    """Ridge predictions of each row from the other half, in which no row has its label."""
    ranks = np.unique(labels.numpy(), return_inverse=True)[1]
    is_odd = torch.from_numpy(ranks % 2 == 1)
    rows = []
    for i in range(len(source)):
        x, y = (side[is_odd != is_odd[i]].detach() for side in (source, target))
        weights = torch.linalg.inv(x.T @ x + len(x) / 3 * torch.eye(3).double()) @ x.T @ y
        rows.append(F.normalize(source[i].detach() @ weights, dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("labels", [None, some_labels()])
@pytest.mark.parametrize("penalty", ["vmf", "crossfit", "anchor"])
def test_penalty_gradient_and_reports_are_those_of_the_centres_of_b(penalty, labels):
    image, text, scale = pair(12, 3)
    pooled = pooled_features(12)
    loss_fn = build(0.5, penalty, d=3, kappa_e=60.0, kappa_b=9.0)
    value = loss_fn(image, text, scale, labels, **pooled)["penalty_loss"]
    rows = torch.arange(12) if labels is None else labels
    centres = [text, image]
    if penalty == "crossfit":
        centres = [predicted(text, image, rows), predicted(image, text, rows)]
    elif penalty == "anchor":
        centres = [side.double() for side in loss_fn.penalty.statistic(*pooled.values())]
    cosines = [(x * c).sum(1).mean() for x, c in zip((image, text), centres, strict=True)]
    expected = 0.5 * 9 * mean_cosine(60.0) * (1 - sum(cosines) / 2)
    assert_close(value, expected)
    gradients = [torch.autograd.grad(x, (image, text)) for x in (value, expected)]
    assert_close(*gradients)
    nats = [report.item() for report in loss_fn.reports().values()]
    assert nats[1:3] == pytest.approx([bound_nats(cosine.item()) for cosine in cosines], rel=1e-9)


def test_the_anchor_reports_zero_for_its_statistic_and_calls_it_no_residual():
    # Such an encoder may tell of X_v what X_t does not: all that the statistic keeps of it.
    loss_fn = build(0.5, "anchor", kappa_e=40.0)
    pooled = pooled_features()
    features = loss_fn.penalty.statistic(*pooled.values())
    for length in (1, 1.005):  # as by rounding to bfloat16
        loss_fn(*(length * side for side in features), 7.0, **pooled)
        reports = loss_fn.reports()
        for side in ("image", "text"):
            assert reports[f"beyond_statistic_{side}_nats"].item() == pytest.approx(0, abs=1e-5)
    assert not list(loss_fn.parameters())  # the statistic is fixed
    assert {name.split(".")[1] for name in loss_fn.state_dict()} == {"statistic"}
