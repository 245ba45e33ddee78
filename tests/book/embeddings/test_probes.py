"""Probes find what is there, nothing in noise, and code the factors of glyphs."""

import torch
import torch.nn.functional as F

from cibr_book.embeddings import probes, stimuli


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_leakage_reads_what_is_there_by_the_probe_that_can_and_nothing_elsewhere():
    factor, other = torch.randint(2, (2, 1200), generator=generator())
    noise = torch.randn(1200, 6, generator=generator(1))
    line = noise + 4 * factor[:, None] * torch.eye(6)[0]
    ring = F.normalize(noise[:, :2], dim=1) * (1 + 2 * factor[:, None])
    parts = torch.arange(1200) % 3
    factors = {"there": factor, "not there": other}
    for z in (line, torch.cat([ring, noise[:, 2:]], 1)):  # one is for the network alone
        found = probes.leakage_items(z, factors, parts)
        assert found["there"].shape == (400,)
        assert found["there"].mean() > 0.4 and abs(found["not there"].mean()) < 0.03


def test_leakage_is_chosen_on_the_tuning_items_and_measured_on_the_others():
    factor = torch.randint(2, (1200,), generator=generator())
    noise = torch.randn(1200, 6, generator=generator(1))
    parts = torch.arange(1200) % 3
    telling = noise + 8 * factor[:, None] * torch.eye(6)[0]
    read = {}
    for part in (0, 1, 2):
        z = torch.where((parts == part)[:, None], noise, telling)  # one part tells nothing
        read[part] = probes.leakage_items(z, {"v": factor}, parts)["v"].mean()
    assert read[2] < 0 < 0.1 < min(read[0], read[1])


def test_codes_hold_every_factor_of_glyphs_in_few_levels():
    factors = stimuli.varied_glyphs(300).factors
    codes = probes.factor_codes(factors)
    assert list(codes) == ["category", "typeface", "weight", "slant", "size", "x", "y", "polarity"]
    assert {name: int(codes[name].max()) for name in ("size", "x", "y", "polarity")} == {
        "size": 2, "x": 2, "y": 2, "polarity": 1,
    }  # fmt: skip
    assert "size" not in probes.factor_codes(factors.assign(size=24))  # it does not vary
