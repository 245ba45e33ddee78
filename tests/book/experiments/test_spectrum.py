"""Heads predicted from a spectrum, and trained, on Gaussian features of known correlations."""

import itertools
import json

import pandas as pd
import pytest
import torch

from cibr.data import Pairs
from cibr.models import DualEncoder
from cibr.models.inputs import Inputs
from cibr_book.experiments import recipes, spectrum, training
from cibr_book.experiments.corruptions import Corruption
from cibr_book.worlds.threshold import fixed_length_gains, loss_gains

RHO = torch.tensor([0.9, 0.7, 0.5, 0.3])
N = {"train": 12_000, "validation": 300, "flickr8k": 300, "coco": 300}
RUN = {"photos": 12_000, "seed": 5, "ridges": [0.1, 0.2], "temperature": 0.4, "dose": 0.3}


def gaussian_inputs(n, seed):
    """Features of 10 and 8 dimensions, of unequal variance, that share four factors."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 10, generator=generator), torch.randn(n, 8, generator=generator)
    y[:, :4] = RHO * x[:, :4] + (1 - RHO**2).sqrt() * y[:, :4]
    captions, keys = [[f"caption {i}"] for i in range(n)], [str(i) for i in range(n)]
    pairs = Pairs("gaussian", "train", captions, keys, lambda i: None)
    images, texts = x * torch.linspace(1, 3, 10) + 1, y * torch.linspace(3, 1, 8) - 2
    return Inputs(pairs, images, (texts,), torch.arange(n), lambda images: None)


@pytest.fixture(autouse=True)
def features(monkeypatch):
    """The features of all photos, and a number of directions below theirs."""
    inputs = {name: gaussian_inputs(n, seed) for seed, (name, n) in enumerate(N.items())}
    monkeypatch.setattr(recipes, "features", lambda: (None, inputs))
    monkeypatch.setattr(spectrum, "DIM", 6)
    monkeypatch.setattr(spectrum, "_RATE", 0.01)  # of few and wide features
    for cached in (spectrum._drawn, spectrum._study_heads):
        cached.cache_clear()
    yield inputs
    for cached in (spectrum._drawn, spectrum._study_heads):
        cached.cache_clear()


def test_heads_have_the_gains_that_they_are_made_of_and_find_what_is_shared(features):
    of = spectrum.Spectrum(features["train"], (1e-6, 1e-6))
    torch.testing.assert_close(of.rho[:4].float(), RHO, atol=0.05, rtol=0)
    gains = fixed_length_gains(of.rho, 0.5)
    torch.testing.assert_close(of.gains(of.heads(gains)), gains.diag(), atol=1e-4, rtol=0)
    test = features["flickr8k"]
    recalls = spectrum.direction_recalls(of.embeddings(of.heads(gains), test), test)
    assert recalls["text_to_image_mean"] > 0.08  # 0.018 by chance
    ways = [recalls[f"text_to_image_recall@{k}"] for k in (1, 5, 10)]
    assert recalls["text_to_image_mean"] == pytest.approx(sum(ways) / 3)


def test_predicted_recalls_are_those_of_the_gains_of_the_loss(features):
    point = RUN["temperature"], (0.0, RUN["dose"]), 250
    parts = features["train"], features["flickr8k"]
    found = spectrum.predicted_recalls(*parts, tuple(RUN["ridges"]), *point)[RUN["dose"]]
    run = spectrum.train_and_measure(RUN | {"gains": "loss", "batch_size": 250}, "")
    for name, value in found.items():
        assert value == pytest.approx(run[f"flickr8k/{name}"], abs=0.02)  # photos in another order


def test_trained_linear_heads_have_the_gains_that_the_loss_predicts():
    options = {"batch_size": 250, "steps": 800}
    found = {
        gains: spectrum.train_and_measure(RUN | options | {"gains": gains}, "")
        for gains in ("trained", "loss", "limit")
    }
    assert found["loss"]["diagonal"] == pytest.approx(1) and found["trained"]["diagonal"] > 0.97
    trained, predicted = found["trained"], found["loss"]
    assert trained["gain@2"] == pytest.approx(predicted["gain@2"], abs=0.06)
    for name in ("validation_text_to_image_mean", "flickr8k/image_to_text_mean"):
        assert trained[name] == pytest.approx(predicted[name], abs=0.02)
    _, of = spectrum._drawn(Corruption(redraw=True), 5, (0.1, 0.2))
    gains = loss_gains(of.rho, 0.4, 0.3, 250, 5)
    assert predicted["gain@2"] == pytest.approx(float(gains[1] / gains[0]), abs=1e-4)


def test_gains_are_a_power_of_the_correlations_and_scores_of_heads_are_summed(monkeypatch):
    run = RUN | {"gains": "power", "power": 2}
    found = spectrum.train_and_measure(run, "")
    _, of = spectrum._drawn(Corruption(redraw=True), 5, (0.1, 0.2))
    assert found["gain@4"] == pytest.approx(float((of.rho[3] / of.rho[0]) ** 2), abs=1e-6)
    asked = []
    heads = DualEncoder.tiny(["caption"])  # stand in for those of photos
    monkeypatch.setattr(training, "trained_heads", lambda *of: asked.append(of[2:]) or heads)
    own = of.heads(of.rho**2)
    monkeypatch.setattr(spectrum, "embed_pairs", lambda _, pairs: of.embeddings(own, pairs))
    for _ in range(2):
        summed = spectrum.train_and_measure(run | {"heads": {"epochs": 3}}, "")
    assert summed == pytest.approx(found)  # twice the same scores
    assert asked == [({"epochs": 3}, 5)]  # trained once
    whole = torch.ones(300, 4) / 2
    monkeypatch.setattr(spectrum, "embed_pairs", lambda *_: [whole, whole])
    assert spectrum.train_and_measure(run | {"heads": {}}, "") == pytest.approx(found)
    alone = {"photos": 12_000, "seed": 5, "heads": {}}
    assert spectrum.train_and_measure(alone, "")["flickr8k/text_to_image_mean"] == 0  # all tie


def test_the_photo_curve_pairs_predictions_with_what_was_trained_and_judges_them():
    rows = []
    for method, beta, seed in itertools.product(["limit", "loss", "trained"], [0, 0.2, 3], [1, 2]):
        run = {"photos": 600, "temperature": 0.05, "dose": beta, "seed": seed}
        run |= {} if method == "limit" else {"batch_size": 128}
        search = 0.3 - {"limit": 0.02, "loss": 0.03, "trained": 0.04}[method] * beta + seed / 100
        found = {"flickr8k/text_to_image_mean": search, "flickr8k/image_to_text_mean": 0.2}
        rows.append({"method": method, "configuration": json.dumps(run), **found})
    others = [{"method": "CCA", "configuration": "{}"}, rows[-1] | {"method": "heads at 0"}]
    draws = spectrum.curve(pd.DataFrame(rows + others))
    assert len(draws) == 3 * 2 * 2
    of = draws.set_index(["measure", "beta", "seed"]).loc[("search", 3.0, 2)]
    assert of[["limit", "loss", "trained"]].tolist() == pytest.approx([26, 23, 20])
    claims = spectrum.curve_claims(draws)
    assert claims["error"].tolist() == pytest.approx([0.05, 0.8, 0.1])
    assert claims["below"].tolist() == pytest.approx([1, 1.6, 0.5])
    assert claims["outcome"].eq("holds").all()
    worse = spectrum.curve_claims(draws.assign(loss=draws["limit"] + draws["beta"]))
    assert worse["outcome"].tolist() == ["holds", "contradicted", "holds"]


def test_a_method_takes_anothers_place_only_if_it_is_higher_for_every_number_of_photos():
    recalls = {"power": (30, 40), "threshold": (31, 39), "linear": (32, 41)}
    recalls |= {
        "heads + power": (30, 40),
        "heads + threshold": (31, 41),
        "heads + linear": (30, 42),
    }
    rows = [
        {"method": method, "condition": condition, "seed": seed}
        | {
            f"validation_{way}_mean": (recall + off) / 100
            for way, off in zip(spectrum.WAYS, (1, -1), strict=True)
        }
        for method, both in recalls.items()
        for condition, recall in zip(("few", "many"), both, strict=True)
        for seed in (1, 2)
    ]
    table = spectrum.gains_rule(pd.DataFrame(rows))
    assert table["few"].tolist() == pytest.approx([1, 1, 1, -1])
    assert table["many"].tolist() == pytest.approx([-1, 1, 1, 1])
    assert table["everywhere"].tolist() == [False, True, True, False]
