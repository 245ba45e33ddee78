"""The definition of CLIP's loss against a loop, and `clip_loss` against the definition in value,
gradient, precision and memory.
"""

from functools import partial

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_pairs import LABELS, pair, value_and_gradients
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.testing import assert_close

from cibr.losses import CIBRLoss, clip_loss
from cibr.losses.clip import plain_clip_loss


@pytest.mark.parametrize("labels", [None, LABELS])
def test_the_definition_is_the_mean_of_two_cross_entropies_with_shared_targets(labels):
    image, text, scale = pair()
    own = list(range(12)) if labels is None else labels.tolist()
    total = 0.0
    for queries, gallery in ((image, text), (text, image)):
        for i in range(12):
            scores = [scale * queries[i] @ gallery[j] for j in range(12)]
            log_sum = torch.stack(scores).exp().sum().log()
            terms = [log_sum - score for score, j in zip(scores, own, strict=True) if j == own[i]]
            total = total + sum(terms) / len(terms)
    assert_close(plain_clip_loss(image, text, scale, labels), total / 24)


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(2, 14),
    d=st.integers(1, 6),
    chunk_size=st.none() | st.integers(1, 16),
    n_labels=st.none() | st.integers(1, 14),
    scale=st.floats(0.1, 200),
    seed=st.integers(0, 999),
)
def test_loss_in_blocks_equals_the_definition_in_value_and_gradients(
    n, d, chunk_size, n_labels, scale, seed
):
    image, text, _ = pair(n, d, seed=seed)
    leaves = image, text, torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(seed)
    labels = n_labels and 7 * torch.randint(n_labels, (n,), generator=generator) - 3
    got = value_and_gradients(lambda *x: clip_loss(*x, labels, chunk_size), leaves)
    expected = value_and_gradients(lambda *x: plain_clip_loss(*x, labels), leaves)
    assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("n", "d", "scale"), [(64, 8, 10.0), (2100, 64, 100.0)])
def test_loss_and_gradients_are_those_of_open_clip(n, d, scale):
    leaves = *pair(n, d, torch.float32)[:2], torch.tensor(scale, requires_grad=True)
    value, gradients = value_and_gradients(clip_loss, leaves)
    peer, of_peer = value_and_gradients(open_clip.ClipLoss(), leaves)
    assert_close(value, peer, rtol=0, atol=1e-6)
    for own, theirs in zip(gradients, of_peer, strict=True):
        assert_close(own, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_loss_near_zero_keeps_its_digits_and_large_multipliers_do_not_overflow(chunk_size):
    image = F.normalize(torch.eye(8) + 0.943, dim=1)  # logits of 100 and 90
    exact = plain_clip_loss(image.double(), image.double(), 100.0).item()
    # log(1 + 3e-4) rounds to 6e-8; a merged log-sum of 100 would round to 8e-6
    got = clip_loss(image, image, 100.0, chunk_size=chunk_size).item()
    assert got == pytest.approx(exact, rel=1e-3)
    assert clip_loss(image, image, 1e4, chunk_size=chunk_size).item() == 0


def test_above_2048_pairs_no_matrix_of_them_is_kept_and_the_loss_is_the_same():
    leaves, sizes = pair(n=2060, d=8, dtype=torch.float32), []
    with saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        got = value_and_gradients(clip_loss, leaves)
    assert max(sizes) == 2060 * 8
    expected = value_and_gradients(plain_clip_loss, leaves)
    assert_close(got, expected, rtol=1e-4, atol=1e-7)  # another order of sums


@pytest.mark.parametrize("loss", [clip_loss, partial(CIBRLoss(0.3, "crossfit"), output_dict=False)])
def test_half_precision_and_autocast_are_computed_in_float32(loss):
    half = [leaf.detach().bfloat16().requires_grad_() for leaf in pair(64)[:2]]
    value, gradients = value_and_gradients(partial(loss, logit_scale=7.0), half)
    assert gradients[0].dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(*(leaf.float() for leaf in half), 7.0), value)
