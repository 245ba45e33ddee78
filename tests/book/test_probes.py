"""Probes find what is there, nothing in noise, and code the factors of glyphs."""

import pytest
import torch
import torch.nn.functional as F

from cibr_book import probes, stimuli


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_probe_finds_a_known_factor_and_nothing_in_noise():
    factor = torch.randint(3, (1500,), generator=generator(8)) + 2
    noise = torch.randn(1500, 4, generator=generator(9))
    held_out = torch.arange(1500) % 2 == 0
    telling = noise + 20 * factor[:, None] * torch.eye(4)[0]
    result = probes.probe_nats(telling, factor, held_out)
    shares = factor[held_out].bincount()[2:] / 750
    assert result["entropy_nats"] == pytest.approx(-(shares * shares.log()).sum().item())
    assert result["nats"] == pytest.approx(result["entropy_nats"], rel=0.05)
    assert result["accuracy"] == 1
    assert probes.probe_nats(noise, factor, held_out)["nats"] < 0.01


def test_a_network_reads_rings_that_a_linear_probe_cannot():
    factor = torch.randint(3, (3000,), generator=generator(9))
    directions = F.normalize(torch.randn(3000, 2, generator=generator(10)), dim=1)
    rings, held_out = directions * (factor + 1)[:, None], torch.arange(3000) % 2 == 0
    assert probes.probe_nats(rings, factor, held_out)["nats"] < 0.01
    assert probes.probe_nats(rings, factor, held_out, 32)["nats"] > 0.5


def test_leakage_reads_a_factor_that_is_there_item_by_item():
    factor = torch.randint(2, (600,), generator=generator())
    noise = torch.randn(600, 6, generator=generator(1))
    z = F.normalize(noise + 4 * factor[:, None] * torch.eye(6)[0], dim=1)
    other = torch.randint(2, (600,), generator=generator(2))
    found = probes.leakage_items(z, {"there": factor, "not there": other})
    assert found["there"].shape == (300,)
    assert found["there"].mean() > 0.7 and abs(found["not there"].mean()) < 0.1


def test_codes_hold_every_factor_of_glyphs_in_few_levels():
    factors = stimuli.varied_glyphs(300).factors
    codes = probes.factor_codes(factors)
    assert list(codes) == ["category", "typeface", "weight", "slant", "size", "x", "y", "polarity"]
    assert {name: int(codes[name].max()) for name in ("size", "x", "y", "polarity")} == {
        "size": 2, "x": 2, "y": 2, "polarity": 1,
    }  # fmt: skip
    assert "size" not in probes.factor_codes(factors.assign(size=24))  # it does not vary
