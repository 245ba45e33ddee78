"""A step's gradients are those of the whole batch, however it is cut, with dropout and noise on."""

import pytest
import torch
from accelerate import Accelerator
from helpers import noise_pairs
from small_runs import gradients, step

from cibr.losses import CIBRLoss
from cibr.models.features import encode_images, encode_texts, prepare
from cibr.train.grad_cache import GradCache
from cibr.train.loop import teacher_logits

PAIRS = noise_pairs(10)


def batch_of(model):
    rows = torch.arange(len(PAIRS))
    return prepare(model, PAIRS)[rows, rows]


def build_double(build, dropout=0.3, dtype=torch.float64):
    model = build("tiny", dropout=dropout).to(dtype).train()
    model.set_temperature(0.1, learn=True)
    return model


def build_loss(penalty="vmf", dtype=torch.float64, **options):
    torch.manual_seed(4)
    return CIBRLoss(0.2, penalty, dims=(16, 256, 128), **options).to(dtype)


def plain_gradients(model, loss_fn, batch, size, bf16=False):
    """Plain autograd through all parts at once, which holds every part's graph: what the step must
    equal.
    """
    torch.manual_seed(5)
    parts = [slice(start, start + size) for start in range(0, len(batch.labels), size)]
    # Weights are cast again for each part, as a step does; from one cast, gradients would be summed
    # in bf16.
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
        encoded = [
            (
                *encode_images(model, batch.images[rows]),
                *encode_texts(model, tuple(t[rows] for t in batch.texts)),
            )
            for rows in parts
        ]
    image, image_pooled, text, text_pooled = (
        torch.cat(each) for each in zip(*encoded, strict=True)
    )
    pooled = dict(image_pooled=image_pooled, text_pooled=text_pooled)
    if loss_fn.penalty == "rafa":
        projected = model.backbone.image_head(image_pooled), model.backbone.text_head(text_pooled)
        pooled |= dict(image_projected=projected[0], text_projected=projected[1])
    generator = torch.Generator().manual_seed(3)
    terms = loss_fn(image, text, model.logit_scale, batch.labels, generator=generator, **pooled)
    model.zero_grad()
    terms["loss"].backward()
    return terms, gradients(model)


EXACT, SINGLE = (torch.float64, 1e-11), (torch.float32, 1e-5)
CASES = [
    ("vmf", False, 3, EXACT),
    ("vmf", True, 5, EXACT),
    ("vmf", True, 3, SINGLE),
    ("vmf", True, 0, EXACT),
]
CASES += [("crossfit", False, 5, EXACT), ("mine", True, 3, EXACT), ("mine", True, 5, SINGLE)]
CASES += [("rafa", False, 3, EXACT)]


@pytest.mark.parametrize(("penalty", "sample", "size", "precision"), CASES)
def test_accumulation_equals_full_batch(build, penalty, sample, size, precision):
    dtype, tolerance = precision
    dropout = 0.0 if penalty == "rafa" else 0.3  # whose heads run once more
    model, loss_fn = build_double(build, dropout, dtype), build_loss(penalty, dtype, sample=sample)
    batch = batch_of(model)
    terms, expected = plain_gradients(model, loss_fn, batch, size or 10)
    found_terms, found = step(model, loss_fn, batch, micro_batch_size=size)
    assert found.keys() == expected.keys() and "log_logit_scale" in found
    assert all(
        expected[name].abs().max() > 0
        for name in ("log_logit_scale", "backbone.image_head.2.weight")
    )
    assert terms["penalty_loss"] != 0
    # Sums in another order; a bias whose gradient is a difference of large terms has that of all as
    # its scale.
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name in expected:
        scale = torch.maximum(expected[name].abs().max(), 1e-2 * largest)
        assert (found[name] - expected[name]).abs().max() <= tolerance * scale, name
    for name, term in terms.items():
        assert torch.allclose(found_terms[name], term, rtol=tolerance, atol=tolerance), name


def test_a_teacher_says_the_same_in_micro_batches_and_learns_nothing(build):
    teacher = build_double(build).eval()
    whole, cut = (
        teacher_logits(teacher, batch_of(teacher), Accelerator(), size, "no") for size in (0, 3)
    )
    torch.testing.assert_close(cut, whole)
    batch = batch_of(teacher)
    with torch.no_grad():
        image, text = (
            encode_images(teacher, batch.images).features,
            encode_texts(teacher, batch.texts).features,
        )
    torch.testing.assert_close(whole, 10 * image @ text.T)
    assert not whole.requires_grad and all(p.grad is None for p in teacher.parameters())


def test_micro_batches_of_bf16_encoders_have_the_gradients_of_all_parts_at_once(build):
    model, loss_fn = build_double(build, dtype=torch.float32), build_loss(dtype=torch.float32)
    batch = batch_of(model)
    terms, expected = plain_gradients(model, loss_fn, batch, 3, bf16=True)
    found_terms, found = step(model, loss_fn, batch, micro_batch_size=3, mixed_precision="bf16")
    assert all(term.dtype == torch.float32 for term in found_terms.values())
    torch.testing.assert_close(found_terms, terms)
    exact = plain_gradients(model, loss_fn, batch, 3)[0]["loss"]
    assert terms["loss"] != exact and terms["loss"].item() == pytest.approx(exact.item(), rel=0.02)
    largest = max(gradient.abs().max() for gradient in expected.values())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * largest.item())
    assert all(gradient.dtype == torch.float32 for gradient in found.values())


def test_micro_batches_hold_no_activations_until_the_way_back(build):
    model, held = build_double(build), []
    for size in (0, 2):
        n_saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, n=n_saved: n.append(t.numel()) or t, lambda t: t
        ):
            GradCache(model, batch_of(model), Accelerator(), micro_batch_size=size)
        held.append(sum(n_saved))
    assert held[1] < 0.01 * held[0]


def test_critics_take_their_steps_on_the_whole_batch_and_leave_the_encoders_alone(build):
    model, states = build_double(build, dropout=0.0), []
    batch = batch_of(model)
    for size in (0, 4):
        loss_fn = build_loss("mine")
        loss_fn.beta = 0.0
        optimizer = torch.optim.SGD(loss_fn.critics.parameters(), lr=0.1)
        before = {name: tensor.clone() for name, tensor in loss_fn.state_dict().items()}
        found = step(model, loss_fn, batch, critics=optimizer, micro_batch_size=size)[1]
        assert any(
            not torch.equal(before[name], tensor) for name, tensor in loss_fn.state_dict().items()
        )
        states.append((loss_fn.state_dict(), found))
    for whole, cut in zip(*states, strict=True):
        assert all(torch.allclose(cut[name], whole[name], rtol=1e-9, atol=1e-11) for name in whole)
    plain = build_loss()
    plain.beta = 0.0
    clip = step(model, plain, batch)[1]
    assert all(
        torch.allclose(states[0][1][name], clip[name], rtol=1e-9, atol=1e-11) for name in clip
    )
