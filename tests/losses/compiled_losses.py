"""Compares compiled with eager losses, in a process of its own: checked annotations cannot be
traced.
"""

import math
from functools import partial

import pytest
import torch
from losses_pairs import assert_same, pair, value_and_gradients

from cibr.losses import CIBRLoss, clip_loss

LEAVES, LABELS = pair(16, 128, torch.float32), torch.arange(16) // 2
vmf, crossfit = CIBRLoss(0.0), CIBRLoss(0.3, "crossfit")
chunked = partial(clip_loss, chunk_size=5)
compiled = {
    loss: torch.compile(loss, fullgraph=True, backend="aot_eager")
    for loss in (chunked, vmf, crossfit)
}

for loss, beta in ((chunked, None), (vmf, 0.0), (vmf, 0.15), (crossfit, 0.3)):
    call = {} if loss is chunked else {"output_dict": False}
    loss.beta = beta
    got, expected = (
        value_and_gradients(partial(f, labels=LABELS, **call), LEAVES)
        for f in (compiled[loss], loss)
    )
    assert_same(got, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="features must be finite .*unit vectors"):
        compiled[loss](LEAVES[0] * math.nan, *LEAVES[1:], LABELS)
