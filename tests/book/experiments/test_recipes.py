"""Recipes on draws of photos: features that are picked, single captions, claims and advice."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from helpers import noise_pairs

from cibr.models.features import prepare
from cibr_book.experiments import recipes
from cibr_book.experiments.corruptions import Corruption, corrupt

ROOT = Path(__file__).parents[3]


@pytest.fixture
def features(build, monkeypatch, tmp_path):
    """Small towers and their features in place of those of photos."""
    monkeypatch.setattr("cibr.models.features.cache_folder", lambda: tmp_path / "cache")
    base, whole = build("frozen"), noise_pairs(60, n_captions=2)
    texts = [
        [f"{text} {i} {c}" for c, text in enumerate(of)] for i, of in enumerate(whole.captions)
    ]
    whole = replace(whole, captions=texts)
    parts = {"train": whole, **{name: whole.subset(range(20)) for name in recipes.SETS}}
    parts |= {"validation": whole.subset(range(20, 50))}
    found = base, {name: prepare(base, pairs) for name, pairs in parts.items()}
    return found


def test_picked_features_are_those_of_the_photos_and_captions(features):
    base, parts = features
    pairs = corrupt(parts["train"].pairs, Corruption(0.5, 0.6, redraw=True), 3)
    picked, anew = recipes.picked(parts["train"], pairs), prepare(base, pairs)
    torch.testing.assert_close(picked.images, anew.images)
    torch.testing.assert_close(picked.texts, anew.texts)
    assert torch.equal(picked.labels, anew.labels)


def test_one_caption_is_one_of_a_photo_s_own_and_changes_with_the_seed():
    pairs = noise_pairs(60, n_captions=2)
    first, second = (recipes.one_caption_each(pairs, seed).captions for seed in (0, 1))
    assert all(len(of) == 1 and of[0] in own for of, own in zip(first, pairs.captions, strict=True))
    assert first != second and first == recipes.one_caption_each(pairs, 0).captions


def made_up_rows(gain):
    """Rows with recalls of 0.5 for CLIP, and `gain(condition, method, test, score, seed)` more."""
    rows = []
    plan = yaml.safe_load((ROOT / "experiments" / "recipes.yaml").read_text())
    for condition, part in plan["conditions"].items():
        for method in part["methods"]:
            for seed in range(600, 608):
                row = {"condition": condition, "method": method["method"], "seed": seed}
                for test in recipes.SETS:
                    for score in ("text_to_image_mean", "image_to_text_mean"):
                        own = (condition, row["method"], test, score, seed)
                        row[f"{test}/{score}"] = 0.5 + 0.001 * seed + gain(*own)
                rows.append(row)
    rows.append({"condition": "150 photos", "method": "CLIP", "seed": 0})  # a trial
    return pd.DataFrame(rows)


def test_claims_and_advice_follow_from_the_rows():
    def gain(condition, method, test, score, seed):
        if test == "coco":
            return 0.02 if method == "CCA-start" else 0.0
        if method == "self-training":
            return 0.05
        if condition == "6,000 photos":
            return {"CCA": -0.03, "CLIP+CLIP": 0.01, "CLIP+CCA": 0.001 * (seed % 2)}.get(
                method, 0.0
            )
        noise = 0.001 * (seed % 3 - 1)
        if score == "image_to_text_mean":
            return {"CCA-anchor": 0.0003 + noise}.get(method, 0.0)
        return {"CCA-start": 0.01, "CCA-anchor": 0.01 + noise, "CLIP+CCA": 0.0103}.get(method, 0.0)

    rows = made_up_rows(gain)
    claims = recipes.claim_tests(rows).set_index("claim")
    assert len(claims) == 12
    holds = claims.index[claims["outcome"] == "holds"]
    assert {*claims.index} - {*holds} == {
        "CCA gains, 150",
        "CLIP+CCA gains, 6,000",
    }
    above = claims.loc["CLIP+CCA is above CLIP+CLIP, 600", "difference"]
    assert above == pytest.approx(1.03)
    assert claims.loc["self-training gains, 600", "difference"] == pytest.approx(5)
    assert claims.loc["CCA loses, 6,000", "difference"] == pytest.approx(3)
    found = recipes.advice(rows).set_index(["condition", "score"])
    assert found.loc[("6,000 photos", "text_to_image_mean"), "advice"] == "CLIP+CLIP"
    assert found.loc[("300 photos", "image_to_text_mean"), "advice"] == "CCA"
    few = found.loc[("300 photos", "text_to_image_mean")]
    assert few["advice"] == "CCA-anchor" and few["difference"] == pytest.approx(1, abs=0.1)
    assert found.loc[("6,000 photos", "text_to_image_mean"), "coco"] == pytest.approx(0)


def test_a_comparison_saves_the_highest_of_its_held_out_photos_or_the_simplest():
    names, search = ["CCA", "CLIP", "CLIP+CCA"], "text_to_image_mean"
    rows = [
        {"photos": n, "seed": seed, "recipe": name, f"held_out/{search}": held[i], "simplest": wins}
        for n, seed, held, winner in ((600, 0, (2, 1, 2), "CCA"), (3000, 1, (1, 2, 3), "CLIP"))
        for i, name in enumerate(names)
        for wins in [f"{search} mean" if name == winner else "mean" if name == "CCA" else None]
    ]
    found = recipes.with_saved(pd.DataFrame(rows)).set_index(["condition", "method"])["recipe"]
    assert len(found) == 6 + 4
    saved = {
        method: found.xs(method, level="method").tolist() for method in ("highest", "simplest")
    }
    assert saved == {"highest": ["CCA", "CLIP+CCA"], "simplest": ["CCA", "CLIP"]}
    assert {*found.index.get_level_values("condition")} == {"600 photos", "3,000 photos"}
