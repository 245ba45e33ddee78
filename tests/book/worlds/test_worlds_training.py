"""The one trainer against the library's loss and PyTorch, one run at a time."""

import math

import pytest
import torch
from torch.nn import functional as F

from cibr.losses import CIBRLoss
from cibr.losses.vmf import vmf_mean_cosine
from cibr_book.worlds.gaussian import gaussian_world, train_gaussian
from cibr_book.worlds.training import Settings, _losses, _noisy

GAUSSIAN = gaussian_world()
RUNS = [
    Settings(0.2),
    Settings(0.05, beta=1.0, kappa=20.0),
    Settings(0.05, beta=0.3, kappa=20.0, crossfit=True),
]


def randn(*size, seed=0, dtype=torch.float64):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def library_loss(run):
    kappa = run.kappa if math.isfinite(run.kappa) else 1e6
    penalty = "crossfit" if run.crossfit else "vmf"
    loss_fn = CIBRLoss(run.beta, penalty, kappa_e=kappa)
    return lambda z: loss_fn(*z, 1 / run.temperature, output_dict=False)


def test_losses_are_those_of_the_library_less_log_n():
    means = F.normalize(randn(2, 3, 2, 12, 5), dim=-1)
    found = _losses(means, RUNS)
    for i, run in enumerate(RUNS):
        for j in range(2):
            expected = library_loss(run)(means[:, i, j]).item()
            assert found[i, j].item() == pytest.approx(expected, abs=1e-9)


def test_samples_are_contrasted_in_their_runs_alone_and_the_penalty_is_that_of_the_means():
    means = F.normalize(randn(2, 3, 2, 12, 5), dim=-1)
    runs = [RUNS[0], Settings(0.2, kappa=20.0, sampled=True)]
    runs.append(Settings(0.2, 3.0, 20.0, sampled=True))
    found = _losses(means, runs, generators(3, 4))
    drawn = _noisy(means, [math.inf, 20.0, 20.0], generators(3, 4))
    torch.testing.assert_close(drawn[:, 0], means[:, 0])
    expected = _losses(drawn, [Settings(0.2)] * 3)
    cosines = (means[0, 2] * means[1, 2]).sum(2).mean(1)
    expected[2] += 3 * 10 * vmf_mean_cosine(20.0, 5) * (1 - cosines)
    torch.testing.assert_close(found, expected)


def test_noise_has_the_mean_cosine_of_its_concentration_and_no_preferred_direction():
    means = F.normalize(randn(2, 3, 1, 4000, 16), dim=-1)
    drawn = _noisy(means, [16.0, 64.0, math.inf], generators(0))
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(2, 3, 1, 4000).double())
    cosines = (means * drawn).sum(-1).mean((0, 2, 3))
    expected = [vmf_mean_cosine(kappa, 16).item() for kappa in (16.0, 64.0)]
    assert cosines.tolist() == pytest.approx([*expected, 1.0], abs=0.01)
    off = (drawn - (means * drawn).sum(-1, keepdim=True) * means)[:, 0].mean((0, 1, 2))
    assert off.abs().max() < 0.02


def test_a_step_in_the_gaussian_world_descends_the_clip_loss_of_a_fresh_batch():
    settings = [Settings(0.2, decay=0.1)]
    after = train_gaussian(GAUSSIAN, settings, (3,), 1, dim=4, batch_size=16)
    (generator,) = generators(3)
    draws = [
        torch.randn(n, generator=generator, dtype=torch.float64) for n in ((4, 8), (4, 6), (16, 14))
    ]
    before = [weights.requires_grad_() for weights in draws[:2]]
    x = (draws[2] @ torch.linalg.cholesky(GAUSSIAN.covariance).T).split([8, 6], 1)
    image, text = (x[i] @ (before[i] / before[i].norm()).T for i in range(2))
    scores, target = image @ text.T / 0.2, torch.arange(16)
    loss = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
    gradients = torch.autograd.grad(loss, before)
    for start, end, gradient in zip(before, after, gradients, strict=True):
        # The first step of AdamW, at a rate of 0.01.
        stepped = start * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(end[0, 0], (stepped / stepped.norm()).detach())
