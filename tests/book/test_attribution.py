"""Attribution maps, their checks and the glyphs made for them, where the right answer is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import TimmWrapperConfig, TimmWrapperModel

from cibr import DualEncoder
from cibr_book import attribution, stimuli


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return DualEncoder.tiny(["a b", "c d"], dim=16, width=16).eval()


def test_the_passed_information_is_the_divergence_of_two_gaussians():
    logits, features = torch.tensor([[[-1.0, 0.5, 4.0]]]), torch.tensor([[[0.3, -2.0, 1.0]]])
    found = attribution._passed_nats(logits, features.square(), 1)
    mask = torch.sigmoid(logits)
    noisy = torch.distributions.Normal(mask * features, 1 - mask)
    true = torch.distributions.kl_divergence(noisy, torch.distributions.Normal(0.0, 1.0))
    assert torch.allclose(found, true, atol=1e-5)


def test_a_bottleneck_map_lies_where_the_answer_is_decided():
    # Unit features that depend on one place alone: its channels, and a constant.
    maps, noise = (torch.randn(n, 2, 8, 8, generator=generator(n)) for n in (6, 300))
    places = [(1, 1), (6, 2), (3, 5), (0, 7), (7, 7), (4, 4)]

    def upper(x):
        told = torch.stack([x[i, :, r, c] for i, (r, c) in enumerate(places)])
        return F.normalize(told + torch.tensor([0.1, 0.0]), dim=1)

    nats, cosines = attribution.bottleneck_maps(maps, upper(maps), upper, noise, weight=1e-2)
    assert (cosines > 0.3).all() and (nats >= -1e-5).all()
    for i, (r, c) in enumerate(places):
        assert divmod(int(nats[i].argmax()), 8) == (r, c)


def test_the_two_halves_of_a_tiny_tower_are_the_encoder(tiny):
    pixels, texts = torch.randn(2, 3, 32, 32, generator=generator()), torch.eye(16)[:2]
    lower, upper = attribution.split_image_tower(tiny)
    whole = tiny.encode_images(pixels).features
    assert lower(pixels).shape == (2, 16, 16, 16) and torch.equal(upper(lower(pixels)), whole)
    assert torch.equal(attribution.cosine_score(tiny)(pixels, texts), (whole * texts).sum(1))


def test_the_two_halves_of_a_frozen_efficientnet_are_the_encoder(tmp_path, tower_folders):
    about = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    config = TimmWrapperConfig(architecture="tf_efficientnet_lite0", pretrained_cfg=about)
    TimmWrapperModel(config).save_pretrained(tmp_path)
    model = DualEncoder.frozen(str(tmp_path), tower_folders[1], dim=16, image_size=64).eval()
    pixels = torch.randn(2, 3, 64, 64, generator=generator())
    lower, upper = attribution.split_image_tower(model)
    assert lower(pixels).shape[2:] == (4, 4)  # a stride of 16
    assert torch.allclose(upper(lower(pixels)), model.encode_images(pixels).features, atol=1e-5)


def linear_world(n=4, side=8):
    """Images whose score is a weighted sum of pixels, with one positive square of weights."""
    weights = torch.zeros(3, side, side)
    weights[:, 4:8, 0:4] = 1.0
    pixels = torch.rand(n, 3, side, side, generator=generator()) + 0.5
    return pixels, weights, lambda x: (x * weights).sum((1, 2, 3))


def test_the_share_inside_counts_positive_values_alone():
    maps = torch.tensor([[[1.0, 3.0], [-5.0, 0.0]], [[0.0, 0.0], [-1.0, 0.0]]])
    region = torch.tensor([[True, False], [True, False]]).expand(2, 2, 2)
    assert attribution.share_inside(maps, region).tolist() == [0.25, 0.5]


def test_deletion_takes_the_highest_pixels_first():
    pixels, weights, score = linear_world()
    good = attribution.deletion_curve(pixels, weights[0].expand(4, 8, 8), score, 0.0, (0, 0.25, 1))
    bad = attribution.deletion_curve(pixels, -weights[0].expand(4, 8, 8), score, 0.0, (0, 0.75, 1))
    assert torch.equal(good[:, 0], score(pixels))
    assert good[:, 1].abs().max() == 0 and good[:, 2].abs().max() == 0
    assert torch.equal(bad[:, 1], score(pixels)) and bad[:, 2].abs().max() == 0


def test_randomised_weights_are_the_same_weights_in_another_order(tiny):
    broken = attribution.randomised_weights(tiny)
    pixels = torch.randn(2, 3, 32, 32, generator=generator())
    assert not torch.allclose(
        broken.encode_images(pixels).features, tiny.encode_images(pixels).features
    )
    before, after = (
        m.backbone.image_head[2].weight.flatten().sort().values for m in (tiny, broken)
    )
    assert torch.equal(before, after)
    assert torch.equal(broken.embed_texts(["a"]), tiny.embed_texts(["a"]))


def test_maps_agree_by_rank():
    a = torch.rand(3, 4, 4, generator=generator())
    assert torch.allclose(attribution.map_agreement(a, a.exp()), torch.ones(3))
    assert torch.allclose(attribution.map_agreement(a, -a), -torch.ones(3))
    assert attribution.map_agreement(a, torch.ones(3, 4, 4)).tolist() == [0, 0, 0]


def test_varied_glyphs_show_seen_characters_in_unseen_typefaces():
    pairs = stimuli.varied_glyphs(50)
    assert len(pairs) == 50 and set(pairs.factors["typeface"]) == {"serif", "stix"}
    assert pairs.factors["size"].nunique() > 5


def test_marked_letters_differ_from_plain_ones_in_the_mark_alone():
    letters = stimuli.marked_letters()
    assert len(letters.plain) > 300
    i = letters.marked.captions.index(["latin small letter a with acute"])
    assert letters.plain[i] == "latin small letter a"
    rows = letters.mark[i].any(1).nonzero().flatten()
    assert 4 <= letters.mark[i].sum() < 40 and rows.max() < 16  # above the letter
    dark = torch.tensor(np.array(letters.marked.image(i).convert("L"))) < 128
    assert dark[letters.mark[i]].float().mean() > 0.5
