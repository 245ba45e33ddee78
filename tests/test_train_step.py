"""The step's gradients are those of the whole batch, however it is cut, with dropout and noise on."""

import pytest
import torch
from accelerate import Accelerator
from conftest import noise_pairs

from cibr.losses import CIBRLoss
from cibr.train.inputs import prepare
from cibr.train.step import contrastive_backward, encode_images, encode_texts

PAIRS = noise_pairs(10)


def batch_of(model):
    rows = torch.arange(len(PAIRS))
    return prepare(model, PAIRS)[rows, rows]


def build_double(build, kind, estimator, dropout=0.3):
    model = build(kind, dropout=dropout, learn_variance=estimator == "gaussian").double().train()
    model.set_temperature(0.1, learn=True)
    return model


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
    extras = {}
    if len(image) == 3:
        extras = {"image_log_variance": image[2], "text_log_variance": text[2]}
    generator = torch.Generator().manual_seed(3)
    terms = loss_fn(image[0], text[0], model.logit_scale, batch.labels, beta=0.2, generator=generator, **extras)
    model.zero_grad()
    terms["loss"].backward()
    return terms, gradients(model)


@pytest.mark.parametrize("estimator", ["vmf", "gaussian"])
@pytest.mark.parametrize("size", [3, 5, 10, 0])
def test_micro_batches_give_the_gradients_of_the_whole_batch(build, size, estimator):
    model, loss_fn = build_double(build, "tiny", estimator), CIBRLoss(0.2, estimator)
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
    for name in expected:  # float64: sums in another order differ by some 1e-16 of the largest
        assert torch.allclose(found[name], expected[name], rtol=1e-11, atol=1e-11), name
    for name, term in terms.items():
        assert torch.allclose(found_terms[name], term, rtol=1e-11), name


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
