"""Dual encoders: unit vectors of any pictures and strings, independent of order and batch; towers by name."""

import os

import numpy as np
import pytest
import torch
from conftest import TEXTS, picture
from PIL import Image
from torch import nn
from transformers import CLIPModel

from cibr.models import DualEncoder, model_kind, pretrained
from cibr.models.dual_encoder import MAX_LOGIT_SCALE
from cibr.models.tiny import TinyImageTower

KINDS = ("tiny", "frozen", "clip")
each_kind = pytest.mark.parametrize("kind", KINDS)


def odd_pictures():
    """Pictures of many modes and sizes."""
    rgb, grey = picture(0), picture(1).convert("L")
    transparent = picture(2).convert("P")
    transparent.info["transparency"] = 0
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    modes = [rgb.convert(mode) for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "F", "I")]
    return [rgb, transparent, deep, *modes, rgb.resize((1, 1)), rgb.resize((300, 20)), rgb.resize((20, 300))]


def assert_unit(vectors, n, dim):
    assert vectors.shape == (n, dim) and vectors.dtype == torch.float32 and not vectors.requires_grad
    assert torch.allclose(vectors.norm(dim=1), torch.ones(n), atol=1e-5)


@each_kind
def test_pictures_of_any_mode_and_size_become_unit_vectors(build, kind):
    pictures = odd_pictures()
    assert_unit(build(kind).embed_images(pictures), len(pictures), 16)


@each_kind
def test_strings_of_any_kind_become_unit_vectors(build, kind):
    texts = ["", " ", "a cat", "Ünïcödé 漢字 🐈", "a\nb", "A CAT"]
    model = build(kind)
    assert_unit(model.embed_texts(texts), len(texts), 16)
    assert model.embed_texts([]).shape == model.embed_images([]).shape == (0, 16)


@each_kind
def test_order_and_batch_size_do_not_change_an_embedding(build, kind):
    model, pictures = build(kind), [picture(i) for i in range(7)]
    for embed, items in ((model.embed_images, pictures), (model.embed_texts, [*TEXTS[:6], "a long text " * 3])):
        whole = embed(items)
        # Another width of padding or of a product changes the order of float32 sums.
        for size in (1, 3):
            assert torch.allclose(embed(items, batch_size=size), whole, atol=1e-5)
        assert torch.allclose(embed(items[::-1]).flip(0), whole, atol=1e-5)
        assert (whole[0] - whole[1]).norm() > 1e-3


@each_kind
def test_embedding_is_without_dropout_and_leaves_the_mode_as_it_was(build, kind):
    model = build(kind).train()
    assert torch.equal(model.embed_texts(TEXTS[:4]), model.embed_texts(TEXTS[:4])) and model.training
    assert torch.equal(model.embed_images([picture(0)]), model.eval().embed_images([picture(0)]))
    assert not model.training


@each_kind
@pytest.mark.parametrize("learn_variance", [False, True])
def test_encoding_gives_features_pooled_and_log_variances(build, kind, learn_variance):
    model = build(kind, learn_variance=learn_variance)
    image = model.encode_images(model.normalise(model.preprocess([picture(0), picture(1)])))
    text = model.encode_texts(*model.tokenize(["a cat", "a dog"]))
    for side, dim in ((image, model.backbone.dim_image_pooled), (text, model.backbone.dim_text_pooled)):
        assert side.features.shape == (2, 16) and side.pooled.shape == (2, dim)
        if learn_variance:
            assert torch.allclose(side.log_variance.exp().sqrt(), torch.full((2, 16), 0.1))
        else:
            assert side.log_variance is None


@each_kind
def test_a_text_longer_than_the_context_is_refused_by_name_or_cut_on_request(build, kind):
    model, long = build(kind), "every " * 80
    with pytest.raises(ValueError, match=r"a text has \d+ tokens and the model reads (40|64): 'every every"):
        model.embed_texts(["a cat", long])
    assert_unit(model.embed_texts(["a cat", long], truncate=True), 2, 16)
    assert model.tokenize(["a cat"])[0].shape[1] < model.context  # the cut has left no trace in the tokenizer


def test_the_context_is_what_the_text_tower_has_positions_for(build):
    for kind in ("frozen", "clip"):
        model = build(kind)
        model.tokenizer.model_max_length = 10**30  # tokenizers that do not know their model's limit
        assert model.context == 40


@pytest.mark.parametrize("call", ["embed_texts", "embed_images"])
def test_one_item_without_a_list_is_refused(build, call):
    import jaxtyping

    item = "a cat" if call == "embed_texts" else picture(0)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match="in a list"):
            getattr(build("tiny"), call)(item)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_frozen_towers_stay_in_eval_mode_and_without_gradients(build):
    model = build("frozen").train()
    towers = model.backbone.image_tower, model.backbone.text_tower
    assert not any(module.training for tower in towers for module in tower.modules())
    assert model.backbone.image_head.training
    model.encode_texts(*model.tokenize(["a cat"])).features[:, 0].sum().backward()
    model.encode_images(model.normalise(model.preprocess([picture(0)]))).features[:, 0].sum().backward()
    assert all(p.grad is None and not p.requires_grad for tower in towers for p in tower.parameters())
    assert model.backbone.image_head.linear.weight.grad.abs().sum() > 0
    assert not any("tower" in name for name in model.own_state())


