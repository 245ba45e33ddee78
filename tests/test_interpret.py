"""Attribution, its checks, neighbours and geometry, against worlds in which the right answer is known."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cibr import DualEncoder, interpret
from cibr.interpret.attribution import _passed_nats
from cibr.metrics import bootstrap_interval


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=generator(seed)), dim=-1)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return DualEncoder.tiny(["a b", "c d"], dim=16, width=16).eval()


def test_the_passed_information_is_the_divergence_of_two_gaussians():
    logits, features = torch.tensor([[[-1.0, 0.5, 4.0]]]), torch.tensor([[[0.3, -2.0, 1.0]]])
    found = _passed_nats(logits, features.square(), 1)
    mask = torch.sigmoid(logits)
    noisy = torch.distributions.Normal(mask * features, 1 - mask)
    true = torch.distributions.kl_divergence(noisy, torch.distributions.Normal(0.0, 1.0))
    assert torch.allclose(found, true, atol=1e-5)


def test_a_bottleneck_map_lies_where_the_answer_is_decided():
    # Unit features that depend on one place alone: its channels, and a constant.
    maps = torch.randn(6, 2, 8, 8, generator=generator())
    places = [(1, 1), (6, 2), (3, 5), (0, 7), (7, 7), (4, 4)]

    def upper(x):
        told = torch.stack([x[i, :, r, c] for i, (r, c) in enumerate(places)])
        return F.normalize(told + torch.tensor([0.1, 0.0]), dim=1)

    texts = upper(maps)
    mean, std = torch.zeros(2, 8, 8), torch.ones(2, 8, 8)
    nats, cosines = interpret.bottleneck_maps(maps, texts, upper, mean, std, weight=1e-2)
    assert (cosines > 0.3).all() and (nats >= -1e-5).all()
    for i, (r, c) in enumerate(places):
        assert divmod(int(nats[i].argmax()), 8) == (r, c)


def test_a_higher_price_passes_less_information():
    maps, texts = torch.randn(3, 4, 5, 5, generator=generator()), unit(3, 4)
    upper = lambda x: F.normalize(x.mean((2, 3)), dim=1)  # noqa: E731
    mean, std = torch.zeros(4, 5, 5), torch.ones(4, 5, 5)
    found = [interpret.bottleneck_maps(maps, texts, upper, mean, std, weight=w) for w in (1e-4, 1e-2, 1.0)]
    passed = [nats.sum().item() for nats, _ in found]
    assert passed[0] > passed[1] > passed[2]


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan])
def test_a_nat_that_costs_nothing_is_refused(weight):
    maps = torch.zeros(3, 2, 4, 4)
    with pytest.raises(ValueError, match="give"):
        interpret.bottleneck_maps(maps, unit(3, 2), lambda x: x, torch.zeros(2, 4, 4), torch.ones(2, 4, 4), weight)


def test_the_two_halves_of_a_tower_are_the_encoder(tiny):
    pixels = torch.randn(2, 3, 32, 32, generator=generator())
    lower, upper = interpret.split_image_tower(tiny)
    assert lower(pixels).shape == (2, 16, 16, 16)
    whole = tiny.encode_images(pixels).features
    assert torch.equal(upper(lower(pixels)), whole) and torch.equal(interpret.image_encoder(tiny)(pixels), whole)


def test_a_tower_without_a_known_feature_map_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(tiny.backbone, "kind", "clip", raising=False)
    with pytest.raises(ValueError, match="no feature map"):
        interpret.split_image_tower(tiny)


def linear_world(n=4, side=8):
    """Pictures whose score is a weighted sum of pixels, with one positive square of weights."""
    weights = torch.zeros(3, side, side)
    weights[:, 4:8, 0:4] = 1.0
    pixels = torch.rand(n, 3, side, side, generator=generator()) + 0.5
    encode = lambda x: torch.stack([(x * weights).sum((1, 2, 3)), torch.zeros(len(x))], 1)  # noqa: E731
    texts = torch.tensor([[1.0, 0.0]]).expand(n, 2)
    return pixels, texts, encode, weights


def test_occlusion_and_gradients_find_the_pixels_of_a_linear_score():
    pixels, texts, encode, weights = linear_world()
    region = (weights[0] > 0).expand(4, 8, 8)
    gradients = interpret.gradient_maps(pixels, texts, encode, 0.0)
    assert torch.allclose(gradients, (pixels * weights).sum(1), atol=1e-4)
    for maps in (gradients, interpret.occlusion_maps(pixels, texts, encode, 0.0, side=4)):
        assert interpret.share_inside(maps, region).min() > 0.99


def test_the_share_inside_counts_positive_values_alone():
    maps = torch.tensor([[[1.0, 3.0], [-5.0, 0.0]], [[0.0, 0.0], [-1.0, 0.0]]])
    region = torch.tensor([[True, False], [True, False]]).expand(2, 2, 2)
    assert interpret.share_inside(maps, region).tolist() == [0.25, 0.5]


def test_deletion_takes_the_highest_pixels_first():
    pixels, _, encode, weights = linear_world()
    score = lambda x: encode(x)[:, 0]  # noqa: E731
    good = interpret.deletion_curve(pixels, weights[0].expand(4, 8, 8), score, 0.0, (0, 0.25, 1))
    bad = interpret.deletion_curve(pixels, -weights[0].expand(4, 8, 8), score, 0.0, (0, 0.75, 1))
    assert torch.equal(good[:, 0], score(pixels))
    assert good[:, 1].abs().max() == 0 and good[:, 2].abs().max() == 0
    assert torch.equal(bad[:, 1], score(pixels)) and bad[:, 2].abs().max() == 0
    with pytest.raises(ValueError, match="shares between 0 and 1"):
        interpret.deletion_curve(pixels, weights[0].expand(4, 8, 8), score, 0.0, (0, 1.5))


def test_a_scrambled_model_has_the_same_weights_in_another_order(tiny):
    broken = interpret.scrambled(tiny)
    pixels = torch.randn(2, 3, 32, 32, generator=generator())
    assert not torch.allclose(broken.encode_images(pixels).features, tiny.encode_images(pixels).features)
    before, after = (m.backbone.image_head[2].weight.flatten().sort().values for m in (tiny, broken))
    assert torch.equal(before, after)
    assert torch.equal(broken.embed_texts(["a"]), tiny.embed_texts(["a"]))


def test_maps_agree_by_rank():
    a = torch.rand(3, 4, 4, generator=generator())
    assert torch.allclose(interpret.map_agreement(a, a.exp()), torch.ones(3))
    assert torch.allclose(interpret.map_agreement(a, -a), -torch.ones(3))
    assert interpret.map_agreement(a, torch.ones(3, 4, 4)).tolist() == [0, 0, 0]


def test_nearest_items_are_those_of_a_loop_and_never_the_item_itself():
    z = unit(12, 5)
    found = interpret.nearest_items(z, 3)
    for i in range(12):
        others = sorted((j for j in range(12) if j != i), key=lambda j: -float(z[i] @ z[j]))
        assert found[i].tolist() == others[:3]
    with pytest.raises(ValueError, match="k is between 1 and"):
        interpret.nearest_items(z, 12)


def test_neighbours_agree_not_at_all_by_chance_and_fully_in_separate_groups():
    factor = torch.arange(400) % 2
    z = F.normalize(torch.stack([factor.double(), 1 - factor.double()], 1) + 0.01 * torch.rand(400, 2), dim=1)
    assert interpret.neighbour_agreement(interpret.nearest_items(z, 5), factor).mean() == 1
    by_chance = interpret.neighbour_agreement(interpret.nearest_items(unit(400, 8), 5), factor)
    assert bootstrap_interval(by_chance)[1] < 0.02 and abs(by_chance.mean()) < 0.1
    with pytest.raises(ValueError, match="same value everywhere"):
        interpret.neighbour_agreement(torch.zeros(3, 1).long(), torch.zeros(3).long())


def test_changes_sum_to_one_and_margins_are_zero_at_a_tie():
    a, b = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert interpret.answer_changes(a, b) == {"both": 0.25, "neither": 0.25, "gained": 0.25, "lost": 0.25}
    similarity = torch.tensor([[0.5, 0.5, 0.1], [0.9, 0.2, 0.4]])
    right = torch.tensor([[True, False, False], [False, False, True]])
    assert interpret.margins(similarity, right).tolist() == pytest.approx([0, -0.5])


def test_kinds_of_a_wrong_name_go_from_near_to_far():
    right = "latin small letter a with acute"
    chosen = [
        right,
        "greek small letter alpha with acute",
        "latin small letter a",
        "latin capital letter b",
        "plus sign",
    ]
    kinds = interpret.wrong_name_kinds([right] * 5, chosen, [True, True, False, False, False])
    assert kinds == ["right", "same drawing", "same letter", "same script or kind", "other"]


def test_the_map_of_a_space_keeps_groups_and_repeats():
    z = torch.cat([F.normalize(c + 0.05 * torch.randn(30, 8, generator=generator()), dim=1) for c in unit(2, 8)])
    places = interpret.embedding_map(z, perplexity=10.0)
    assert places.shape == (60, 2) and np.array_equal(places, interpret.embedding_map(z, perplexity=10.0))
    group = np.arange(60) < 30
    apart = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(60)
    assert (group[apart.argmin(1)] == group).mean() > 0.9


def test_the_effective_dimension_is_that_of_the_directions_with_equal_variance():
    z = torch.randn(20000, 7, generator=generator())
    assert interpret.effective_dimension(z) == pytest.approx(7, rel=0.02)
    assert interpret.effective_dimension(z * torch.tensor([1.0, *[1e-6] * 6])) == pytest.approx(1)


def test_a_gap_along_no_direction_of_variance_has_no_share_and_closing_it_leaves_none():
    noise = torch.randn(500, 4, generator=generator()) * torch.tensor([0.1, 0.1, 0.1, 0.0])
    images, texts = noise + torch.tensor([0, 0, 0, 1.0]), noise.flip(0) - torch.tensor([0, 0, 0, 1.0])
    assert interpret.gap_share(images, texts) < 1e-6
    shifted = images + torch.tensor([3.0, 0, 0, -2.0])
    assert interpret.gap_share(shifted, texts) == pytest.approx(1, abs=1e-3)
    a, b = interpret.closed_gap(*(F.normalize(side, dim=1) for side in (images, texts)))
    assert (a.mean(0) - b.mean(0)).norm() < 0.1  # of 2; the new length of each row leaves a little


def test_the_gap_table_is_that_of_a_loop():
    images, texts = unit(9, 4), unit(9, 4, seed=1)
    table = interpret.gap_table(images, texts)
    cosines = images @ texts.T
    assert table["paired_cosine"] == pytest.approx(cosines.diagonal().mean().item(), abs=1e-6)
    others = [cosines[i, j].item() for i in range(9) for j in range(9) if i != j]
    assert table["other_cosine"] == pytest.approx(np.mean(others), abs=1e-6)


def test_resampled_intervals_of_a_mean_have_the_width_of_the_normal_one():
    values = torch.randn(400, generator=generator(), dtype=torch.double)
    table = interpret.resampled(lambda i: {"mean": values[i].mean().item()}, 400, n_resamples=2000)
    width = (table.loc["mean", "high"] - table.loc["mean", "low"]) / 2
    assert width == pytest.approx(1.96 * values.std().item() / 20, rel=0.1)
    with pytest.raises(ValueError, match="20 items"):
        interpret.resampled(lambda i: {}, 10)


def test_a_probe_reads_a_factor_that_is_there_item_by_item():
    factor = torch.randint(2, (600,), generator=generator())
    z = F.normalize(torch.randn(600, 6, generator=generator(1)) + 4 * factor[:, None] * torch.eye(6)[0], dim=1)
    other = torch.randint(2, (600,), generator=generator(2))
    found = interpret.factor_information(z, {"there": factor, "not there": other})
    assert found["there"][0].shape == (300,)
    assert found["there"][0].mean() > 0.7 and abs(found["not there"][0].mean()) < 0.1


def test_varied_glyphs_vary_in_every_factor_and_show_seen_characters_in_unseen_faces():
    pairs = interpret.varied_glyphs(300)
    assert len(pairs) == 300 and set(pairs.factors["typeface"]) == {"serif", "stix"}
    codes = interpret.factor_codes(pairs.factors)
    assert list(codes) == ["category", "typeface", "weight", "slant", "size", "x", "y", "polarity"]
    assert all(len(code) == 300 for code in codes.values())
    with pytest.raises(ValueError, match="give a number from 1"):
        interpret.varied_glyphs(0)


def test_marked_letters_differ_from_plain_ones_in_the_mark_alone():
    letters = interpret.marked_letters()
    assert len(letters.plain) > 300
    i = letters.marked.captions.index(["latin small letter a with acute"])
    assert letters.plain[i] == "latin small letter a"
    rows = letters.mark[i].any(1).nonzero().flatten()
    assert 4 <= letters.mark[i].sum() < 40 and rows.max() < 16  # above the letter
    dark = torch.tensor(np.array(letters.marked.image(i).convert("L"))) < 128
    assert dark[letters.mark[i]].float().mean() > 0.5
