"""Photos and glyphs with a shortcut: draws, measures, theorem 3's prediction, runs and claims."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import noise_pairs

from cibr.losses.vmf import vmf_mean_cosine
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


def test_a_draw_of_some_pairs_has_their_own_features():
    views = many_views("train")
    some, other = (
        shortcuts._training_pairs(views, Shortcut("dog"), seed, 50, False) for seed in (3, 4)
    )
    numbers = [int(own[0].split()[2]) for own in some.pairs.captions]
    assert len({*numbers}) == 50 and some.images[:, 0].floor().tolist() == numbers
    assert some.texts[0][:, 0].floor().tolist() == [2 * i + c for i in numbers for c in (0, 1)]
    assert other.pairs.keys != some.pairs.keys


def test_groups_of_many_styles_do_not_mix():
    factors = pd.DataFrame({"word": np.arange(16) < 8, "style": np.arange(16) % 8})
    scores = torch.tensor([1.0] * 8 + [0.0, 0.0, 1.0, 1.0] + [0.0] * 4)  # two groups are wrong
    pairs = replace(noise_pairs(16), factors=factors)
    assert shortcuts.word_measures(scores, 0.5, pairs)["worst_group"] == 0


def test_the_threshold_is_midway_between_two_scores_and_the_lowest_of_equals():
    for word, expected in (([False, False, True, True], 1.5), ([False, True, False, True], 0.5)):
        pairs = replace(noise_pairs(4), factors=pd.DataFrame({"word": word}))
        assert shortcuts.best_threshold(torch.arange(4.0), pairs) == expected


def test_the_word_is_measured_as_by_counting():
    generator = torch.Generator().manual_seed(0)
    word, style = (torch.rand(60, generator=generator) < share for share in (0.4, 0.5))
    scores = (torch.randn(60, generator=generator) + word).mul(4).round() / 4  # with ties
    factors = pd.DataFrame({"word": word.numpy(), "style": style.numpy()})
    pairs = replace(noise_pairs(60), factors=factors)
    won = [(a > b) + (a == b) / 2 for a in scores[word].tolist() for b in scores[~word].tolist()]
    right = [(s > 0.3) == w for s, w in zip(scores.tolist(), word.tolist(), strict=True)]
    group = list(zip(word.tolist(), style.tolist(), strict=True))
    by_group = [[r for r, g in zip(right, group, strict=True) if g == one] for one in {*group}]
    expected = {"auc": np.mean(won), "accuracy": np.mean(right)}
    expected["worst_group"] = min(map(np.mean, by_group))
    assert shortcuts.word_measures(scores, 0.3, pairs) == pytest.approx(expected)
    scores = scores + torch.arange(60) / 1000
    accuracy = lambda c: ((scores > c) == word).double().mean().item()  # noqa: E731
    best = max(accuracy(c) for c in [-9.0, *(scores + 1e-4).tolist()])
    assert accuracy(shortcuts.best_threshold(scores, pairs)) == best > accuracy(-9.0)


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


@pytest.fixture
def small_run(build, tmp_path, monkeypatch):
    """Does a short run on noise images over small frozen towers; returns its trainer, too."""
    trainers, train = [None], shortcuts.ShortcutTrainer.train
    splits = [noise_pairs(n, split=s) for s, n in dict(train=28, validation=14, test=21).items()]
    patch = monkeypatch.setattr
    patch(shortcuts.ShortcutTrainer, "train", lambda self: trainers.append(self) or train(self))
    patch("cibr.models.features.cache_folder", lambda: tmp_path)
    patch(shortcuts, "build_model", lambda config, train: build("frozen"))
    patch(shortcuts, "load_splits", lambda config: splits)
    patch(shortcuts, "_features", shortcuts._features.__wrapped__)  # without the cache
    usual = {"model": "frozen", "epochs": 1, "batch_size": 10, "pairs": 20, "seed": 1, "beta": 0}
    usual |= {"shortcut": {"word": "dog", "style": "tint", "strength": 0.8}, "temperature": 0.1}
    return lambda **own: (shortcuts.train_and_measure(usual | own, ""), trainers[-1])


def test_a_run_has_its_measures_and_a_dose_is_a_beta(small_run):
    named = {"word": "dog", "style": "blur", "named": 0.5}
    names = ("recall", "text_to_image_recall@1", "auc", "accuracy", "worst_group")
    expected = {f"{shift}/{name}" for shift in shortcuts.SHIFTS for name in names}
    for settings in ({}, {"penalty": "mine", "dose": 0.1, "shortcut": named}):
        found, _ = small_run(**settings)
        assert all(0 <= found[name] <= 1 for name in expected) and found["steps"] == 2
    last = small_run(kappa_e=64.0, dose=0.3)[1]
    assert last.config.beta * 10 * float(vmf_mean_cosine(64.0, 16)) * 0.1 == pytest.approx(0.3)
    predicted, trainer = small_run(predict=[0.1])
    assert {*predicted} == {f"{s}/value@{dose}" for s in shortcuts.SHIFTS for dose in (0, 0.1)}
    assert trainer is last  # no training


def test_remedies_see_both_styles_and_all_groups_alike(small_run):
    both = small_run(both_styles=True)[1].inputs
    assert both.pairs.captions[:20] == both.pairs.captions[20:] and len(both.images) == 40
    assert not torch.isclose(both.images[:20], both.images[20:]).all(1).any()
    balanced = small_run(balanced=True)[1]
    rows = torch.cat([balanced.epoch_rows(epoch)[0] for epoch in range(200)])
    shares = torch.bincount(shortcuts._groups(balanced.train_dataset)[rows]) / len(rows)
    assert len(rows) == 4000 and (shares[shares > 0] - 1 / (shares > 0).sum()).abs().max() < 0.04
    heads = small_run(cca_start=True, cca_dim=3, learning_rate=1e-9)[1].model
    for head in (heads.image_head, heads.text_head):
        assert (head.linear.weight.norm(dim=1) > 1e-6).tolist() == [True] * 3 + [False] * 13


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


def test_the_threshold_is_of_validation(small_run, monkeypatch):
    splits, best = [], shortcuts.best_threshold

    def spy(scores, pairs):
        splits.append(pairs.split)
        return best(scores, pairs)

    monkeypatch.setattr(shortcuts, "best_threshold", spy)
    small_run()
    assert splits == ["validation"]
