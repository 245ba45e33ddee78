"""The one trainer against the library's loss and PyTorch, one run at a time."""

import pytest
import torch
from torch.nn import functional as F

from cibr.losses import CIBRLoss
from cibr_book.worlds.gaussian import gaussian_world, train_gaussian
from cibr_book.worlds.training import Settings, losses

GAUSSIAN = gaussian_world()
RUNS = [Settings(0.2), Settings(0.05, beta=1.0)]


def randn(*size, seed=0, dtype=torch.float64):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_losses_are_those_of_the_library_less_log_n():
    means = F.normalize(randn(2, 2, 2, 12, 5), dim=-1)
    found = losses(means, RUNS)
    for i, run in enumerate(RUNS):
        loss_fn = CIBRLoss(run.beta, "vmf", kappa_e=1e6)
        for j in range(2):
            expected = loss_fn(*means[:, i, j], 1 / run.temperature, output_dict=False)
            assert found[i, j].item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_step_in_the_gaussian_world_descends_the_clip_loss_of_a_fresh_batch():
    settings = [Settings(0.2, decay=0.1)]
    after = train_gaussian(GAUSSIAN, settings, (3,), 1, dim=4, batch_size=16)
    generator = torch.Generator().manual_seed(3)
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
