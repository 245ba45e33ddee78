"""Dual encoders: unit vectors of any images and strings, independent of order, batch and mode."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import TEXTS, picture
from PIL import Image
from small_models import TEXT, save_model

from cibr.data.pairs import to_rgb
from cibr.models import DualEncoder
from cibr.models.preprocessing import train_tokenizer

KINDS = ["tiny", "names", "staged", "frozen", "frozen dual", "hub"]
each_kind = pytest.mark.parametrize("kind", KINDS)


def odd_images():
    """Images of many modes and sizes."""
    rgb = picture(0)
    transparent = rgb.convert("P")
    transparent.info["transparency"] = 0
    deep = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    modes = [rgb.convert(mode) for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr")]
    sizes = [rgb.resize(size) for size in ((1, 1), (300, 20), (20, 300))]
    return [rgb, transparent, deep, *modes, *sizes]


def assert_unit(vectors, n, dim=16):
    assert vectors.shape == (n, dim) and vectors.dtype == torch.float32
    assert not vectors.requires_grad
    assert torch.allclose(vectors.norm(dim=1), torch.ones(n), atol=1e-5)


@each_kind
def test_images_of_any_mode_and_strings_of_any_kind_become_unit_vectors(build, kind):
    model = build(kind)
    images = odd_images()
    texts = ["", " ", "a cat", "Ünïcödé 漢字 🐈", "a\nb", "A CAT"]
    vectors = model.embed_images(images)
    assert_unit(vectors, len(images), model.dim)
    assert torch.equal(model.embed_images([to_rgb(image) for image in images]), vectors)
    assert_unit(model.embed_texts(texts), len(texts), model.dim)
    assert model.embed_texts([]).shape == model.embed_images([]).shape == (0, model.dim)
    assert_unit(model.embed_texts(["a cat", "every " * 80]), 2, model.dim)
    # The cut has left no trace in the tokenizer.
    assert model.tokenize(["a cat"])[0].shape[1] < model.context


@each_kind
def test_order_batch_size_and_mode_do_not_change_an_embedding(build, kind):
    model = build(kind).train()
    images = [picture(i) for i in range(7)]
    texts = [*TEXTS[:6], "a long text " * 3]
    for embed, items in ((model.embed_images, images), (model.embed_texts, texts)):
        whole = embed(items)
        for size in (1, 3):  # another width of padding: float32 sums in another order
            assert torch.allclose(embed(items, batch_size=size), whole, atol=1e-5)
        assert torch.allclose(embed(items[::-1]).flip(0), whole, atol=1e-5)
        assert (whole[0] - whole[1]).norm() > 1e-3
        assert model.training and torch.equal(embed(items), whole)  # without dropout
    model.eval().embed_images(images)
    assert not model.training


@each_kind
def test_an_embedding_is_the_projection_of_pooled_features(build, kind):
    model = build(kind).eval()
    pixels = model.preprocess([picture(0)])
    pooled = model.towers.image_pooled(pixels)
    expected = F.normalize(model.head.project_images(pooled))
    assert pooled.shape == (1, model.dim_image_pooled)
    for images in (pixels, pooled):
        encoded = model.encode_images(images)
        assert torch.allclose(encoded.pooled, pooled, atol=1e-5)
        assert torch.allclose(encoded.features, expected, atol=1e-5)
    features, pooled = model.encode_texts(*model.tokenize(["a cat"]))
    assert pooled.shape == (1, model.dim_text_pooled)
    assert torch.equal(features, F.normalize(model.head.project_texts(pooled)))
    assert torch.equal(features, model.encode_texts(pooled).features)


def test_the_context_is_what_the_text_tower_has_positions_for_or_its_tokenizer_allows(build):
    model = build("frozen")
    model.tokenizer.model_max_length = 10**30  # of tokenizers that do not know their model's limit
    assert model.context == 40
    model.tokenizer.model_max_length = 5
    assert model.context == 5
    assert model.tokenize(["every " * 80])[0].shape == (1, 5)


def test_frozen_towers_stay_in_eval_mode_and_without_gradients(build):
    model = build("frozen").train()
    towers = model.towers.loaded
    assert not any(module.training for module in towers.modules()) and model.head.training
    model.encode_texts(*model.tokenize(["a cat"])).features[:, 0].sum().backward()
    model.encode_images(model.preprocess([picture(0)])).features[:, 0].sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in towers.parameters())
    assert model.head.image.linear.weight.grad.abs().sum() > 0
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == model.state_dict().keys()


def test_the_temperature_is_set_and_can_come_back_from_its_limit(build):
    model = build("tiny")
    model.set_temperature(0.005)
    model.logit_scale.backward()
    assert model.log_logit_scale.grad > 0
    model.limit_logit_scale()
    assert model.logit_scale.item() == pytest.approx(100)
    model.set_temperature(0.05, learn=False)
    assert model.logit_scale.item() == pytest.approx(20)
    assert not model.log_logit_scale.requires_grad


def test_frozen_towers_may_be_those_of_a_dual_encoder(clip_folder, tmp_path):
    """Heads read what its projections do, or its embeddings where it has none."""
    save_model(tmp_path, "Siglip")
    for folder in (clip_folder, str(tmp_path)):
        own, frozen = DualEncoder.from_pretrained(folder), DualEncoder.frozen(folder, folder)
        pixels, tokens = own.preprocess([picture(0)]), own.tokenize(["a cat"])
        assert torch.equal(frozen.preprocess([picture(0)]), pixels)
        assert torch.equal(frozen.encode_images(pixels).pooled, own.encode_images(pixels).pooled)
        assert torch.equal(frozen.encode_texts(*tokens).pooled, own.encode_texts(*tokens).pooled)
        assert frozen.encode_images(pixels).features.shape == (1, 512)


def test_embeddings_are_float32_whatever_the_type_of_the_model(build):
    model = build("tiny").double()
    assert model.embed_texts(["a cat"]).dtype == torch.float32
    assert model.embed_images([picture(0)]).dtype == torch.float32


def test_an_image_that_does_not_embed_leaves_the_mode_of_the_model(build):
    model = build("tiny").train()
    with pytest.raises(ValueError, match="mode F has no fixed range"):
        model.embed_images([Image.new("F", (2, 2))])
    assert model.training


def test_dimensions_of_pooled_features_are_told_apart(tmp_path, tower_folders):
    text = TEXT | {"vocab_size": len(train_tokenizer(TEXTS)), "hidden_size": 48}
    transformers.BertModel(transformers.BertConfig(**text)).save_pretrained(tmp_path)
    train_tokenizer(TEXTS, context=40).save_pretrained(tmp_path)
    model = DualEncoder.frozen(tower_folders[0], str(tmp_path), dim=16)
    assert (model.dim_image_pooled, model.dim_text_pooled) == (32, 48)
    assert model.embed_texts(["a cat"]).shape == model.embed_images([picture(0)]).shape == (1, 16)
