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
    label_of = list(range(12)) if labels is None else labels.tolist()
    total = 0.0
    for queries, gallery in ((image, text), (text, image)):
        for i in range(12):
            logits = [scale * queries[i] @ gallery[j] for j in range(12)]
            log_sum = torch.stack(logits).exp().sum().log()
            positives = [logits[j] for j in range(12) if label_of[j] == label_of[i]]
            total = total + log_sum - sum(positives) / len(positives)
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
    leaves = [image, text, torch.tensor(scale, dtype=torch.float64, requires_grad=True)]
    labels = None
    if n_labels is not None:
        generator = torch.Generator().manual_seed(seed)
        labels = 7 * torch.randint(n_labels, (n,), generator=generator) - 3
    blocked = partial(clip_loss, labels=labels, chunk_size=chunk_size)
    definition = partial(plain_clip_loss, labels=labels)
    expected = value_and_gradients(definition, leaves)
    assert_close(value_and_gradients(blocked, leaves), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("n", "d", "scale"), [(64, 8, 10.0), (2100, 64, 100.0)])
def test_loss_and_gradients_are_those_of_open_clip(n, d, scale):
    image, text, _ = pair(n, d, torch.float32)
    leaves = [image, text, torch.tensor(scale, requires_grad=True)]
    value, gradients = value_and_gradients(clip_loss, leaves)
    peer_value, peer_gradients = value_and_gradients(open_clip.ClipLoss(), leaves)
    assert_close(value, peer_value, rtol=0, atol=1e-6)
    for gradient, peer_gradient in zip(gradients, peer_gradients, strict=True):
        atol = 1e-4 * peer_gradient.abs().max().item()
        assert_close(gradient, peer_gradient, rtol=0, atol=atol)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_loss_near_zero_keeps_its_digits(chunk_size):
    image = F.normalize(torch.eye(8) + 0.943, dim=1)  # logits of 100 and 90
    exact = plain_clip_loss(image.double(), image.double(), 100.0).item()
    # log(1 + 3e-4) rounds to 6e-8; a merged log-sum of 100 would round to 8e-6
    loss = clip_loss(image, image, 100.0, chunk_size=chunk_size).item()
    assert loss == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_large_scale_does_not_overflow(chunk_size):
    image = F.normalize(torch.eye(8) + 0.943, dim=1)
    assert clip_loss(image, image, 1e4, chunk_size=chunk_size).item() == 0


def test_above_2048_pairs_no_matrix_of_them_is_kept():
    sizes = []

    def record(tensor):
        sizes.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(record, lambda tensor: tensor):
        clip_loss(*pair(n=2060, d=8, dtype=torch.float32))
    assert max(sizes) == 2060 * 8  # the features


def test_above_2048_pairs_the_loss_is_the_same():
    leaves = pair(n=2060, d=8, dtype=torch.float32)
    blocked = value_and_gradients(clip_loss, leaves)
    definition = value_and_gradients(plain_clip_loss, leaves)
    assert_close(blocked, definition, rtol=1e-4, atol=1e-7)  # another order of sums


FLOAT32_LOSSES = [
    clip_loss,
    partial(clip_loss, chunk_size=7),
    partial(CIBRLoss(0.3, "crossfit"), output_dict=False),
]


@pytest.mark.parametrize("loss", FLOAT32_LOSSES)
def test_gradients_of_half_precision_features_are_in_half_precision(loss):
    features = [leaf.detach().bfloat16().requires_grad_() for leaf in pair(64)[:2]]
    value, gradients = value_and_gradients(partial(loss, logit_scale=7.0), features)
    assert value.dtype == torch.float32
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients)


@pytest.mark.parametrize("loss", FLOAT32_LOSSES)
def test_value_and_gradients_under_autocast_are_those_in_float32(loss):
    features = [leaf.detach().float().requires_grad_() for leaf in pair(64)[:2]]
    total = partial(loss, logit_scale=7.0)
    expected = value_and_gradients(total, features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = value_and_gradients(total, features)
    assert_close(under_autocast, expected, rtol=0, atol=0)
