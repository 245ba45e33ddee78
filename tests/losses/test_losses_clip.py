"""`clip_loss` against loops, the full matrix, numerical gradients and open_clip."""

import weakref

import pytest
import torch
from losses_pairs import assert_same, full_matrix_loss, pair, some_labels, value_and_gradients
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cibr.losses import clip_loss


@pytest.mark.parametrize("labels", [None, some_labels()])
@pytest.mark.parametrize("chunk_size", [None, 1, 5, 6, 12, 100])
def test_chunked_loss_equals_full_in_value_and_gradient(chunk_size, labels):
    leaves = pair()
    got = value_and_gradients(lambda *x: clip_loss(*x, labels, chunk_size), leaves)
    expected = value_and_gradients(lambda *x: full_matrix_loss(*x, labels), leaves)
    assert_same(got, expected, rtol=1e-12, atol=1e-14)


def test_automatic_chunks_equal_the_full_loss_in_float32():
    leaves = pair(n=2600, d=16, dtype=torch.float32)
    got = value_and_gradients(clip_loss, leaves)
    assert_same(
        got, value_and_gradients(full_matrix_loss, leaves), rtol=1e-4, atol=1e-7
    )  # another order of sums


def test_gradients_do_not_depend_on_which_are_wanted():
    leaves = pair()
    every = torch.autograd.grad(clip_loss(*leaves, some_labels(), 5), leaves)
    for wanted in ((0,), (1,), (2,), (0, 2)):
        some = [x if k in wanted else x.detach() for k, x in enumerate(leaves)]
        got = torch.autograd.grad(clip_loss(*some, some_labels(), 5), [leaves[k] for k in wanted])
        assert all(torch.equal(gradient, every[k]) for k, gradient in zip(wanted, got, strict=True))


def test_loss_near_zero_keeps_its_digits_and_large_multipliers_do_not_overflow():
    image = F.normalize(torch.eye(8) + 0.943, dim=1)  # logits of 100 and 90
    exact = full_matrix_loss(image.double(), image.double(), 100.0).item()
    assert 1e-4 < exact < 1e-3
    # log(1 + 3e-4) rounds to 6e-8; a merged log-sum of 100 would round to 8e-6
    for chunk_size in (None, 3):
        assert clip_loss(image, image, 100.0, chunk_size=chunk_size).item() == pytest.approx(
            exact, rel=1e-3
        )
    assert clip_loss(image, image, 1e4).item() == 0.0
    image, text, _ = pair(dtype=torch.float32)
    for chunk_size in (None, 5):
        got = clip_loss(image, text, 1e4, chunk_size=chunk_size)
        assert torch.allclose(got, full_matrix_loss(image, text, 1e4), rtol=1e-5)


class PeakMemory(TorchDispatchMode):
    """Records the most bytes that tensors made under it held at one time."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def _free(self, key, n_bytes):
        self.live -= n_bytes
        self.known.discard(key)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            storage = value.untyped_storage() if isinstance(value, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result


@pytest.mark.parametrize("labels", [None, torch.arange(4096) // 2])
def test_memory_at_4096_pairs_is_below_80_mib(labels):
    leaves = pair(4096, 8, torch.float32)
    with PeakMemory() as memory:
        clip_loss(*leaves, labels).backward()
    assert memory.peak < 80 * 2**20
    with PeakMemory() as memory:
        clip_loss(*pair(1024, 8, torch.float32), chunk_size=1024)
    assert (
        memory.peak > 3 * 1024 * 1024 * 4
    )  # the instrument sees the three matrices of the direct path


def test_half_precision_and_autocast_are_computed_in_float32():
    leaves = pair(64, 16, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value_and_gradients(clip_loss, leaves)
    assert_same(got, value_and_gradients(clip_loss, leaves), rtol=0, atol=0)
    half = [leaf.detach().bfloat16().requires_grad_() for leaf in leaves[:2]]
    value, gradients = value_and_gradients(lambda *x: clip_loss(*x, 7.0), half)
    assert torch.equal(value, clip_loss(*(leaf.float() for leaf in half), 7.0))
    assert value.dtype == torch.float32 and gradients[0].dtype == torch.bfloat16


def test_clip_loss_is_the_loss_of_open_clip():
    losses = pytest.importorskip("open_clip.loss")
    leaves = pair(dtype=torch.float32)
    got = value_and_gradients(clip_loss, leaves)
    assert_same(got, value_and_gradients(losses.ClipLoss(), leaves), rtol=1e-5, atol=1e-7)
