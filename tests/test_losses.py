"""`clip_loss` against loops, cross-entropy, numerical gradients and open_clip."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cibr.losses import clip_loss


def pair(n=12, d=6, dtype=torch.float64, seed=0):
    """Unit features of two related modalities, and a multiplier, all leaves."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, d, generator=generator, dtype=dtype)
    text = image + torch.randn(n, d, generator=generator, dtype=dtype)
    scale = torch.tensor(7.0, dtype=dtype)
    leaves = (F.normalize(image, dim=1), F.normalize(text, dim=1), scale)
    return [leaf.requires_grad_() for leaf in leaves]


def some_labels(n=12):
    return torch.arange(n) % 5 * 3 - 4  # neither sorted nor from zero


def plain(image, text, scale, labels=None):
    logits = scale * image @ text.T
    labels = torch.arange(len(image)) if labels is None else labels
    target = (labels[:, None] == labels).to(logits)
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def value_and_gradients(function, leaves):
    value = function(*leaves)
    return value, torch.autograd.grad(value, leaves)


def assert_same(got, expected, **options):
    assert torch.allclose(got[0], expected[0], **options)
    for one, other in zip(got[1], expected[1], strict=True):
        assert torch.allclose(one, other, **options)


@pytest.mark.parametrize("labels", [None, some_labels()])
@pytest.mark.parametrize("chunk_size", [None, 1, 5, 6, 12, 100])
def test_chunked_loss_equals_full_in_value_and_gradient(chunk_size, labels):
    leaves = pair()
    got = value_and_gradients(lambda *x: clip_loss(*x, labels, chunk_size), leaves)
    expected = value_and_gradients(lambda *x: plain(*x, labels), leaves)
    assert_same(got, expected, rtol=1e-12, atol=1e-14)


def test_automatic_chunks_equal_the_full_loss_in_float32():
    leaves = pair(n=2600, d=16, dtype=torch.float32)
    got = value_and_gradients(clip_loss, leaves)
    expected = value_and_gradients(plain, leaves)
    assert_same(got, expected, rtol=1e-4, atol=1e-7)  # sums of 2,600 in another order


def test_equal_labels_share_the_target_mass():
    image, text, scale = pair()
    labels = some_labels().tolist()
    total = 0.0
    for queries, keys in ((image, text), (text, image)):
        for i, query in enumerate(queries):
            logits = [(scale * (query @ key)).item() for key in keys]
            log_sum = math.log(sum(math.exp(value) for value in logits))
            positives = [j for j in range(len(labels)) if labels[j] == labels[i]]
            total += sum((log_sum - logits[j]) / len(positives) for j in positives)
    value = clip_loss(image, text, scale, torch.tensor(labels)).item()
    assert value == pytest.approx(total / (2 * len(labels)), rel=1e-12)


def test_labels_that_all_differ_change_nothing():
    leaves = pair(dtype=torch.float32)
    got = clip_loss(*leaves, labels=torch.randperm(12))
    assert torch.equal(got, clip_loss(*leaves))


def test_one_label_for_all_leaves_the_entropy_of_the_batch_at_scale_zero():
    image, text, _ = pair()
    value = clip_loss(image, text, 1e-12, torch.zeros(12, dtype=torch.int64))
    assert value.item() == pytest.approx(math.log(12), rel=1e-9)


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 0, 2, 1])])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_gradients_are_those_of_finite_differences(labels, chunk_size):
    leaves = pair(n=5, d=3)
    assert torch.autograd.gradcheck(lambda *x: clip_loss(*x, labels, chunk_size), leaves)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_gradients_do_not_depend_on_which_are_wanted(wanted):
    leaves = pair()
    for labels in (None, some_labels()):
        every = torch.autograd.grad(clip_loss(*leaves, labels, 5), leaves)
        some = [x if k in wanted else x.detach() for k, x in enumerate(leaves)]
        got = torch.autograd.grad(clip_loss(*some, labels, 5), [leaves[k] for k in wanted])
        for k, gradient in zip(wanted, got, strict=True):
            assert torch.allclose(gradient, every[k], rtol=1e-12)


