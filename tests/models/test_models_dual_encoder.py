"""Dual encoders: unit vectors of any images and strings, independent of order, batch and mode."""

import numpy as np
import pytest
import torch
from helpers import TEXTS, picture
from PIL import Image

from cibr.models.dual_encoder import MAX_LOGIT_SCALE

each_kind = pytest.mark.parametrize("kind", ["tiny", "frozen", "clip"])


def odd_images():
    """Images of many modes and sizes."""
    rgb, grey = picture(0), picture(1).convert("L")
    transparent = picture(2).convert("P")
    transparent.info["transparency"] = 0
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    modes = [rgb.convert(mode) for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "F", "I")]
    return [
        rgb,
        transparent,
        deep,
        *modes,
        rgb.resize((1, 1)),
        rgb.resize((300, 20)),
        rgb.resize((20, 300)),
    ]


def assert_unit(vectors, n, dim):
    assert (
        vectors.shape == (n, dim) and vectors.dtype == torch.float32 and not vectors.requires_grad
    )
    assert torch.allclose(vectors.norm(dim=1), torch.ones(n), atol=1e-5)


@each_kind
def test_images_of_any_mode_and_strings_of_any_kind_become_unit_vectors(build, kind):
    model, images = build(kind), odd_images()
    texts = ["", " ", "a cat", "Ünïcödé 漢字 🐈", "a\nb", "A CAT"]
    assert_unit(model.embed_images(images), len(images), 16)
    assert_unit(model.embed_texts(texts), len(texts), 16)
    assert_unit(model.embed_texts(np.array(texts)), len(texts), 16)
    assert model.embed_texts([]).shape == model.embed_images([]).shape == (0, 16)
    assert_unit(model.embed_texts(["a cat", "every " * 80], truncate=True), 2, 16)
    assert (
        model.tokenize(["a cat"])[0].shape[1] < model.context
    )  # the cut has left no trace in the tokenizer


@each_kind
def test_order_batch_size_and_mode_do_not_change_an_embedding(build, kind):
    model, images = build(kind).train(), [picture(i) for i in range(7)]
    for embed, items in (
        (model.embed_images, images),
        (model.embed_texts, [*TEXTS[:6], "a long text " * 3]),
    ):
        whole = embed(items)
        for size in (
            1,
            3,
        ):  # other widths of padding and of products change the order of float32 sums
            assert torch.allclose(embed(items, batch_size=size), whole, atol=1e-5)
        assert torch.allclose(embed(items[::-1]).flip(0), whole, atol=1e-5)
        assert (whole[0] - whole[1]).norm() > 1e-3
        assert model.training and torch.equal(embed(items), whole)  # without dropout
        model.eval()
        assert torch.equal(embed(items), whole) and not model.training
        model.train()


def test_the_context_is_what_the_text_tower_has_positions_for(build):
    model = build("frozen")
    model.tokenizer.model_max_length = 10**30  # of tokenizers that do not know their model's limit
    assert model.context == 40


def test_frozen_towers_stay_in_eval_mode_and_without_gradients(build):
    model = build("frozen").train()
    towers = model.backbone.image_tower, model.backbone.text_tower
    assert not any(module.training for tower in towers for module in tower.modules())
    assert model.backbone.image_head.training
    model.encode_texts(*model.tokenize(["a cat"])).features[:, 0].sum().backward()
    model.encode_images(model.normalise(model.preprocess([picture(0)]))).features[
        :, 0
    ].sum().backward()
    assert all(
        p.grad is None and not p.requires_grad for tower in towers for p in tower.parameters()
    )
    assert model.backbone.image_head.linear.weight.grad.abs().sum() > 0
    assert not any("tower" in name for name in model.own_state())
    assert model.mean.flatten().tolist() == pytest.approx(
        [0.4, 0.5, 0.6]
    )  # as the image tower was trained
    assert model.std.flatten().tolist() == pytest.approx([0.2, 0.3, 0.4])


def test_the_temperature_can_come_back_from_its_limit(build):
    model = build("tiny")
    model.set_temperature(1 / MAX_LOGIT_SCALE, learn=True)
    model.logit_scale.backward()
    assert model.log_logit_scale.grad > 0
    model.log_logit_scale.data.add_(1)
    model.limit_logit_scale()
    assert model.logit_scale.item() == pytest.approx(MAX_LOGIT_SCALE)
