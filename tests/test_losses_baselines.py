"""The losses that CIBR is compared with, against loops, closed forms and a bracketed bias."""

import math

import pytest
import torch
from scipy.optimize import brentq
from torch.nn import functional as F

from cibr.information import sample_vmf
from cibr.losses import BASELINES, BaselineLoss, clip_loss
from cibr.losses.baselines import alignment_uniformity_penalty, cyclip_penalty, siglip_loss


def pair(n=9, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, d, generator=generator, dtype=torch.float64)
    text = image + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return F.normalize(image, dim=1).requires_grad_(), F.normalize(text, dim=1).requires_grad_()


def test_alignment_and_uniformity_equal_a_loop():
    image, text = pair()
    n = len(image)
    alignment = sum((image[i] - text[i]).square().sum() for i in range(n)) / n
    uniformity = 0.0
    for side in (image, text):
        potentials = [
            torch.exp(-2 * (side[i] - side[j]).square().sum()) for i in range(n) for j in range(n) if i != j
        ]
        uniformity += torch.log(sum(potentials) / len(potentials)) / 2
    torch.testing.assert_close(alignment_uniformity_penalty(image, text), alignment + uniformity)


def test_cyclip_equals_a_loop_and_is_zero_for_equal_modalities():
    image, text = pair()
    n = len(image)
    total = 0.0
    for j in range(n):
        for k in range(n):
            total += (image[j] @ text[k] - image[k] @ text[j]) ** 2
            total += (image[j] @ image[k] - text[j] @ text[k]) ** 2
    torch.testing.assert_close(cyclip_penalty(image, text), total / n)
    assert cyclip_penalty(image, image).item() == pytest.approx(0, abs=1e-12)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)).double())[0]
    torch.testing.assert_close(cyclip_penalty(image @ rotation, text @ rotation), cyclip_penalty(image, text))


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 1, 2, 3, 3, 3, 4, 5])])
def test_siglip_takes_the_bias_at_which_its_slope_is_zero(labels):
    image, text = pair()
    names = torch.arange(9) if labels is None else labels
    signs = torch.where(names[:, None] == names[None], 1.0, -1.0).double()

    def written_out(bias):
        return -F.logsigmoid(signs * (6.0 * image @ text.T + bias)).sum() / 9

    def slope(bias):
        leaf = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(written_out(leaf), leaf)[0].item()

    found, expected = siglip_loss(image, text, 6.0, labels), written_out(brentq(slope, -50, 50, xtol=1e-13))
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(loss, (image, text)) for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_the_bias_of_siglip_is_found_for_flat_and_for_steep_logits(scale):
    image, text = pair(32, 8)
    logits = scale * image @ text.T
    signs = 2 * torch.eye(32, dtype=torch.float64) - 1
    grid = torch.linspace(-2 * scale - 20, 2 * scale + 20, 4001, dtype=torch.float64)
    least = min((-F.logsigmoid(signs * (logits + b)).sum() / 32).item() for b in grid)
    assert siglip_loss(image, text, scale).item() <= least + 1e-9


@pytest.mark.parametrize("objective", BASELINES)
def test_the_loss_is_the_sum_of_its_terms_with_the_weight_of_the_step(objective):
    image, text = pair()
    loss = BaselineLoss(objective, beta=0.3, kappa_e=50.0)
    terms = loss(image, text, 5.0, beta=0.7, generator=torch.Generator().manual_seed(3))
    penalty = {
        "cosine": 1 - (image * text).sum(1).mean(),
        "alignment_uniformity": alignment_uniformity_penalty(image, text),
        "cyclip": cyclip_penalty(image, text),
    }.get(objective, torch.zeros(()).double())
    torch.testing.assert_close(terms["penalty_loss"], 0.7 * penalty)
    torch.testing.assert_close(terms["loss"], terms["clip_loss"] + terms["penalty_loss"])
    reported = [name for name in terms if not name.endswith("loss")]
    assert not any(terms[name].requires_grad for name in reported)
    assert ("mi_lower_bound_nats" in terms) == (objective != "siglip")


def test_noise_is_the_contrast_of_the_samples_that_cibr_draws():
    image, text = pair()
    terms = BaselineLoss("noise", kappa_e=50.0)(image, text, 5.0, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    z = [sample_vmf(side, 50.0, generator) for side in (image, text)]
    torch.testing.assert_close(terms["loss"], clip_loss(*z, 5.0))


def test_the_residual_is_that_of_paired_means_for_every_baseline():
    image, text = pair()
    found = {o: BaselineLoss(o)(image, text, 5.0)["residual_image_nats"].item() for o in BASELINES}
    assert len({round(value, 9) for value in found.values()}) == 1
    assert all(math.isfinite(value) and value > 0 for value in found.values())


def test_an_unknown_objective_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="got 'cylip', did you mean 'cyclip'"):
        BaselineLoss("cylip")