def test_loss_near_zero_keeps_its_digits_in_float32():
    image = F.normalize(torch.eye(8) + 0.943, dim=1)  # logits of 100 and 90
    exact = plain(image.double(), image.double(), 100.0).item()
    assert 1e-4 < exact < 1e-3
    # log(1 + 3e-4) rounds to 6e-8; a merged log-sum of 100 would round to 8e-6
    for chunk_size in (None, 3):
        value = clip_loss(image, image, 100.0, chunk_size=chunk_size).item()
        assert value == pytest.approx(exact, rel=1e-3)
    assert clip_loss(image, image, 1e4).item() == 0.0


def test_large_multipliers_do_not_overflow():
    image, text, _ = pair(dtype=torch.float32)
    for chunk_size in (None, 5):
        got = clip_loss(image, text, 1e4, chunk_size=chunk_size)
        assert torch.allclose(got, plain(image, text, 1e4), rtol=1e-5)


def test_backward_twice_through_one_graph_gives_the_same():
    leaves = pair()
    loss = clip_loss(*leaves)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel())
        return result


@pytest.mark.parametrize("labelled", [False, True])
def test_chunked_loss_never_holds_a_matrix_of_all_pairs(labelled):
    n = 2304
    labels = torch.arange(n) // 2 if labelled else None
    with LargestTensor() as seen:
        clip_loss(*pair(n, 8, torch.float32), labels).backward()
    assert seen.largest <= n * n / 4
    with LargestTensor() as seen:
        clip_loss(*pair(n, 8, torch.float32), labels, chunk_size=n).backward()
    assert seen.largest >= n * n  # the instrument sees what it should


def test_half_precision_and_autocast_are_computed_in_float32():
    image, text, scale = (leaf.detach() for leaf in pair(64, 16, torch.float32))
    expected = clip_loss(image, text, scale)
    leaf = image.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = clip_loss(leaf, text, scale)
        value.backward()
    assert torch.equal(value, expected)
    assert leaf.grad.dtype == torch.float32
    half = image.bfloat16().requires_grad_()
    value = clip_loss(half, text.bfloat16(), scale)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.equal(value, clip_loss(image.bfloat16().float(), text.bfloat16().float(), scale))
    assert half.grad.dtype == torch.bfloat16


def test_clip_loss_is_the_loss_of_open_clip():
    losses = pytest.importorskip("open_clip.loss")
    leaves = pair(dtype=torch.float32)
    got = value_and_gradients(clip_loss, leaves)
    assert_same(got, value_and_gradients(losses.ClipLoss(), leaves), rtol=1e-5, atol=1e-7)


def test_clip_loss_errors_name_the_thing_the_rule_and_the_fix(unchecked):
    image, text, scale = (leaf.detach() for leaf in pair())
    with pytest.raises(ValueError, match="at least 2.*drop_last=True"):
        clip_loss(image[:1], text[:1], scale)
    with pytest.raises(ValueError, match=r"paired with row i.*\[12, 6\] and \[11, 6\]"):
        clip_loss(image, text[:-1], scale)
    with pytest.raises(ValueError, match=r"one entry a pair, \[12\], got \[11\]"):
        clip_loss(image, text, scale, torch.arange(11))
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        clip_loss(image, text, scale, chunk_size=0)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="logit_scale must be positive and finite"):
            clip_loss(image, text, bad)
    with pytest.raises(ValueError, match="logit_scale must be one number"):
        clip_loss(image, text, torch.ones(1))
    for bad in (math.nan, math.inf):
        broken = image.clone()
        broken[3, 2] = bad
        with pytest.raises(ValueError, match="image_features must be finite"):
            clip_loss(broken, text, scale)
        with pytest.raises(ValueError, match="text_features must be finite"):
            clip_loss(image, broken, scale)
