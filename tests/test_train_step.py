"""The step's gradients are those of the whole batch, however it is cut, with dropout and noise on."""

import pytest
import torch
from accelerate import Accelerator
from conftest import noise_pairs

from cibr.inputs import encode_images, encode_texts, prepare
from cibr.losses import CIBRLoss
from cibr.train.step import CriticSteps, contrastive_backward

PAIRS = noise_pairs(10)


def batch_of(model):
    rows = torch.arange(len(PAIRS))
    return prepare(model, PAIRS)[rows, rows]


def build_double(build, kind, estimator, dropout=0.3, dtype=torch.float64):
    model = build(kind, dropout=dropout, learn_variance=estimator == "gaussian").to(dtype).train()
    model.set_temperature(0.1, learn=True)
    return model


def build_loss(estimator, dtype=torch.float64, **options):
    torch.manual_seed(4)
    return CIBRLoss(0.2, estimator, dims=(16, 256, 128), **options).to(dtype)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def plain_gradients(model, loss_fn, batch, size):
    """Plain autograd through all parts at once, which holds every part's graph: what the step must equal."""
    torch.manual_seed(5)
    sides = [], []
    for start in range(0, len(batch.labels), size):
        rows = slice(start, start + size)
        sides[0].append(encode_images(model, batch.images[rows]))
        sides[1].append(encode_texts(model, tuple(t[rows] for t in batch.texts)))
    image, text = ([torch.cat(t) for t in zip(*side, strict=True) if t[0] is not None] for side in sides)
    extras = {"image_pooled": image[1], "text_pooled": text[1]}
    if len(image) == 3:
        extras |= {"image_log_variance": image[2], "text_log_variance": text[2]}
    generator = torch.Generator().manual_seed(3)
    terms = loss_fn(image[0], text[0], model.logit_scale, batch.labels, beta=0.2, generator=generator, **extras)
    model.zero_grad()
    terms["loss"].backward()
    return terms, gradients(model)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("estimator", ["vmf", "gaussian", "mine", "club"])
@pytest.mark.parametrize("size", [3, 5, 0])
def test_accumulation_equals_full_batch(build, size, estimator, dtype, tolerance):
    model, loss_fn = build_double(build, "tiny", estimator, dtype=dtype), build_loss(estimator, dtype)
    batch = batch_of(model)
    terms, expected = plain_gradients(model, loss_fn, batch, size or 10)
    model.zero_grad()
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(3)
    options = dict(beta=0.2, generator=generator, micro_batch_size=size)
    found_terms = contrastive_backward(model, loss_fn, batch, Accelerator(), **options)
    found = gradients(model)
    assert found.keys() == expected.keys() and "log_logit_scale" in found
    assert all(expected[name].abs().max() > 0 for name in ("log_logit_scale", "backbone.image_head.2.weight"))
    assert terms["penalty_loss"] != 0
    # Sums in another order; a bias whose gradient is a difference of large terms has that of all as its scale.
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name in expected:
        scale = torch.maximum(expected[name].abs().max(), 1e-2 * largest)
        assert (found[name] - expected[name]).abs().max() <= tolerance * scale, name
    for name, term in terms.items():
        assert torch.allclose(found_terms[name], term, rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("estimator", ["mine", "club"])
def test_critics_take_their_steps_on_the_whole_batch_and_leave_the_encoders_alone(build, estimator):
    model = build_double(build, "tiny", estimator, dropout=0.0)
    batch, states = batch_of(model), []
    for size in (0, 4):
        loss_fn = build_loss(estimator)
        critics = CriticSteps(torch.optim.SGD(loss_fn.critics.parameters(), lr=0.1), n_steps=3)
        before = {name: tensor.clone() for name, tensor in loss_fn.state_dict().items()}
        options = dict(beta=0.0, generator=torch.Generator().manual_seed(3), micro_batch_size=size)
        model.zero_grad()
        contrastive_backward(model, loss_fn, batch, Accelerator(), critics=critics, **options)
        assert any(not torch.equal(before[name], tensor) for name, tensor in loss_fn.state_dict().items())
        states.append((loss_fn.state_dict(), gradients(model)))
    for whole, cut in zip(*states, strict=True):
        assert all(torch.allclose(cut[name], whole[name], rtol=1e-9, atol=1e-11) for name in whole)


def test_bf16_encoders_leave_the_loss_in_float32(build, monkeypatch):
    model, loss_fn, seen = build("tiny"), CIBRLoss(0.2), {}
    monkeypatch.setattr(
        loss_fn, "forward", lambda **given: seen.update(given) or CIBRLoss.forward(loss_fn, **given)
    )
    options = dict(beta=0.2, generator=torch.Generator(), mixed_precision="bf16")
    terms = contrastive_backward(model, loss_fn, batch_of(model), Accelerator(), **options)
    assert seen["image_features"].dtype == torch.float32 and terms["loss"].dtype == torch.float32
    rough = seen["image_features"] @ seen["text_features"].detach().T
    assert not torch.equal(rough, rough.bfloat16().float())
    assert model.backbone.image_head[2].weight.grad.dtype == torch.float32
    exact = contrastive_backward(build("tiny"), CIBRLoss(0.2), batch_of(model), Accelerator(), beta=0.2,
                                 generator=torch.Generator())["loss"]  # fmt: skip
    assert terms["loss"] != exact and terms["loss"].item() == pytest.approx(exact.item(), rel=0.02)


def test_without_dropout_the_cut_of_the_batch_does_not_matter_at_all(build):
    model, loss_fn = build_double(build, "tiny", "vmf", dropout=0.0), CIBRLoss(0.2)
    batch = batch_of(model)
    results = []
    for size in (0, 4):
        model.zero_grad()
        generator = torch.Generator().manual_seed(3)
        contrastive_backward(
            model, loss_fn, batch, Accelerator(), beta=0.2, generator=generator, micro_batch_size=size
        )
        results.append({name: grad.clone() for name, grad in gradients(model).items()})
    whole, cut = results
    assert whole.keys() == cut.keys()
    assert all(torch.allclose(cut[name], whole[name], rtol=1e-11, atol=1e-11) for name in whole)


def test_the_random_state_goes_on_after_the_parts_and_dropout_differs_from_step_to_step(build):
    model, loss_fn = build_double(build, "tiny", "vmf"), CIBRLoss(0.2, sample=False)
    batch = batch_of(model)
    torch.manual_seed(5)
    options = dict(beta=0.2, generator=torch.Generator(), micro_batch_size=4)
    losses = [contrastive_backward(model, loss_fn, batch, Accelerator(), **options)["loss"] for _ in range(2)]
    assert losses[0] != losses[1]


def test_a_temperature_that_is_fixed_has_no_gradient(build):
    model = build("tiny")
    model.set_temperature(0.1, learn=False)
    options = dict(beta=0.2, generator=torch.Generator(), micro_batch_size=4)
    contrastive_backward(model, CIBRLoss(0.2), batch_of(model), Accelerator(), **options)
    assert model.log_logit_scale.grad is None and model.backbone.image_head[2].weight.grad is not None
