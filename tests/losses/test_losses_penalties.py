"""The bounds `vmf`, `crossfit` and `anchor` against closed forms on the sphere and a loop."""

import math

import numpy as np
import pytest
import torch
from losses_pairs import build, pair, pooled_features, some_labels
from scipy.optimize import brentq
from torch.nn import functional as F

KAPPAS = {"kappa_e": 60.0, "kappa_b": 9.0}


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
    loss_fn = build(0.5, penalty, d=3, **KAPPAS, text_weight=0.3)
    terms = loss_fn(image, text, scale, labels, **pooled)
    rows = torch.arange(12) if labels is None else labels
    centres = [text, image]
    if penalty == "crossfit":
        centres = [predicted(text, image, rows), predicted(image, text, rows)]
    elif penalty == "anchor":
        centres = [side.double() for side in loss_fn.penalty.statistic(*pooled.values())]
    cosines = [(x * c).sum(1).mean() for x, c in zip((image, text), centres, strict=True)]
    weight = 0.5 * 9 * mean_cosine(60.0)
    expected = weight * (1 - 0.7 * cosines[0] - 0.3 * cosines[1])
    torch.testing.assert_close(terms["penalty_loss"], expected)
    got, gradients = (
        torch.autograd.grad(x, (image, text)) for x in (terms["penalty_loss"], expected)
    )
    torch.testing.assert_close(got, gradients)
    nats = [
        report.item()
        for name, report in loss_fn.reports().items()
        if "_image_" in name or "_text_" in name
    ]
    assert nats == pytest.approx([bound_nats(cosine.item()) for cosine in cosines], rel=1e-9)


def test_the_anchor_reports_zero_for_its_statistic_and_calls_it_no_residual():
    loss_fn, pooled = build(0.5, "anchor", kappa_e=40.0), pooled_features()
    features = loss_fn.penalty.statistic(*pooled.values())
    loss_fn(*features, 7.0, **pooled)
    reports = loss_fn.reports()
    names = ["penalty_excess", "beyond_statistic_image_nats", "beyond_statistic_text_nats"]
    assert [reports.pop(name).item() for name in names] == pytest.approx([0, 0, 0], abs=1e-5)
    assert list(reports) == ["mi_lower_bound_nats"]
    assert not list(loss_fn.parameters())  # the statistic is fixed
    assert {name.split(".")[1] for name in loss_fn.state_dict()} == {"statistic"}


def conditional_nats(joint):
    """I(A;B|C) of a table p(a, b, c)."""
    a, b = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
    return torch.xlogy(joint, joint * joint.sum((0, 1)) / (a * b)).nansum().item()


def test_what_the_anchor_bounds_is_information_beyond_the_statistic_by_enumeration():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64).softmax(-1)

    # X_v = (u, v), of which U is any statistic, not sufficient: X_t depends on v
    p_uv, text, encoder = draw(12).view(3, 4), draw(3, 4, 5), draw(3, 4, 6)
    joint = torch.einsum("uv,uvt,uvz->zvut", p_uv, text, encoder)
    beyond = conditional_nats(joint.sum(3))
    given_both = conditional_nats(joint.flatten(2))
    assert given_both < beyond  # I(Z;X_v|U,X_t) <= I(Z;X_v|U)
    best = torch.einsum("uv,uvz->uz", p_uv, encoder) / p_uv.sum(1, keepdim=True)
    bounds = []
    for backward in (best, draw(3, 6)):
        logs = (encoder / backward[:, None]).log()
        bounds.append((p_uv[..., None] * encoder * logs).sum().item())
    assert bounds[0] == pytest.approx(beyond, abs=1e-12)
    assert bounds[1] > beyond
    # Z = U = S, and a text that tells S at six of seven: nothing beyond U, and 0.41 beyond X_t
    kept = torch.eye(2, dtype=torch.float64)
    texts = torch.tensor([[6, 1], [1, 6]]) / 14
    assert conditional_nats(torch.einsum("zs,sx,su->zxu", kept, kept, kept / 2)) == 0
    residual = conditional_nats(torch.einsum("zs,sx,st->zxt", kept, kept, texts.double()))
    assert residual == pytest.approx(0.410, abs=1e-3)
