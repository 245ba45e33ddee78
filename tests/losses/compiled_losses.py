"""Compares compiled with eager losses, in a process of its own: checked annotations cannot be
traced.
"""

import math

import pytest
import torch
from losses_pairs import assert_same, pair, value_and_gradients

from cibr.losses import CIBRLoss, beta_at, clip_loss

LEAVES, LABELS = pair(16, 128, torch.float32), torch.arange(16) // 2


def compiled(loss):
    return torch.compile(loss, fullgraph=True, backend="aot_eager")


fast = compiled(clip_loss)
got = value_and_gradients(lambda *x: fast(*x, LABELS, 5), LEAVES)
assert_same(
    got, value_and_gradients(lambda *x: clip_loss(*x, LABELS, 5), LEAVES), rtol=1e-5, atol=1e-7
)
with pytest.raises(RuntimeError, match="features must be finite"):
    fast(LEAVES[0] * math.nan, *LEAVES[1:], LABELS, 5)

for penalty in ("vmf", "crossfit", "consistency"):
    loss_fn = CIBRLoss(0.0, penalty)
    fast = compiled(loss_fn)
    for progress in (0, 0.5) if penalty == "vmf" else (1,):
        loss_fn.beta = beta_at(progress, 0.3)
        expected, terms = loss_fn(*LEAVES, LABELS), fast(*LEAVES, LABELS)
        torch.testing.assert_close(terms, expected, rtol=1e-5, atol=1e-6)
        gradients = [torch.autograd.grad(each["loss"], LEAVES) for each in (terms, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="features must be finite .*unit vectors"):
        fast(2 * LEAVES[0], *LEAVES[1:], LABELS)
