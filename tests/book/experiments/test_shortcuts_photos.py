"""Photos and glyphs with a shortcut: draws, measures, theorem 3's prediction, runs and claims."""

import re
from dataclasses import replace

import pytest
import torch
from helpers import noise_pairs

from cibr.models.features import Inputs
from cibr_book.experiments import shortcuts
from cibr_book.experiments.shortcuts import Shortcut, Views, draw
from cibr_book.experiments.tables import read_table

N = 4000
IS_DOG = torch.arange(N) < N // 4
OWNER = torch.arange(2 * N) // 2


def many_views(split="test"):
    """Views of pairs of which a quarter shows a dog; a feature is a photo's or caption's number
    plus 0.25 for the plain name of a caption and 0.5 for the style or its name.
    """
    captions = [[f"a {'dog' if IS_DOG[i] else 'cat'} {i} {c}" for c in "ab"] for i in range(N)]
    pairs = replace(noise_pairs(N, split=split), captions=captions)
    images = torch.arange(N)[:, None] + torch.tensor([0, 0.5])[:, None, None]
    texts = torch.arange(2 * N)[:, None] + torch.tensor([0, 0.25, 0.5])[:, None, None]
    versions = [[text + name for text in pairs.texts()] for name in ("", ", plain", ", style")]
    return Views(Inputs(pairs, images[0], (texts[0],), OWNER, list), images, versions, (texts,))


def drawn(shortcut, seed, shift="kept", split="test"):
    """The style of every photo, and the name of every caption: 0, 0.25 or 0.5."""
    inputs = draw(many_views(split), shortcut, seed, shift)
    styled, names = inputs.images[:, 0] % 1 == 0.5, inputs.texts[0][:, 0] % 1
    assert torch.equal(inputs.images[:, 0].floor(), torch.arange(N).float())
    ends = [{"e": 0.5, "n": 0.25}.get(text[-1], 0.0) for text in inputs.pairs.texts()]
    assert ends == names.tolist()
    assert inputs.pairs.factors.to_numpy().T.tolist() == [IS_DOG.tolist(), styled.tolist()]
    return styled, names


@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
def test_ties_have_their_probability_and_shifts_share_their_draws(strength):
    tied = Shortcut("dog", strength=strength)
    found = [drawn(tied, 3, shift)[0] for shift in shortcuts.SHIFTS]
    for styled, chance in zip(found, (strength, 0.5, 1 - strength), strict=True):
        for group, expected in ((~IS_DOG, chance), (IS_DOG, 1 - chance)):
            allowed = 4 * (chance * (1 - chance) / int(group.sum())) ** 0.5
            assert abs(styled[group].double().mean() - expected) <= allowed
    kept, removed, reverse = found
    assert (kept >= removed)[~IS_DOG].all() and (removed >= reverse)[~IS_DOG].all()
    assert (kept <= removed)[IS_DOG].all() and (removed <= reverse)[IS_DOG].all()
    others = drawn(tied, 4)[0], drawn(tied, 3, split="validation")[0]
    assert all((other == kept).double().mean() < 0.75 for other in others) or strength > 0.5


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_names_are_of_the_photo_of_either_style_or_of_the_other(share):
    for shift, agreement in (("kept", 1.0), ("removed", 0.5), ("reversed", 0.0)):
        styled, names = drawn(Shortcut("dog", named=share), 5, shift)
        named = names > 0
        assert torch.equal(named, drawn(Shortcut("dog", named=share), 5)[1] > 0)
        assert abs(named.double().mean() - share) <= 2 * (share * (1 - share) / N) ** 0.5
        agrees = ((names == 0.5) == styled[OWNER])[named].double().mean()
        assert abs(agrees - agreement) <= (0.05 if shift == "removed" else 0)
        assert abs((names == 0.5)[named].double().mean() - 0.5) <= 0.05