def test_frozen_pictures_are_normalised_as_their_tower_was_trained(build):
    model = build("frozen")
    assert model.mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert model.std.flatten().tolist() == pytest.approx([0.2, 0.3, 0.4])


def test_no_layer_of_a_trained_tower_looks_at_the_batch(build):
    model = build("tiny").train()
    batch_norms = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)
    assert not any(isinstance(module, batch_norms) for module in model.modules())
    pixels = model.normalise(model.preprocess([picture(i) for i in range(4)]))
    alone, together = model.encode_images(pixels[:1]), model.encode_images(pixels)
    assert torch.allclose(alone.features, together.features[:1], atol=1e-6)


def test_clip_features_equal_those_of_transformers(build, clip_folder):
    model, reference = build("clip"), CLIPModel.from_pretrained(clip_folder).eval()
    pictures = [picture(i) for i in range(3)]
    pixels = model.processor(pictures, return_tensors="pt")["pixel_values"]
    tokens = model.tokenizer(TEXTS[:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        image = reference.get_image_features(pixel_values=pixels).pooler_output
        text = reference.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
    # Ours normalises bytes after the resize, theirs may round otherwise: a level of 255 at most.
    assert torch.allclose(model.embed_images(pictures), nn.functional.normalize(image, dim=1), atol=1e-5)
    assert torch.allclose(model.embed_texts(TEXTS[:3]), nn.functional.normalize(text, dim=1), atol=1e-6)
    assert model.logit_scale.item() == pytest.approx(reference.logit_scale.exp().item())


def test_the_temperature_can_come_back_from_its_limit(build):
    model = build("tiny")
    model.set_temperature(1 / MAX_LOGIT_SCALE, learn=True)
    model.logit_scale.backward()
    assert model.log_logit_scale.grad > 0
    model.log_logit_scale.data.add_(1)
    model.limit_logit_scale()
    assert model.logit_scale.item() == pytest.approx(MAX_LOGIT_SCALE)


def test_the_seed_decides_the_weights(build):
    states = [build("tiny").state_dict() for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_a_tiny_model_needs_texts():
    with pytest.raises(ValueError, match="learns its tokenizer from texts"):
        DualEncoder.tiny([])


def test_a_model_is_looked_for_in_a_folder_then_in_cibr_models_then_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIBR_MODELS", raising=False)
    assert pretrained.resolve_model("some/model") == "some/model"
    (tmp_path / "store" / "some" / "model").mkdir(parents=True)
    monkeypatch.setenv("CIBR_MODELS", str(tmp_path / "store"))
    assert pretrained.resolve_model("some/model") == str(tmp_path / "store" / "some" / "model")
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert pretrained.resolve_model("some/model") == "some/model"
    assert pretrained.resolve_model("other/model") == "other/model"


def test_the_kind_of_a_model_is_known_from_its_name(tmp_path):
    names = ("tiny", "frozen", "openai/clip-vit-base-patch32", str(tmp_path))
    assert [model_kind(name) for name in names] == ["tiny", "frozen", "clip", "clip"]
    with pytest.raises(ValueError, match="unknown model 'frozn', did you mean 'frozen'?"):
        model_kind("frozn")
    for name in ("", "resnet", "/nowhere/at/all"):
        with pytest.raises(ValueError, match=r"unknown model .*Give tiny or frozen, a folder with a CLIPModel"):
            model_kind(name)


@pytest.mark.parametrize("reason", ["offline\nmore", ""])
def test_a_hub_that_does_not_answer_is_named_with_what_helps(reason, monkeypatch):
    def refuse(*_, **__):
        raise OSError(reason)

    monkeypatch.setattr(CLIPModel, "from_pretrained", refuse)
    with pytest.raises(
        FileNotFoundError, match="hub model 'some/model': (offline|OSError).*CIBR_MODELS>/some/model"
    ):
        DualEncoder.clip("some/model")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"cannot load folder '{tmp_path}'"):
        DualEncoder.from_pretrained(tmp_path)


@pytest.mark.models
@pytest.mark.skipif(not os.environ.get("CIBR_MODELS"), reason="CIBR_MODELS is not set")
def test_the_real_frozen_towers_embed_two_pictures_and_two_texts(tmp_path):
    model = DualEncoder.frozen()
    assert_unit(model.embed_images([picture(0), picture(1)]), 2, 512)
    texts = ["a dog runs over grass", "a red car"]
    assert_unit(model.embed_texts(texts), 2, 512)
    again = DualEncoder.from_pretrained(model.save_pretrained(tmp_path))
    assert torch.equal(again.embed_texts(texts), model.embed_texts(texts))
    assert torch.equal(again.embed_images([picture(0)]), model.embed_images([picture(0)]))


@pytest.mark.parametrize("width", [4, 8, 16, 32])
def test_gradients_of_odd_batches_are_those_of_one_thread(width):
    tower, pixels, found = TinyImageTower(width), torch.randn(5, 3, 32, 32), []
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            for _ in range(20):
                tower.zero_grad()
                tower(pixels).square().sum().backward()
            found.append([p.grad.clone() for p in tower.parameters()])
    finally:
        torch.set_num_threads(before)
    assert all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max())) for a, b in zip(*found, strict=True)
    )
