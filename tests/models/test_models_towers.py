"""Towers and what they read: pixels as transformers has them, names in order."""

import unicodedata

import pytest
import torch
import transformers
from helpers import TEXTS, picture
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_models import VISION
from test_models_dual_encoder import odd_images

from cibr.models import DualEncoder
from cibr.models.preprocessing import ImageProcessor, preprocess, train_tokenizer
from cibr.models.tiny import TinyTowers


def test_images_are_preprocessed_as_by_transformers():
    images = [*odd_images(), *(picture(0).resize(s) for s in ((47, 33), (32, 32), (32, 50)))]
    for size in (32, 17):
        crop = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        half = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
        own, theirs = ImageProcessor(size), transformers.CLIPImageProcessor(**crop, **half)
        expected = preprocess(theirs, images)
        torch.testing.assert_close(preprocess(own, images), expected, rtol=0, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_a_tokenizer_reads_every_string_in_lower_case(text):
    assume("<end>" not in text.lower() and "<pad>" not in text.lower())  # its own marks
    tokenizer = train_tokenizer(TEXTS)
    ids = tokenizer(text)["input_ids"]
    assert ids == tokenizer(text.lower())["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id and len(ids) <= 2 + 4 * len(text.lower())
    shown = tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert shown == unicodedata.normalize("NFC", text).lower().strip()


@pytest.mark.parametrize("width", [4, 16])
def test_gradients_of_odd_batches_are_those_of_one_thread(width):
    towers = TinyTowers(train_tokenizer(TEXTS), width, 32, 0.0)
    pixels = torch.randn(5, 3, 32, 32)
    before = torch.get_num_threads()
    gradients = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        for _ in range(5):
            towers.zero_grad()
            towers.image_pooled(pixels).square().sum().backward()
        gradients.append([p.grad.clone() for p in towers.image_tower.parameters()])
    torch.set_num_threads(before)
    for a, b in zip(*gradients, strict=True):  # float32 sums in another order
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))


def test_an_image_tower_of_timm_reads_160_pixels_with_its_own_statistics(tmp_path, tower_folders):
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    sizes = VISION | {"image_size": 160, "patch_size": 32}
    config = transformers.ViTConfig(**sizes, pretrained_cfg=statistics)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    model = DualEncoder.frozen(str(tmp_path), tower_folders[1], dim=16)
    pixels = model.preprocess([Image.new("RGB", (200, 300), (51, 102, 153))])
    assert pixels.shape == (1, 3, 160, 160)
    expected = torch.tensor([(0.2 - 0.1) / 0.4, (0.4 - 0.2) / 0.5, (0.6 - 0.3) / 0.6])
    torch.testing.assert_close(pixels[0, :, 80, 80], expected)


def test_a_text_tower_may_lack_the_pooler_that_nothing_reads(tmp_path, tower_folders):
    image, text = tower_folders
    tower = transformers.BertModel.from_pretrained(text, add_pooling_layer=False)
    tower.save_pretrained(tmp_path)
    train_tokenizer(TEXTS, context=40).save_pretrained(tmp_path)
    found = DualEncoder.frozen(image, str(tmp_path), dim=16).towers
    tokens = found.tokenizer(["a red cat"], return_tensors="pt")
    states = tower.eval()(**tokens).last_hidden_state
    pooled = found.text_pooled(tokens["input_ids"], tokens["attention_mask"])
    torch.testing.assert_close(pooled, states.mean(1))
