"""Recipes on draws of photos: features that are picked, single captions, claims and advice."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers import noise_pairs

from cibr.models.inputs import prepare
from cibr_book.experiments import recipes
from cibr_book.experiments.corruptions import Corruption, corrupt
from cibr_book.experiments.tables import read_table


def test_picked_features_are_those_of_the_photos_and_captions(build):
    base, whole = build("frozen"), noise_pairs(60, n_captions=2)
    texts = [
        [f"{text} {i} {c}" for c, text in enumerate(of)] for i, of in enumerate(whole.captions)
    ]
    inputs = prepare(base, replace(whole, captions=texts))
    pairs = corrupt(inputs.pairs, Corruption(0.5, 0.6, redraw=True), 3)
    picked, anew = recipes.picked(inputs, pairs), prepare(base, pairs)
    torch.testing.assert_close(picked.images, anew.images)
    torch.testing.assert_close(picked.texts, anew.texts)
    assert torch.equal(picked.labels, anew.labels)


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


def test_claims_and_advice_are_of_the_committed_rows():
    rows = read_table("recipes.csv")
    claims = recipes.claim_tests(rows).set_index("claim")
    assert len(claims) == 12 and (claims["outcome"] == "holds").all()
    own = rows[(rows["condition"] == "600 photos") & (rows["seed"] >= 600)]
    means = 100 * own.groupby("method")["flickr8k/text_to_image_mean"].mean()
    above = claims.loc["CLIP+CCA is above CLIP+CLIP, 600", "difference"]
    assert above == pytest.approx(means["CLIP+CCA"] - means["CLIP+CLIP"])
    found = recipes.advice(rows).set_index(["condition", "score"])
    advised = found.loc[("600 photos", "image_to_text_mean"), ["advice", "difference"]]
    means = 100 * own.groupby("method")["flickr8k/image_to_text_mean"].mean()
    expected = ["CCA-start", pytest.approx(means["CCA-start"] - means["CLIP"])]
    assert advised.tolist() == expected
