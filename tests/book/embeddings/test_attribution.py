"""Attribution maps and the glyphs made for them, where the right answer is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cibr import DualEncoder
from cibr_book.embeddings import attribution, stimuli


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return DualEncoder.tiny(["a b", "c d"], dim=16, width=16).eval()


def test_the_passed_information_of_the_first_mask_is_the_divergence_of_two_gaussians():
    maps, noise = (torch.randn(n, 3, 4, 4, generator=generator(n)) for n in (2, 50))
    upper, texts = torch.nn.Flatten(), torch.ones(2, 48)
    nats, cosines = attribution.bottleneck_maps(maps, texts, upper, noise, n_steps=0, n_noise=500)
    mask = torch.sigmoid(torch.tensor(5.0))
    mean, std = noise.mean(0), noise.std(0)
    source = torch.distributions.Normal(mean, std)
    masked = torch.distributions.Normal(mask * maps + (1 - mask) * mean, (1 - mask) * std)
    expected = torch.distributions.kl_divergence(masked, source).sum(1)
    torch.testing.assert_close(nats, expected, rtol=1e-4, atol=1e-4)
    expected = masked.mean.flatten(1).sum(1)
    torch.testing.assert_close(cosines, expected, atol=0.02, rtol=0)


def test_a_bottleneck_map_lies_where_the_answer_is_decided_and_a_higher_price_passes_less():
    # Unit features that depend on one place alone: its channels, and a constant.
    maps, noise = (torch.randn(n, 2, 8, 8, generator=generator(n)) for n in (6, 300))
    places = [(1, 1), (6, 2), (3, 5), (0, 7), (7, 7), (4, 4)]

    def upper(x):
        told = torch.stack([x[i, :, r, c] for i, (r, c) in enumerate(places)])
        return F.normalize(told + torch.tensor([0.1, 0.0]), dim=1)

    nats, cosines = attribution.bottleneck_maps(maps, upper(maps), upper, noise, weight=1e-2)
    assert (cosines > 0.3).all() and (nats >= -1e-5).all()
    assert [divmod(int(grid.argmax()), 8) for grid in nats] == places
    beside = [grid[r - 1 if r else 1, c] for grid, (r, c) in zip(nats, places, strict=True)]
    assert min(beside) > 0.1  # the mask is smooth
    dear, _ = attribution.bottleneck_maps(maps, upper(maps), upper, noise, weight=1e-1)
    assert dear.sum() < 0.5 * nats.sum()


def test_the_two_halves_of_a_tiny_tower_are_the_encoder(tiny):
    pixels = torch.randn(2, 3, 32, 32, generator=generator())
    lower, upper = attribution.split_image_tower(tiny)
    whole = tiny.encode_images(pixels).features
    assert lower(pixels).shape == (2, 16, 16, 16) and torch.equal(upper(lower(pixels)), whole)


def test_randomised_weights_are_the_same_weights_in_another_order(tiny):
    shuffled = attribution.randomised_weights(tiny)
    for (name, old), new in zip(tiny.named_parameters(), shuffled.parameters(), strict=True):
        is_image = name.startswith(("towers.image", "head.image"))
        assert torch.equal(old, new) != (is_image and old.unique().numel() > 1), name
        assert torch.equal(old.flatten().sort().values, new.flatten().sort().values)


def test_marked_letters_differ_from_plain_ones_in_the_mark_alone():
    letters = stimuli.marked_letters()
    assert len(letters.plain) > 300
    assert ["latin small letter i with acute"] not in letters.marked.captions  # it loses its dot
    i = letters.marked.captions.index(["latin small letter a with acute"])
    assert letters.plain[i] == "latin small letter a"
    rows = letters.mark[i].any(1).nonzero().flatten()
    assert 4 <= letters.mark[i].sum() < 40 and rows.max() < 16  # above the letter
    dark = torch.tensor(np.array(letters.marked.image(i).convert("L"))) < 128
    assert dark[letters.mark[i]].float().mean() > 0.5
