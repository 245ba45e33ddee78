"""The one trainer against the library's loss and PyTorch, one run at a time."""

import pytest
import torch
from torch.nn import functional as F

from cibr.losses import CIBRLoss
from cibr_book.worlds.training import Settings, losses, train

RUNS = [Settings(0.2), Settings(0.05, beta=1.0)]


def randn(*size, seed=0, dtype=torch.float64):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_losses_are_those_of_the_library_less_log_n():
    means = F.normalize(randn(2, 2, 2, 12, 5), dim=-1)
    found = losses(means, RUNS)
    for i, run in enumerate(RUNS):
        loss_fn = CIBRLoss(run.beta, "vmf")
        for j in range(2):
            expected = loss_fn(*means[:, i, j], 1 / run.temperature, output_dict=False)
            assert found[i, j].item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_step_of_each_seed_is_the_first_of_adam_on_its_clip_loss():
    first = [randn(1, 2, n, 4) for n in (8, 6)]
    pairs = randn(2, 16, 8), randn(2, 16, 6)
    after = train([[side] for side in first], lambda step: pairs, [Settings(0.2)], 1)
    for seed in range(2):
        own = [side[0, seed].clone().requires_grad_() for side in first]
        sides = zip(pairs, own, strict=True)
        image, text = (F.normalize(x[seed] @ weights, dim=1) for x, weights in sides)
        loss = CIBRLoss(0)(image, text, 1 / 0.2, output_dict=False)
        gradients = torch.autograd.grad(loss, own)
        for (end,), start, gradient in zip(after, own, gradients, strict=True):
            stepped = start - 0.01 * gradient / (gradient.abs() + 1e-8)
            torch.testing.assert_close(end[0, seed], stepped.detach())
