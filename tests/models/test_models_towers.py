"""Towers and what they read: pixels as transformers has them, names in order."""

import unicodedata

import pytest
import torch
import transformers
from helpers import TEXTS, picture
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_models_dual_encoder import odd_images

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