@pytest.mark.parametrize(("rho_s", "sign"), [(0.4, 1), (0.9, -1)])
def test_the_prediction_has_the_sign_of_theorem_3(rho_s, sign):
    """Eight core directions of correlation 0.7 and four shortcuts, weaker or stronger."""
    rho = torch.tensor([0.7] * 8 + [rho_s] * 4)
    core, whole = float(rho[:8].square().sum()), float(rho.square().sum())

    def gaussian(seed, kappa):
        generator = torch.Generator().manual_seed(seed)
        x, noise = torch.randn(2, 3000, 12, generator=generator)
        at_test = torch.cat([rho[:8], kappa * rho[8:]])
        y = at_test * x + (1 - at_test.square()).sqrt() * noise
        return Inputs(noise_pairs(3000), x, (y,), torch.arange(3000), list)

    validation = {shift: gaussian(1, kappa) for shift, kappa in shortcuts.SHIFTS.items()}
    values = shortcuts.predicted_values(gaussian(0, 1.0), validation, [0.1, 0.3])
    for shift in ("removed", "reversed"):
        none, small, large = (sign * values[f"{shift}/value@{dose}"] for dose in (0, 0.1, 0.3))
        assert none < small < large
    assert values["kept/value@0.3"] < values["kept/value@0"] == pytest.approx(whole / 2, rel=0.1)
    assert values["removed/value@0"] == pytest.approx(core**2 / (2 * whole), rel=0.1)


def test_sheets_show_what_their_captions_name():
    train, validation, test = shortcuts.glyph_sheets(1.0, 1.0)
    assert (len(train), len(validation), len(test), train.split) == (2000, 1000, 1000, "train")
    words = [re.fullmatch(r"(\w+), (\w+), (\w+) and (\w+)", text) for text in train.texts()]
    assert len({word for match in words for word in match.groups()}) == 20
    assert all(len({*match.groups()}) == 4 for match in words)
    assert test.keys != train.keys and validation.image(0).tobytes() != test.image(0).tobytes()


@pytest.fixture(scope="module")
def rows():
    return read_table("shortcuts.csv")


def test_claims_are_of_the_committed_rows(rows):
    planned = rows[rows["commit"] == "128a8061c07a"]
    tests = shortcuts.hypothesis_tests(planned).set_index("claim")
    outcomes = tests.groupby("hypothesis")["outcome"].value_counts().to_dict()
    holds = {("Hb", "holds"): 4, ("Hc", "holds"): 1, ("Hd", "holds"): 1, ("Hd", "undecided"): 1}
    assert outcomes == holds | {("Ha", "holds"): 2, ("Ha", "undecided"): 2}
    own = planned[planned["condition"] == "water, tint, 1"].set_index(["method", "seed"])
    lost = own["kept/recall"] - own["removed/recall"]
    less = (lost["CLIP"] - lost["closed-form CCA"]).groupby("seed").mean()
    sizes = own.loc["closed-form CCA", "configuration"].str.contains('"cca_dim": 384')
    if sizes.all():
        claim = tests.loc["water, tint, 1: CCA loses less", "difference"]
        assert claim == pytest.approx(100 * less.mean())


def test_beyond_the_temperature_a_weaker_colour_is_a_gain_and_a_stronger_one_a_loss(rows):
    fresh = rows[rows["condition"].str.startswith("fresh")]
    found = shortcuts.beyond_temperature(fresh, 0.3)
    assert found["claim"].tolist() == ["gain"] * 3 + ["loss"] * 3
    assert found["outcome"].tolist() == ["holds"] * 5 + ["undecided"]
    one = fresh[fresh["condition"] == found["condition"][0]]
    one = one[~one["configuration"].str.contains('"dose": 1,')]
    means = 100 * one.groupby("method")["removed/recall"].mean()
    lead = means["CIBR vMF"] - means["CLIP, 1.3 times the temperature"]
    assert found["difference"][0] == pytest.approx(lead)
