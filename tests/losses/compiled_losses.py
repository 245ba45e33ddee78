"""Compares compiled with eager losses, in a process of its own: checked annotations cannot be
traced.
"""

import math
from functools import partial

import pytest
import torch
from losses_pairs import pair, value_and_gradients

from cibr.losses import CIBRLoss, clip_loss

LEAVES, LABELS = pair(16, 128, torch.float32), torch.arange(16) // 2


def compare(loss, compiled, **options):
    eager, fast = (partial(f, labels=LABELS, **options) for f in (loss, compiled))
    got, expected = (value_and_gradients(f, LEAVES) for f in (fast, eager))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="features must be finite .*unit vectors"):
        fast(LEAVES[0] * math.nan, *LEAVES[1:])


compile_whole = partial(torch.compile, fullgraph=True, backend="aot_eager")
compare(clip_loss, compile_whole(clip_loss), chunk_size=5)
for penalty in ("vmf", "crossfit"):
    loss_fn = CIBRLoss(0.0, penalty)
    compiled = compile_whole(loss_fn)
    for beta in (0.0, 0.1, 0.2):  # a ramp
        loss_fn.beta = beta
        compare(loss_fn, compiled, output_dict=False)
