"""Photos and glyphs with a shortcut: draws, measures, theorem 3's prediction, runs and claims."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import noise_pairs

from cibr.models.features import Inputs
from cibr_book.experiments import corruptions, shortcuts
from cibr_book.experiments.shortcuts import Shortcut, Views, draw

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


def unrelated(n, d, seed, shared=0.0):
    """Pairs of features with a correlation in the first of d directions."""
    x, y = torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed))
    y[:, :1] += shared * x[:, :1]
    return Inputs(noise_pairs(n), x, (y,), torch.arange(n), list)


def test_errors_of_weak_directions_do_not_add_up():
    train, held = unrelated(400, 40, 0), unrelated(400, 40, 1)
    value = shortcuts.predicted_values(train, {"kept": held}, [])["kept/value@0"]
    assert value < 0.01  # of squares of 40 correlations, it would be about 0.05


def test_ridges_are_those_of_the_highest_value_in_distribution(monkeypatch):
    train, held, each = unrelated(60, 20, 0, 1.0), unrelated(2000, 20, 1, 1.0), []
    for ridges in [*((one,) for one in shortcuts.RIDGES), shortcuts.RIDGES]:
        monkeypatch.setattr(shortcuts, "RIDGES", ridges)
        each.append(shortcuts.predicted_values(train, {"kept": held}, [])["kept/value@0"])
    assert each.pop() == max(each) > min(each)


def test_sheets_show_what_their_captions_name(monkeypatch):
    """All characters are named with a gap, and ever fewer of the later ones without one."""
    names, is_named = {}, {}
    for least in (1.0, 0.2):
        train, validation, test = shortcuts.glyph_sheets(1.0, least)
        assert (len(train), len(validation), len(test), train.split) == (2000, 1000, 1000, "train")
        words = [re.fullmatch(r"(\w+), (\w+), (\w+) and (\w+)", text) for text in train.texts()]
        names[least] = np.array([match.groups() for match in words])
        assert len({*names[least].ravel()}) == 20 and train.image(0).size == (64, 64)
    assert all(len({*four}) == 4 for four in names[1.0])
    for name in np.unique(names[1.0]):
        is_named[name] = (names[0.2] == names[1.0])[names[1.0] == name].mean()
    shares = np.sort([*is_named.values()])
    assert shares[-1] == 1 and shares[0] == pytest.approx(0.2, abs=0.1)
    assert shares == pytest.approx(np.linspace(0.24, 1, 20), abs=0.08)
    again = shortcuts.glyph_sheets(1.0, 0.2)[0]
    assert again.texts() == [f"{a}, {b}, {c} and {d}" for a, b, c, d in names[0.2]]
    assert test.keys != train.keys and validation.image(0).tobytes() != test.image(0).tobytes()


def test_sheets_of_many_papers_lose_and_reverse_their_names(build):
    sheets = shortcuts.glyph_sheets(1.0, 1.0)[2].subset(range(400))
    views = shortcuts.prepare_views(build("tiny"), sheets, "paper", with_names=True)
    papers = Shortcut("zeta", "paper", named=0.5)
    colours = list(corruptions.PAPERS)
    for shift, expected in (("kept", 0), ("removed", None), ("reversed", 4)):
        inputs = draw(views, papers, 1, shift)
        look = inputs.pairs.factors["style"].to_numpy()
        assert torch.equal(inputs.images[5], views.images[look[5], 5]) and len({*look}) == 8
        said = [re.search(r", on (\w+) paper$", text) for text in inputs.pairs.texts()]
        found = [(colours.index(m[1]) - look[i]) % 8 for i, m in enumerate(said) if m]
        assert len(found) / 400 == pytest.approx(0.5, abs=0.1)
        assert {*found} == ({*range(8)} if expected is None else {expected})
        version = [1 + colours.index(m[1]) if m else 0 for m in said]
        for part, own in zip(views.texts, inputs.texts, strict=True):
            assert torch.equal(own, part[version, torch.arange(400)])


def made_up_rows():
    """Scores of a world in which every claim but two of Ha holds."""
    generator = np.random.default_rng(0)
    rows = []

    def add(condition, method, effects, **settings):
        for seed in range(8):
            kept, removed, turned = np.array(effects) / 100 + 1e-4 * generator.standard_normal(3)
            scores = {"kept/recall": 0.5 + kept, "removed/recall": 0.4 + removed}
            row = {"condition": condition, "method": method, "seed": seed} | scores
            row |= {"reversed/recall": 0.3 + turned, "configuration": json.dumps(settings)}
            if method == "prediction":
                row = {k: v for k, v in row.items() if "recall" not in k}
                sides = zip(shortcuts.SHIFTS, effects, strict=True)
                row |= {f"{s}/value@0": 1.0 for s in shortcuts.SHIFTS}
                row |= {f"{s}/value@0.3": float(np.exp(effect)) for s, effect in sides}
            rows.append(row)

    for pair in ("water, tint", "child, blur"):
        for end, loss in (("0.5", 0.0), ("1", -1.0)):
            for dose in (0.1, 0.3):
                effects = 0, 0.5 if pair[0] == "c" else loss, loss
                add(f"{pair}, {end}", "CIBR vMF", effects, dose=dose)
        for condition in (f"{pair}, 0.5", f"{pair}, 1", f"{pair} named, 1"):
            add(condition, "CLIP", (0, 0, 0))
            add(condition, "closed-form CCA", (-1, 2, 3), cca_dim=384)
        add(f"{pair}, 1", "prediction", (0, -1, -1))
    for towers in ("heads", "from scratch"):
        add(f"sheets with a gap, {towers}, 0.3", "CLIP", (0, 0, 0))
        for dose in (0.1, 0.3):
            add(f"sheets with a gap, {towers}, 0.3", "CIBR vMF", (0, 1, 1), dose=dose)
    add("sheets with a gap, heads, 0.3", "prediction", (0, 1, 1))
    return pd.DataFrame(rows)


def test_claims_hold_are_undecided_or_contradicted():
    rows = made_up_rows()
    tests = shortcuts.hypothesis_tests(rows).set_index("claim")
    assert len(tests) == 11 and (tests["hypothesis"].value_counts() == [4, 4, 2, 1]).all()
    outcomes = tests["outcome"]
    lost, equal = (f"child, blur: {claim}" for claim in ("a loss at 1", "worse at 1 than at 0.5"))
    assert (outcomes[lost], outcomes[equal]) == ("contradicted", "undecided")
    assert (outcomes.drop([lost, equal]) == "holds").all()
    assert tests["holm"].min() == pytest.approx(11 / 256)
    assert tests.loc["better where predicted", "difference"] == pytest.approx(1.625, abs=0.02)
    assert tests.loc["water, tint, 1: CCA loses less", "difference"] == pytest.approx(3, abs=0.02)
    recalls = [f"{shift}/recall" for shift in shortcuts.SHIFTS]
    diverged = rows.copy()
    diverged.loc[0, recalls] = np.nan
    lost = shortcuts.against_clip(diverged)
    assert (lost["value"] == 0).sum() == 3 and len(lost) == len(shortcuts.against_clip(rows))
    effects = shortcuts.effects(rows, 0.3).set_index(["condition", "shift"])
    cells = shortcuts.interactions(rows, 0.3).set_index(["condition", "shift"])
    assert effects.loc[("child, blur, 1", "removed"), "predicted"] == pytest.approx(-1)
    assert effects.loc[("child, blur, 1", "removed"), "measured"] == pytest.approx(0.5, abs=0.02)
    assert cells.loc[("water, tint, 1", "reversed"), "measured"] == pytest.approx(-1, abs=0.02)
    assert cells.loc[("water, tint, 1", "reversed"), "predicted"] == pytest.approx(-1)


def test_beyond_the_temperature_a_weaker_colour_is_a_gain_and_a_stronger_one_a_loss():
    generator = np.random.default_rng(0)
    rows = []

    def add(condition, sheets, named, penalty, hotter):
        of_dose = "CLIP, 1.3 times the temperature"
        for method, dose, points in (
            ("CLIP", 0, 0),
            ("CIBR vMF", 0.3, penalty),
            (of_dose, 0, hotter),
        ):
            settings = {"sheets": sheets, "shortcut": {"named": named}}
            settings |= {"dose": dose} if dose else {}
            for seed in range(8):
                kept, removed = np.array([2, points]) / 100 + 1e-5 * generator.standard_normal(2)
                row = {"condition": condition, "method": method, "seed": seed}
                row |= {"kept/recall": 0.5 + kept * bool(dose), "removed/recall": 0.4 + removed}
                rows.append(row | {"reversed/recall": 0.1, "configuration": json.dumps(settings)})

    add("weaker", [0.8, 0.8], 0.5, 1, 0.5)
    add("stronger than the last letter", [1, 0.6], 0.5, 1, 2)
    add("weaker, but behind", [1, 0.6], 0.3, 0, 1)
    found = shortcuts.beyond_temperature(pd.DataFrame(rows), 0.3)
    assert found["difference"].tolist() == pytest.approx([0.5, -1, -1], abs=0.01)
    assert (found["low"] < found["difference"]).all() and (
        found["difference"] < found["high"]
    ).all()
    assert found["claim"].tolist() == ["gain", "loss", "gain"]
    assert found["outcome"].tolist() == ["holds", "holds", "contradicted"]
    assert found["holm"].tolist() == pytest.approx([3 / 256, 3 / 256, 1])
    assert found["penalty"].tolist() == pytest.approx([1, 1, 0], abs=0.01)
    assert found["hotter"].tolist() == pytest.approx([0.5, 2, 1], abs=0.01)
    assert found["kept"].tolist() == pytest.approx([2] * 3, abs=0.01)
